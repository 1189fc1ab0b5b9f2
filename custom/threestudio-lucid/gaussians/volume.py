"""Gaussians as a volume that takes light away, on a grid: how dense and what colour, and how deep inside.

A Gaussian of opacity o takes ``-log(1 - o)`` of optical depth from a ray through its middle, which is what 3D
Gaussian splatting composites on screen. Spread over the Gaussian's thinnest direction, that is a density per
unit of length, and densities add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..compiled import cached
from .cloud import Gaussians, base_colors, opacities, scales

# As in the rasterizer: a single Gaussian never hides everything.
OPACITY_MAX = 0.99
# Gaussians end at so many standard deviations.
REACH = 3.0
# A Gaussian is at least so thick, in cells: a thinner one would fall between the corners of the grid.
THINNEST = 0.6

# The 26 directions to a cell's neighbours.
DIRECTIONS = np.array(
    [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if (x, y, z) != (0, 0, 0)]
)


@dataclass(frozen=True)
class Volume:
    """Values at the corners of cubic cells.

    density: [nx, ny, nz], optical depth per world unit; color: [nx, ny, nz, 3], weighted by density;
    origin: [3], where the first corner is; cell: side of a cell. World units.
    """

    density: np.ndarray
    color: np.ndarray
    origin: np.ndarray
    cell: float


@torch.no_grad()
def bounds_of(gaussians: Gaussians, opaque: float = 0.05) -> np.ndarray:
    """The box [2, 3] around all Gaussians that are not quite transparent, out to `REACH`.

    Raises:
        ValueError: all are transparent, or there are none.
    """
    shown = opacities(gaussians) > opaque
    if not bool(shown.any()):
        raise ValueError("all Gaussians are transparent")
    means = gaussians.means[shown]
    reach = REACH * scales(gaussians)[shown].amax(dim=1, keepdim=True)
    return torch.stack([(means - reach).amin(dim=0), (means + reach).amax(dim=0)]).double().cpu().numpy()


@torch.no_grad()
def fill(gaussians: Gaussians, bounds: np.ndarray, resolution: int) -> Volume:
    """The volume of the Gaussians in a box.

    Args:
        bounds: lowest and highest corner of the box [2, 3].
        resolution: cells along the longest side of the box.
    """
    cell = float((bounds[1] - bounds[0]).max()) / resolution
    shape = np.ceil((bounds[1] - bounds[0]) / cell - 1e-6).astype(int) + 1
    s = scales(gaussians).double().clamp(min=THINNEST * cell)
    axes = _rotations(gaussians.quats.double())
    depth = -torch.log1p(-opacities(gaussians).double().clamp(max=OPACITY_MAX))
    peak = depth / (math.sqrt(2 * math.pi) * s.amin(dim=1))
    # |inverse(S) R^T (x - mean)| is the distance in standard deviations; the box of that ball reaches
    # sqrt(diagonal of the covariance).
    whiten = axes.transpose(1, 2) / s[:, :, None]
    reach = REACH * (axes * s[:, None, :]).square().sum(dim=2).sqrt()
    arrays = (gaussians.means, whiten, reach, peak, base_colors(gaussians).clamp(max=1.0))
    density, color = np.zeros(shape), np.zeros((*shape, 3))
    _splat(*(value.double().cpu().numpy() for value in arrays), bounds[0], cell, density, color)
    color /= np.maximum(density, 1e-12)[..., None]
    return Volume(density, color, bounds[0], cell)


def depth_inside(volume: Volume) -> np.ndarray:
    """Optical depth [nx, ny, nz] at the corners of cells, seen from wherever it is least (`DIRECTIONS`).

    What is behind a wall on all sides is deep inside, whether there is anything or not: cavities fill.
    """
    least = np.full(volume.density.shape, np.inf)
    scratch = np.empty_like(least)
    for direction in DIRECTIONS:
        _march(volume.density, direction, volume.cell * float(np.linalg.norm(direction)), scratch, least)
    return least


def _rotations(quats: torch.Tensor) -> torch.Tensor:
    """Rotation matrices [N, 3, 3] of quaternions wxyz of any length; columns are the Gaussian's axes."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=1).unbind(dim=1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


@cached()
def _splat(means, whiten, reach, peak, colors, origin, cell, density, color):
    """Adds every Gaussian to `density`, and its colour times density to `color`."""
    nx, ny, nz = density.shape
    for n in range(len(means)):
        lx, ly, lz = (means[n, 0] - origin[0]), (means[n, 1] - origin[1]), (means[n, 2] - origin[2])
        x0, x1 = max(math.ceil((lx - reach[n, 0]) / cell), 0), min(int((lx + reach[n, 0]) // cell) + 1, nx)
        y0, y1 = max(math.ceil((ly - reach[n, 1]) / cell), 0), min(int((ly + reach[n, 1]) // cell) + 1, ny)
        z0, z1 = max(math.ceil((lz - reach[n, 2]) / cell), 0), min(int((lz + reach[n, 2]) // cell) + 1, nz)
        w = whiten[n]
        for i in range(x0, x1):
            dx = i * cell - lx
            for j in range(y0, y1):
                dy = j * cell - ly
                for k in range(z0, z1):
                    dz = k * cell - lz
                    a = w[0, 0] * dx + w[0, 1] * dy + w[0, 2] * dz
                    b = w[1, 0] * dx + w[1, 1] * dy + w[1, 2] * dz
                    c = w[2, 0] * dx + w[2, 1] * dy + w[2, 2] * dz
                    squared = a * a + b * b + c * c
                    if squared < REACH * REACH:
                        value = peak[n] * math.exp(-0.5 * squared)
                        density[i, j, k] += value
                        color[i, j, k, 0] += value * colors[n, 0]
                        color[i, j, k, 1] += value * colors[n, 1]
                        color[i, j, k, 2] += value * colors[n, 2]


@cached()
def _march(density, direction, step, depth, least):
    """Sums densities along rays in one direction (trapezoids of `step`) and keeps the least sums."""
    nx, ny, nz = density.shape
    dx, dy, dz = direction
    for a in range(nx):
        i = a if dx >= 0 else nx - 1 - a
        for b in range(ny):
            j = b if dy >= 0 else ny - 1 - b
            for c in range(nz):
                k = c if dz >= 0 else nz - 1 - c
                pi, pj, pk = i - dx, j - dy, k - dz
                if 0 <= pi < nx and 0 <= pj < ny and 0 <= pk < nz:
                    sum_so_far = depth[pi, pj, pk] + 0.5 * step * (density[pi, pj, pk] + density[i, j, k])
                else:
                    sum_so_far = 0.0
                depth[i, j, k] = sum_so_far
                least[i, j, k] = min(least[i, j, k], sum_so_far)
