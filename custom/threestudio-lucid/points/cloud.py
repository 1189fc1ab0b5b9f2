"""A coloured point cloud."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from .frame import Frame

# What coincident points are given instead of distance 0, as in the released 3DGS code.
MIN_SQUARED_DISTANCE = 1e-7


@dataclass(frozen=True)
class PointCloud:
    """Points with colours, float32 on the CPU.

    points: [P, 3], world units, z up, an object's front towards +x.
    colors: [P, 3] in [0, 1].
    normals: [P, 3] of unit length, or None.

    Raises:
        ValueError: shapes that disagree, or no points.
    """

    points: Tensor
    colors: Tensor
    normals: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("points", "colors", "normals"):
            value = getattr(self, name)
            if value is not None and (value.ndim != 2 or value.shape != (len(self.points), 3)):
                raise ValueError(f"{name} has shape {tuple(value.shape)}: expected ({len(self.points)}, 3)")
        if len(self.points) == 0:
            raise ValueError("a point cloud needs at least one point")

    def __len__(self) -> int:
        return len(self.points)

    def sample(self, n: int, generator: torch.Generator) -> PointCloud:
        """`n` of the points, drawn without repetition as long as there are unused ones."""
        whole, rest = divmod(n, len(self))
        rows = torch.arange(len(self)).repeat(whole)
        rows = torch.cat([rows, torch.randperm(len(self), generator=generator)[:rest]])
        return PointCloud(
            self.points[rows], self.colors[rows], None if self.normals is None else self.normals[rows]
        )

    def densify(self, n: int, reach: float, generator: torch.Generator) -> PointCloud:
        """`n` points from fewer: copies of the cloud, each moved as a whole; from more: some of them.

        The way of LucidDreamer, which makes 81,920 of Point-E's 4096. An offset is shared by all points of a
        copy; its length, polar angle and azimuth are uniform. (There, no copy stays in place, and a rest that
        fills no copy is left out.)

        Args:
            reach: longest offset, world units.
        """
        copies = self.sample(n, generator)
        length, polar, azimuth = torch.rand(3, -(-n // len(self)), generator=generator)
        length, polar, azimuth = reach * length, math.pi * polar, 2.0 * math.pi * azimuth
        across = length * polar.sin()
        offsets = torch.stack([across * azimuth.cos(), across * azimuth.sin(), length * polar.cos()], dim=1)
        offsets[0] = 0.0
        copy = torch.arange(n) // len(self)
        return PointCloud(copies.points + offsets[copy], copies.colors, copies.normals)

    def turned(self, frame: Frame) -> PointCloud:
        """Points whose axes are `frame`'s, in the world's."""
        turn = frame.to_world().T
        return PointCloud(
            self.points @ turn, self.colors, None if self.normals is None else self.normals @ turn
        )

    def fitted(self, radius: float) -> PointCloud:
        """With the middle of the bounding box at the origin, and its longest side `2 * radius`.

        Points that all coincide are moved alone.
        """
        low, high = self.points.aminmax(dim=0)
        side = (high - low).max()
        scale = 2.0 * radius / side if side > 0.0 else 1.0
        return PointCloud((self.points - 0.5 * (low + high)) * scale, self.colors, self.normals)


def mean_squared_neighbour_distance(points: Tensor, k: int = 3) -> Tensor:
    """Mean squared distance of each point to its k nearest others, [P], at least 1e-7.

    A KD-tree: O(P log P), 0.2 s for 100,000 points. With fewer than k + 1 points the mean is over those there
    are; a single point is given distance 0.1.

    >>> mean_squared_neighbour_distance(torch.tensor([[0.0, 0, 0], [1, 0, 0]]))
    tensor([1., 1.])
    """
    k = min(k, len(points) - 1)
    if k == 0:
        return torch.full((1,), 0.01)
    xyz = points.detach().cpu().double().numpy()
    # The nearest point is the point itself; with coincident points it may be its twin, at the same distance
    # 0.
    distances, _ = cKDTree(xyz).query(xyz, k=k + 1)
    squared = np.square(distances[:, 1:]).mean(axis=1)
    return torch.from_numpy(squared).float().clamp_min(MIN_SQUARED_DISTANCE)
