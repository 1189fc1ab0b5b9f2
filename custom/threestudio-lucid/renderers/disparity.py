"""Depth as a picture: what LucidDreamer shows the prior in place of the colours."""

from __future__ import annotations

import torch
from torch import Tensor


def normalized_disparity(
    depth: Tensor, alpha: Tensor, fovy: Tensor, background_depth: float = 10.0
) -> Tensor:
    """Disparity [B, H, W, 1] in [0, 1] per view: nearest is 1, the object's farthest pixel and the rest 0.

    disp = f / (depth + background_depth * T), T = 1 - alpha; the foreground is where T <= 0.1, the whole view
    if that is nowhere. Differentiable, through the extremes too.

    Args:
        depth: sum of w_i z_i, not normalised, [B, H, W, 1].
        alpha: [B, H, W, 1].
        fovy: [B] radians.
    """
    shine_through = 1.0 - alpha
    f = (0.5 / torch.tan(0.5 * fovy))[:, None, None, None]
    disp = f / (depth + background_depth * shine_through + 1e-5)
    foreground = shine_through <= 0.1
    everywhere = ~foreground.flatten(1).any(1)[:, None, None, None]
    farthest = torch.where(foreground | everywhere, disp, torch.inf).amin((1, 2, 3), keepdim=True)
    nearest = disp.amax((1, 2, 3), keepdim=True)
    return ((disp - farthest) / (nearest - farthest).clamp_min(1e-8)).clamp(0.0, 1.0)
