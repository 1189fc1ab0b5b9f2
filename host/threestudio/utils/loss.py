"""Regularisers of pictures."""

from __future__ import annotations

import torch


def tv_loss(x: torch.Tensor) -> torch.Tensor:
    """Total variation of [B, C, H, W]: twice the mean squared difference of neighbours.

    Squared differences along each axis are averaged over all pixel pairs and channels, then over the batch.
    """
    batch_size, channels, height, width = x.shape
    across = (x[:, :, :, 1:] - x[:, :, :, :-1]).pow(2).sum() / max(channels * height * (width - 1), 1)
    down = (x[:, :, 1:, :] - x[:, :, :-1, :]).pow(2).sum() / max(channels * (height - 1) * width, 1)
    return 2 * (across + down) / batch_size
