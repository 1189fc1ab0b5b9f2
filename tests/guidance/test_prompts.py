"""View weights against a replay of the published rules; the prompt processor on a tiny text encoder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import threestudio
import threestudio_lucid.prompts.processor as processor
from threestudio_lucid.errors import UserError
from threestudio_lucid.guidance.prior import Prior
from threestudio_lucid.prompts import view

# --- view weights -------------------------------------------------------------------------------------------


def published(phi: float) -> tuple[dict[str, float], dict[str, float]]:
    """Text and Perp-Neg weights for one azimuth in (-180, 180], from the description of the release."""
    if abs(phi) < 90 or phi == -90:
        r = 1 - abs(phi) / 90
        text = {"front": r, "side": 1 - r}
        away = {
            "front": 0.0 if r > 0.8 else -2 * math.exp(-2 * r),
            "side": 0.0 if r < 0.2 else -2 * math.exp(-10 * (1 - r)),
        }
    else:
        r = 1 - (abs(phi) - 90) / 90
        text = {"side": r, "back": 1 - r}
        away = {"front": -2.0, "side": 0.0 if r > 0.8 else -1 * math.exp(-10 * r)}
    return text, away


AZIMUTHS = [float(a) for a in range(-179, 181)] + [17.9, 18.1, 72.01, -107.9, 0.001, 89.999, -90.001]


def test_weights_are_the_published_ones():
    azimuth = torch.tensor(AZIMUTHS, dtype=torch.float64)
    text, away = view.linear_weights(azimuth), view.perp_neg_weights(azimuth)
    for i, phi in enumerate(AZIMUTHS):
        expected_text, expected_away = published(phi)
        for j, name in enumerate(view.VIEWS):
            assert text[i, j].item() == pytest.approx(expected_text.get(name, 0.0), abs=1e-9), (phi, name)
        for j, name in enumerate(("front", "side")):
            # at 18, 72, 108 degrees r is .8 or .2 up to rounding, and either side of the step is right
            if min(abs(abs(phi) - edge) for edge in (18, 72, 108)) > 1e-6:
                assert away[j, i].item() == pytest.approx(expected_away[name], abs=1e-9), (phi, name)


def test_weights_by_hand():
    azimuth = torch.tensor([0.0, 45.0, 90.0, 135.0, 180.0, 225.0, -45.0])
    expected = torch.tensor(
        [
            [1, 0, 0, 0],
            [0.5, 0.5, 0, 0],
            [0, 1, 0, 0],
            [0, 0.5, 0.5, 0],
            [0, 0, 1, 0],
            [0, 0.5, 0.5, 0],
            [0.5, 0.5, 0, 0],
        ]
    )
    torch.testing.assert_close(view.linear_weights(azimuth), expected)
    away = view.perp_neg_weights(torch.tensor([0.0, 45.0, 180.0]))
    torch.testing.assert_close(away[0], torch.tensor([0.0, -2 * math.exp(-1), -2.0]))
    torch.testing.assert_close(away[1], torch.tensor([-2.0, -2 * math.exp(-5), -1.0]))


@pytest.mark.parametrize("shift", [-720.0, -360.0, 360.0, 1080.0])
def test_azimuth_is_an_angle(shift):
    azimuth = torch.tensor([10.0, 100.0, -170.0, 90.0])
    for weights in (view.linear_weights, view.nearest_weights, view.perp_neg_weights):
        torch.testing.assert_close(weights(azimuth + shift), weights(azimuth), atol=1e-5, rtol=1e-5)


def test_weights_sum_to_one_and_are_mirror_symmetric():
    azimuth = torch.linspace(-180, 180, 721)
    for weights in (view.linear_weights(azimuth), view.nearest_weights(azimuth)):
        torch.testing.assert_close(weights.sum(-1), torch.ones(721))
        torch.testing.assert_close(weights, weights.flip(0), atol=1e-5, rtol=0)
    assert (view.perp_neg_weights(azimuth) <= 0).all()


def test_the_only_visible_step_is_at_18_degrees():
    azimuth = torch.linspace(0.0, 180.0, 18001, dtype=torch.float64)
    jumps = view.perp_neg_weights(azimuth).diff(dim=1).abs()
    where = (jumps > 0.01).nonzero()
    assert len(where) == 1 and where[0, 0] == 0
    assert azimuth[where[0, 1]].item() == pytest.approx(18.0, abs=0.02)
    assert jumps.max().item() == pytest.approx(0.4038, abs=1e-3)  # 2 exp(-1.6)


def test_nearest_is_threestudios_rule():
    azimuth = torch.tensor([0.0, 44.9, 45.0, 135.0, 135.1, 180.0, -44.9, -136.0])
    names = [view.VIEWS[i] for i in view.nearest_weights(azimuth).argmax(-1)]
    assert names == ["front", "front", "side", "side", "back", "back", "front", "back"]


# --- the processor ------------------------------------------------------------------------------------------


def make(prior: Path, tmp_path: Path, **kwargs):
    config = {"prior": str(prior), "prompt": "a mug", "cache_dir": str(tmp_path / "cache")}
    return threestudio.find("lucid-prompt-processor")(config | kwargs)


def cameras(*azimuths: float, elevation: float = 10.0) -> dict[str, torch.Tensor]:
    azimuth = torch.tensor(azimuths)
    return {"elevation": torch.full_like(azimuth, elevation), "azimuth": azimuth}


def encoded(prior: Path, *prompts: str) -> torch.Tensor:
    return Prior.load(prior, "cpu").encode_text(prompts)


def test_embeddings_blend_with_azimuth(saved_priors, tmp_path):
    output = make(saved_priors["kl"], tmp_path, negative_prompt="bad", prompt="A mug.")()
    cond = output.embeddings_for(**cameras(0.0, 45.0, 135.0, -90.0))
    front, side, back = encoded(
        saved_priors["kl"], "A mug., front view", "A mug., side view", "A mug., back view"
    )
    expected = torch.stack([front, (front + side) / 2, (side + back) / 2, side])
    torch.testing.assert_close(cond.text, expected, rtol=1e-4, atol=1e-5)
    for found, text in ((cond.uncond, "bad"), (cond.inverse, "")):
        torch.testing.assert_close(found, encoded(saved_priors["kl"], text).expand(4, -1, -1))
    assert cond.negatives is None and cond.weights is None


def test_overhead_words_above_the_threshold(saved_priors, tmp_path):
    high = cameras(0.0, elevation=70.0)
    overhead, front = encoded(saved_priors["kl"], "a mug, overhead view", "a mug, front view")
    released = make(saved_priors["kl"], tmp_path)()
    torch.testing.assert_close(released.embeddings_for(**high).text[0], front)
    output = make(saved_priors["kl"], tmp_path, overhead_threshold=60.0, use_perp_neg=True)()
    torch.testing.assert_close(output.embeddings_for(**high).text[0], overhead)
    assert (output.embeddings_for(**high).weights == 0).all()
    low = output.embeddings_for(**cameras(0.0, elevation=60.0))
    torch.testing.assert_close(low.text[0], front)
    assert (low.weights != 0).any()


def test_nearest_view(saved_priors, tmp_path):
    output = make(saved_priors["kl"], tmp_path, view_blend="nearest")()
    cond = output.embeddings_for(**cameras(44.0, 46.0))
    torch.testing.assert_close(
        cond.text, encoded(saved_priors["kl"], "a mug, front view", "a mug, side view")
    )


def test_texts_of_ones_own(saved_priors, tmp_path):
    output = make(saved_priors["kl"], tmp_path, prompt_back="the end", view_blend="nearest")()
    torch.testing.assert_close(
        output.embeddings_for(**cameras(180.0)).text, encoded(saved_priors["kl"], "the end")
    )


def test_without_view_words(saved_priors, tmp_path):
    plain = encoded(saved_priors["kl"], "a mug")
    for output, flag in (
        (make(saved_priors["kl"], tmp_path, view_dependent=False)(), True),
        (make(saved_priors["kl"], tmp_path)(), False),
    ):
        cond = output.embeddings_for(**cameras(0.0, 180.0), view_dependent_prompting=flag)
        torch.testing.assert_close(cond.text, plain.expand(2, -1, -1))


def test_threestudios_interface(saved_priors, tmp_path):
    """Order of the batch as in threestudio's PromptProcessorOutput: conditional first, negatives in pairs."""
    output = make(saved_priors["kl"], tmp_path, use_perp_neg=True, negative_prompt="bad")()
    views = cameras(10.0, -100.0, 170.0)
    cond = output.embeddings_for(**views)
    both = output.get_text_embeddings(**views, camera_distances=torch.ones(3), view_dependent_prompting=True)
    assert torch.equal(both, torch.cat([cond.text, cond.uncond]))
    stacked, weights = output.get_text_embeddings_perp_neg(**views, camera_distances=torch.ones(3))
    assert stacked.shape[0] == 12 and weights.shape == (3, 2)
    assert torch.equal(stacked[:6], both)
    for b in range(3):
        for k in range(2):
            assert torch.equal(stacked[6 + 2 * b + k], cond.negatives[k, b])
            assert weights[b, k] == cond.weights[k, b]
    assert output.text_embeddings.shape == output.uncond_text_embeddings.shape == (1, 40, 12)
    side, front = output.text_embeddings_vd[:2]
    assert torch.equal(front, output.views[0]) and torch.equal(side, output.views[1])
    assert output.uncond_text_embeddings_vd.shape == (4, 40, 12) and output.prompt == "a mug"
    assert output.prompts_vd == [f"a mug, {name} view" for name in ("side", "front", "back", "overhead")]


