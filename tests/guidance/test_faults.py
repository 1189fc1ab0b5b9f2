"""Scores that are no numbers: the step is left out, its cause is told, and ten in a row end the run."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_guidance import batch, guidance, latents, pictures, prompts

import threestudio
from threestudio_lucid.errors import UserError
from threestudio_lucid.guidance.faults import LARGEST_SCORE, Witness
from threestudio_lucid.guidance.ism import Distillation
from threestudio_lucid.weights import check_finite


@pytest.fixture
def told(monkeypatch):
    """What the guidance warns of."""
    lines = []
    monkeypatch.setattr(threestudio, "warn", lines.append)
    return lines


@pytest.fixture
def ism(saved_priors):
    return guidance(saved_priors["kl"])


@pytest.fixture
def mug(saved_priors, tmp_path):
    return prompts(saved_priors["kl"], tmp_path)


def spoil(monkeypatch, g, where=lambda tau, rows: True, value=float("nan")):
    """The prior's network returns one bad number where `where` says."""
    predict = type(g.prior).predict

    def spoilt(self, x, tau, embeddings, **kwargs):
        out = predict(self, x, tau, embeddings, **kwargs)
        if where(tau, len(x)):
            out[0, 0, 0, 0] = value
        return out

    monkeypatch.setattr(type(g.prior), "predict", spoilt)


def take(g, mug, step, rgb=None, **kwargs):
    """One step as a system makes it; returns the gradient on the pictures."""
    rgb = pictures() if rgb is None else rgb
    g.do_update_step(0, step)
    out = g(rgb, mug, **batch(len(rgb)), **kwargs)
    out["loss_sds"].backward()
    g.do_update_step_end(0, step + 1)
    return rgb.grad


# --- what is finite stays as it is --------------------------------------------------------------------------


def test_finite_gradients_pass_to_the_last_bit():
    draw = torch.Generator().manual_seed(0)
    pred, target, grad = torch.randn(3, 2, 4, 8, 8, generator=draw)
    grad[0, 0, 0, :3] = torch.tensor([-0.0, 1e-40, 3e38])  # nothing is rounded, flushed or clamped
    witness = Witness()
    out = witness.screen(Distillation(pred, pred, target, pred, grad, 1, 2))
    assert torch.equal(out.view(torch.int32), grad.view(torch.int32))
    assert not witness.fault and witness.explain(torch.float32) is None
    images = torch.randn(2, 4, 8, 8, generator=draw).requires_grad_()
    witness.guarded(images).backward(grad)
    assert torch.equal(images.grad.view(torch.int32), grad.view(torch.int32))


@pytest.mark.parametrize(("factor", "fault"), [(0.99, False), (1.01, True)])
def test_bound_of_the_score(factor, fault):
    """Of each view alone: a good one does not hide a bad one."""
    target = torch.zeros(2, 4, 8, 8)
    pred = target.clone()
    pred[1] = factor * LARGEST_SCORE
    witness = Witness()
    out = witness.screen(Distillation(pred, pred, target, pred, pred, 1, 2))
    assert bool(witness.fault) is fault
    assert bool((out == 0).all()) is fault


# --- what is not, is left out and told ----------------------------------------------------------------------

