"""The DDIM trajectory: single steps between noise levels, and inversion from the latents up to x_s.

DDIM (Song et al. 2021, eq. 12) reads a clean sample and a noise out of the network's output at one noise
level and puts them together again at another. Run towards more noise it *inverts*: from an image to the noisy
sample that the deterministic sampler would have come from.

Everything is a plain function on tensors [B, ...], vectorised over the batch, with one timestep for the
batch. `model(x, tau, cond)` is any callable that returns the network's raw output (epsilon or v, as the
schedule says) for noisy latents [B, C, h, w], a timestep (python int) and embeddings [B, T, D]. Notation: see
`schedule`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .schedule import NoiseSchedule

Model = Callable[[Tensor, int, Any], Tensor]


def add_noise(schedule: NoiseSchedule, x_0: Tensor, noise: Tensor, tau: int) -> Tensor:
    """sqrt(ab) x_0 + sqrt(1 - ab) noise at timestep tau."""
    ab = schedule.alpha_bar(tau)
    return math.sqrt(ab) * x_0 + math.sqrt(1.0 - ab) * noise


def x0_and_eps(
    schedule: NoiseSchedule, output: Tensor, x: Tensor, tau: int, *, ab: float | None = None
) -> tuple:
    """Predicted clean sample and noise, from the network's raw output at (x, tau).

    `ab` replaces the schedule's value at tau (1 for latents that carry no noise at all).
    """
    ab = schedule.alpha_bar(tau) if ab is None else ab
    a, b = math.sqrt(ab), math.sqrt(1.0 - ab)
    if schedule.prediction_type == "v_prediction":
        return a * x - b * output, a * output + b * x
    return (x - b * output) / a, output


def ddim_step(
    schedule: NoiseSchedule,
    output: Tensor,
    x: Tensor,
    tau: int,
    u: int,
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    ab: float | None = None,
) -> Tensor:
    """One DDIM step from timestep tau to timestep u, in either direction.

    Args:
        output: the network's raw output at (x, tau).
        u: where to go; uses ab[u] itself, below 0 the schedule's final value.
        eta: 0 is deterministic. As in LucidDreamer it scales the *variance* of the fresh noise (diffusers and
            the DDIM paper scale the standard deviation), which is capped at (1 - ab[u]) / 2.
        generator: source of that noise, on x's device; needed only when eta > 0.
        ab: noise level of x when it is not the schedule's at tau.
    """
    # 1. what is clean and what is noise in x
    x_0, eps = x0_and_eps(schedule, output, x, tau, ab=ab)
    ab_tau, ab_u = schedule.alpha_bar(tau) if ab is None else ab, schedule.alpha_bar(u)

    # 2. eq. 16, its absolute value since u may lie above tau
    variance = 0.0
    if eta > 0.0 and ab_tau < 1.0:
        variance = abs((1.0 - ab_u) / (1.0 - ab_tau) * (1.0 - ab_tau / ab_u))
        variance = min((1.0 - ab_u) / 2.0, eta * variance)

    # 3. put together at u
    x_u = math.sqrt(ab_u) * x_0 + math.sqrt(1.0 - ab_u - variance) * eps
    if variance > 0.0:
        fresh = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x_u = x_u + math.sqrt(variance) * fresh
    return x_u


def stride_path(start: int, end: int, stride: int) -> list[int]:
    """Full strides and a shorter last one: (0, 450, 200) -> 0, 200, 400, 450."""
    return [*range(start, end, stride), end]


def equal_path(end: int, stride: int) -> list[int]:
    """0 to `end` in equal steps (up to rounding) of at most `stride`: (450, 200) -> 0, 150, 300, 450."""
    n = math.ceil(end / stride)
    return [round(k * end / n) for k in range(n)] + [end]


def inversion_start(i_s: int, stride: int, steps: int | None) -> int:
    """Index at which the inversion to i_s begins: `steps` strides below, not under 0; None: at 0.

    With the released 200 x 5 it is always 0; with 50 x 5 it is i_s - 250.
    """
    return 0 if steps is None else max(i_s - stride * steps, 0)


def invert(
    schedule: NoiseSchedule,
    model: Model,
    x: Tensor,
    path: Sequence[int],
    cond: Any,
    *,
    ab: float | None = None,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Walks x along a path of timesteps by DDIM steps, one network call each.

    A path of one timestep returns x unchanged and calls nothing (the released code spends one network call
    there on a step from tau to itself). `ab` is the noise level of x at path[0] when it is not the
    schedule's.
    """
    for tau, u in itertools.pairwise(path):
        x = ddim_step(schedule, model(x, tau, cond), x, tau, u, eta=eta, generator=generator, ab=ab)
        ab = None
    return x
