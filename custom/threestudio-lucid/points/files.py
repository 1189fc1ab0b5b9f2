"""Point clouds from PLY files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData, PlyParseError

from ..errors import UserError
from .cloud import PointCloud
from .shapes import GREY

# A file may not ask for more than this many rows (about 2.4 GB for Gaussians of SH degree 3).
MAX_ROWS = 10_000_000
MAX_HEADER_BYTES = 64 * 1024

_COLORS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))


def read_points(path: str | Path) -> PointCloud:
    """Points of a PLY file with colours (red, green, blue; integers are scaled by their range), else grey.

    Normals are taken when all are of length > 0.

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
    return PointCloud(points, _read_colors(path, rows, len(points)), normals)


def _read_colors(path: str | Path, rows: np.ndarray, n: int) -> torch.Tensor:
    for names in _COLORS:
        if all(name in rows.dtype.names for name in names):
            kind = rows.dtype[names[0]]
            scale = 1.0 / np.iinfo(kind).max if kind.kind in "iu" else 1.0
            return (columns(path, rows, names) * scale).clamp(0.0, 1.0)
    return torch.full((n, 3), GREY)


def read_vertices(path: str | Path) -> np.ndarray:
    """The "vertex" rows of a PLY file as a structured array, its size checked before anything is read.

    Raises:
        UserError: missing file, no PLY, truncated, too large, lists among the properties, or no points.
    """
    path = Path(path)
    property_names(path)
    try:
        # Memory-mapped reading checks the size of the file against the header before it allocates.
        ply = PlyData.read(str(path), mmap="c")
        rows = ply["vertex"].data
    except (PlyParseError, KeyError, ValueError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as PLY: {error}. Is it damaged or cut short?") from None
    if rows.dtype.names is None or any(rows.dtype[name].hasobject for name in rows.dtype.names):
        raise UserError(f"{path} has lists among its vertex properties; plain numbers are expected.")
    if not len(rows):
        raise UserError(f"{path} holds no points.")
    return rows


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
    """Names of the vertex properties, from a header of limited length and with limited numbers."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    with path.open("rb") as file:
        head, mark, _ = file.read(MAX_HEADER_BYTES).partition(b"end_header")
    if not head.startswith(b"ply") or not mark:
        raise UserError(f"{path} is not a PLY file.")
    names, element = [], ""
    for words in (line.split() for line in head.decode("ascii", "replace").splitlines()):
        if words[:1] == ["element"] and len(words) == 3:
            element, count = words[1], words[2]
            if not count.isdigit() or int(count) > MAX_ROWS:
                raise UserError(
                    f"{path} says it has {count} rows of {element!r}; at most {MAX_ROWS} are read."
                )
        elif words[:1] == ["property"] and element == "vertex":
            names.append(words[-1])
    return names
