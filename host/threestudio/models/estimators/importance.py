"""Samples where the density says that a ray's light comes from (NeRF's second pass, 2020)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from threestudio.models.estimators.samples import Samples, weights_and_visibility


@torch.no_grad()
def importance_samples(
    n_rays: int,
    near: float,
    far: float,
    n_coarse: int,
    n_fine: int,
    density_fn: Callable[[Tensor, Tensor, Tensor], Tensor],
    stratified: bool,
    device: torch.device,
) -> Samples:
    """n_coarse + n_fine intervals a ray: equal ones, cut further where most of the light comes from.

    Args:
        density_fn: (t_starts, t_ends, ray_indices) [N] -> densities [N].
        stratified: move the cuts at random (torch's global generator).
    """
    coarse = near + (far - near) * _cuts(n_rays, n_coarse, stratified, device)
    samples = _between(coarse)
    densities = density_fn(samples.t_starts, samples.t_ends, samples.ray_indices)
    weights = weights_and_visibility(densities, samples, n_rays)[0].view(n_rays, n_coarse)
    # what shines through the ray comes from behind it: the last interval takes it
    cdf = torch.cat([torch.zeros_like(weights[:, :1]), weights.cumsum(dim=-1)], dim=-1).clamp(max=1.0)
    cdf[:, -1] = 1.0
    fine = _inverse(cdf, coarse, _cuts(n_rays, n_fine - 1, stratified, device))
    return _between(torch.cat([coarse, fine], dim=-1).sort(dim=-1).values)


def _cuts(n_rays: int, n: int, stratified: bool, device: torch.device) -> Tensor:
    """n + 1 increasing numbers [n_rays, n + 1] from 0 to 1; each inner one moves within half a gap."""
    cuts = torch.linspace(0, 1, n + 1, device=device).expand(n_rays, -1)
    if not stratified or n < 2:
        return cuts
    moves = (torch.rand(n_rays, n + 1, device=device) - 0.5) / n
    moves[:, [0, -1]] = 0
    return cuts + moves


def _inverse(cdf: Tensor, at: Tensor, u: Tensor) -> Tensor:
    """Where [R, M] a piecewise linear cdf [R, K] at the points [R, K] takes the values u [R, M]."""
    right = torch.searchsorted(cdf, u.contiguous(), right=True).clamp(1, cdf.shape[1] - 1)
    c0, c1 = cdf.gather(1, right - 1), cdf.gather(1, right)
    a0, a1 = at.gather(1, right - 1), at.gather(1, right)
    return a0 + (a1 - a0) * ((u - c0) / (c1 - c0).clamp(min=1e-8)).clamp(0, 1)


def _between(edges: Tensor) -> Samples:
    """The intervals between increasing edges [R, K + 1], packed."""
    n_rays, n = edges.shape[0], edges.shape[1] - 1
    rays = torch.arange(n_rays, device=edges.device).repeat_interleave(n)
    return Samples(rays, edges[:, :-1].flatten(), edges[:, 1:].flatten())