def test_embeddings_are_kept_and_the_encoder_stays_unloaded(own_prior, tmp_path, monkeypatch):
    first = make(own_prior, tmp_path)()
    assert len(list((tmp_path / "cache").iterdir())) == 6  # plain, empty (twice), four views
    monkeypatch.setattr(Prior, "encode_text", lambda *args: pytest.fail("the text encoder was used"))
    again = make(own_prior, tmp_path)()
    assert torch.equal(first.views, again.views)
    assert "_text" not in vars(Prior.load(own_prior, "cpu"))


@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_damaged_cache_is_made_again(own_prior, tmp_path, damage):
    first = make(own_prior, tmp_path)()
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:-9] if damage is None else damage)
    assert torch.equal(make(own_prior, tmp_path)().views, first.views)
    assert all(processor.read_embedding(f) is not None for f in (tmp_path / "cache").iterdir())


def test_retrained_text_encoder_at_the_same_path_is_noticed(own_prior, tmp_path):
    import tiny

    before = make(own_prior, tmp_path)()
    torch.manual_seed(9)
    tiny.make_text_encoder().save_pretrained(own_prior / "text_encoder")
    del before.views
    assert not torch.equal(make(own_prior, tmp_path)().plain, before.plain)


def test_no_cache(saved_priors, tmp_path):
    make(saved_priors["kl"], tmp_path, use_cache=False)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_no_error(saved_priors, tmp_path):
    (tmp_path / "file").touch()
    output = make(saved_priors["kl"], tmp_path, cache_dir=str(tmp_path / "file" / "cache"))()
    assert output.views.shape == (4, 40, 12)


