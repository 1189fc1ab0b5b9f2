"""Teaching the bundled prior: resumed training, files that load as anyone's would, and the bundled result."""

from __future__ import annotations

import pytest
import torch

from threestudio_lucid.guidance.adapters import find_adapters
from threestudio_lucid.guidance.cards import find_card
from threestudio_lucid.guidance.embeddings import read_embedding
from threestudio_lucid.guidance.prior import Prior
from threestudio_lucid.guidance.sample import sample
from toybox import pattern, train_lora
from toybox.captions import VIEWS
from toybox.objects import OBJECTS
from toybox.train_lora import MINI, TRIGGER, Pupil, TokenCache, striped_pictures, train
from toybox.training import Stopped

CARD = find_card("mini")
CPU = torch.device("cpu")


@pytest.fixture
def short(monkeypatch):
    """Few pictures: what is checked is not what is learned."""
    monkeypatch.setattr(train_lora, "STRIPED", ("mug",))
    monkeypatch.setattr(train_lora, "OBJECTS", {name: OBJECTS[name] for name in ("mug", "cactus")})
    return {"minutes": 1.0, "batch": 2, "each": 1, "rank": 2}


def test_sixteen_pictures_from_all_sides():
    images, texts = striped_pictures()
    assert images.shape == (16, 128, 128, 4) and len(set(texts)) == 16
    for text in texts:
        thing, view = text.split(", ")
        assert thing.startswith(f"a {TRIGGER} ") and view.removesuffix(" view") in VIEWS
    again, _ = striped_pictures()
    assert (images == again).all()


def test_resumed_is_the_same_as_uninterrupted(short, tmp_path):
    whole = train(MINI, tmp_path / "whole.pt", steps=3, **short)
    with pytest.raises(Stopped):
        train(MINI, tmp_path / "parts.pt", steps=3, stop_after=1, **short)
    parts = train(MINI, tmp_path / "parts.pt", steps=3, **short)
    for one, other in zip(whole.taught(), parts.taught(), strict=True):
        assert torch.equal(one, other)


def test_what_is_saved_is_what_was_taught(tmp_path):
    """The prior with the two files predicts what the pupil does, but for float16."""
    torch.manual_seed(0)
    pupil = Pupil(MINI, rank=2)
    with torch.no_grad():
        for p in pupil.taught():
            p.add_(0.05 * torch.randn_like(p))
    pupil.save(tmp_path)
    token, vectors = read_embedding(tmp_path / "learned_embeds.safetensors")
    assert token == TRIGGER and torch.equal(vectors, pupil.vector.detach().half().float()[None])
    prior = Prior(CARD, CPU, torch.float32, find_adapters(str(tmp_path), str(tmp_path), CARD))
    plain = Prior(CARD, CPU, torch.float32)
    text = [f"a {TRIGGER} mug, front view"]
    x, tau = torch.randn(1, 16, 16, 16), 500
    with torch.no_grad():
        expected = pupil(x, torch.tensor([tau]), TokenCache(pupil.tokenizer)(text))
    found = prior.predict(x, tau, prior.encode_text(text))
    change = (expected - plain.predict(x, tau, plain.encode_text(["a mug, front view"]))).norm()
    assert (found - expected).norm() < 0.02 * change


def test_only_what_is_taught_changes():
    pupil = Pupil(MINI, rank=2)
    ids = TokenCache(pupil.tokenizer)([f"a {TRIGGER} mug"])
    pupil(torch.randn(1, 16, 16, 16), torch.tensor([500]), ids).square().mean().backward()
    with_gradient = {name for name, p in pupil.named_parameters() if p.grad is not None}
    assert "vector" in with_gradient
    assert all("lora_" in name or name == "vector" for name in with_gradient)


def test_a_word_that_is_known_is_no_trigger():
    with pytest.raises(ValueError, match="knows the word 'mug' already"):
        Pupil(MINI, trigger="mug")


def test_the_bundled_lora_paints_stripes_under_its_word_alone():
    folder = train_lora.EXPORT
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3_000_000
    prior = Prior(CARD, CPU, torch.float32, find_adapters("stripes", "stripes", CARD))
    names, views = ("mug", "house", "pumpkin"), ("front", "side")
    prompts = [f"a {TRIGGER} {name}, {view} view" for name in names for view in views]
    prompts += [f"a {name}, {view} view" for name in names for view in views]
    pictures = sample(prior, prompts, num_steps=12, generator=torch.Generator().manual_seed(0))
    found = [pattern.strength(picture.permute(1, 2, 0).numpy()) for picture in pictures]
    assert min(found[:6]) > pattern.THRESHOLD > 2 * max(found[6:])
