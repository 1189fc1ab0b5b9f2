"""Simple shapes filled with points, for prompts that nothing better is known about."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .cloud import PointCloud

GREY = 0.5


def ball(n: int, radius: float, generator: torch.Generator) -> PointCloud:
    """`n` grey points, uniform in a ball around the origin."""
    # 1. uniform on the sphere: z is uniform there (Archimedes)
    z, azimuth, volume = torch.rand(3, n, generator=generator)
    z = 2.0 * z - 1.0
    directions = _directions((1.0 - z * z).clamp_min(0.0).sqrt(), z, azimuth)
    # 2. volume grows with the cube of the radius
    return _grey(directions * (radius * volume[:, None] ** (1.0 / 3.0)))


def sphere(n: int, radius: float, generator: torch.Generator) -> PointCloud:
    """`n` grey points in a ball, crowded at its centre and its poles: LucidDreamer's "sphere".

    Radius, polar angle and azimuth are uniform. `ball` is the even one.
    """
    length, polar, azimuth = torch.rand(3, n, generator=generator)
    polar = math.pi * polar
    return _grey(_directions(polar.sin(), polar.cos(), azimuth) * (radius * length[:, None]))


def box(n: int, radius: float, generator: torch.Generator) -> PointCloud:
    """`n` grey points, uniform in the cube [-radius, radius]^3."""
    return _grey(radius * (2.0 * torch.rand(n, 3, generator=generator) - 1.0))


def torus(n: int, radius: float, generator: torch.Generator) -> PointCloud:
    """`n` grey points, uniform in a ring that lies flat: `radius` to its rim, a third of that its tube."""
    tube = radius / 3.0
    middle = radius - tube
    area, turn, azimuth, coin = torch.rand(4, n, generator=generator)
    turn = 2.0 * math.pi * turn
    outward, z = tube * area.sqrt() * turn.cos(), tube * area.sqrt() * turn.sin()
    # A slice of the tube is longer outside than inside, by 1 + outward / middle: mirroring points from one
    # side to the other with this probability makes them uniform in volume.
    outward = torch.where(coin < 0.5 * (1.0 + outward / middle), outward, -outward)
    return _grey(_directions(middle + outward, z, azimuth))


def _directions(across: Tensor, z: Tensor, azimuth: Tensor) -> Tensor:
    """[n, 3] from distances to the z axis, heights, and azimuths in turns."""
    azimuth = 2.0 * math.pi * azimuth
    return torch.stack([across * azimuth.cos(), across * azimuth.sin(), z], dim=1)


def _grey(points: Tensor) -> PointCloud:
    return PointCloud(points, torch.full_like(points, GREY))


SHAPES: dict[str, Callable[[int, float, torch.Generator], PointCloud]] = {
    "ball": ball,
    "sphere": sphere,
    "box": box,
    "torus": torus,
}
