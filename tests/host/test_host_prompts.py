"""Directions in words, Perp-Neg, and the embeddings' cache."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

import threestudio
from threestudio.models.prompt_processors.base import (
    PromptProcessor,
    fit_prompts,
    hash_prompt,
    save_embedding,
    shift_azimuth_deg,
)
from threestudio.utils.errors import UserError

ENCODED: list[str] = []


def spell(text):
    """The letters' codes of a text, as [20, 2]."""
    return torch.tensor([ord(letter) for letter in text[:40].ljust(40)]).float().view(20, 2)


class Spelling(PromptProcessor):
    """Embeds a prompt as its letters' codes."""

    @dataclass
    class Config(PromptProcessor.Config):
        pass

    @staticmethod
    def spawn_func(pretrained_model_name_or_path, prompts, cache_dir):
        ENCODED.extend(prompts)
        for prompt in prompts:
            save_embedding(spell(prompt), pretrained_model_name_or_path, prompt, cache_dir)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ENCODED.clear()


def processor(**cfg):
    return Spelling({"prompt": "a mug", "pretrained_model_name_or_path": "model", **cfg})


def row(output, text):
    return torch.equal(output, spell(text))


def test_output():
    out = processor(negative_prompt="blurry")()
    assert out.text_embeddings.shape == (1, 20, 2) and out.text_embeddings_vd.shape == (4, 20, 2)
    assert out.direction2idx == {"side": 0, "front": 1, "back": 2, "overhead": 3}
    assert out.prompts_vd == [
        "a mug, side view",
        "a mug, front view",
        "a mug, back view",
        "a mug, overhead view",
    ]
    assert row(out.uncond_text_embeddings[0], "blurry") and row(out.text_embeddings[0], "a mug")


def test_words_in_front_and_own_words():
    out = processor(view_dependent_prompt_front=True, prompt_back="the back of a mug")()
    assert out.prompts_vd == [
        "side view of a mug",
        "front view of a mug",
        "the back of a mug",
        "overhead view of a mug",
    ]
    assert processor(view_dependent_prompt_front=True)().prompts_vd[2] == "backside view of a mug"


@pytest.mark.parametrize(
    ("elevation", "azimuth", "name"),
    [
        (0, 0, "front"),
        (0, 44.9, "front"),
        (0, 45, "side"),
        (0, -44.9, "front"),
        (0, 90, "side"),
        (0, 135, "side"),
        (0, 135.1, "back"),
        (0, 180, "back"),
        (0, -180, "back"),
        (0, 359, "front"),
        (0, 200, "back"),
        (60, 0, "front"),
        (60.1, 0, "overhead"),
        (61, 180, "overhead"),
    ],
)
def test_directions(elevation, azimuth, name):
    out = processor()()
    index = out.direction_index(
        torch.tensor([float(elevation)]), torch.tensor([float(azimuth)]), torch.ones(1)
    )
    assert index.item() == out.direction2idx[name]


def test_azimuths_wrap():
    wrapped = shift_azimuth_deg(torch.tensor([-180.0, 180.0, 190.0, 360.0, -270.0]))
    assert wrapped.tolist() == [-180.0, -180.0, -170.0, 0.0, 90.0]


def test_conditional_embeddings_come_first():
    out = processor()()
    views = (torch.tensor([0.0, 0.0]), torch.tensor([0.0, 90.0]), torch.ones(2))
    embeddings = out.get_text_embeddings(*views)
    assert row(embeddings[0], "a mug, front view") and row(embeddings[1], "a mug, side view")
    assert row(embeddings[2], "") and len(embeddings) == 4
    plain = out.get_text_embeddings(*views, view_dependent_prompting=False)
    assert row(plain[0], "a mug") and row(plain[1], "a mug") and row(plain[3], "")


def test_perp_neg():
    out = processor(use_perp_neg=True)()
    assert out.use_perp_neg
    side, front, back, overhead = out.text_embeddings_vd
    azimuth = torch.tensor([0.0, 45.0, -135.0, 10.0])
    embeddings, weights = out.get_text_embeddings_perp_neg(
        torch.tensor([0.0, 0.0, 0.0, 80.0]), azimuth, torch.ones(4)
    )
    assert embeddings.shape == (16, 20, 2) and weights.shape == (4, 2)
    torch.testing.assert_close(
        embeddings[:4], torch.stack([front, (front + side) / 2, (side + back) / 2, overhead])
    )
    torch.testing.assert_close(embeddings[8:14], torch.stack([front, side, front, side, side, front]))
    torch.testing.assert_close(embeddings[14], out.uncond_text_embeddings_vd[3])
    # -(a exp(-b r) + c): a, b, c = 4, .5, -2.426 at r = 1 and 0, then at .5 twice; the other two at r = .5
    half = math.exp(-0.25)
    expected = [
        [-(4 * math.exp(-0.5) - 2.426), -(4 - 2.426)],
        [-(4 * half - 2.426)] * 2,
        [-(half - 0.606), -(half + 0.967)],
        [0.0, 0.0],
    ]
    torch.testing.assert_close(weights, torch.tensor(expected))
    assert (weights <= 1e-3).all()
    with pytest.raises(AssertionError):
        out.get_text_embeddings_perp_neg(azimuth, azimuth, azimuth, view_dependent_prompting=False)


