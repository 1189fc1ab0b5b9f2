"""Cameras around the origin, and ranges that widen or close in as training goes on.

World: right-handed, z up; azimuth 0 is +x and grows towards +y; elevation 90 is straight above. Angles are
in degrees unless a name says otherwise. Camera matrices are OpenGL's, as threestudio's: columns right, up,
backward, position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

Range = tuple[float, float]


def positions_on_sphere(elevation: Tensor, azimuth: Tensor, distance: Tensor) -> Tensor:
    """d (cos e cos a, cos e sin a, sin e), [B, 3].

    >>> positions_on_sphere(torch.tensor([0.0]), torch.tensor([0.0]), torch.tensor([2.0]))
    tensor([[2., 0., 0.]])
    """
    e, a = torch.deg2rad(elevation), torch.deg2rad(azimuth)
    return distance[:, None] * torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], dim=1)


def look_at(position: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """Camera-to-world matrices [B, 4, 4] of cameras at `position` that see `target` in the centre.

    All arguments are [B, 3]. `up` only needs to be roughly up; straight above or below the target, "up" in
    the picture is away from +x.
    """
    backward = F.normalize(position - target, dim=1)
    right = torch.cross(up, backward, dim=1)
    # From a pole, right is undefined: take the limit of the camera at azimuth 0, whose right is +y.
    degenerate = right.norm(dim=1, keepdim=True) < 1e-6
    right = torch.where(degenerate, torch.tensor([0.0, 1.0, 0.0]).to(right), right)
    right = F.normalize(right, dim=1)
    up = F.normalize(torch.cross(backward, right, dim=1), dim=1)
    c2w = torch.eye(4).to(position).repeat(len(position), 1, 1)
    c2w[:, :3] = torch.stack([right, up, backward, position], dim=2)
    return c2w


def opencv_cameras(c2w: Tensor, fovy: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """World-to-camera matrices [B, 4, 4] and intrinsics [B, 3, 3] in OpenCV's convention.

    Args:
        c2w: [B, 4, 4], OpenGL: columns right, up, backward, position.
        fovy: vertical field of view [B] in RADIANS, as threestudio's batches have it.
        height, width: pixels, whose centres are at +0.5. The principal point is the middle, pixels are
            square.
    """
    # nothing here waits for a GPU: no tensors made elsewhere, no check of what is always invertible
    viewmats = torch.linalg.inv_ex(c2w).inverse.contiguous()
    viewmats[:, 1:3].neg_()
    focal = 0.5 * height / torch.tan(0.5 * fovy)
    Ks = c2w.new_zeros(len(c2w), 3, 3)
    Ks[:, 0, 0] = Ks[:, 1, 1] = focal
    Ks[:, 0, 2], Ks[:, 1, 2], Ks[:, 2, 2] = 0.5 * width, 0.5 * height, 1.0
    return viewmats, Ks


@dataclass(frozen=True)
class Orbit:
    """Where cameras are drawn from; every range is (low, high).

    camera_perturb: positions move by up to this along each axis, uniformly.
    center_perturb, up_perturb: standard deviations of the point looked at and of the up vector.
    even_azimuth: cut the range of azimuths into as many parts as there are cameras and draw one in each.
    """

    elevation: Range
    azimuth: Range
    distance: Range
    fovy: Range
    camera_perturb: float = 0.0
    center_perturb: float = 0.0
    up_perturb: float = 0.0
    even_azimuth: bool = True


@dataclass(frozen=True)
class Cameras:
    """B cameras: elevation, azimuth, fovy in degrees and distance [B], before perturbation; c2w [B, 4, 4]."""

    elevation: Tensor
    azimuth: Tensor
    distance: Tensor
    fovy: Tensor
    c2w: Tensor


def sample_cameras(orbit: Orbit, n: int, generator: torch.Generator) -> Cameras:
    """`n` cameras: all uniform in their ranges, or the azimuths evenly spread."""

    def uniform(bounds: Range) -> Tensor:
        low, high = bounds
        return low + (high - low) * torch.rand(n, generator=generator)

    elevation, distance, fovy = uniform(orbit.elevation), uniform(orbit.distance), uniform(orbit.fovy)
    azimuth = uniform((0.0, 1.0))
    if orbit.even_azimuth:
        azimuth = (azimuth + torch.arange(n)) / n
    azimuth = orbit.azimuth[0] + (orbit.azimuth[1] - orbit.azimuth[0]) * azimuth

    position = positions_on_sphere(elevation, azimuth, distance)
    position = position + orbit.camera_perturb * (2.0 * torch.rand(n, 3, generator=generator) - 1.0)
    target = orbit.center_perturb * torch.randn(n, 3, generator=generator)
    up = torch.tensor([0.0, 0.0, 1.0]) + orbit.up_perturb * torch.randn(n, 3, generator=generator)
    return Cameras(elevation, azimuth, distance, fovy, look_at(position, target, up))


def circle(n: int, elevation: float, distance: float, fovy: float) -> Cameras:
    """`n` cameras at even azimuths, the first in front (+x), looking at the origin. fovy in degrees."""
    azimuth = torch.arange(n) * (360.0 / n)
    e, d, f = (torch.full((n,), float(value)) for value in (elevation, distance, fovy))
    up = torch.tensor([[0.0, 0.0, 1.0]]).expand(n, 3)
    return Cameras(e, azimuth, d, f, look_at(positions_on_sphere(e, azimuth, d), torch.zeros(n, 3), up))


@dataclass(frozen=True)
class Relaxation:
    """How ranges change: every `every` steps each end is multiplied by its factor, up to its limit.

    every: steps; 0 leaves all ranges as they are.
    factors, limits: name of a range -> two numbers, for its low and high end. A range without factors stays.
    """

    every: int = 0
    factors: Mapping[str, Sequence[float]] = field(default_factory=dict)
    limits: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def at(self, name: str, bounds: Sequence[float], step: int) -> Range:
        """The range called `name`, which starts as `bounds`, at a step.

        >>> Relaxation(500, {"fovy": (0.5, 1.0)}, {"fovy": (10.0, 40.0)}).at("fovy", (32.0, 40.0), 1000)
        (10.0, 40.0)
        """
        low, high = bounds
        rounds = step // self.every if self.every > 0 else 0
        if rounds == 0 or name not in self.factors:
            return (low, high)
        ends = zip(bounds, self.factors[name], self.limits[name], strict=True)
        return tuple(_towards(end, end * factor**rounds, limit) for end, factor, limit in ends)


def _towards(start: float, value: float, limit: float) -> float:
    """`value`, but not past `limit` as seen from `start`."""
    return min(value, limit) if limit >= start else max(value, limit)
