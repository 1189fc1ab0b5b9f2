"""The hash grid in plain PyTorch: slow, obvious, differentiable as often as one likes, for any device."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from threestudio.models.networks.hash_layout import HASH_PRIMES, Layout, Level


def encode_reference(x: Tensor, table: Tensor, layout: Layout, n_active: int) -> Tensor:
    """Features [N, levels * features] of points [N, D] in [0, 1].

    Args:
        table: [rows, features].
        n_active: how many of the coarse levels to look up; the others are 0.
    """
    parts = [_encode_level(x, table, level) for level in layout.levels[:n_active]]
    idle = (len(layout.levels) - n_active) * layout.n_features
    if idle or not parts:
        parts.append(torch.zeros(len(x), idle, dtype=table.dtype, device=x.device))
    return torch.cat(parts, dim=-1)


def _encode_level(x: Tensor, table: Tensor, level: Level) -> Tensor:
    position = x * level.scale + 0.5
    cell = position.detach().floor()
    inside = position - cell
    cell = cell.long()
    out = torch.zeros(len(x), table.shape[1], dtype=table.dtype, device=x.device)
    for corner in itertools.product((0, 1), repeat=x.shape[1]):
        weight = torch.ones_like(inside[:, 0])
        for d, high in enumerate(corner):
            weight = weight * (inside[:, d] if high else 1 - inside[:, d])
        row = rows_of(cell + torch.tensor(corner, device=x.device), level)
        out = out + weight[:, None].to(table.dtype) * table[row]
    return out


def rows_of(corners: Tensor, level: Level) -> Tensor:
    """The rows [N] of corners [N, D] (whole numbers, not negative) in the table."""
    row = torch.zeros_like(corners[:, 0])
    if level.hashed:
        for d, prime in enumerate(HASH_PRIMES[: corners.shape[1]]):
            row = row ^ (corners[:, d] * prime)
    else:
        for d in range(corners.shape[1]):
            row = row + corners[:, d] * level.resolution**d
    # the cube's far faces have corners one beyond the last: they wrap around, as in tiny-cuda-nn
    return level.offset + row % level.rows
