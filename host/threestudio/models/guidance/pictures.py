"""What a diffusion model makes of noisy latents, as pictures for people."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

STEPS = 50
"""Of the sampler."""


@torch.no_grad()
def pictures_of(
    guidance: Any,
    count: int,
    t: Tensor,
    text_embeddings: Tensor,
    noisy: Tensor,
    output: Tensor,
    weights: Tensor | None,
) -> dict[str, Any]:
    """The first ``count`` items as they are, after one sampling step, at once, and sampled to the end.

    Args:
        guidance: a `StableDiffusionGuidance`.
        t: timesteps [B].
        text_embeddings: [kB, T, D], the k prompts of `threestudio.models.guidance.noise`.
        noisy, output: latents, and the guided output of the UNet for them, [B, C, h, w].
        weights: Perp-Neg's [B, K], or None.

    Returns:
        bs, noise_levels [bs], imgs_noisy, imgs_1step, imgs_1orig, imgs_final [bs, H, W, 3].
    """
    scheduler = guidance.scheduler
    scheduler.set_timesteps(STEPS)
    path = [int(step) for step in scheduler.timesteps]  # from much noise to little
    batch = len(noisy)
    levels, first, clean, final = [], [], [], []
    for i in range(count):
        # the sampler's nearest timestep that is not below the item's own; its last where all are
        start = max((k for k, step in enumerate(path) if step >= int(t[i])), default=0)
        levels.append(path[start] / scheduler.config.num_train_timesteps)
        made = scheduler.step(output[i : i + 1], path[start], noisy[i : i + 1])
        first.append(made.prev_sample)
        clean.append(made.pred_original_sample)
        embeddings = _of_item(text_embeddings, i, batch, weights)
        own = None if weights is None else weights[i : i + 1]
        latents = made.prev_sample
        for step in path[start + 1 :]:
            now = torch.tensor([step], device=guidance.device)
            guess = guidance.get_noise_pred(latents, now, embeddings, own is not None, own)
            latents = scheduler.step(guess, step, latents).prev_sample
        final.append(latents)
    shown = {
        "imgs_noisy": noisy[:count],
        "imgs_1step": torch.cat(first),
        "imgs_1orig": torch.cat(clean),
        "imgs_final": torch.cat(final),
    }
    images = {name: guidance.decode_latents(value).permute(0, 2, 3, 1) for name, value in shown.items()}
    return {"bs": count, "noise_levels": levels, **images}


def _of_item(embeddings: Tensor, i: int, batch: int, weights: Tensor | None) -> Tensor:
    """Item i's rows: its text, its negative prompt, and Perp-Neg's negatives, which lie together."""
    rows = [i, batch + i]
    if weights is not None:
        k = weights.shape[1]
        rows += range(2 * batch + k * i, 2 * batch + k * (i + 1))
    return embeddings[rows]
