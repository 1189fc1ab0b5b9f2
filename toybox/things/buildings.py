"""Buildings."""

from __future__ import annotations

import numpy as np

from ..parts import ball, bands, box, cone, cylinder, limb, ring, rotation
from ..thing import DARK, FRONT_ONLY, GLASS, LIGHT, contrast, darker, thing, vary


@thing("house", "yellow", part_option="roof", decorations=("plaster", "bricks", "planks", "beams", "checks"))
def house(walls, roof, rng, decoration):
    """Walls, a tiled roof, a chimney; a door and two windows in front, one on each other side."""
    d, w, h = 0.46 * vary(rng), 0.60 * vary(rng), 0.36
    floor = -0.74
    top = floor + 2 * h
    frame = contrast(walls)
    painted = decoration(walls, 2.5, 3.0)
    rows = [box((d, w, h), (0, 0, floor + h), walls, round=0.01, paint=painted)]
    # The gable: a wall-coloured block turned by 45 degrees about y-parallel ridge, under two roof slabs.
    rows.append(
        box(
            (0.36 * d / 0.46, w, 0.36 * d / 0.46),
            (0, 0, top - 0.06),
            walls,
            turn=rotation(pitch=45),
            round=0.01,
        )
    )
    for side in (-1, 1):
        slope = rotation(pitch=side * 42)
        tiles = bands(darker(roof, 0.6), 9, 0.5, 0.2)
        # The slab's own z must run down the slope for its bands to be rows of tiles.
        lie = slope @ rotation(pitch=90)
        rows.append(
            box(
                (0.045, w * 1.14, 0.44),
                (side * 0.29, 0, top + 0.22),
                roof,
                turn=lie,
                round=0.015,
                paint=tiles,
            )
        )
    rows.append(box((0.09, 0.09, 0.22), (-0.24, -0.32, top + 0.36), (0.55, 0.22, 0.16), round=0.01))
    rows.append(box((0.11, 0.11, 0.03), (-0.24, -0.32, top + 0.58), LIGHT, round=0.01))
    # Front
    rows.append(box((0.03, 0.12, 0.23), (d, 0, floor + 0.23), (0.40, 0.22, 0.10), round=0.01))
    rows.append(ball(0.03, (d + 0.04, 0.07, floor + 0.22), (0.98, 0.85, 0.25)))
    rows.append(box((0.10, 0.17, 0.03), (d + 0.06, 0, floor + 0.03), (0.6, 0.6, 0.62)))
    windows = [(d, y, floor + 0.40, 0.0) for y in (-0.36, 0.36)] + [(-d, 0.0, floor + 0.40, 0.0)]
    windows += [(0.0, side * w, floor + 0.40, 90.0) for side in (-1, 1)]
    for x, y, z, yaw in windows:
        turn = rotation(yaw=yaw)
        out = np.sign(x) * np.array([1, 0, 0]) if yaw == 0 else np.sign(y) * np.array([0, 1, 0])
        at = np.array([x, y, z])
        rows.append(box((0.02, 0.135, 0.135), at, frame, turn=turn, round=0.01))
        rows.append(box((0.02, 0.105, 0.105), at + 0.012 * out, GLASS, turn=turn, round=0.01))
        rows.append(box((0.02, 0.014, 0.12), at + 0.02 * out, frame, turn=turn, round=0.005))
        rows.append(box((0.02, 0.12, 0.014), at + 0.02 * out, frame, turn=turn, round=0.005))
    return rows


@thing(
    "lighthouse", "red", view_groups=FRONT_ONLY, decorations=("bands", "hearts", "stars", "dots", "checks")
)
def lighthouse(tower, _part, rng, decoration):
    """A banded or painted tower on a rock, with a door in front, a gallery, a lit lamp and a cap."""
    paint = decoration(tower, 4, 2.4) or bands(contrast(tower), 2.4, rng.uniform(0.45, 0.55), 0.34)
    rows = [
        ball((0.52, 0.52, 0.16), (0, 0, -0.82), (0.45, 0.45, 0.44)),
        cone(0.34, 0.21, 0.62, (0, 0, -0.20), tower, paint=paint),
        cylinder(0.32, 0.035, (0, 0, 0.44), DARK),
        cylinder(0.15, 0.13, (0, 0, 0.59), (1.0, 0.93, 0.45)),
        cone(0.23, 0.02, 0.11, (0, 0, 0.82), tower),
        ball(0.04, (0, 0, 0.93), DARK),
        box((0.05, 0.10, 0.17), (0.32, 0, -0.66), (0.35, 0.2, 0.1), turn=rotation(pitch=-6), round=0.02),
        ball((0.05, 0.065, 0.065), (0.285, 0, -0.28), GLASS),
        ball((0.05, 0.065, 0.065), (0.235, 0, 0.14), GLASS),
    ]
    for k in range(8):
        a = 2 * np.pi * (k + 0.5) / 8
        rows.append(
            limb(
                (0.29 * np.cos(a), 0.29 * np.sin(a), 0.45),
                (0.29 * np.cos(a), 0.29 * np.sin(a), 0.58),
                0.016,
                DARK,
            )
        )
    rows.append(ring(0.29, 0.017, (0, 0, 0.58), DARK))
    return rows
