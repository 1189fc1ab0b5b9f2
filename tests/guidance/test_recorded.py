"""Denoisers recorded for the CPU against the same denoisers called as ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from threestudio_lucid.guidance import prior as prior_module
from threestudio_lucid.guidance import recorded
from threestudio_lucid.guidance.combine import Conditioning
from threestudio_lucid.guidance.ism import ism_step
from threestudio_lucid.guidance.norms import group_norm
from threestudio_lucid.guidance.prior import Prior
from threestudio_lucid.guidance.recorded import Recorded, record, split_off
from threestudio_lucid.guidance.rewrites import aten, onednn, simplify

has_onednn = torch.backends.mkldnn.is_available()
has_bfloat16 = has_onednn and onednn._is_mkldnn_bf16_supported()
DTYPES = [
    "float32",
    pytest.param("bfloat16", marks=pytest.mark.skipif(not has_bfloat16, reason="too old a CPU")),
]
# relative to the norm; bfloat16 keeps 8 bits, and oneDNN may sum in another order
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def inputs(
    prior: Prior, n: int, seed: int, tau: int = 500
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    side, width = prior.latent_size, prior.unet.config.cross_attention_dim
    x = torch.randn(n, prior.latent_channels, side, side, generator=generator)
    text = torch.randn(n, 7, width, generator=generator)
    return x.to(prior.dtype), torch.full((n,), tau), text.to(prior.dtype)


def modules(prior: Prior, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in prior.unet.modules() if isinstance(module, kind)]


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    distance = (actual - expected).float().norm() / expected.float().norm()
    assert distance < TOLERANCE[expected.dtype]


@pytest.fixture(params=DTYPES)
def prior(request: pytest.FixtureRequest, saved_priors: dict[str, Path]) -> Prior:
    return Prior.load(saved_priors["kl"], "cpu", request.param)


@pytest.fixture
def denoise(prior: Prior) -> nn.Module:
    return prior_module._Denoiser(prior.unet)


@torch.no_grad()
def test_recorded_denoiser_is_the_denoiser(prior, denoise):
    fast = Recorded(denoise)
    for n, seed, tau in ((2, 0, 1), (3, 1, 500), (2, 2, 980), (2, 0, 1)):
        assert_same(fast(*inputs(prior, n, seed, tau)), denoise(*inputs(prior, n, seed, tau)))
    assert all(isinstance(each, recorded._Recording) for each in fast._recordings.values())
    assert len(fast._recordings) == 2  # a shape each


@torch.no_grad()
def test_text_is_read_when_it_changes_even_in_place(prior, denoise):
    fast = Recorded(denoise)
    x, timesteps, text = inputs(prior, 2, 0)
    first = fast(x, timesteps, text)
    (recording,) = fast._recordings.values()
    readings = []
    read = recording.read
    recording.read = lambda embeddings: readings.append(1) or read(embeddings)
    assert torch.equal(fast(x, timesteps, text.clone()), first) and not readings
    text.mul_(0.5)
    assert_same(fast(x, timesteps, text), denoise(x, timesteps, text))
    assert len(readings) == 1 and not torch.equal(fast(x, timesteps, text), first)


def test_keys_and_values_are_with_the_text(prior, denoise):
    network = simplify(record(denoise, inputs(prior, 2, 0)))
    read, rest = ([node.target for node in part.graph.nodes] for part in split_off(network, "embeddings"))
    packed = prior.dtype == torch.bfloat16
    linear = onednn._linear_pointwise.default if packed else aten.linear.default
    # of all attentions to text they are one layer; and each attention has queries, too, and an output
    assert read.count(linear) == 1 and rest.count(linear) > len(modules(prior, Attention))
    if not packed:
        assert rest.count(group_norm) == len(modules(prior, nn.GroupNorm))


class Awkward(nn.Module):
    """Cannot be recorded: it looks at numbers, or writes into a tensor."""

    def __init__(self, writes: bool) -> None:
        super().__init__()
        self.writes = writes

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        if self.writes:
            return (x * 2).add_(embeddings.mean())
        return x * 2 if embeddings.sum() > 0 else x


@pytest.mark.parametrize("writes", [True, False])
def test_what_cannot_be_recorded_is_called_as_ever(monkeypatch, writes):
    lines: list[str] = []
    monkeypatch.setattr(recorded, "announce", lines.append)
    network = Awkward(writes)
    fast = Recorded(network)
    given = torch.ones(2, 3, 4, 4), torch.ones(2), torch.ones(2, 5, 6)
    for _ in range(2):
        assert torch.equal(fast(*given), network(*given))
    assert len(lines) == 1 and "not recorded" in lines[0]


def test_speed_up_records_unless_told_otherwise(prior, monkeypatch):
    prior.speed_up(graphs=False)
    assert not isinstance(prior._denoiser, Recorded)
    prior.speed_up()
    kept = prior._denoiser
    assert isinstance(kept, Recorded)
    prior.speed_up()
    assert prior._denoiser is kept  # a second guidance need not record again
    monkeypatch.setattr(recorded, "MOST_WEIGHTS", 10)
    prior.speed_up()
    assert not isinstance(prior._denoiser, Recorded)


def test_gradient_of_ism_stays_the_same(prior):
    latents, _, text = (value.float() for value in inputs(prior, 2, 0))
    cond = Conditioning(text, 0.5 * text, 0.0 * text)

    def gradient(graphs: bool) -> torch.Tensor:
        prior.speed_up(graphs=graphs)
        return ism_step(prior.predict, prior.schedule, latents, latents.flip(-1), 500, cond, delta_t=80).grad

    expected, actual = gradient(False), gradient(True)
    assert (actual - expected).norm() < 0.05 * expected.norm()  # a difference of nearly equal numbers