# ---- cache ----


def test_each_prompt_is_encoded_once():
    processor()
    assert len(ENCODED) == len(set(ENCODED)) == 6
    processor()
    assert len(ENCODED) == 6
    processor(use_cache=False)
    assert len(ENCODED) == 12


def test_a_model_made_anew_in_the_same_folder_is_asked_anew(tmp_path):
    folder = tmp_path / "prior" / "text_encoder"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"old")
    before = hash_prompt(str(tmp_path / "prior"), "a mug")
    assert before == hash_prompt(str(tmp_path / "prior"), "a mug")
    (folder / "model.safetensors").write_bytes(b"newer")
    assert before != hash_prompt(str(tmp_path / "prior"), "a mug")
    assert hash_prompt("hub/id", "a mug") != hash_prompt("hub/id", "a cup")


@pytest.mark.parametrize("damage", [lambda content: content[:100], lambda content: b"no archive at all"])
def test_a_damaged_entry_is_encoded_again(tmp_path, damage):
    processor()
    for path in (tmp_path / ".threestudio_cache" / "text_embeddings").iterdir():
        path.write_bytes(damage(path.read_bytes()))
    assert row(processor()().text_embeddings[0], "a mug") and len(ENCODED) == 12


# ---- mistakes and the library ----


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"prompt": "  "}, "empty"),
        ({"prompt": "lib:a_b"}, "prompt_library"),
        ({"use_prompt_debiasing": True}, "debiasing"),
        ({"perp_neg_f_sb": [1, 2]}, "three numbers"),
        ({"promt": "a mug"}, "'promt'"),
    ],
)
def test_mistakes(cfg, words):
    with pytest.raises(UserError, match=words):
        processor(**cfg)


def test_library(tmp_path):
    (tmp_path / "load").mkdir()
    (tmp_path / "load" / "prompt_library.json").write_text('{"dreamfusion": ["a red mug", "a red cup"]}')
    assert processor(prompt="lib:red_mug").prompt == "a red mug"
    with pytest.raises(UserError, match="2 prompts"):
        processor(prompt="lib:red")


# ---- CLIP ----


def test_clip_last_hidden_states_and_truncation(tmp_path):
    """A text encoder of two layers, its tokenizer knowing single letters."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    model = tmp_path / "model"
    letters = "abcdefghijklmnopqrstuvwxyz,"
    words = [letter + end for end in ("", "</w>") for letter in letters] + [
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (tmp_path / "vocab.json").write_text(str({word: i for i, word in enumerate(words)}).replace("'", '"'))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=12)
    tokenizer.save_pretrained(model / "tokenizer")
    torch.manual_seed(0)
    size = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    config = CLIPTextConfig(vocab_size=len(words), max_position_embeddings=12, **size, **ends)
    encoder = CLIPTextModel(config).eval()
    encoder.save_pretrained(model / "text_encoder")

    processor = threestudio.find("stable-diffusion-prompt-processor")(
        {"prompt": "a very long mug", "pretrained_model_name_or_path": str(model)}
    )
    out = processor()
    assert out.text_embeddings.shape == (1, 12, 8)
    ids = tokenizer("a very long", padding="max_length", max_length=12, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(out.text_embeddings.cpu(), encoder(ids.input_ids)[0])


def test_a_long_prompt_keeps_its_directions(monkeypatch):
    """As many words as fit, and the direction; what is left out is said once of each prompt."""
    said = []
    monkeypatch.setattr(threestudio, "warn", said.append)
    prompts = ["a b c d e f g h i", *(f"a b c d e f g h i, {name} view" for name in ("side", "front"))]
    found = fit_prompts([*prompts, "short", "z" * 20], lambda text: len(text) <= 15)
    assert found == ["a b c d e f g h", "a b, side view", "a b, front view", "short", "z" * 15]
    assert len(said) == 2
    assert said[0].endswith("'c d e f g h i'") and said[1].endswith("'zzzzz'")


def test_no_log_line_holds_a_whole_long_prompt(monkeypatch):
    said = []
    monkeypatch.setattr(threestudio, "info", said.append)
    processor(prompt="a very long prompt " * 100)
    assert all(len(line) < 300 for line in said)


def test_two_lines_are_one_prompt():
    assert processor(prompt="a red\nmug\n").prompts_vd[0] == "a red mug, side view"
