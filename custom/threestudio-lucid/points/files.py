"""What PLY files hold: points, colours, triangles, and the raw columns that Gaussians are made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData, PlyParseError

from ..errors import UserError
from .cloud import PointCloud
from .colors import from_stored
from .shapes import GREY

# A file may not ask for more than this many rows (about 2.4 GB for Gaussians of SH degree 3).
MAX_ROWS = 10_000_000
MAX_HEADER_BYTES = 64 * 1024

_COLORS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
_SH_DC = ("f_dc_0", "f_dc_1", "f_dc_2")
_SH_C0 = 0.28209479177387814  # colour = 0.5 + _SH_C0 * f_dc, as in gaussians/cloud.py


def read_points(path: str | Path) -> PointCloud:
    """Points of a PLY file with its colours, else grey: red, green, blue, or f_dc_0..2 of Gaussians.

    What numbers mean as colours: see `colors.from_stored`. Normals are taken when all are of length > 0.

    Raises:
        UserError: the file is missing, damaged, too large or not finite.
    """
    rows = read_vertices(path)
    points = columns(path, rows, ("x", "y", "z"))
    normals = None
    if all(name in rows.dtype.names for name in ("nx", "ny", "nz")):
        normals = columns(path, rows, ("nx", "ny", "nz"))
        lengths = normals.norm(dim=1, keepdim=True)
        normals = normals / lengths if bool((lengths > 0).all()) else None
    return PointCloud(points, read_colors(path, rows), normals)


def read_colors(path: str | Path, rows: np.ndarray) -> torch.Tensor:
    """Colours [N, 3] in [0, 1] of `read_vertices`; grey where there are none.

    Raises:
        UserError: a value is not finite.
    """
    for names in _COLORS:
        if all(name in rows.dtype.names for name in names):
            columns(path, rows, names)  # finite
            return torch.from_numpy(from_stored(np.stack([rows[name] for name in names], axis=1)))
    if all(name in rows.dtype.names for name in _SH_DC):
        return (0.5 + _SH_C0 * columns(path, rows, _SH_DC)).clamp(0.0, 1.0)
    return torch.full((len(rows), 3), GREY)


def read_vertices(path: str | Path) -> np.ndarray:
    """The "vertex" rows of a PLY file as a structured array, its size checked before anything is read.

    Raises:
        UserError: missing file, no PLY, truncated, too large, lists among the properties, or no points.
    """
    path = Path(path)
    property_names(path)
    rows = _read(path)["vertex"].data
    if rows.dtype.names is None or any(rows.dtype[name].hasobject for name in rows.dtype.names):
        raise UserError(f"{path} has lists among its vertex properties; plain numbers are expected.")
    if not len(rows):
        raise UserError(f"{path} holds no points.")
    return rows


def read_triangles(path: str | Path) -> np.ndarray | None:
    """Vertex indices [F, 3] of a PLY file's faces, larger ones cut into triangles; None without faces.

    Raises:
        UserError: see `read_vertices`; a face that names a vertex which is not there.
    """
    property_names(path)
    ply = _read(path)
    if "face" not in ply or not len(ply["face"].data):
        return None
    faces = ply["face"].data
    name = next((name for name in ("vertex_indices", "vertex_index") if name in faces.dtype.names), None)
    if name is None:
        return None
    if faces.dtype[name].hasobject:
        triangles = _fans(faces[name])
    else:
        triangles = faces[name].astype(np.int64)
    if triangles.size and (triangles.min() < 0 or triangles.max() >= len(ply["vertex"].data)):
        raise UserError(f"{path} has faces with vertices that are not in the file. Is it damaged?")
    return triangles if len(triangles) else None


def _fans(polygons: np.ndarray) -> np.ndarray:
    """Triangles [F, 3] around the first corner of each polygon, from an array of arrays of indices."""
    sizes = np.fromiter(map(len, polygons), dtype=np.int64, count=len(polygons))
    parts = [np.empty((0, 3), np.int64)]
    for size in np.unique(sizes[sizes >= 3]):
        corners = np.stack(polygons[sizes == size]).astype(np.int64)
        parts += [corners[:, [0, k, k + 1]] for k in range(1, size - 1)]
    return np.concatenate(parts)


def _read(path: str | Path) -> PlyData:
    """The file, memory-mapped, which checks its size against the header before anything is allocated.

    Raises:
        UserError: it is no PLY, cut short, or has no vertices.
    """
    for lengths in ({"face": {"vertex_indices": 3}}, {"face": {"vertex_index": 3}}, {}):
        try:
            # triangles alone, if they are that, are read a thousand times as fast as lists of any length
            ply = PlyData.read(str(path), mmap="c", known_list_len=lengths)
            _ = ply["vertex"]
            return ply
        except (PlyParseError, KeyError, ValueError, OverflowError, EOFError, MemoryError) as error:
            reason = str(error) or type(error).__name__
    raise UserError(f"{path} cannot be read as PLY: {reason}. Is it damaged or cut short?")


def columns(path: str | Path, rows: np.ndarray, names: Sequence[str]) -> torch.Tensor:
    """Columns of `read_vertices` as float32 [N, len(names)].

    Raises:
        UserError: a column is missing, or a value is not finite.
    """
    missing = [name for name in names if name not in rows.dtype.names]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}. It has {', '.join(rows.dtype.names)}.")
    table = np.empty((len(rows), len(names)), dtype=np.float32)
    for j, name in enumerate(names):
        table[:, j] = rows[name]
    bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(bad):
        raise UserError(
            f"{path} holds values that are not finite: {len(bad)} of {len(rows)} rows, first row {bad[0]}."
        )
    return torch.from_numpy(table)


def property_names(path: str | Path) -> list[str]:
    """Names of the vertex properties, from a header of limited length that promises no more than there is.

    Raises:
        UserError: missing file, no PLY, too many rows, or more of them than fit into the file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    with path.open("rb") as file:
        head, mark, _ = file.read(MAX_HEADER_BYTES).partition(b"end_header")
    if not head.startswith(b"ply") or not mark:
        raise UserError(f"{path} is not a PLY file.")
    names, element, rows, least = [], "", 0, 0
    lines = [line.split() for line in head.decode("ascii", "replace").splitlines()]
    bytes_each = 2 if ["format", "ascii"] in (words[:2] for words in lines) else 1  # a digit and a space
    for words in lines:
        if words[:1] == ["element"] and len(words) == 3:
            element, count = words[1], words[2]
            if not count.isdigit() or int(count) > MAX_ROWS:
                raise UserError(
                    f"{path} says it has {count} rows of {element!r}; at most {MAX_ROWS} are read."
                )
            rows = int(count)
        elif words[:1] == ["property"]:
            least += rows * bytes_each
            if element == "vertex":
                names.append(words[-1])
    if least > path.stat().st_size:
        raise UserError(
            f"{path} cannot be read as PLY: its header promises at least {least:,} bytes and the file has "
            f"{path.stat().st_size:,}. Is it damaged or cut short?"
        )
    return names


def is_gaussian_ply(path: str | Path) -> bool:
    """Whether a PLY file's header names the properties that make Gaussians and not just points.

    Raises:
        UserError: see `property_names`.
    """
    names = property_names(path)
    return "scale_0" in names and "rot_0" in names
