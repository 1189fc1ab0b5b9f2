"""A rough shape to keep to: `ShapeLoss` (Latent-NeRF's sketch shapes, arXiv 2211.07600)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from threestudio.utils.errors import ConfigValueError

CHUNK = 2**22
"""Pairs of a point and a triangle looked at together."""


class ShapeLoss(nn.Module):
    """Cross entropy between what a mesh and what a field say is inside, weak near the mesh's surface.

    Args:
        guide_shape: a mesh file with y up, which becomes our z; it is moved to the origin and scaled to a
            radius of 0.7.
    """

    RADIUS = 0.7
    SURFACE = 0.3
    """Within about so much of the surface the field is free."""
    STEP = 0.2
    """The length over which a density becomes an opacity."""

    def __init__(self, guide_shape: str) -> None:
        super().__init__()
        vertices, faces = read_mesh(guide_shape)
        vertices = vertices - vertices.mean(axis=0)
        vertices = vertices / np.linalg.norm(vertices, axis=1).max() * self.RADIUS
        vertices = vertices[:, [2, 0, 1]]  # y up, z to the front: z up, x to the front
        self.triangles: Tensor
        self.register_buffer("triangles", torch.from_numpy(vertices[faces]).float(), persistent=False)

    def forward(self, xyzs: Tensor, sigmas: Tensor) -> Tensor:
        """The summed loss of points [N, 3] where the field has densities [N, 1]."""
        with torch.no_grad():
            triangles = self.triangles.to(xyzs)
            inside = (winding_number(xyzs, triangles) > 0.5).to(sigmas)
            squared = squared_distance(xyzs, triangles)
            weight = 1 - torch.exp(-squared / (2 * self.SURFACE**2))
        opacity = 1 - torch.exp(-self.STEP * sigmas.reshape(-1))
        # the mesh is the one in the logarithm: the field's gradient is then the same wherever it is wrong
        likely = inside.clamp(1e-4, 1 - 1e-4)
        entropy = -(opacity * torch.log(likely) + (1 - opacity) * torch.log(1 - likely))
        return (weight * entropy).sum()


def read_mesh(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and triangles [F, 3] of a mesh file.

    Raises:
        ConfigValueError: it is not there, or not a mesh.
    """
    import trimesh

    if not Path(path).is_file():
        raise ConfigValueError(f"system.guide_shape: there is no file {path}.")
    try:
        mesh = trimesh.load(path, force="mesh", process=False)
        vertices, faces = np.asarray(mesh.vertices, dtype=np.float64), np.asarray(mesh.faces)
    except Exception as error:  # trimesh raises whatever its readers do
        raise ConfigValueError(f"system.guide_shape: {path} cannot be read as a mesh: {error}") from error
    if not len(faces):
        raise ConfigValueError(f"system.guide_shape: {path} has no triangles.")
    return vertices, faces


def winding_number(points: Tensor, triangles: Tensor) -> Tensor:
    """How often triangles [F, 3, 3] go around points [N, 3]: 1 inside, 0 outside, and about so with holes.

    The sum of solid angles (van Oosterom and Strackee 1983) over 4 pi.
    """
    parts = []
    for some in points.split(max(CHUNK // len(triangles), 1)):
        a, b, c = (triangles[None, :, corner] - some[:, None] for corner in range(3))
        la, lb, lc = a.norm(dim=-1), b.norm(dim=-1), c.norm(dim=-1)
        volume = (a * torch.cross(b, c, dim=-1)).sum(-1)
        dot_bc, dot_ca, dot_ab = (b * c).sum(-1), (c * a).sum(-1), (a * b).sum(-1)
        angle = 2 * torch.atan2(volume, la * lb * lc + dot_bc * la + dot_ca * lb + dot_ab * lc)
        parts.append(angle.sum(dim=-1) / (4 * math.pi))
    return torch.cat(parts)


def squared_distance(points: Tensor, triangles: Tensor) -> Tensor:
    """Squared distances [N] of points [N, 3] to the nearest of triangles [F, 3, 3]."""
    parts = []
    for some in points.split(max(CHUNK // len(triangles), 1)):
        p = some[:, None]
        a, b, c = (triangles[None, :, corner] for corner in range(3))
        nearest = torch.stack([_to_edge(p, a, b), _to_edge(p, b, c), _to_edge(p, c, a)]).amin(dim=0)
        normal = torch.cross(b - a, c - a, dim=-1)
        height = ((p - a) * normal).sum(-1)
        area = (normal * normal).sum(-1).clamp(min=1e-20)
        # above the triangle, where the point is on the inner side of all three edges, the plane is nearest
        above = torch.ones_like(height, dtype=torch.bool)
        for start, end in ((a, b), (b, c), (c, a)):
            above &= (torch.cross(end - start, normal, dim=-1) * (p - start)).sum(-1) <= 0
        nearest = torch.where(above, torch.minimum(nearest, height**2 / area), nearest)
        parts.append(nearest.amin(dim=-1))
    return torch.cat(parts)


def _to_edge(p: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Squared distance to a line segment."""
    along = end - start
    length = (along * along).sum(-1).clamp(min=1e-20)
    t = (((p - start) * along).sum(-1) / length).clamp(0, 1)
    return (p - start - t[..., None] * along).square().sum(-1)
