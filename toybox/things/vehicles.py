"""Vehicles. All drive, sail or fly toward +x."""

from __future__ import annotations

import numpy as np

from ..parts import ball, bands, box, cone, cylinder, limb, rotation, sectors
from ..thing import DARK, GLASS, LIGHT, STEEL, contrast, darker, thing, vary


@thing(
    "rocket",
    "white",
    part_option="fins",
    default_part="red",
    decorations=("rivets", "hearts", "stars", "dots", "checks", "stripes"),
)
def rocket(hull, fins, rng, decoration):
    """A hull, with rivets or painted, a porthole and a hatch in front, fins, a nozzle with its flame."""
    w = 0.29 * vary(rng)
    trim = contrast(hull)
    rows = [
        ball((w, w, 0.86), (0, 0, 0.06), hull, paint=decoration(hull, 4, 2.3, 0.5)),
        box((0.5, 0.5, 0.4), (0, 0, -0.98), hull, carve=True),
        cylinder(w * 0.80, 0.035, (0, 0, 0.50), trim),
        cone(0.20, 0.13, 0.07, (0, 0, -0.62), DARK),
        cone(0.02, 0.12, 0.13, (0, 0, -0.80), (1.0, 0.62, 0.08)),
        ball((0.08, 0.13, 0.13), (w * 0.93, 0, 0.18), trim),
        ball((0.08, 0.095, 0.095), (w * 0.93 + 0.02, 0, 0.18), (0.20, 0.55, 0.95)),
        box((0.05, 0.09, 0.14), (w * 0.93, 0, -0.22), trim, round=0.03),
        ball(0.03, (w * 0.93 + 0.06, 0.04, -0.22), (0.98, 0.8, 0.2)),
    ]
    for k in range(3):
        yaw = 180 + 120 * k
        a = np.radians(yaw)
        at = (0.34 * np.cos(a), 0.34 * np.sin(a), -0.50)
        rows.append(
            box(
                (0.20, 0.035, 0.17),
                at,
                fins,
                turn=rotation(pitch=0, yaw=yaw) @ rotation(pitch=28),
                round=0.02,
            )
        )
    for k in range(10 if decoration.own else 0):
        a = 2 * np.pi * (k + 0.5) / 10
        rows.append(ball(0.026, (w * 0.96 * np.cos(a), w * 0.96 * np.sin(a), -0.04), trim))
    return rows


@thing("car", "red", decorations=("lines", "hearts", "stars", "dots", "checks", "stripes"))
def car(body, _part, rng, decoration):
    """Bonnet, glazed cabin, wheels; lamps and a grille in front, tail lamps and a number plate behind."""
    w = 0.42 * vary(rng)
    rows = [
        box((0.88, w, 0.17), (0, 0, -0.16), body, round=0.09, paint=decoration(body, 2.6, 2.6, 0.5)),
        box(
            (0.46, w * 0.86, 0.19), (-0.10, 0, 0.16), body, round=0.10, paint=decoration(body, 2.6, 2.6, 0.5)
        ),
        box((0.40, w * 0.86 + 0.012, 0.11), (-0.10, 0, 0.15), GLASS, round=0.05),
        box((0.475, w * 0.72, 0.11), (-0.10, 0, 0.15), GLASS, round=0.05),
        box((0.035, w * 0.88, 0.15), (-0.10, 0, 0.15), body, round=0.02),
    ]
    for y in (-0.10, 0.10) if decoration.own else ():  # over the bonnet and the boot
        rows.append(box((0.84, 0.045, 0.02), (0, y, 0.005), contrast(body), round=0.01))
    for x in (-0.52, 0.52):
        for y in (-w, w):
            turn = rotation(roll=90)
            rows.append(cylinder(0.21, 0.09, (x, y, -0.34), DARK, turn=turn, round=0.05))
            rows.append(
                cylinder(0.10, 0.10, (x, y, -0.34), STEEL, turn=turn, paint=sectors(DARK, 5, 0.0, 0.35))
            )
    for y in (-w * 0.68, w * 0.68):
        rows.append(ball((0.06, 0.085, 0.075), (0.86, y, -0.12), (1.0, 0.96, 0.70)))
        rows.append(
            box(
                (0.03, 0.08, 0.05),
                (-0.87, y, -0.10),
                (0.95, 0.08, 0.08) if body[0] < 0.7 or body[1] > 0.4 else (1, 0.75, 0.1),
            )
        )
    rows.append(box((0.03, 0.14, 0.05), (0.87, 0, -0.20), DARK, paint=bands(STEEL, 22, 0, 0.4)))
    rows.append(box((0.03, 0.13, 0.05), (-0.87, 0, -0.18), LIGHT))
    return rows


