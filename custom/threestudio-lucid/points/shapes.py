"""Simple shapes filled with points, for prompts that nothing better is known about."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .cloud import PointCloud

GREY = 0.5


def ball(n: int, radius: float, generator: torch.Generator) -> PointCloud:
    """`n` grey points, uniform in a ball around the origin.

    (LucidDreamer's "sphere" draws radius and polar angle uniformly, which crowds centre and poles.)
    """
    # 1. uniform on the sphere: z is uniform there (Archimedes)
    z, azimuth, volume = torch.rand(3, n, generator=generator)
    z, azimuth = 2.0 * z - 1.0, 2.0 * math.pi * azimuth
    across = (1.0 - z * z).clamp_min(0.0).sqrt()
    directions = torch.stack([across * azimuth.cos(), across * azimuth.sin(), z], dim=1)
    # 2. volume grows with the cube of the radius
    return _grey(directions * (radius * volume[:, None] ** (1.0 / 3.0)))


def box(n: int, radius: float, generator: torch.Generator) -> PointCloud:
    """`n` grey points, uniform in the cube [-radius, radius]^3."""
    return _grey(radius * (2.0 * torch.rand(n, 3, generator=generator) - 1.0))


def _grey(points: torch.Tensor) -> PointCloud:
    return PointCloud(points, torch.full_like(points, GREY))


SHAPES: dict[str, Callable[[int, float, torch.Generator], PointCloud]] = {"ball": ball, "box": box}
