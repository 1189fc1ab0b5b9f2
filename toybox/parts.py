"""The vocabulary things are made of: coloured solids, added to or carved out of one another.

A part is one row of a float32 table, so that a whole object travels into compiled code as one array
``[P, COLUMNS]``. Rows are applied in order: a ``carved`` part removes material from everything *above* it in
the list only, so a mug's hole is cut before its handle is added.

Units: an object spans the unit ball (none reaches beyond 1.06), z is up, its front faces +x (the cameras'
azimuth 0), its left side +y.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

Vec = Sequence[float]
Paint = tuple[int, "Color", float, float, float]
Color = tuple[float, float, float]

# Kinds of solid, with the meaning of their four sizes.
ELLIPSOID = 0  # radius x, radius y, radius z
BOX = 1  # half width x, y, z, rounding
CYLINDER = 2  # radius, half height, -, rounding; axis z
CONE = 3  # radius at the bottom, at the top, half height, rounding; axis z
LIMB = 4  # radius at the start, at the end, length; from the origin along +z
TORUS = 5  # ring radius, tube radius; axis z

# Kinds of paint: where the second colour shows, in the part's own axes but for the last.
PLAIN = 0
BANDS = 1  # along z: frequency, phase, share of the second colour
SECTORS = 2  # around z: count, phase, share
BRICKS = 3  # mortar lines: rows per unit, bricks per unit, width of the mortar as a share of a row
WAFFLE = 4  # crossed diagonal lines around z: lines around, lines per unit height, width share
STRIPES = 5  # along the world's z, whichever way the part is turned: frequency, phase, share
# Decorations, one figure in each cell of a grid on the part's wall: cells around z (on a box: per unit of
# length, each of its sides alike), cells per unit height, phase of the height.
HEARTS, STARS, DOTS, CHECKS, HOOPS, SMILES, PLANKS, BEAMS, MASONRY = range(6, 15)

# Columns of the table.
KIND, CARVED, BLEND = 0, 1, 2
CENTRE = 3  # 3 columns
AXES = 6  # 9 columns: rows are the part's x, y, z axes in the world
SIZE = 15  # 4 columns
COLOR = 19  # 3 columns
PAINT = 22
COLOR2 = 23  # 3 columns
PAINT_ARGS = 26  # 3 columns
BOUND = 29  # radius of a ball round the centre that holds the part
COLUMNS = 30


def rotation(roll: float = 0.0, pitch: float = 0.0, yaw: float = 0.0) -> np.ndarray:
    """Rotation matrix ``[3, 3]`` that rolls about x, then pitches about y, then yaws about z (degrees)."""
    r, p, y = np.radians([roll, pitch, yaw])
    about_x = np.array([[1, 0, 0], [0, np.cos(r), -np.sin(r)], [0, np.sin(r), np.cos(r)]])
    about_y = np.array([[np.cos(p), 0, np.sin(p)], [0, 1, 0], [-np.sin(p), 0, np.cos(p)]])
    about_z = np.array([[np.cos(y), -np.sin(y), 0], [np.sin(y), np.cos(y), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _part(
    kind: int,
    size: Vec,
    bound: float,
    at: Vec,
    color: Color,
    *,
    turn: np.ndarray | None = None,
    carve: bool = False,
    blend: float = 0.0,
    paint: tuple[int, Color, float, float, float] | None = None,
) -> np.ndarray:
    row = np.zeros(COLUMNS, np.float32)
    row[KIND], row[CARVED], row[BLEND] = kind, carve, blend
    row[CENTRE : CENTRE + 3] = at
    row[AXES : AXES + 9] = (np.eye(3) if turn is None else np.asarray(turn).T).ravel()
    row[SIZE : SIZE + len(size)] = size
    row[COLOR : COLOR + 3] = color
    if paint is not None:
        row[PAINT], row[COLOR2 : COLOR2 + 3], row[PAINT_ARGS : PAINT_ARGS + 3] = paint[0], paint[1], paint[2:]
    row[BOUND] = bound
    return row


def ball(radius: float | Vec, at: Vec, color: Color, **how) -> np.ndarray:
    """A ball, or an ellipsoid when ``radius`` is three numbers."""
    radii = np.broadcast_to(np.asarray(radius, float), 3)
    return _part(ELLIPSOID, radii, radii.max(), at, color, **how)


def box(half: Vec, at: Vec, color: Color, round: float = 0.02, **how) -> np.ndarray:
    """A box with half widths ``half`` (its rounded edges stay inside them)."""
    return _part(BOX, (*half, min(round, 0.95 * min(half))), float(np.linalg.norm(half)), at, color, **how)


def cylinder(radius: float, half: float, at: Vec, color: Color, round: float = 0.015, **how) -> np.ndarray:
    """An upright cylinder of half height ``half``."""
    size = (radius, half, 0.0, min(round, 0.95 * min(radius, half)))
    return _part(CYLINDER, size, float(np.hypot(radius, half)), at, color, **how)


def cone(
    bottom: float, top: float, half: float, at: Vec, color: Color, round: float = 0.01, **how
) -> np.ndarray:
    """An upright cone frustum of half height ``half``, radius ``bottom`` below and ``top`` above."""
    return _part(
        CONE, (bottom, top, half, round), float(np.hypot(max(bottom, top), half)) + round, at, color, **how
    )


def limb(
    start: Vec, end: Vec, radius: float, color: Color, end_radius: float | None = None, **how
) -> np.ndarray:
    """A rounded rod from ``start`` to ``end``, tapering to ``end_radius``."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    end_radius = radius if end_radius is None else end_radius
    length = float(np.linalg.norm(end - start))
    z = (end - start) / max(length, 1e-9)
    x = np.cross(z, (0, 1, 0) if abs(z[1]) < 0.9 else (1, 0, 0))
    x /= np.linalg.norm(x)
    turn = np.stack([x, np.cross(z, x), z], axis=1)
    return _part(
        LIMB, (radius, end_radius, length), length + max(radius, end_radius), start, color, turn=turn, **how
    )