# --- long prompts -------------------------------------------------------------------------------------------

LONG = "a mug of blue glass, on a table, with tea and milk"  # the tiny encoder reads 38 letters


def heard(monkeypatch) -> list[str]:
    said: list[str] = []
    for level in ("info", "warn"):
        monkeypatch.setattr(threestudio, level, said.append)
    return said


def test_a_long_prompt_keeps_its_view_words(saved_priors, tmp_path, monkeypatch):
    said = heard(monkeypatch)
    output = make(saved_priors["kl"], tmp_path, prompt=LONG)()
    assert output.prompt == "a mug of blue glass, on a table"
    for name in view.VIEWS:
        text = f"a mug of blue glass, on a table, {name} view"
        torch.testing.assert_close(output.views[view.VIEWS.index(name)], encoded(saved_priors["kl"], text)[0])
    assert not torch.allclose(output.views[0], output.views[1], atol=1e-3)
    (cut,) = [line for line in said if "too long" in line]
    assert "system.prompt_processor.prompt" in cut and cut.endswith("'with tea and milk'")
    said.clear()
    assert torch.equal(make(saved_priors["kl"], tmp_path, prompt=LONG)().views, output.views)
    assert sum("too long" in line for line in said) == 1  # of cached embeddings, too


def test_without_views_nothing_is_kept_free_for_them(saved_priors, tmp_path):
    text = "a mug of blue glass with tea in it"
    assert make(saved_priors["kl"], tmp_path, prompt=text, view_dependent=False)().prompt == text
    assert make(saved_priors["kl"], tmp_path, prompt=text)().prompt != text