@thing(
    "boat",
    "blue",
    part_option="sail",
    default_part="white",
    decorations=("studs", "hearts", "stars", "dots", "checks", "stripes"),
)
def boat(hull, sail, rng, decoration):
    """A hull pointed in front, with studs and a banded sail, or both painted; a pennant, a rudder behind."""
    w = 0.34 * vary(rng)
    rows = [
        ball((0.86, w, 0.46), (0.06, 0, -0.38), hull, paint=decoration(hull, 8, 2.2, 0.6)),
        box((0.4, 0.6, 0.6), (-1.02, 0, -0.4), hull, carve=True),
        box((1.2, 0.6, 0.4), (0, 0, 0.02), hull, carve=True),
        # Mainsail and jib: one sheet, cut along the two lines that fall from the mast's top.
        box(
            (0.56, 0.024, 0.48),
            (-0.04, 0, 0.30),
            sail,
            round=0.01,
            paint=decoration(sail, 2.7, 2.7, 0.5) or bands(darker(sail, 0.7), 2.6, 0.3, 0.2),
        ),
        box((0.63, 0.3, 0.3), (-0.542, 0, 0.463), sail, turn=rotation(pitch=-57.2), carve=True),
        box((0.60, 0.3, 0.3), (0.536, 0, 0.438), sail, turn=rotation(pitch=62.6), carve=True),
        box((0.02, 0.22, 0.05), (-0.60, 0, -0.42), contrast(hull)),
    ]
    rows.append(box((0.58, 0.05, 0.02), (-0.02, 0, -0.375), (0.55, 0.36, 0.18)))
    for k in range(5 if decoration.own else 0):
        for s in (-1, 1):
            at = (-0.40 + 0.2 * k, s * w * (0.93 - 0.10 * abs(k - 2)), -0.48)
            rows.append(ball(0.045, at, contrast(hull)))
    rows += [
        limb((0.08, 0, -0.40), (0.08, 0, 0.84), 0.032, (0.45, 0.28, 0.12)),
        limb((0.08, 0, -0.22), (-0.58, 0, -0.22), 0.026, (0.45, 0.28, 0.12)),
        box((0.05, 0.05, 0.12), (-0.72, 0, -0.62), (0.45, 0.28, 0.12)),
    ]
    rows.append(box((0.11, 0.015, 0.05), (-0.03, 0, 0.82), (0.9, 0.15, 0.15), round=0.01))
    return rows


@thing("airplane", "white", part_option="wings")
def airplane(hull, wings, rng):
    """A fuselage with windows, a propeller and spinner in front, wings with engines, a tail."""
    span = 0.90 * vary(rng, 0.04)
    rows = [
        ball((0.86, 0.21, 0.21), (0.02, 0, 0), hull),
        box((0.20, span, 0.035), (0.10, 0, -0.04), wings, round=0.03),
        box((0.12, 0.36, 0.03), (-0.72, 0, 0.04), wings, round=0.025),
        box((0.14, 0.03, 0.19), (-0.74, 0, 0.22), wings, turn=rotation(pitch=-18), round=0.025),
        ball((0.20, 0.15, 0.12), (0.40, 0, 0.15), GLASS),
        ball(0.085, (0.88, 0, 0), DARK),
        box(
            (0.025, 0.30, 0.04),
            (0.87, 0, 0),
            (0.45, 0.28, 0.12),
            turn=rotation(roll=rng.uniform(20, 70)),
            round=0.01,
        ),
    ]
    for y in (-0.45, 0.45):
        rows.append(ball((0.24, 0.10, 0.10), (0.18, y, -0.10), hull))
        rows.append(ball((0.05, 0.105, 0.105), (0.34, y, -0.10), DARK))
    for k in range(5):
        for side in (-1, 1):
            x = 0.20 - 0.15 * k
            y = 0.205 * np.sqrt(1 - ((x - 0.02) / 0.86) ** 2)
            rows.append(ball(0.055, (x, side * y, 0.06), DARK if np.mean(hull) > 0.35 else LIGHT))
    for side in (-1, 1):
        rows.append(cylinder(0.085, 0.012, (0.10, side * span * 0.68, 0.0), contrast(wings), round=0.01))
    rows.append(cylinder(0.10, 0.10, (0.30, 0, -0.24), DARK, turn=rotation(roll=90)))
    return rows