def ring(radius: float, tube: float, at: Vec, color: Color, **how) -> np.ndarray:
    """A torus lying flat."""
    return _part(TORUS, (radius, tube), radius + tube, at, color, **how)


def bands(color: Color, frequency: float, phase: float = 0.0, share: float = 0.5):
    """Paint: stripes across z, ``frequency`` per unit."""
    return BANDS, color, frequency, phase, share


def sectors(color: Color, count: int, phase: float = 0.0, share: float = 0.5):
    """Paint: ``count`` stripes around z."""
    return SECTORS, color, count, phase, share


def bricks(color: Color, rows: float, columns: float, mortar: float = 0.15):
    """Paint: masonry with mortar of the second colour."""
    return BRICKS, color, rows, columns, mortar


def waffle(color: Color, around: int, up: float, width: float = 0.2):
    """Paint: crossed diagonal lines."""
    return WAFFLE, color, around, up, width


def decoration(kind: int, color: Color, around: float, up: float, phase: float = 0.0) -> Paint:
    """Paint: a figure in each cell of a grid on the wall; ``kind`` is one of ``HEARTS`` to ``MASONRY``."""
    return kind, color, around, up, phase


def spread(count: int, low: float = -1.0, high: float = 1.0, phase: float = 0.0) -> np.ndarray:
    """``[count, 3]`` unit vectors, even over the band ``low <= z <= high`` (Fibonacci spiral)."""
    z = high - (high - low) * (np.arange(count) + 0.5) / count
    angle = phase + np.arange(count) * np.pi * (3 - np.sqrt(5))
    r = np.sqrt(np.maximum(0, 1 - z**2))
    return np.stack([r * np.cos(angle), r * np.sin(angle), z], axis=1)


def table(rows: Iterable[np.ndarray]) -> np.ndarray:
    """Stack parts into the array ``[P, COLUMNS]`` that ``toybox.sdf`` draws."""
    return np.ascontiguousarray(np.stack(list(rows)), np.float32)
