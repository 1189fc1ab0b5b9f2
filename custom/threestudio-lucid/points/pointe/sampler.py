"""Heun's sampler of Karras et al. (2022), arXiv 2206.00364, in their letters."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from .diffusion import Denoiser


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> list[float]:
    """Noise levels, `steps` of them from sigma_max down to sigma_min (equation 5), and then 0."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(high + (low - high) * i / max(steps - 1, 1)) ** rho for i in range(steps)] + [0.0]


def sample_heun(
    denoise: Denoiser,
    shape: tuple[int, ...],
    sigmas: list[float],
    generator: torch.Generator,
    s_churn: float = 0.0,
    device: torch.device | str = "cpu",
    on_step: Callable[[], None] | None = None,
) -> Tensor:
    """Algorithm 2: a sample [shape] from noise.

    Noise is drawn on the generator's device, in every step, so that other devices and other `s_churn` begin
    with the same.

    Args:
        sigmas: as `karras_sigmas` gives them, the last one 0.
        s_churn: noise to add on the way; spread over the steps.
        on_step: called after each step.
    """

    def noise() -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device).to(device)

    gamma = min(s_churn / (len(sigmas) - 1), math.sqrt(2.0) - 1.0)
    x = noise() * sigmas[0]
    for sigma, sigma_next in pairwise(sigmas):
        # 1. a little more noise
        sigma_hat = sigma * (1.0 + gamma)
        x = x + noise() * math.sqrt(max(sigma_hat**2 - sigma**2, 0.0))
        # 2. Euler's step; the one to 0 ends where the denoiser points
        denoised = denoise(x, sigma_hat)
        if sigma_next == 0.0:
            x = denoised
        else:
            d = (x - denoised) / sigma_hat
            x_next = x + (sigma_next - sigma_hat) * d
            # 3. the slope at its end, and the mean of the two slopes
            d_next = (x_next - denoise(x_next, sigma_next)) / sigma_next
            x = x + (sigma_next - sigma_hat) * 0.5 * (d + d_next)
        if on_step is not None:
            on_step()
    return x
