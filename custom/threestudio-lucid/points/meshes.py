"""Points on the surface of a mesh, even by area, in its colours: OBJ, glTF, and PLY files with faces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from .cloud import PointCloud
from .gltf import read_gltf
from .limits import check_coordinates, check_counts, check_size
from .obj import read_obj
from .parts import Draw, Part, draw_places
from .ply_mesh import read_ply_mesh
from .shapes import GREY

READERS = {".obj": read_obj, ".glb": read_gltf, ".gltf": read_gltf}


def draw_by_area(corners: np.ndarray, n: int, generator: torch.Generator) -> Draw:
    """`n` places, uniform on the triangles [F, 3, 3].

    Raises:
        ValueError: the triangles have no area.
    """
    return draw_places(areas(corners), n, generator)


def areas(corners: np.ndarray) -> np.ndarray:
    """[F] of triangles [F, 3, 3]."""
    return 0.5 * np.linalg.norm(_cross(corners), axis=1)


def sample_surface(corners: np.ndarray, colors: np.ndarray, n: int, generator: torch.Generator) -> PointCloud:
    """`n` points on triangles, with normals.

    Args:
        corners: [F, 3, 3], counter-clockwise from outside.
        colors: of the corners, [F, 3, 3] in [0, 1].

    Raises:
        ValueError: the triangles have no area.
    """
    draw = draw_by_area(corners, n, generator)
    return _cloud(draw.of(corners), draw.of(colors), _cross(corners[draw.triangle]))


def read_mesh(path: str | Path, n: int, generator: torch.Generator) -> PointCloud:
    """`n` points on the mesh of an OBJ, GLB or glTF file, in the file's axes.

    Colours are those of the texture, the vertices, the faces or the material, whatever there is, as shown. A
    file of points without faces gives these points, of which there may then be fewer or more than `n`.

    Raises:
        UserError: missing file, damaged, too large, compressed, empty, or not finite.
    """
    path = Path(path)
    parts = read_parts(path)
    surfaces = [part for part in parts if len(part.triangles)]
    if not surfaces:
        return _points_of(path, parts)
    try:
        return _sample(surfaces, n, generator)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} has no surface: its triangles have no area.") from None


def sample_ply(path: str | Path, n: int, generator: torch.Generator) -> PointCloud | None:
    """`n` points on the faces of a PLY file, in its colours; None where they have no area, or there are none.

    Raises:
        UserError: see `ply_mesh.read_ply_mesh`.
    """
    parts = _checked(Path(path), read_ply_mesh(Path(path)))
    if not any(areas(part.vertices[part.triangles]).any() for part in parts):
        return None
    return _sample(parts, n, generator)


def _sample(parts: Sequence[Part], n: int, generator: torch.Generator) -> PointCloud:
    """`n` points on parts with triangles.

    Raises:
        ValueError: the triangles have no area.
    """
    sizes = [areas(part.placed()[part.triangles]) for part in parts]
    draw = draw_places(np.concatenate(sizes), n, generator)
    ends = np.cumsum([len(size) for size in sizes])
    owner = np.searchsorted(ends, draw.triangle, side="right")
    points, colors, normals = np.empty((n, 3)), np.empty((n, 3)), np.empty((n, 3))
    for k in np.unique(owner):
        part, mine = parts[k], owner == k
        local = Draw(draw.triangle[mine] - (ends[k] - len(sizes[k])), draw.weights[mine])
        corners = part.placed()[part.triangles[local.triangle]]
        points[mine] = np.einsum("nk,nkc->nc", local.weights, corners)
        colors[mine], normals[mine] = part.paint.at(local), _cross(corners)
    return _cloud(points, colors, normals)


def read_surface(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices float64 [V, 3] in the file's axes and triangles int64 [F, 3] of a mesh file.

    Raises:
        UserError: see `read_mesh`; a file without triangles.
    """
    path = Path(path)
    parts = [part for part in read_parts(path) if len(part.triangles)]
    if not parts:
        raise UserError(f"{path} holds no triangles, so it has no surface.")
    starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
    faces = [part.triangles + start for part, start in zip(parts, starts, strict=False)]
    return np.concatenate([part.placed() for part in parts]), np.concatenate(faces)


def read_parts(path: Path) -> list[Part]:
    """What a mesh file holds, its coordinates checked.

    Raises:
        UserError: see `read_mesh`.
    """
    check_size(path)
    return _checked(path, READERS[path.suffix.lower()](path))


def _checked(path: Path, parts: list[Part]) -> list[Part]:
    check_counts(path, sum(len(p.triangles) for p in parts), sum(len(p.vertices) for p in parts))
    for part in parts:
        check_coordinates(path, part.placed())
    return parts


def _points_of(path: Path, parts: Sequence[Part]) -> PointCloud:
    """The vertices of a file without faces."""
    if not sum(len(part.vertices) for part in parts):
        raise UserError(f"{path} holds neither triangles nor points.")
    colors = [
        np.full_like(part.vertices, GREY) if part.point_colors is None else part.point_colors
        for part in parts
    ]
    return _cloud(np.concatenate([part.placed() for part in parts]), np.concatenate(colors), None)


def _cross(corners: np.ndarray) -> np.ndarray:
    """Normals [F, 3], twice as long as the triangles [F, 3, 3] are large."""
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def _cloud(points: np.ndarray, colors: np.ndarray, normals: np.ndarray | None) -> PointCloud:
    if normals is not None:
        normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
    tensors = [None if a is None else torch.from_numpy(a).float() for a in (points, colors, normals)]
    return PointCloud(tensors[0], tensors[1].clamp(0.0, 1.0), tensors[2])
