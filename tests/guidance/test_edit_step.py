"""Edits: what each reference compares with, worked out from ISM steps, and what an edit to itself is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import replay
import torch
from test_guidance import batch, guidance, prompts
from test_schedule import stable_diffusion

from threestudio_lucid.errors import UserError
from threestudio_lucid.guidance.combine import Conditioning
from threestudio_lucid.guidance.edit import REFERENCES, edit_step
from threestudio_lucid.guidance.ism import ism_step

OPTIONS = {"delta_t": 50, "delta_s": 100, "guidance_scale": 5.0}


@pytest.fixture
def scene():
    """(model, schedule, latents, noise, index), and three different texts."""
    embeddings = replay.embeddings()
    text, empty = embeddings["text"], embeddings["inverse"]
    source = 0.5 * text.flip(-1) + 0.2
    parts = (replay.network, stable_diffusion(), replay.latents(), replay.noise(), 300)
    return parts, Conditioning(text, embeddings["uncond"], empty, source=source)


def test_empty_is_ism(scene):
    parts, cond = scene
    found = edit_step(*parts, cond, reference="empty", **OPTIONS)
    assert torch.equal(found.grad, ism_step(*parts, cond, **OPTIONS).grad)


def test_source_stands_in_for_no_text_and_for_the_negative_prompt(scene):
    parts, cond = scene
    found = edit_step(*parts, cond, reference="source", **OPTIONS)
    by_hand = ism_step(*parts, replace(cond, uncond=cond.source, inverse=cond.source), **OPTIONS)
    assert torch.equal(found.grad, by_hand.grad)
    other = replace(cond, uncond=torch.zeros_like(cond.uncond))
    assert torch.equal(found.grad, edit_step(*parts, other, reference="source", **OPTIONS).grad)


def test_delta_takes_off_the_sources_own_step(scene):
    parts, cond = scene
    model, schedule, latents, noise, index = parts
    before = latents + 0.3
    found = edit_step(*parts, cond, reference="delta", source=before, **OPTIONS)
    own = Conditioning(cond.source, cond.uncond, cond.inverse)
    still = ism_step(model, schedule, before, noise, index, own, **OPTIONS)
    moving = edit_step(*parts, cond, reference="empty", **OPTIONS)
    torch.testing.assert_close(found.grad, moving.grad - still.grad)


@pytest.mark.parametrize("recipe", ["released", "paper"])
def test_delta_of_a_picture_to_itself_is_zero(scene, recipe):
    parts, cond = scene
    same = replace(cond, text=cond.source)
    found = edit_step(*parts, same, reference="delta", source=parts[2], recipe=recipe, **OPTIONS)
    assert found.grad.abs().max() < 1e-5
    assert edit_step(*parts, same, reference="empty", recipe=recipe, **OPTIONS).grad.abs().max() > 1e-2


def test_fresh_noise_is_the_same_for_both(scene):
    parts, cond = scene
    same = replace(cond, text=cond.source)
    draws = torch.Generator().manual_seed(3)
    options = {**OPTIONS, "eta": 0.5, "generator": draws}
    assert edit_step(*parts, same, source=parts[2], **options).grad.abs().max() < 1e-5


def test_what_is_missing_is_told(scene):
    parts, cond = scene
    with pytest.raises(ValueError, match="expected one of"):
        edit_step(*parts, cond, reference="none", **OPTIONS)
    with pytest.raises(ValueError, match="needs the source picture's latents"):
        edit_step(*parts, cond, reference="delta", **OPTIONS)
    with pytest.raises(ValueError, match="needs a source prompt"):
        edit_step(*parts, replace(cond, source=None), reference="source", **OPTIONS)


# --- the registered class -----------------------------------------------------------------------------------


@pytest.mark.parametrize("vae", ["kl", "tiny"])
@pytest.mark.parametrize("perp_neg", [False, True])
def test_an_edit_to_itself_pulls_nowhere(saved_priors, tmp_path, vae, perp_neg):
    """Mirrored or not, with a sampled posterior or not: source and picture are seen with the same eyes."""
    g = guidance(saved_priors[vae], "lucid-edit-guidance", reference="delta")
    texts = prompts(saved_priors[vae], tmp_path, prompt="mug", source_prompt="mug", use_perp_neg=perp_neg)
    rgb = torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    for step in range(4):
        g.update_step(0, step)
        assert g(rgb, texts, **batch(), source_rgb=rgb)["grad_norm"] < 1e-3
        g.update_step(0, step + 100)
        assert g(rgb, texts, **batch(), source_rgb=1.0 - rgb)["grad_norm"] > 1e-3


@pytest.mark.parametrize("reference", REFERENCES)
def test_source_texts_follow_the_views(saved_priors, tmp_path, reference):
    g = guidance(saved_priors["tiny"], "lucid-edit-guidance", reference=reference)
    texts = prompts(saved_priors["tiny"], tmp_path, prompt="mug", source_prompt="cup")
    cond = texts.embeddings_for(torch.zeros(3), torch.tensor([0.0, 90.0, 180.0]))
    assert torch.equal(cond.source, texts.source_views[:3])
    plain = texts.embeddings_for(torch.zeros(3), torch.zeros(3), view_dependent_prompting=False)
    assert torch.equal(plain.source, texts.source.expand(3, -1, -1))
    assert texts.prompts["source back"] == "cup, back view"
    rgb = torch.rand(3, 32, 32, 3).requires_grad_()
    out = g(rgb, texts, **batch(), source_rgb=rgb.detach())
    out["loss_sds"].backward()
    assert rgb.grad.isfinite().all() and rgb.grad.norm() > 0


def test_the_reference_follows_the_source_prompt(saved_priors, tmp_path):
    with_source = prompts(saved_priors["tiny"], tmp_path, source_prompt="cup")
    without = prompts(saved_priors["tiny"], tmp_path)
    g = guidance(saved_priors["tiny"], "lucid-edit-guidance")
    assert g.reference_for(with_source) != "empty"
    assert g.reference_for(without) == "empty"
    g = guidance(saved_priors["tiny"], "lucid-edit-guidance", reference="source")
    with pytest.raises(UserError, match="source_prompt="):
        g.reference_for(without)
    with pytest.raises(UserError, match=r"system\.guidance\.reference is 'delat'; it must be one of"):
        guidance(saved_priors["tiny"], "lucid-edit-guidance", reference="delat")
