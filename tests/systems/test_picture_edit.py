"""Editing pictures: any size, masked-out pixels stay to the bit, mistakes are told, runs repeat."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from threestudio_lucid.data.picture import Framing, read_mask, read_picture
from threestudio_lucid.errors import UserError

ROOT = Path(__file__).parents[2]


def save_picture(path: Path, width: int = 40, height: int = 28, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((width, height)).save(path)
    return path


def edit(image, prior, folder, *overrides, steps=2, stage="train"):
    from threestudio.run import Request, run

    given = [
        f"data.image={image}",
        f"system.guidance.prior={prior}",
        f"system.prompt_processor.cache_dir={folder}/cache",
        "system.prompt_processor.source_prompt=ball",
        "system.prompt_processor.prompt=abc",
        f"exp_root_dir={folder}/out",
        "use_timestamp=false",
        "tag=abc",
        f"trainer.max_steps={steps}",
        *overrides,
    ]
    run(Request(str(ROOT / "configs/edit-2d.yaml"), stage, given, [ROOT / "custom"]))
    return folder / "out/edit-2d/abc/save"


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.parametrize("size", [(40, 28), (20, 64), (32, 32)], ids=str)
def test_two_steps_of_any_size_twice_are_the_same(size, small_prior, tmp_path):
    image = save_picture(tmp_path / "a.jpg", *size)
    first, second = (edit(image, small_prior, tmp_path / run) for run in "ab")
    edited = Image.open(first / "it2-edited.png")
    assert edited.size == size
    assert np.abs(pixels(first / "it2-edited.png") - pixels(image)).max() > 0
    assert np.array_equal(pixels(first / "it2-before.png"), pixels(image))
    assert (first / "it2-edit.png").stat().st_size > 0
    for name in ("it2-edited.png", "it2-metrics.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    told = json.loads((first / "it2-metrics.json").read_text())
    assert (told["source_prompt"], told["prompt"], told["prior"]) == ("ball", "abc", "tiny")


def test_outside_a_mask_nothing_changes(small_prior, tmp_path):
    image = save_picture(tmp_path / "a.png")
    box = "data.box=[0.0, 0.0, 0.5, 1.0]"
    by_box = pixels(edit(image, small_prior, tmp_path / "box", box, "system.lr=5") / "it2-edited.png")
    assert np.array_equal(by_box[:, 20:], pixels(image)[:, 20:])
    assert not np.array_equal(by_box[:, :20], pixels(image)[:, :20])
    mask = np.zeros((28, 40), dtype=np.uint8)
    mask[:, :20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    given = [f"data.mask={tmp_path}/mask.png", "system.lr=5"]
    by_mask = pixels(edit(image, small_prior, tmp_path / "mask", *given) / "it2-edited.png")
    assert np.array_equal(by_mask, by_box)


@pytest.mark.parametrize("reference", ["delta", "source", "empty"])
def test_references(small_prior, tmp_path, reference):
    """An edit to itself does nothing under delta, and something under the others."""
    image = save_picture(tmp_path / "a.png")
    given = [
        f"system.guidance.reference={reference}",
        "system.prompt_processor.source_prompt=abc",
        "system.lr=1",
    ]
    edited = edit(image, small_prior, tmp_path, *given) / "it2-edited.png"
    change = np.abs(pixels(edited) - pixels(image)).max()
    assert change <= 1 if reference == "delta" else change > 1


def test_resumed_ends_like_uninterrupted(small_prior, tmp_path):
    image = save_picture(tmp_path / "a.png")
    given = ["checkpoint.every_n_train_steps=1"]
    whole = edit(image, small_prior, tmp_path / "whole", *given, steps=4)
    checkpoint = whole.parent / "ckpts/epoch=0-step=2.ckpt"
    resumed = edit(image, small_prior, tmp_path / "resumed", f"resume='{checkpoint}'", steps=4)
    assert (whole / "it4-edited.png").read_bytes() == (resumed / "it4-edited.png").read_bytes()
    last = whole.parent / "ckpts/last.ckpt"
    exported = edit(image, small_prior, tmp_path / "export", f"resume='{last}'", stage="export")
    assert np.array_equal(pixels(exported / "it4-export/edited.png"), pixels(whole / "it4-edited.png"))


@given(st.integers(1, 40), st.integers(1, 40))
def test_there_and_back(height, width):
    """At its own size a picture comes back as it was; at another, a plain colour does."""
    frame = Framing(height, width)
    picture = torch.rand(height, width, 3)
    assert torch.equal(frame.from_square(frame.to_square(picture, frame.side)), picture)
    plain = torch.full((height, width, 3), 0.3)
    torch.testing.assert_close(frame.from_square(frame.to_square(plain, 17)), plain)


def test_pictures_are_read_as_people_see_them(tmp_path):
    see_through = np.zeros((4, 6, 4), dtype=np.uint8)
    see_through[:, 3:] = (255, 0, 0, 255)
    Image.fromarray(see_through).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.shape == (4, 6, 3)
    assert (picture[:, :3] == 1.0).all() and (picture[:, 3:] == torch.tensor([1.0, 0.0, 0.0])).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(see_through[..., :3]).save(tmp_path / "b.jpg", exif=exif)
    assert read_picture(tmp_path / "b.jpg").shape == (6, 4, 3)
    Image.new("L", (3, 2), 51).save(tmp_path / "c.png")
    assert torch.allclose(read_picture(tmp_path / "c.png"), torch.tensor(0.2))


def test_what_a_mask_does_not_show_stays(tmp_path):
    """White on nothing, as paint programs save it."""
    see_through = np.zeros((4, 6, 4), dtype=np.uint8)
    see_through[:, 3:] = 255
    Image.fromarray(see_through).save(tmp_path / "mask.png")
    mask = read_mask(str(tmp_path / "mask.png"), None, 4, 6)
    assert not mask[:, :3].any() and mask[:, 3:].all()


def test_formats_that_are_programs_are_not_opened(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(UserError, match="is no picture"):
        read_picture(tmp_path / "a.png")


MISTAKES = {
    "data.image=''": "There is no picture",
    "data.image=nowhere.png": "no file nowhere.png",
    "data.image=FOLDER/text.png": "is no picture",
    "data.image=FOLDER/half.png": "Is it damaged?",
    "data.image=FOLDER/huge.png": "at most 6,000 x 6,000",
    "data.mask=FOLDER/dark.png": "dark everywhere",
    "data.mask=FOLDER/small.png": "must be the same",
    "data.mask=nowhere.png": "data.mask: there is no file",
    "data.box=[0.5, 0, 0.2, 1]": "data.box is",
    "data.box=[0, 0, 40, 28]": "in shares of width and height",
    "data.box=[0.5, 0.5, 0.501, 0.501]": "holds no pixel",
    "data.size=0": "size is 0",
    "system.lr=fast": "system.lr",
    "system.guidance.reference=delat": "delta",
    "system.prompt_processor.prompt=''": "no prompt",
    "system.optimizer={name: Adam}": "system.lr",
}


@pytest.mark.parametrize(("override", "words"), MISTAKES.items(), ids=MISTAKES)
def test_mistakes_are_told_before_training(small_prior, tmp_path, monkeypatch, override, words):
    image = save_picture(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("no picture at all")
    (tmp_path / "half.png").write_bytes(image.read_bytes()[:200])
    Image.new("L", (40, 28)).save(tmp_path / "dark.png")
    Image.new("L", (4, 2), 255).save(tmp_path / "small.png")
    if "huge" in override:
        Image.new("1", (8001, 8001)).save(tmp_path / "huge.png")
    with pytest.raises(Exception) as caught:
        edit(image, small_prior, tmp_path, override.replace("FOLDER", str(tmp_path)))
    assert getattr(caught.value, "is_user_error", False), repr(caught.value)
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_both_masks_and_a_missing_source_are_told(small_prior, tmp_path):
    image = save_picture(tmp_path / "a.png")
    with pytest.raises(Exception, match="give one of them"):
        edit(image, small_prior, tmp_path, f"data.mask={image}", "data.box=[0, 0, 1, 1]")
    given = ["system.prompt_processor.source_prompt=''", "system.guidance.reference=source"]
    with pytest.raises(Exception, match="source_prompt="):
        edit(image, small_prior, tmp_path, *given)
