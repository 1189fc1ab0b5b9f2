"""From a network that predicts noise to one that removes it: noise schedules, and guidance.

ab     alphas_cumprod, the share of the signal's variance at timestep t
sigma  noise level in the Karras view: x = x0 + sigma noise, so ab = 1 / (1 + sigma^2)
x0     what the network takes the clean cloud to be, clamped to [-1, 1]
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

STEPS = 1024
# (x [B, C, N], sigma) -> x0 [B, C, N]
Denoiser = Callable[[Tensor, float], Tensor]


def cosine_schedule(steps: int = STEPS) -> np.ndarray:
    """ab [steps] of Nichol and Dhariwal 2021 (offset 0.008, betas at most 0.999), float64."""
    u = (np.arange(steps + 1) / steps + 0.008) / 1.008
    signal = np.cos(0.5 * math.pi * u) ** 2
    betas = np.minimum(1.0 - signal[1:] / signal[:-1], 0.999)
    return np.cumprod(1.0 - betas)


def linear_schedule(steps: int = STEPS) -> np.ndarray:
    """ab [steps] for betas from 1e-4 to 0.02, per thousand steps (Ho et al. 2020), float64."""
    return np.cumprod(1.0 - np.linspace(1e-4, 0.02, steps) * 1000.0 / steps)


SCHEDULES = {"cosine": cosine_schedule, "linear": linear_schedule}


def timestep_of(sigma: float, alphas_cumprod: np.ndarray) -> int:
    """The timestep with that much noise, rounded down; the first or last one for levels beyond them.

    >>> timestep_of(1e-4, cosine_schedule()), timestep_of(1e6, cosine_schedule())
    (0, 1023)
    """
    steps = np.arange(len(alphas_cumprod))
    return int(np.interp(1.0 / (1.0 + sigma**2), alphas_cumprod[::-1], steps[::-1]))


def make_denoiser(model: Callable[..., Tensor], alphas_cumprod: np.ndarray, **condition: Tensor) -> Denoiser:
    """x0 by a noise-predicting network `model(x, t, **condition)`.

    x0 = x_in / sqrt(ab_t) - sqrt(1 / ab_t - 1) eps(x_in, t) with x_in = x / sqrt(1 + sigma^2). The published
    sampler scales by the true sigma and undoes the noise with that of the rounded timestep; so does this.
    """

    def denoise(x: Tensor, sigma: float) -> Tensor:
        t = timestep_of(sigma, alphas_cumprod)
        ab = float(alphas_cumprod[t])
        x_in = x / math.sqrt(1.0 + sigma**2)
        eps = model(x_in, torch.full((len(x),), t, device=x.device), **condition).float()
        return (x_in / math.sqrt(ab) - math.sqrt(1.0 / ab - 1.0) * eps).clamp(-1.0, 1.0)

    return denoise


def guide(
    model: Callable[..., Tensor], alphas_cumprod: np.ndarray, scale: float, name: str, value: Tensor
) -> Denoiser:
    """The denoiser for a condition `name` [B, D], with classifier-free guidance on x0.

    x0_uncond + scale (x0_cond - x0_uncond), where no condition is the condition zero; not clamped again.

    Args:
        scale: 1 needs no unconditional half and leaves it out.
    """
    if scale == 1.0:
        return make_denoiser(model, alphas_cumprod, **{name: value})
    both = make_denoiser(model, alphas_cumprod, **{name: torch.cat([value, torch.zeros_like(value)])})

    def denoise(x: Tensor, sigma: float) -> Tensor:
        cond, uncond = both(torch.cat([x, x]), sigma).chunk(2)
        return uncond + scale * (cond - uncond)

    return denoise
