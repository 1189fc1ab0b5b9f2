"""What keeps pictures calm, Gaussians small and rims sharp."""

from __future__ import annotations

import torch
from torch import Tensor


def total_variation(images: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels, rows plus columns, times 2, as LucidDreamer has it.

    Args:
        images: [B, H, W, C], H and W at least 2.

    Returns:
        2/B [sum dy^2 / (C (H-1) W) + sum dx^2 / (C H (W-1))], a scalar.
    """
    dy = images[:, 1:] - images[:, :-1]
    dx = images[:, :, 1:] - images[:, :, :-1]
    return 2.0 * (dy.square().mean() + dx.square().mean())


def opacity_entropy(opacity: Tensor) -> Tensor:
    """Mean of -a log a - (1 - a) log(1 - a): 0 where pixels are opaque or empty, log 2 half-way.

    threestudio's `loss_opaque`, with its clamp of a to [0.001, 0.999].

    Args:
        opacity: of pixels, in [0, 1], any shape.
    """
    a = opacity.clamp(1e-3, 1.0 - 1e-3)
    return -(a * torch.log(a) + (1.0 - a) * torch.log1p(-a)).mean()
