"""Reads Wavefront OBJ files, and the materials (MTL) and pictures beside them, as programs write them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..damaged import reading
from ..errors import UserError
from ..guidance.cards import announce
from .colors import from_stored
from .limits import check_counts, check_size
from .parts import Corners, Paint, Part, fans
from .textures import Texture, beside, find_texture

# How many words follow the options of a texture, at most; of those with fewer, the rest are numbers.
_OPTIONS = {"-blendu": 1, "-blendv": 1, "-bm": 1, "-boost": 1, "-cc": 1, "-clamp": 1, "-imfchan": 1}
_OPTIONS |= {"-mm": 2, "-o": 3, "-s": 3, "-t": 3, "-texres": 1, "-type": 1, "-colorspace": 1}


def read_obj(path: Path) -> list[Part]:
    """One part for each material; a file without faces is one part of points.

    Raises:
        UserError: damaged, or larger than is read.
    """
    with reading(path, "OBJ", "Is it damaged, or no OBJ file?"):
        lines = _Lines(path)
        if not lines.vertices:
            return []
        table = _table(lines.vertices)
        vertices = table[:, :3] if table.shape[1] >= 3 else None
        if vertices is None or (np.isnan(vertices).any() and _short(lines.vertices)):
            raise UserError(f"{path} cannot be read: it has vertices without three coordinates.")
        colors = _vertex_colors(table)
        if not lines.faces.sizes:
            colors = None if colors is None or np.isnan(colors).any() else colors
            return [Part(vertices, np.empty((0, 3), np.int64), point_colors=colors)]
        return list(_parts(path, lines, vertices, colors))


# What follows these is a name, which may hold a #: "Material #25".
_NAMED = ("usemtl", "newmtl", "mtllib", "map_kd")


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """The keyword of each line and what follows it, without comments (but see `_NAMED`) and byte order marks.

    A line that ends with a backslash goes on in the next.
    """
    data = path.read_bytes()
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = data.decode("utf-16" if wide else "utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", "\n")
    for line in text.replace("\\\n", " ").split("\n"):
        words = line.split(None, 1)
        if "#" in line and words[0].lower() not in _NAMED:
            words = line.partition("#")[0].split(None, 1)
        if words:
            yield words[0], words[1].strip() if len(words) == 2 else ""


def _uncommented(name: str) -> str:
    return re.split(r"\s#", name, maxsplit=1)[0].strip()


@dataclass
class _Faces:
    """Faces, each with how many corners it has, its material, and how many v and vt lines precede it."""

    sizes: list[int] = field(default_factory=list)
    corners: list[str] = field(default_factory=list)
    materials: list[int] = field(default_factory=list)
    before: list[tuple[int, int]] = field(default_factory=list)


class _Lines:
    """What the lines of an OBJ file hold."""

    def __init__(self, path: Path) -> None:
        self.vertices: list[str] = []
        self.uv: list[str] = []
        self.faces = _Faces()
        self.materials: dict[str, int] = {"": 0}
        self.libraries: list[str] = []
        current = 0
        for keyword, rest in lines_of(path):
            if keyword == "v":
                self.vertices.append(rest)
            elif keyword == "vt":
                self.uv.append(rest)
            elif keyword == "f":
                words = rest.split()
                self.faces.sizes.append(len(words))
                self.faces.corners += words
                self.faces.materials.append(current)
                self.faces.before.append((len(self.vertices), len(self.uv)))
            elif keyword == "usemtl":
                current = self.materials.setdefault(rest, len(self.materials))
            elif keyword == "mtllib":
                self.libraries.append(rest)


def _table(rows: list[str]) -> np.ndarray:
    """Numbers [N, C], NaN where a row has fewer than the longest."""
    try:
        return np.loadtxt(rows, ndmin=2, comments=None)
    except ValueError:  # rows of different lengths, or no numbers
        split = [row.split() for row in rows]
        width = max(map(len, split))
        if width > 16:
            raise
        return np.array([[float(word) for word in row] + [np.nan] * (width - len(row)) for row in split])


def _short(rows: list[str]) -> bool:
    return any(len(row.split()) < 3 for row in rows)


def _vertex_colors(table: np.ndarray) -> np.ndarray | None:
    """Colours [V, 3] after the coordinates, v x y z r g b, NaN where there are none; None without any."""
    if table.shape[1] < 6:
        return None
    colors, given = table[:, 3:6].copy(), ~np.isnan(table[:, 3:6]).any(axis=1)
    colors[given], colors[~given] = from_stored(colors[given]), np.nan
    return colors


def _parts(path: Path, lines: _Lines, vertices: np.ndarray, colors: np.ndarray | None) -> Iterator[Part]:
    corners, polygon = fans(np.array(lines.faces.sizes))
    check_counts(path, len(corners), len(vertices))
    rows = _rows(path, lines, len(vertices), len(lines.uv))
    material = np.array(lines.faces.materials)[polygon]
    uv = _table(lines.uv)[:, :2] if lines.uv else None
    if uv is not None and uv.shape[1] == 1:  # v is 0 where it is left out
        uv = np.concatenate([uv, np.zeros_like(uv)], axis=1)
    known = _materials(path, lines)
    for name, number in lines.materials.items():
        mine = corners[material == number]
        if not len(mine):
            continue
        triangles, textured = rows[mine, 0], rows[mine, 1]
        look = known.get(name) or _Material()
        colored = colors is not None and not np.isnan(colors[triangles]).any()
        paint = Paint(look.base, Corners(colors, triangles) if colored else None)
        if look.texture is not None and uv is not None and (textured >= 0).all():
            moved = uv * look.scale + look.offset
            flipped = np.stack([moved[:, 0], 1.0 - moved[:, 1]], axis=1)
            paint = Paint(paint.base, paint.colors, look.texture, Corners(flipped, textured))
        yield Part(vertices, triangles, paint)


def _rows(path: Path, lines: _Lines, vertices: int, uvs: int) -> np.ndarray:
    """Rows of v and of vt, [C, 2], that the faces' corners name; -1 for no vt.

    Raises:
        UserError: a row that is not there.
    """
    faces = lines.faces
    given = _indices(faces.corners)
    before = np.repeat(np.array(faces.before), faces.sizes, axis=0)
    rows = np.where(given < 0, before + given, given - 1)  # negative ones count back from the face's line
    rows[:, 1] = np.where(given[:, 1] == 0, -1, rows[:, 1])
    wrong = (rows < 0) | (rows >= (vertices, uvs))
    wrong[:, 1] &= given[:, 1] != 0
    if wrong.any():
        raise UserError(f"{path} has faces with vertices that are not in the file. Is it damaged?")
    return rows


def _indices(corners: list[str]) -> np.ndarray:
    """The first two numbers, [C, 2], of corners written v, v/vt, v//vn or v/vt/vn; 0 where there is none."""
    if len(kinds := {corner.count("/") for corner in corners}) == 1:  # nearly always, and then it is fast
        width = kinds.pop() + 1
        text = " ".join(corners).replace("//", "/0/").replace("/", " ")
        with contextlib.suppress(ValueError):
            numbers = np.fromstring(text, np.int64, sep=" ")
            if len(numbers) == width * len(corners):
                numbers = numbers.reshape(-1, width)
                return numbers[:, :2] if width > 1 else np.pad(numbers, ((0, 0), (0, 1)))
    split = [corner.split("/") for corner in corners]
    return np.array([[int(words[0]), int(words[1] or 0) if len(words) > 1 else 0] for words in split])


