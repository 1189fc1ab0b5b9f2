"""Structural similarity of pictures (Wang et al. 2004)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS, SIGMA = 11, 1.5  # of the window
C1, C2 = 0.01**2, 0.03**2


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean SSIM of pictures [N, C, H, W] in [0, 1], of at least 11 x 11 pixels; 1 where they are equal.

    For pictures that are constant, x and y, it is (2xy + C1) / (x^2 + y^2 + C1).
    """
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a, variance_b = _blur(a * a) - mean_a.square(), _blur(b * b) - mean_b.square()
    covariance = _blur(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + C1) / (mean_a.square() + mean_b.square() + C1)
    structure = (2 * covariance + C2) / (variance_a + variance_b + C2)
    return (light * structure).mean()


def _blur(x: Tensor) -> Tensor:
    """A Gaussian window over each channel, where it fits inside the picture."""
    window = torch.exp(-(torch.arange(TAPS).to(x) - TAPS // 2).square() / (2 * SIGMA**2))
    window = window / window.sum()
    channels = x.shape[1]
    rows = window.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    columns = window.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    return F.conv2d(F.conv2d(x, rows, groups=channels), columns, groups=channels)
