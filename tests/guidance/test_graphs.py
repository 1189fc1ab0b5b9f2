"""The networks replayed from CUDA graphs against the same networks called as ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from threestudio_lucid.guidance.cards import find_card
from threestudio_lucid.guidance.prior import Prior

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


@pytest.fixture(params=["float32", "float16"])
def prior(request: pytest.FixtureRequest, saved_priors: dict[str, Path]) -> Prior:
    return Prior.load(saved_priors["kl"], "cuda", request.param)


def inputs(prior: Prior, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    side, width = prior.latent_size, prior.unet.config.cross_attention_dim
    x = torch.randn(n, prior.latent_channels, side, side, generator=generator)
    return x.cuda(), torch.randn(n, 7, width, generator=generator).cuda()


def test_replayed_denoiser_is_the_denoiser(prior):
    cases = [(*inputs(prior, n, seed), tau) for n, seed, tau in ((2, 0, 1), (4, 1, 500), (2, 2, 980))]
    prior.speed_up(graphs=False)
    expected = [prior.predict(x, tau, text) for x, text, tau in cases]
    prior.speed_up(graphs=True)
    for _ in range(2):  # recorded, then replayed
        actual = [prior.predict(x, tau, text) for x, text, tau in cases]
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=2e-3, atol=2e-3)


def test_replayed_encoder_has_the_encoders_gradient(prior):
    def passes(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        images = torch.rand(2, 3, 32, 32, generator=generator).cuda().requires_grad_()
        latents = prior.encode(images, torch.Generator("cuda").manual_seed(0))
        latents.square().sum().backward()
        return latents.detach(), images.grad

    def both_before_one_backward() -> torch.Tensor:
        images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(9)).cuda().requires_grad_()
        latents = [prior.encode(x, torch.Generator("cuda").manual_seed(0)) for x in (images, images.flip(-1))]
        sum((k + 1) * x.square().sum() for k, x in enumerate(latents)).backward()
        return images.grad

    prior.speed_up(graphs=False)
    expected = [passes(seed) for seed in range(3)]
    expected_of_both = both_before_one_backward()
    prior.speed_up(graphs=True)
    with torch.autocast("cuda", torch.float16):  # as Lightning's 16-mixed has it
        actual = [passes(seed) for seed in range(3)]
        actual_of_both = both_before_one_backward()
    largest = float(expected_of_both.abs().max())
    torch.testing.assert_close(actual_of_both, expected_of_both, rtol=1e-2, atol=1e-2 * largest)
    for a, e in zip(actual, expected, strict=True):
        for mine, plain in zip(a, e, strict=True):
            torch.testing.assert_close(mine, plain, rtol=1e-2, atol=1e-2 * float(plain.abs().max()))


def test_compiled_networks_are_the_networks(saved_priors):
    # of its own, since it stays compiled
    prior = Prior(find_card(saved_priors["v"]), torch.device("cuda"), torch.float16)
    x, text = inputs(prior, 4, 0)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).cuda()

    def passes() -> list[torch.Tensor]:
        images = pixels.clone().requires_grad_()
        latents = prior.encode(images)
        latents.square().sum().backward()
        return [prior.predict(x, 500, text), latents.detach(), images.grad]

    prior.speed_up(graphs=False)
    expected = passes()
    prior.speed_up(compiled=True, graphs=True)
    for _ in range(2):  # recorded, then replayed
        for mine, plain in zip(passes(), expected, strict=True):
            torch.testing.assert_close(mine, plain, rtol=1e-2, atol=1e-2 * float(plain.abs().max()))