# --- materials ----------------------------------------------------------------------------------------------


@dataclass
class _Material:
    """A diffuse colour [3] as shown, a texture, and how its coordinates are scaled and moved."""

    base: np.ndarray | None = None
    texture: Texture | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)


def _materials(path: Path, lines: _Lines) -> dict[str, _Material]:
    """The materials that the faces use, of all libraries; says which are not there."""
    found: dict[str, _Material] = {}
    used = {name for name, number in lines.materials.items() if number in set(lines.faces.materials)}
    for library in _libraries(path, lines.libraries):
        check_size(library)
        for name, material in _read_mtl(library, path, set(map(_uncommented, used))).items():
            found.setdefault(name, material)
    bare = {_uncommented(name): material for name, material in found.items()}
    found |= {name: bare[_uncommented(name)] for name in used - found.keys() if _uncommented(name) in bare}
    if lines.libraries and (missing := sorted(used - found.keys() - {""})):
        announce(f"{path} uses materials that its MTL files do not describe: {', '.join(missing)[:200]}.")
    return found


def _libraries(path: Path, named: list[str]) -> list[Path]:
    """The MTL files that an OBJ file names: one a line, its name with spaces, or several."""
    found = []
    for line in dict.fromkeys(named):
        whole = next((name for name in (line, _uncommented(line)) if beside(path, name)), None)
        for name in [whole] if whole else _uncommented(line).split():
            library = beside(path, name)
            if library is None:
                announce(
                    f"{path} names the materials {name!r}, which are not in its folder: it is read without."
                )
            else:
                found.append(library)
    return found


