"""Sampling pictures from a prior: DDIM with guidance, on the functions that distillation uses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from .combine import Conditioning, guided_output
from .prior import Prior
from .schedule import NoiseSchedule
from .trajectory import Model, ddim_step


def sampling_path(schedule: NoiseSchedule, num_steps: int) -> list[int]:
    """Timesteps of a sample, from noise to clean: 981, 961, ..., 1, -19 for 50 of 1000 steps and offset 1.

    "Leading" spacing as in Stable Diffusion. The last one is below 0, where ab is the schedule's final value.
    """
    stride = len(schedule) // num_steps
    return [k * stride + schedule.steps_offset for k in reversed(range(-1, num_steps))]


@torch.no_grad()
def denoise(
    model: Model, schedule: NoiseSchedule, x: Tensor, path: Sequence[int], cond: Conditioning, scale: float
) -> Tensor:
    """Walks noisy latents x [B, C, h, w] down a path of timesteps with guidance."""
    for tau, u in itertools.pairwise(path):
        x = ddim_step(schedule, guided_output(model, x, tau, cond, scale), x, tau, u)
    return x


@torch.no_grad()
def sample(
    prior: Prior,
    prompts: Sequence[str],
    negative: str = "",
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
) -> Tensor:
    """Pictures [n, 3, H, W] in [0, 1], one for each prompt.

    Args:
        negative: what guidance moves away from.
        num_steps, guidance_scale: None: the card's.
        generator: for the starting noise, on any device.
        batch_size: most pictures at a time; what comes out does not depend on it.
    """
    num_steps = prior.card.num_steps if num_steps is None else num_steps
    guidance_scale = prior.card.guidance_scale if guidance_scale is None else guidance_scale
    shape = (len(prompts), prior.latent_channels, prior.latent_size, prior.latent_size)
    where = generator.device if generator is not None else prior.device
    noise = torch.randn(shape, generator=generator, device=where).to(prior.device)
    texts = prior.encode_text([*prompts, negative])
    path = sampling_path(prior.schedule, num_steps)
    pictures = []
    for x, text in zip(noise.split(batch_size), texts[:-1].split(batch_size), strict=True):
        uncond = texts[-1].expand_as(text)
        cond = Conditioning(text, uncond, uncond)
        pictures.append(prior.decode(denoise(prior.predict, prior.schedule, x, path, cond, guidance_scale)))
    return torch.cat(pictures)
