"""Surfaces of PLY files: faces and triangle strips, with the colours and textures that scanners give them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..damaged import reading
from ..errors import UserError
from .colors import from_stored
from .files import COLORS, columns, has_colors, header, read_colors, read_elements, vertices_of
from .parts import Corners, Paint, Part, fans, strip
from .textures import find_texture

_INDICES = ("vertex_indices", "vertex_index")
# What programs call texture coordinates of vertices; v is 0 at a picture's lower edge.
_UV = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"), ("texture_s", "texture_t"), ("s0", "t0"))
_FACE_UV = ("texcoord", "texcoords")


def read_ply_mesh(path: Path) -> list[Part]:
    """The faces and strips of a PLY file; none where it is a cloud of points.

    Raises:
        UserError: see `files.read_vertices`; a face that names a vertex which is not there.
    """
    if not {"face", "tristrips"} & header(path).elements.keys():
        return []
    with reading(path, "PLY"):
        elements = read_elements(path)
        rows = vertices_of(path, elements)
        points = columns(path, rows, ("x", "y", "z")).double().numpy()
        parts = []
        if (faces := elements.get("face")) is not None and len(faces):
            parts += _faces(path, rows, points, faces)
        if (strips := elements.get("tristrips")) is not None and len(strips):
            triangles = _strips(strips)
            texture = next(iter(header(path).textures), "")
            parts += [Part(points, triangles, _painted(path, rows, triangles, None, texture))]
        for part in parts:
            if part.triangles.size and (part.triangles.min() < 0 or part.triangles.max() >= len(points)):
                raise UserError(f"{path} has faces with vertices that are not in the file. Is it damaged?")
        return [part for part in parts if len(part.triangles)]


def _faces(path: Path, rows: np.ndarray, points: np.ndarray, faces: np.ndarray) -> list[Part]:
    """Parts, one for each texture."""
    name = next((name for name in _INDICES if name in faces.dtype.names), None)
    if name is None:
        return []
    sizes, indices = _lists(faces[name])
    corners, polygon = fans(sizes)
    triangles = indices.astype(np.int64)[corners]
    colors = None if has_colors(rows) else _face_colors(faces)
    if colors is not None:
        colors = Corners(colors, np.repeat(polygon[:, None], 3, axis=1))
    uv = _face_uv(faces, sizes)
    textures = header(path).textures
    if not textures:
        return [Part(points, triangles, _painted(path, rows, triangles, colors))]
    number = faces["texnumber"].astype(np.int64)[polygon] if _is_plain(faces, "texnumber") else 0 * polygon
    bare = np.isnan(uv[corners]).any(axis=(1, 2)) if uv is not None else np.zeros(len(polygon), bool)
    parts = []
    for k, texture in enumerate(textures):
        mine = (number == k) & ~bare
        if mine.any():
            paint = _painted(path, rows, triangles[mine], _those(colors, mine), texture)
            if uv is not None:
                paint = Paint(paint.base, paint.colors, paint.texture, Corners(uv, corners[mine]))
            parts.append(Part(points, triangles[mine], paint))
    rest = bare | (number < 0) | (number >= len(textures))
    if rest.any():
        paint = _painted(path, rows, triangles[rest], _those(colors, rest))
        parts.append(Part(points, triangles[rest], paint))
    return parts


def _painted(
    path: Path, rows: np.ndarray, triangles: np.ndarray, colors: Corners | None, texture: str = ""
) -> Paint:
    """The colours of vertices, else of faces; a texture at the vertices' coordinates, if they have any."""
    if has_colors(rows):
        colors = Corners(read_colors(path, rows).double().numpy(), triangles)
    picture = find_texture(path, texture) if texture else None
    names = next((pair for pair in _UV if all(name in rows.dtype.names for name in pair)), None)
    uv = None
    if picture is not None and names is not None:
        uv = Corners(_downwards(np.stack([rows[name] for name in names], axis=1)), triangles)
    return Paint(None, colors, picture, uv)


def _those(corners: Corners | None, mine: np.ndarray) -> Corners | None:
    return None if corners is None else Corners(corners.values, corners.rows[mine])


def _face_colors(faces: np.ndarray) -> np.ndarray | None:
    """[P, 3] in [0, 1]."""
    for names in COLORS:
        if all(_is_plain(faces, name) for name in names):
            return from_stored(np.stack([faces[name] for name in names], axis=1)).astype(np.float64)
    return None


def _face_uv(faces: np.ndarray, sizes: np.ndarray) -> np.ndarray | None:
    """Texture coordinates of all corners of all faces, [C, 2], v downwards; NaN where a face has none."""
    name = next((name for name in _FACE_UV if name in faces.dtype.names), None)
    if name is None:
        return None
    counts, values = _lists(faces[name])
    fits = counts == 2 * sizes
    uv = np.full((int(sizes.sum()), 2), np.nan)
    uv[np.repeat(fits, sizes)] = values[np.repeat(fits, counts)].reshape(-1, 2)
    return _downwards(uv)


def _downwards(uv: np.ndarray) -> np.ndarray:
    uv = uv.astype(np.float64)
    return np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=1)


def _strips(strips: np.ndarray) -> np.ndarray:
    """Triangles [F, 3] of strips, which -1 ends within a list."""
    name = next(name for name in _INDICES if name in strips.dtype.names)
    pieces = [np.empty((0, 3), np.int64)]
    for rows in strips[name]:
        rows = np.asarray(rows).astype(np.int64)
        for piece in np.split(rows, np.flatnonzero(rows == -1)):
            pieces.append(strip(piece[piece != -1]))
    return np.concatenate(pieces)


def _is_plain(rows: np.ndarray, name: str) -> bool:
    """Whether there is such a property, one number each."""
    return name in rows.dtype.names and not rows.dtype[name].hasobject and rows.dtype[name].shape == ()


def _lists(lists: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How long each list is, [P], and all their numbers, one after the other."""
    if not lists.dtype.hasobject:
        return np.full(len(lists), lists[0].size, np.int64), lists.reshape(-1)
    sizes = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    return sizes, np.concatenate(list(lists))