CAUSES = {
    "inversion": (lambda tau, rows: rows == 3 and tau == 1, "the score without text at timestep 1 "),
    "with text": (lambda tau, rows: rows == 6, "the score with text at timestep "),
    "everywhere": (lambda tau, rows: True, "the score without text at timestep 1 "),
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", CAUSES)
def test_the_call_that_went_wrong_is_named(ism, mug, monkeypatch, told, where, value):
    spoilt, cause = CAUSES[where]
    spoil(monkeypatch, ism, spoilt, value)
    grad = take(ism, mug, 700)
    assert torch.equal(grad, torch.zeros_like(grad))
    assert len(told) == 1
    assert told[0].startswith(f"Step 701: {cause}")
    assert "1 of " in told[0] and "float32" in told[0] and "left out" in told[0]


def test_sds_is_watched_too(saved_priors, tmp_path, monkeypatch, told):
    g = guidance(saved_priors["kl"], "lucid-sds-guidance")
    spoil(monkeypatch, g)
    grad = take(g, prompts(saved_priors["kl"], tmp_path), 3)
    assert not grad.any()
    assert told[0].startswith("Step 4: the score with text at timestep ")


def test_pictures_that_are_none(ism, mug, told):
    rgb = pictures().detach()
    rgb[1, 2, 3, 0] = math.nan
    grad = take(ism, mug, 0, rgb.requires_grad_())
    assert not grad.any()  # nor does the encoder's backward pass make NaN of zeros
    assert "a rendered picture is not finite" in told[0]


def test_an_encoder_that_overflows(ism, mug, told, monkeypatch):
    encode = type(ism.prior).encode
    monkeypatch.setattr(type(ism.prior), "encode", lambda *a: encode(*a) * math.inf)
    assert not take(ism, mug, 0).any()
    assert "an encoded picture is not finite" in told[0]


def test_text_that_is_none(ism, mug, told, monkeypatch):
    embeddings_for = type(mug).embeddings_for

    def spoilt(self, *args):
        cond = embeddings_for(self, *args)
        cond.text[0, 0, 0] = math.nan
        return cond

    monkeypatch.setattr(type(mug), "embeddings_for", spoilt)
    assert not take(ism, mug, 0).any()
    assert "the embedding of the text is not finite" in told[0]


def test_a_scale_beyond_all_sense(saved_priors, mug, told):
    g = guidance(saved_priors["kl"], guidance_scale=1e9)
    assert not take(g, mug, 0).any()
    assert "the difference of the scores is" in told[0] and "about 1" in told[0]


def test_usual_scales_are_not_beyond(saved_priors, tmp_path, told):
    g = guidance(saved_priors["kl"], "lucid-sds-guidance", guidance_scale=100.0)
    mug = prompts(saved_priors["kl"], tmp_path)
    assert all(take(g, mug, step).any() for step in range(3)) and not told


def test_ten_in_a_row_end_the_run(ism, mug, monkeypatch, told):
    spoil(monkeypatch, ism)
    for step in range(9):
        take(ism, mug, step)
    with pytest.raises(UserError) as caught:
        take(ism, mug, 9)
    message = str(caught.value)
    assert message.startswith("Step 10: the score without text") and "10 steps in a row" in message
    assert "system.guidance.guidance_scale (now 7.5)" in message and str(ism.prior.source) in message
    assert len(told) == 9


def test_a_good_one_between_begins_anew(ism, mug, monkeypatch, told):
    bad = []
    spoil(monkeypatch, ism, lambda tau, rows: bool(bad))
    for step in range(30):
        bad[:] = [] if step % 10 == 9 else [True]
        assert bool(take(ism, mug, step).any()) is not bool(bad)
    assert len(told) == 27


def test_a_system_that_asks_is_the_one_to_tell(ism, mug, monkeypatch, told):
    """And the calls of all its parts are one step."""
    spoil(monkeypatch, ism, lambda tau, rows: rows in (1, 2))
    ism.update_step(0, 5)
    for n in (3, 1):
        ism(pictures(n), mug, **batch(n))
    assert [bool(flag) for flag in ism.faults.flags()] == [False, True]
    assert "the score without text" in ism.explain_fault()
    ism.update_step_end(0, 6)
    assert not told and not ism.faults.flags()


def test_gradients_that_overflow_in_the_encoder_are_explained(ism, mug):
    """They pass, for a GradScaler waits for them; whoever finds them is told why."""
    rgb = latents()
    ism.update_step(0, 0)
    out = ism(rgb, mug, **batch(), rgb_as_latents=True)
    (out["loss_sds"] * math.inf).backward()
    assert not rgb.grad.isfinite().all()
    assert ism.explain_fault() == "the gradient through the encoder is not finite (float32)"


# --- weights ------------------------------------------------------------------------------------------------

FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", FILES)
def test_weights_that_are_none_are_refused(own_prior, tmp_path, part, value):
    file = own_prior / FILES[part]
    state = load_file(file)
    name = sorted(name for name in state if name.endswith("weight"))[-1]
    state[name].view(-1)[3] = value
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        prompts(own_prior, tmp_path)
        guidance(own_prior)
    assert str(file) in str(caught.value) and name in str(caught.value)
    assert "1 numbers of" in str(caught.value)


def test_weights_that_a_smaller_dtype_cannot_hold(tmp_path):
    model = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.constant_(model.weight, 1e5)
    save_file({"weight": model.weight.detach().clone()}, tmp_path / "model.safetensors")
    check_finite(model, tmp_path)
    with pytest.raises(UserError, match=r"weight hold 4 .* in float16: .* 1e\+05.*dtype=float32"):
        check_finite(model.half(), tmp_path)
