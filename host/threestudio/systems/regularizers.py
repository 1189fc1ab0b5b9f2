"""Losses of a volume rendering that need no prior."""

from __future__ import annotations

import torch
from torch import Tensor

from threestudio.utils.ops import binary_cross_entropy, dot


def orientation(weights: Tensor, normal: Tensor, t_dirs: Tensor, opacity: Tensor) -> Tensor:
    """How far visible normals face away from the camera (Ref-NeRF), per pixel that shows something.

    Args:
        weights: of the samples [N, 1]; their gradient is not used.
        normal: unit normals [N, 3].
        t_dirs: directions of the rays through the samples [N, 3].
        opacity: [B, H, W, 1].
    """
    away = dot(normal, t_dirs).clamp_min(0.0) ** 2
    return (weights.detach() * away).sum() / (opacity > 0).sum().clamp_min(1)


def sparsity(opacity: Tensor) -> Tensor:
    """Mean of sqrt(opacity^2 + 0.01): a picture that is empty where it can be."""
    return (opacity**2 + 0.01).sqrt().mean()


def opaqueness(opacity: Tensor) -> Tensor:
    """Entropy of the opacity: pixels that are wholly covered, or not at all."""
    clamped = opacity.clamp(1e-3, 1.0 - 1e-3)
    return binary_cross_entropy(clamped, clamped)


def z_variance(variance: Tensor, opacity: Tensor) -> Tensor:
    """Mean variance of the depth where opacity is above 0.5 (HiFA); 0, with no gradient, where none is."""
    solid = (opacity > 0.5).to(variance)
    # where(): a variance that is not finite in empty pixels must not become 0 * inf
    kept = torch.where(solid > 0, variance, torch.zeros_like(variance))
    return kept.sum() / solid.sum().clamp_min(1)
