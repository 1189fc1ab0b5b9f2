"""Samples of many rays, and sums over the samples of each.

Packed: the samples of ray 0 come first, near to far, then those of ray 1, and so on; a ray may have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

OPAQUE = 100.0
"""Optical depth from which on nothing shines through: exp(-100) is 0 in float32."""


@dataclass
class Samples:
    """Intervals [t_starts, t_ends] [N] along rays, and which ray [N] (int64) each belongs to."""

    ray_indices: Tensor
    t_starts: Tensor
    t_ends: Tensor

    def __len__(self) -> int:
        return len(self.ray_indices)

    def __getitem__(self, mask: Tensor) -> Samples:
        return Samples(self.ray_indices[mask], self.t_starts[mask], self.t_ends[mask])

    @property
    def t_middles(self) -> Tensor:
        return (self.t_starts + self.t_ends) / 2

    @property
    def lengths(self) -> Tensor:
        return self.t_ends - self.t_starts

    def at_least_one(self) -> Samples:
        """These, or if there are none, one of no length at the start of ray 0: it adds nothing to a picture
        but keeps means over the samples, and the graph, in being."""
        if len(self):
            return self
        zero = self.t_starts.new_zeros(1)
        return Samples(self.ray_indices.new_zeros(1), zero, zero)


def weights_and_visibility(densities: Tensor, samples: Samples, n_rays: int) -> tuple[Tensor, Tensor, Tensor]:
    """How much each sample contributes to its ray's colour.

    Args:
        densities: [N], at least 0.

    Returns:
        weights [N], alpha times transmittance; transmittance [N], what of the light from the sample's near
        end reaches the eye; alphas [N], 1 - exp(-density length).
    """
    depth = (densities * samples.lengths).clamp(max=OPAQUE)
    # In float64, a running sum over all rays loses nothing when the sum before a ray is taken away again.
    before = depth.double().cumsum(0) - depth.double()
    starts = torch.searchsorted(
        samples.ray_indices, torch.arange(n_rays, device=depth.device, dtype=samples.ray_indices.dtype)
    ).clamp(max=max(len(depth) - 1, 0))
    transmittance = torch.exp(-(before - before[starts[samples.ray_indices]])).to(depth.dtype)
    alphas = -torch.expm1(-depth)
    return transmittance * alphas, transmittance, alphas


class _SumAlongRays(torch.autograd.Function):
    """Sums of consecutive rows; a running sum in float64, which is the same on every run and device."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ray_indices: Tensor, n_rays: int) -> Tensor:
        ctx.save_for_backward(ray_indices)
        edges = torch.searchsorted(
            ray_indices, torch.arange(n_rays + 1, device=values.device, dtype=ray_indices.dtype)
        )
        running = values.new_zeros(len(values) + 1, values.shape[1], dtype=torch.float64)
        torch.cumsum(values, dim=0, dtype=torch.float64, out=running[1:])
        return (running[edges[1:]] - running[edges[:-1]]).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (ray_indices,) = ctx.saved_tensors
        return grad[ray_indices], None, None


def sum_along_rays(values: Tensor, samples: Samples, n_rays: int) -> Tensor:
    """Sums [n_rays, C] of values [N, C] over the samples of each ray; 0 for a ray without any."""
    return _SumAlongRays.apply(values, samples.ray_indices, n_rays)
