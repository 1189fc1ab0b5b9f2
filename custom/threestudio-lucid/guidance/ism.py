"""Interval Score Matching (LucidDreamer, arXiv 2311.11284), one step.

    x_s  the latents inverted without text to noise level s
    x_t  one more DDIM step of length delta_T from x_s, with the same score
    grad = w(t) [ e(x_t, t, text, guided) - e(x_s, s, empty) ],   w(t) = sqrt((1 - ab_t) / ab_t)

Two recipes, because paper and released code differ (the released one is the default and made the published
results):

    |                  | released                              | paper (Algorithm 1)                   |
    |------------------|---------------------------------------|---------------------------------------|
    | t                | annealed from 20..979 to 20..499      | 1..999, the same at every step        |
    | interval         | annealed from 100 to 25, 50 or 80     | 50, the same at every step            |
    | starts from      | latents + a little noise, at tau = 1  | clean latents, ab = 1, at tau = 0     |
    | strides          | full delta_S, the last one shorter    | ceil(s / delta_S) equal ones          |
    | guidance against | the negative prompt                   | the empty prompt                      |
    | v-prediction     | difference of raw v outputs           | difference of noise predictions       |

The paper writes n = s / delta_S steps of delta_S and does not say what happens when delta_S does not divide
s; equal steps no longer than delta_S are our reading. It leaves w(t) open; we keep the released one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .combine import Conditioning, guided_output
from .schedule import NoiseSchedule
from .trajectory import (
    Model,
    add_noise,
    ddim_step,
    equal_path,
    inversion_start,
    invert,
    stride_path,
    x0_and_eps,
)

RECIPES = ("released", "paper")
# What a field of the guidance that is null means, by recipe.
RECIPE_DEFAULTS: dict[str, dict[str, Any]] = {
    "released": {
        "delta_t": 80,
        "delta_t_start": 100,
        "delta_s": 200,
        "xs_inv_steps": 5,
        "min_step_percent": 0.02,
        "max_step_percent": 0.98,
        "max_step_percent_end": 0.5,
        "warmup_steps": 1500,
    },
    "paper": {
        "delta_t": 50,
        "delta_t_start": 0,  # never below delta_t: no annealing
        "delta_s": 200,
        "xs_inv_steps": 5,
        "min_step_percent": 0.0,
        "max_step_percent": 1.0,
        "max_step_percent_end": 1.0,
        "warmup_steps": 0,
    },
}


@dataclass(frozen=True)
class Distillation:
    """What one step of score distillation computed; all tensors [B, C, h, w].

    x_s, x_t: noisy latents at timesteps tau_s < tau_t.
    target, pred: the two scores, grad = grad_scale * w(t) * (pred - target).
    grad: the gradient on the latents: descent moves them against it. Not averaged over batch or pixels.
    """

    x_s: Tensor
    x_t: Tensor
    target: Tensor
    pred: Tensor
    grad: Tensor
    tau_s: int
    tau_t: int


def weighted_difference(
    schedule: NoiseSchedule, pred: Tensor, target: Tensor, tau: int, grad_scale: float = 1.0
) -> Tensor:
    """grad_scale * sqrt((1 - ab) / ab) * (pred - target).

    The released code makes numbers of what is none here. We do not: `faults` tells, and leaves the step out.
    """
    return grad_scale * schedule.sigma(tau) * (pred - target)


@torch.no_grad()
def ism_step(
    model: Model,
    schedule: NoiseSchedule,
    latents: Tensor,
    noise: Tensor,
    index: int,
    cond: Conditioning,
    *,
    delta_t: int,
    delta_s: int | None = 200,
    xs_inv_steps: int | None = 5,
    guidance_scale: float = 7.5,
    grad_scale: float = 1.0,
    inversion_guidance_scale: float = 1.0,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    recipe: str = "released",
    guided: Model | None = None,
) -> Distillation:
    """One step of Interval Score Matching.

    Args:
        model: `model(x, tau, embeddings)` -> raw output, see `trajectory`.
        latents: [B, C, h, w], clean.
        noise: like latents; enters where the inversion starts, with weight sqrt(1 - ab). Unused by the
            paper's recipe.
        index: i_t. The interval's other end is i_s = max(i_t - delta_t, 0); timesteps are tau(i) = i + 1.
        delta_t: interval in indices.
        delta_s: stride of the inversion; None: `delta_t`.
        xs_inv_steps: most strides from the start of the inversion to s; None: as many as reach down to index
            0.
        guidance_scale: of the guided score at x_t; 1 is the text alone.
        grad_scale: factor on the gradient (released configs: 0.1).
        inversion_guidance_scale: above 1, the inversion runs on e_inverse + scale (e_uncond - e_inverse).
        eta, generator: fresh noise in the inversion, see `ddim_step`; not in the last step s -> t.
        recipe: "released" or "paper", see above.
        guided: the network of the guided score, where it is another one (see `control`).
    """
    delta_s = delta_t if delta_s is None else delta_s
    unguided = _inversion_model(model, cond, inversion_guidance_scale)

    # 1. invert the latents, without text, to x_s
    if recipe == "released":
        i_s = max(index - delta_t, 0)
        start = inversion_start(i_s, delta_s, xs_inv_steps)
        path = [schedule.timestep(i) for i in stride_path(start, i_s, delta_s)]
        x_start, ab_start = add_noise(schedule, latents, noise, path[0]), None
    elif recipe == "paper":
        # t counts noise levels above the clean image, which is level 0: t = tau
        path = equal_path(max(schedule.timestep(index) - delta_t, 0), delta_s)
        x_start, ab_start = latents, 1.0
        cond = replace(cond, uncond=cond.inverse)
    else:
        raise ValueError(f"recipe {recipe!r}: expected one of {RECIPES}")
    x_s = invert(schedule, unguided, x_start, path, cond.inverse, ab=ab_start, eta=eta, generator=generator)
    tau_s, tau_t = path[-1], schedule.timestep(index)
    ab_s = ab_start if len(path) == 1 else None

    # 2. the score without text at x_s, and one step with it to x_t
    target = unguided(x_s, tau_s, cond.inverse)
    x_t = ddim_step(schedule, target, x_s, tau_s, tau_t, ab=ab_s)

    # 3. the guided score at x_t
    pred = guided_output(guided or model, x_t, tau_t, cond, guidance_scale)
    if recipe == "paper":
        target = x0_and_eps(schedule, target, x_s, tau_s, ab=ab_s)[1]
        pred = x0_and_eps(schedule, pred, x_t, tau_t)[1]

    # 4. their difference, weighted
    grad = weighted_difference(schedule, pred, target, tau_t, grad_scale)
    return Distillation(x_s, x_t, target, pred, grad, tau_s, tau_t)


def _inversion_model(model: Model, cond: Conditioning, scale: float) -> Model:
    """The unguided score; above scale 1 pushed from the inverse text towards the negative prompt."""
    if scale <= 1.0:
        return model

    def pushed(x: Tensor, tau: int, inverse: Tensor) -> Tensor:
        towards = Conditioning(text=cond.uncond, uncond=inverse, inverse=inverse)
        return guided_output(model, x, tau, towards, scale)

    return pushed