def test_other_texts_are_cut_too(saved_priors, tmp_path, monkeypatch):
    said = heard(monkeypatch)
    fields = ("negative_prompt", "prompt_back", "source_prompt")
    output = make(saved_priors["kl"], tmp_path, **dict.fromkeys(fields, LONG))()
    assert output.prompts["source back"] == "a mug of blue glass, on a table, back view"
    assert (
        output.prompts["back"]
        == output.prompts["negative"]
        == "a mug of blue glass, on a table, with tea and"
    )
    told = [line.split()[0] for line in said if "too long" in line]
    assert sorted(told) == sorted(f"system.prompt_processor.{field}" for field in fields)


def test_no_log_line_holds_a_whole_long_prompt(saved_priors, tmp_path, monkeypatch):
    said = heard(monkeypatch)
    make(saved_priors["kl"], tmp_path, prompt="a very long prompt " * 100)
    assert said and all(len(line) < 300 for line in said)


def test_two_lines_are_one_prompt(saved_priors, tmp_path):
    assert make(saved_priors["kl"], tmp_path, prompt="a red\n mug\n")().prompt == "a red mug"


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"prompt": " "}, 'system.prompt_processor.prompt="a hamburger"'),
        ({"prompt": "a\0mug"}, "system.prompt_processor.prompt is no text"),
        ({"negative_prompt": "\x1b"}, "system.prompt_processor.negative_prompt is no text"),
        ({"front_threshold": 100.0, "back_threshold": 90.0}, "front_threshold (100) and back_threshold (90)"),
        ({"view_blend": "cubic"}, "system.prompt_processor.view_blend is 'cubic'"),
        ({"overhead_threshold": 200.0}, "at most 90"),
        ({"perp_neg_weight": 1.0}, "perp_neg_weight is 1.0; it must be at most 0"),
        ({"use_perp_neg": True, "view_dependent": False}, "view_dependent=true"),
    ],
)
def test_mistakes_in_the_config(saved_priors, tmp_path, config, expected):
    with pytest.raises(UserError) as caught:
        make(saved_priors["kl"], tmp_path, **config)
    assert expected in str(caught.value)


def test_unknown_words(own_prior, tmp_path):
    card = {"name": "own", "path": ".", "image_size": 32, "latent_size": 8}
    card["vocabulary"] = ["a", "mug", "front", "side", "back", "overhead", "view", ","]
    (own_prior / "card.yaml").write_text(json.dumps(card))
    assert make(own_prior, tmp_path, prompt="A Mug.")().prompt == "a mug"
    for field in ("prompt", "negative_prompt"):
        with pytest.raises(UserError, match=f"system.prompt_processor.{field}: .*'cup'"):
            make(own_prior, tmp_path, **{field: "a cup"})
        for text, unknown in (("☕", "'☕'"), ("a mug ☕", "'☕'"), ("...", "no word"), ("!!!", "no word")):
            with pytest.raises(UserError, match=f"system.prompt_processor.{field}: .*{unknown}"):
                make(own_prior, tmp_path, **{field: text})
    with pytest.raises(UserError, match="'word7', and 92 more"):
        make(own_prior, tmp_path, prompt=" ".join(f"word{i}" for i in range(100)))


def test_perp_neg_must_be_on_to_be_asked_for(saved_priors, tmp_path):
    output = make(saved_priors["kl"], tmp_path)()
    with pytest.raises(UserError, match="use_perp_neg=true"):
        output.get_text_embeddings_perp_neg(**cameras(0.0), camera_distances=torch.ones(1))
