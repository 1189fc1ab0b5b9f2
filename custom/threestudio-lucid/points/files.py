"""What PLY files hold: points, colours, triangles, and the raw columns that Gaussians are made of."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData

from ..damaged import DAMAGED, reading
from ..errors import UserError
from .cloud import PointCloud
from .colors import from_stored
from .limits import check_coordinates
from .packed import is_packed, unpack
from .shapes import GREY

# A file may not ask for more than this many rows (about 2.4 GB for Gaussians of SH degree 3).
MAX_ROWS = 10_000_000
MAX_HEADER_BYTES = 64 * 1024

COLORS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
_SH_DC = ("f_dc_0", "f_dc_1", "f_dc_2")
_SH_C0 = 0.28209479177387814  # colour = 0.5 + _SH_C0 * f_dc, as in gaussians/cloud.py
# Lists that usually have one length: plyfile reads them a thousand times as fast when it is told.
_LENGTHS = {"vertex_indices": 3, "vertex_index": 3, "texcoord": 6, "texcoords": 6}


def read_points(path: str | Path) -> PointCloud:
    """Points of a PLY file with its colours, else grey: red, green, blue, or f_dc_0..2 of Gaussians.

    What numbers mean as colours: see `colors.from_stored`. Normals are taken when all are of length > 0.

    Raises:
        UserError: the file is missing, damaged, too large or not finite.
    """
    rows = read_vertices(path)
    points = columns(path, rows, ("x", "y", "z"))
    check_coordinates(path, points.numpy())
    normals = None
    if all(name in rows.dtype.names for name in ("nx", "ny", "nz")):
        normals = columns(path, rows, ("nx", "ny", "nz"))
        lengths = normals.norm(dim=1, keepdim=True)
        normals = normals / lengths if bool((lengths > 0).all()) else None
    return PointCloud(points, read_colors(path, rows), normals)


def has_colors(rows: np.ndarray) -> bool:
    """Whether there is something of which `read_colors` makes colours."""
    return any(all(name in rows.dtype.names for name in names) for names in (*COLORS, _SH_DC))


def read_colors(path: str | Path, rows: np.ndarray) -> torch.Tensor:
    """Colours [N, 3] in [0, 1] of `read_vertices`; grey where there are none.

    Raises:
        UserError: a value is not finite.
    """
    for names in COLORS:
        if all(name in rows.dtype.names for name in names):
            columns(path, rows, names)  # finite
            return torch.from_numpy(from_stored(np.stack([rows[name] for name in names], axis=1)))
    if all(name in rows.dtype.names for name in _SH_DC):
        return (0.5 + _SH_C0 * columns(path, rows, _SH_DC)).clamp(0.0, 1.0)
    return torch.full((len(rows), 3), GREY)


def read_vertices(path: str | Path) -> np.ndarray:
    """The "vertex" rows of a PLY file as a structured array, its size checked before anything is read.

    SuperSplat's packed rows are unpacked to what an ordinary file of Gaussians has.

    Raises:
        UserError: missing file, no PLY, truncated, too large, lists among the properties, or no points.
    """
    return vertices_of(path, read_elements(path))


def vertices_of(path: str | Path, elements: dict[str, np.ndarray]) -> np.ndarray:
    """The same, of `read_elements`."""
    rows = elements["vertex"]
    if rows.dtype.names is None or any(rows.dtype[name].hasobject for name in rows.dtype.names):
        raise UserError(f"{path} has lists among its vertex properties; plain numbers are expected.")
    if not len(rows):
        raise UserError(f"{path} holds no points.")
    if is_packed(rows.dtype.names):
        with reading(path, "a packed splat"):
            return unpack(elements)
    return rows


def read_elements(path: str | Path) -> dict[str, np.ndarray]:
    """All elements of a PLY file by name, as structured arrays. Memory-mapped where no lists forbid it.

    Raises:
        UserError: it is no PLY, cut short, or has no vertices.
    """
    head = header(path)
    known = {
        element: {name: _LENGTHS[name] for name in names if name in _LENGTHS}
        for element, names in head.elements.items()
        if element == "face"
    }
    with reading(path, "PLY"):
        try:
            with _AsciiHeader(path, head.size) as file:
                ply = PlyData.read(file, mmap="c", known_list_len=known)
        except DAMAGED:  # lists of other lengths, or damage
            with _AsciiHeader(path, head.size) as file:
                ply = PlyData.read(file, mmap="c")
        if "vertex" not in ply:
            raise UserError(f"{path} cannot be read as PLY: it has no vertices.")
        return {element.name: element.data for element in ply}


class _AsciiHeader(io.FileIO):
    """A PLY file whose comments plyfile can read: other characters than ASCII become question marks."""

    def __init__(self, path: str | Path, size: int) -> None:
        super().__init__(str(path))
        self._end = size

    def read(self, size: int = -1) -> bytes:
        in_header = self.tell() < self._end
        data = super().read(size)
        if in_header and not data.isascii():
            return bytes(byte if byte < 128 else ord("?") for byte in data)
        return data


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


@dataclass
class Header:
    """What a PLY file says it holds.

    elements: the names of each element's properties.
    textures: pictures that comments name, in their order.
    size: how many bytes it has.
    """

    elements: dict[str, list[str]] = field(default_factory=dict)
    textures: list[str] = field(default_factory=list)
    size: int = 0


def header(path: str | Path) -> Header:
    """The header of a PLY file, which must be short and promise no more than there is.

    Raises:
        UserError: missing file, no PLY, too many rows, or more of them than fit into the file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    with reading(path, "PLY"), path.open("rb") as file:
        head, mark, _ = file.read(MAX_HEADER_BYTES).partition(b"end_header")
    if not head.startswith(b"ply") or not mark:
        raise UserError(f"{path} is not a PLY file.")
    found, element, rows, least = Header(size=len(head) + len(mark)), "", 0, 0
    lines = [line.split() for line in head.decode("utf-8", "replace").splitlines()]
    bytes_each = 2 if ["format", "ascii"] in (words[:2] for words in lines) else 1  # a digit and a space
    for words in lines:
        if words[:1] == ["element"] and len(words) == 3:
            element, count = words[1], words[2]
            found.elements[element] = []
            if not (count.isascii() and count.isdigit() and len(count) < 20 and int(count) <= MAX_ROWS):
                raise UserError(
                    f"{path} says it has {count[:40]} rows of {element!r}; at most {MAX_ROWS} are read."
                )
            rows = int(count)
        elif words[:1] == ["property"]:
            least += rows * bytes_each
            found.elements.setdefault(element, []).append(words[-1])
        elif words[:2] == ["comment", "TextureFile"]:
            found.textures.append(" ".join(words[2:]))
    if least > path.stat().st_size:
        raise UserError(
            f"{path} cannot be read as PLY: its header promises at least {least:,} bytes and the file has "
            f"{path.stat().st_size:,}. Is it damaged or cut short?"
        )
    return found


def is_gaussian_ply(path: str | Path) -> bool:
    """Whether a PLY file's header names the properties that make Gaussians and not just points.

    Raises:
        UserError: see `header`.
    """
    names = header(path).elements.get("vertex", [])
    return is_packed(names) or ("scale_0" in names and "rot_0" in names)
