"""Point clouds from NumPy's .npz archives, nothing of which is ever unpickled."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from ..damaged import reading
from ..errors import UserError
from .cloud import PointCloud
from .colors import from_stored
from .files import MAX_ROWS
from .limits import check_coordinates
from .shapes import GREY

_POINTS, _COLORS, _NORMALS = ("points", "xyz", "coords"), ("colors", "rgb"), ("normals",)
_CHANNELS = ("R", "G", "B")  # Point-E's own archives: coords, and one array for each channel
MAX_BYTES = 24 * MAX_ROWS  # of an array: three float64 a row


def read_npz(path: str | Path) -> tuple[PointCloud, bool]:
    """The points of an archive, and whether it is one of Point-E's own (which have its axes).

    Points [P, 3] are called points, xyz or coords; colours [P, 3], grey without them, colors, rgb, or R, G
    and B [P] each; normals [P, 3], if there are any, normals. What numbers mean as colours: see
    `colors.from_stored`.

    Raises:
        UserError: the file is missing, no archive, damaged, too large, holds pickled objects, lacks points,
            has arrays of shapes that disagree, or values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    with reading(path, ".npz"), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        wanted = {*_POINTS, *_COLORS, *_NORMALS, *_CHANNELS} & members.keys()
        arrays = {name: read_array(path, archive, members[name]) for name in sorted(wanted)}
    name = next((name for name in _POINTS if name in arrays), None)
    if name is None:
        raise UserError(
            f"{path} holds no points: one of {', '.join(_POINTS)} is expected. It has "
            f"{', '.join(sorted(members)) or 'nothing'}."
        )
    points = _rows(path, name, arrays, None)
    check_coordinates(path, points)
    if not len(points):
        raise UserError(f"{path} holds no points.")
    channels = all(channel in arrays for channel in _CHANNELS)
    if channels and not any(c in arrays for c in _COLORS):
        if any(arrays[channel].shape != (len(points),) for channel in _CHANNELS):
            raise UserError(f"{path}: R, G and B must each have one number for each of {len(points)} points.")
        arrays["colors"] = np.stack([arrays[channel] for channel in _CHANNELS], axis=1)
    color_name = next((c for c in _COLORS if c in arrays), None)
    if color_name is None:
        colors = torch.full((len(points), 3), GREY)
    else:
        colors = torch.from_numpy(from_stored(_rows(path, color_name, arrays, len(points))))
    normals = None
    if "normals" in arrays:
        normals = torch.from_numpy(_rows(path, "normals", arrays, len(points)).astype(np.float32))
        lengths = normals.norm(dim=1, keepdim=True)
        normals = normals / lengths if bool((lengths > 0).all()) else None
    cloud = PointCloud(torch.from_numpy(points.astype(np.float32)), colors, normals)
    return cloud, name == "coords" and channels


def read_array(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int = MAX_BYTES
) -> np.ndarray:
    """One array, after its header has been found to promise no more than the archive holds.

    Args:
        most: bytes that are read.

    Raises:
        UserError: it is of objects, not numbers, too large, or damaged.
    """
    form = np.lib.format
    with archive.open(info) as file:
        version = form.read_magic(file)
        read_header = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        shape, by_columns, dtype = read_header(file)
        if dtype.hasobject:
            raise UserError(f"{path}: {info.filename} is pickled, which is not read, for it can run code.")
        if dtype.kind not in "iuf":
            raise UserError(f"{path}: {info.filename} holds {dtype}; numbers are expected.")
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if size > min(most, info.file_size) or min(shape, default=0) < 0:
            raise UserError(
                f"{path}: {info.filename} says it is {' x '.join(map(str, shape))} {dtype}; it has "
                f"{info.file_size:,} bytes, and at most {most:,} are read. Is it damaged?"
            )
        data = file.read(size)
    if len(data) < size:
        raise UserError(f"{path}: {info.filename} is cut short.")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")


def _rows(path: Path, name: str, arrays: dict[str, np.ndarray], n: int | None) -> np.ndarray:
    """The array [n, 3] of that name.

    Raises:
        UserError: another shape, or values that are not finite.
    """
    array = arrays[name]
    if array.ndim != 2 or array.shape[1] != 3 or n not in (None, len(array)):
        expected = "[P, 3]" if n is None else f"[{n}, 3]"
        raise UserError(f"{path}: {name} has shape {list(array.shape)}; {expected} is expected.")
    bad = np.flatnonzero(~(np.abs(array.astype(np.float64)) <= np.finfo(np.float32).max).all(axis=1))
    if len(bad):
        raise UserError(
            f"{path} holds values that are not finite: {len(bad)} of {len(array)} rows, first row {bad[0]}."
        )
    return array