def _read_mtl(path: Path, owner: Path, wanted: set[str]) -> dict[str, _Material]:
    """The materials of an OBJ file's MTL file, of those that are wanted (by names without comments).

    Raises:
        UserError: damaged.
    """
    found: dict[str, _Material] = {}
    current: _Material | None = None
    with reading(path, "MTL"):
        for keyword, rest in lines_of(path):
            word = keyword.lower()
            if word == "newmtl":
                current = found.setdefault(rest, _Material()) if _uncommented(rest) in wanted else None
            elif word == "kd" and current is not None:
                current.base = _color(rest)
            elif word == "map_kd" and current is not None:
                _add_texture((path, owner), current, rest)
    return found


def _color(rest: str) -> np.ndarray | None:
    """Kd: three numbers, or one for grey. Spectral curves and CIE XYZ are passed over."""
    words = rest.split()
    if words[:1] in (["spectral"], ["xyz"]):
        return None
    values = [float(word) for word in words[:3]]
    return np.clip(values * 3 if len(values) == 1 else _three(values), 0.0, 1.0)


def _three(values: list[float]) -> list[float]:
    if len(values) != 3 or not np.isfinite(values).all():
        raise ValueError(f"Kd has {values}; three numbers are expected")
    return values


def _add_texture(owners: tuple[Path, Path], material: _Material, rest: str) -> None:
    """map_Kd: options, each with its numbers, and then a file name that may hold spaces.

    Args:
        owners: the files that the picture may lie beside, in their order.
    """
    words, clamp = rest.split(), False
    at = 0
    while at < len(words) - 1 and words[at].lower() in _OPTIONS:
        option = words[at].lower()
        values = words[at + 1 : at + 1 + _OPTIONS[option]]
        if option in ("-o", "-s", "-t"):  # one to three numbers
            count = next((k for k, word in enumerate(values) if not _is_number(word)), len(values))
            values = values[: max(1, min(count, len(words) - at - 2))]
        at += 1 + len(values)
        if option in ("-o", "-s"):
            default = 0.0 if option == "-o" else 1.0
            pair = (*(float(value) for value in values[:2]), default)[:2]
            setattr(material, "offset" if option == "-o" else "scale", pair)
        clamp |= option == "-clamp" and values == ["on"]
    if at < len(words):
        whole = rest.split(None, at)[at]
        named = (whole, _uncommented(whole), words[-1])
        there = ((owner, name) for owner in owners for name in named if beside(owner, name))
        owner, name = next(there, (owners[0], named[1]))
        material.texture = find_texture(owner, name, ("clamp", "clamp") if clamp else ("repeat", "repeat"))


def _is_number(word: str) -> bool:
    try:
        return bool(np.isfinite(float(word)))
    except ValueError:
        return False
