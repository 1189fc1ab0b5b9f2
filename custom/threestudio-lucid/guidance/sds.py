"""Score Distillation Sampling (DreamFusion, arXiv 2209.14988), one step, in ISM's units.

    x_t  = sqrt(ab_t) latents + sqrt(1 - ab_t) noise
    grad = w(t) [ e(x_t, t, text, guided) - noise ]

It differs from `ism` in x_t and in the target alone; the weight is ISM's, w(t) = sqrt((1 - ab_t) / ab_t), so
that the two can be compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .combine import Conditioning, guided_output
from .ism import Distillation, weighted_difference
from .schedule import NoiseSchedule
from .trajectory import Model, add_noise, x0_and_eps


@torch.no_grad()
def sds_step(
    model: Model,
    schedule: NoiseSchedule,
    latents: Tensor,
    noise: Tensor,
    index: int,
    cond: Conditioning,
    *,
    delta_t: int = 0,
    guidance_scale: float = 7.5,
    grad_scale: float = 1.0,
) -> Distillation:
    """One step of Score Distillation Sampling; arguments as in `ism.ism_step`.

    `delta_t` only places x_s, which is here for pictures. A v-prediction network's output is converted, for
    the target is a noise (the released code subtracts the noise from the raw v there, which is not a score).
    """
    tau_s, tau_t = schedule.timestep(max(index - delta_t, 0)), schedule.timestep(index)
    x_s, x_t = (add_noise(schedule, latents, noise, tau) for tau in (tau_s, tau_t))

    output = guided_output(model, x_t, tau_t, cond, guidance_scale)
    pred = x0_and_eps(schedule, output, x_t, tau_t)[1]

    grad = weighted_difference(schedule, pred, noise, tau_t, grad_scale)
    return Distillation(x_s, x_t, noise, pred, grad, tau_s, tau_t)
