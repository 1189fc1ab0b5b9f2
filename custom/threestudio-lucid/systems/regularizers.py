"""What keeps pictures calm and Gaussians small."""

from __future__ import annotations

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
