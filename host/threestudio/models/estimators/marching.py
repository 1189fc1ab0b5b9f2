"""Steps of equal length along rays, of which those are kept that lie in occupied cells of a grid.

Step k of a ray is the interval [near + k step, near + (k + 1) step]; where its middle lies decides.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.models.estimators.samples import Samples
from threestudio.utils.parallel import run_in_ranges

GRAIN = 256
"""Rays a thread takes at a time."""
CANDIDATES = 2**22
"""Steps that the twin looks at at once: bounds its memory to some hundred MB."""


def march(
    rays_o: Tensor, rays_d: Tensor, near: Tensor, far: float, step: float, occupied: Tensor, bbox: Tensor
) -> Samples:
    """The steps of each ray that lie in occupied cells.

    Args:
        rays_o, rays_d: [R, 3].
        near: [R]; where a ray's steps begin.
        far: no step's middle is farther.
        occupied: bool [X, Y, Z], over the box.
        bbox: lowest and highest corner [2, 3].
    """
    if rays_o.device.type != "cpu":
        return march_reference(rays_o, rays_d, near, far, step, occupied, bbox)
    first, last = _range(rays_o, rays_d, near, far, step, bbox)
    cells = torch.tensor(occupied.shape, dtype=torch.float32)
    given = (rays_o, rays_d, near, first, last, bbox[0], cells / (bbox[1] - bbox[0]))
    arrays = [tensor.detach().contiguous().numpy() for tensor in (*given, occupied)]
    kernels, step32 = _kernels(), torch.tensor(step, dtype=torch.float32).item()
    counts = torch.zeros(len(rays_o) + 1, dtype=torch.int64)
    run_in_ranges(kernels.count, len(rays_o), *arrays, step32, far, counts.numpy(), grain=GRAIN)
    ends = counts.cumsum(0)
    ray_indices = torch.empty(int(ends[-1]), dtype=torch.int64)
    t_starts, t_ends = torch.empty(2, len(ray_indices))
    out = [tensor.numpy() for tensor in (ends, ray_indices, t_starts, t_ends)]
    run_in_ranges(kernels.fill, len(rays_o), *arrays, step32, far, *out, grain=GRAIN)
    return Samples(ray_indices, t_starts, t_ends)


def march_reference(
    rays_o: Tensor, rays_d: Tensor, near: Tensor, far: float, step: float, occupied: Tensor, bbox: Tensor
) -> Samples:
    """`march` in plain PyTorch, for any device."""
    first, last = _range(rays_o, rays_d, near, far, step, bbox)
    most = int((last - first).max().clamp(min=0)) + 1 if len(first) else 1
    size = torch.tensor(occupied.shape, device=rays_o.device)
    per_unit = size / (bbox[1] - bbox[0])
    parts = []
    for rays in torch.arange(len(rays_o), device=rays_o.device).split(max(CANDIDATES // most, 1)):
        k = first[rays, None] + torch.arange(most, device=rays.device)
        t_starts = near[rays, None] + k * step
        t_ends = near[rays, None] + (k + 1) * step
        middles = (t_starts + t_ends) / 2
        points = rays_o[rays, None] + middles[..., None] * rays_d[rays, None]
        cells = ((points - bbox[0]) * per_unit).floor().long()
        inside = ((cells >= 0) & (cells < size)).all(dim=-1) & (middles <= far) & (k <= last[rays, None])
        x, y, z = cells.clamp(min=0).minimum(size - 1).unbind(-1)
        kept = inside & occupied[x, y, z]
        parts.append(Samples(rays[:, None].expand_as(k)[kept], t_starts[kept], t_ends[kept]))
    if not parts:
        return Samples(torch.zeros(0, dtype=torch.int64, device=near.device), near[:0], near[:0])
    return Samples(
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("ray_indices", "t_starts", "t_ends")
        )
    )


def _range(
    rays_o: Tensor, rays_d: Tensor, near: Tensor, far: float, step: float, bbox: Tensor
) -> tuple[Tensor, Tensor]:
    """First and last step [R] (int64) that may lie in the box, with a step to spare; last < first: none."""
    tiny = torch.where(rays_d < 0, -1e-9, 1e-9)
    slope = torch.where(rays_d.abs() < 1e-9, tiny, rays_d)
    t0, t1 = (bbox[0] - rays_o) / slope, (bbox[1] - rays_o) / slope
    enters = torch.minimum(t0, t1).amax(dim=-1)
    leaves = torch.maximum(t0, t1).amin(dim=-1).clamp(max=far)
    first = ((enters - near) / step).floor().clamp(0, 2**40).long() - 1
    last = ((leaves - near) / step).ceil().clamp(-1, 2**40).long()
    return first.clamp(min=0), torch.where(enters > leaves + step, -1, last)


@functools.cache
def _kernels() -> Any:
    """The compiled kernels, imported on first use: numba is slow to import and slower to compile."""
    threestudio.debug("Loading the marching kernels; the first time on a machine they are compiled.")
    from threestudio.models.estimators import marching_kernels

    return marching_kernels
