"""Things of the house."""

from __future__ import annotations

import numpy as np

from ..parts import Color, ball, bands, box, cone, cylinder, limb, ring, rotation
from ..thing import DARK, LIGHT, ROUND, STEEL, contrast, darker, thing, vary

FORWARD = rotation(pitch=90)  # turns an upright axis to the front
SIDEWAYS = rotation(roll=90)


def trim(color: Color) -> Color:
    """A second tone of the same hue: darker, or grey on black."""
    return darker(color, 0.6) if max(color) > 0.3 else (0.34, 0.34, 0.38)


@thing("mug", "blue", decorations=("heart", "stars", "dots", "checks", "stripes", "smiles"))
def mug(glaze, _part, rng, decoration):
    """Coffee inside, a handle on the left; a band and a heart on the front only, or painted all around."""
    r, tall = 0.50 * vary(rng), 0.56 * vary(rng)
    pale = contrast(glaze)
    heart = (0.93, 0.12, 0.22) if glaze[0] < 0.7 or glaze[1] > 0.8 else pale
    y, x = -0.12, 0.5 * r
    own = [
        cylinder(r + 0.008, 0.045, (0, y, -tall + 0.16), pale, round=0.008),
        # The heart, cut to a skin on the curved wall by the hollow below.
        cylinder(0.115, x, (x + 0.02, y - 0.085, 0.12), heart, turn=FORWARD),
        cylinder(0.115, x, (x + 0.02, y + 0.085, 0.12), heart, turn=FORWARD),
        box((x, 0.121, 0.121), (x + 0.02, y, 0.035), heart, turn=rotation(roll=45), round=0.01),
    ]
    return [
        ring(0.27, 0.075, (0, y + r, 0.02), glaze, turn=FORWARD),
        cylinder(r, tall, (0, y, 0), glaze, round=0.04, paint=decoration(glaze, 6, 1.0 / tall)),
        *(own if decoration.own else ()),
        cylinder(
            r - 0.12,
            tall,
            (0, y, 0.10),
            darker(glaze, 0.85) if max(glaze) > 0.3 else (0.3, 0.3, 0.33),
            carve=True,
        ),
        cylinder(r - 0.11, 0.03, (0, y, tall - 0.26), (0.26, 0.14, 0.07)),
        ring(r - 0.26, 0.025, (0.02, y, tall - 0.235), (0.58, 0.38, 0.22)),
    ]


@thing("chair", "brown")
def chair(wood, _part, rng):
    """Four legs, a cushion with buttons, a backrest of slats."""
    w, top = 0.385 * vary(rng, 0.03), 0.82 * vary(rng, 0.02)
    dark, soft = trim(wood), contrast(wood)
    rows = [
        box((w, w, 0.06), (0, 0, -0.12), wood, round=0.03),
        box((0.27, 0.27, 0.05), (0.05, 0, -0.03), dark, round=0.045),
        box((0.06, w, 0.11), (-w + 0.06, 0, top - 0.13), wood, round=0.04),
        box((0.04, w, 0.05), (-w + 0.05, 0, 0.14), wood, round=0.03),
    ]
    for y in (-0.17, 0.0, 0.17):
        rows.append(box((0.03, 0.05, 0.32), (-w + 0.05, y, 0.40), dark, round=0.02))
    for s in (-1, 1):
        y = s * (w - 0.06)
        rows += [
            limb((-w + 0.06, y, -0.10), (-w + 0.06, y, top - 0.12), 0.065, wood),
            limb((-w + 0.06, y, -0.12), (-w + 0.02, y, -0.76), 0.07, wood, end_radius=0.055),
            limb((w - 0.07, y, -0.12), (w - 0.03, y, -0.76), 0.07, wood, end_radius=0.055),
            limb((w - 0.05, y, -0.55), (-w + 0.05, y, -0.55), 0.035, dark),
        ]
        for x in (-0.10, 0.18):
            rows.append(ball((0.04, 0.04, 0.025), (x, 0.14 * s, 0.02), soft))
    rows.append(limb((w - 0.05, -w + 0.06, -0.40), (w - 0.05, w - 0.06, -0.40), 0.035, dark))
    return rows


@thing("table", "brown", view_groups=(("front",), ("side", "back"), ("overhead",)))
def wooden_table(wood, _part, rng):
    """A square top with a runner of cloth and a plate, a drawer on the front, four legs."""
    w, top = 0.58 * vary(rng, 0.03), 0.38
    dark, cloth = trim(wood), contrast(wood)
    edge = (0.85, 0.20, 0.20) if wood[0] < 0.7 or wood[1] > 0.8 else (0.15, 0.35, 0.85)
    rows = [
        box((w, w, 0.06), (0, 0, top), wood, round=0.03),
        box((w - 0.06, w - 0.06, 0.15), (0, 0, top - 0.18), wood, round=0.02),
        box((0.13, w - 0.05, 0.015), (0, 0, top + 0.06), cloth, round=0.01),
        box((0.155, 0.035, 0.017), (0, w - 0.13, top + 0.062), edge, round=0.01),
        box((0.155, 0.035, 0.017), (0, 0.13 - w, top + 0.062), edge, round=0.01),
        # Drawer.
        box((0.03, 0.34, 0.115), (w - 0.06, 0, top - 0.19), dark, round=0.01),
        box((0.03, 0.29, 0.075), (w - 0.045, 0, top - 0.19), wood, round=0.02),
        ball((0.05, 0.065, 0.055), (w + 0.01, 0, top - 0.19), cloth),
    ]
    for x in (-1, 1):
        for y in (-1, 1):
            at = (x * (w - 0.09), y * (w - 0.09))
            rows.append(cone(0.045, 0.075, 0.41, (*at, -0.17), wood))
            rows.append(ball((0.075, 0.075, 0.05), (*at, -0.54), dark))
    return rows


@thing("teapot", "white", decorations=("flowers", "hearts", "stars", "dots", "checks", "stripes"))
def teapot(glaze, _part, rng, decoration):
    """A spout to the front, a handle behind, a lid with a knob; flowers and dots, or painted."""
    w = 0.50 * vary(rng, 0.04)
    motif = LIGHT if contrast(glaze) == LIGHT else (0.14, 0.30, 0.80)
    heart = (0.98, 0.78, 0.15) if motif != LIGHT or glaze[1] < 0.45 else (0.90, 0.20, 0.25)
    z = -0.14
    rows = [
        ring(0.27, 0.065, (-0.52, 0, z + 0.05), glaze, turn=SIDEWAYS),
        limb((0.36, 0, -0.28), (0.64, 0, -0.02), 0.15, glaze, end_radius=0.095),
        limb((0.64, 0, -0.02), (0.78, 0, 0.24), 0.095, glaze, end_radius=0.075, blend=0.04),
        ring(0.06, 0.03, (0.80, 0, 0.29), motif, turn=rotation(pitch=28)),
        ball((w, w, 0.44), (0, 0, z), glaze, paint=decoration(glaze, 6, 1.9, 0.5)),
        cylinder(0.30, 0.06, (0, 0, -0.57), trim(glaze) if min(glaze) < 0.8 else motif),
        ball((0.31, 0.31, 0.17), (0, 0, 0.22), glaze),
        ring(0.30, 0.03, (0, 0, 0.22), motif),
        ball(0.085, (0, 0, 0.44), motif),
    ]
    if not decoration.own:
        return rows
    for s in (-1, 1):
        rows.append(ball((0.07, 0.04, 0.07), (0, s * (w + 0.01), z), heart))
        for k in range(5):
            a = 2 * np.pi * (k + 0.25) / 5
            at = (0.125 * np.cos(a), s * (w - 0.02), z + 0.125 * np.sin(a))
            rows.append(ball((0.08, 0.04, 0.08), at, motif))
    for k in range(12):
        a = 2 * np.pi * (k + 0.5) / 12
        up = 0.55 if k % 2 else -0.45
        if abs(np.sin(a)) < 0.9:
            r = w * np.sqrt(1 - up * up)
            rows.append(ball(0.045, (r * np.cos(a), r * np.sin(a), z + 0.44 * up), motif))
    return rows


@thing("clock", "red")
def clock(case, _part, rng):
    """An alarm clock: a face with twelve ticks and two hands, two bells and a hammer above, a key behind."""
    z = -0.12
    light = min(case) > 0.85
    face, ink = (DARK, LIGHT) if light else (LIGHT, DARK)
    dark = trim(case)
    r = 0.61 * vary(rng, 0.03)
    rows = [
        cylinder(r, 0.22, (0, 0, z), case, turn=FORWARD, round=0.08),
        cylinder(0.43, 0.02, (0.215, 0, z), dark, turn=FORWARD),
        cylinder(0.39, 0.02, (0.23, 0, z), face, turn=FORWARD),
        ring(r - 0.12, 0.03, (-0.205, 0, z), dark, turn=FORWARD),
        # Key and its plate.
        cylinder(0.13, 0.02, (-0.23, 0, z), STEEL, turn=FORWARD),
        limb((-0.23, 0, z), (-0.33, 0, z), 0.035, DARK),
        box((0.03, 0.13, 0.05), (-0.35, 0, z), DARK),
        # Hammer and handle.
        limb((0, 0, z + r), (0, 0, 0.66), 0.03, STEEL),
        ball((0.05, 0.09, 0.05), (0, 0, 0.68), STEEL),
    ]
    for k in range(12):
        a = 2 * np.pi * k / 12
        half = (0.012, 0.022, 0.05) if k % 3 == 0 else (0.012, 0.016, 0.028)
        at = (0.25, 0.32 * np.sin(a), z + 0.32 * np.cos(a))
        rows.append(box(half, at, ink, turn=rotation(roll=-np.degrees(a)), round=0.005))
    for length, width, hue in ((0.19, 0.026, ink), (0.28, 0.019, (0.85, 0.15, 0.15))):
        a = rng.uniform(0, 2 * np.pi)
        rows.append(limb((0.26, 0, z), (0.26, length * np.sin(a), z + length * np.cos(a)), width, hue))
    rows.append(ball((0.025, 0.045, 0.045), (0.27, 0, z), ink))
    for s in (-1, 1):
        lean = rotation(roll=-32 * s)
        up = lean @ np.array([0, 0, 1.0])
        foot = np.array([0, s * 0.30, -0.60])
        rows += [
            limb(np.array([0, 0, z]) + (r - 0.05) * up, np.array([0, 0, z]) + (r + 0.12) * up, 0.035, STEEL),
            cone(0.21, 0.09, 0.075, np.array([0, 0, z]) + (r + 0.125) * up, case, turn=lean, round=0.03),
            ball(0.05, np.array([0, 0, z]) + (r + 0.25) * up, dark),
            limb(foot, np.add(foot, (0, s * 0.08, -0.20)), 0.075, dark, end_radius=0.055),
        ]
    return rows


@thing("television", "brown")
def television(case, _part, rng):
    """A picture and two knobs on the front, two antennas, feet; vents and a cable on the back."""
    w, tall, z = 0.66 * vary(rng, 0.03), 0.46, -0.14
    dark, knob = trim(case), contrast(case)
    x, left = 0.34, 0.16
    rows = [
        box((x, w, tall), (0, 0, z), case, round=0.08),
        box((0.24, w - 0.14, tall - 0.12), (-0.20, 0, z), case, round=0.05),
        # Screen: a frame, a sky that pales downward, a hill.
        box((0.03, 0.40, 0.335), (x, left, z + 0.02), DARK, round=0.03),
    ]
    for k, sky in enumerate(((0.30, 0.58, 0.92), (0.48, 0.72, 0.96), (0.66, 0.84, 0.98), (0.86, 0.94, 0.99))):
        rows.append(box((0.03, 0.35, 0.072), (x + 0.01, left, z + 0.24 - 0.143 * k), sky, round=0.004))
    rows += [
        ball((0.025, 0.07, 0.07), (x + 0.035, left + 0.19, z + 0.18), (0.99, 0.88, 0.30)),
        box((0.03, 0.35, 0.05), (x + 0.015, left, z - 0.215), (0.30, 0.68, 0.28), round=0.004),
    ]
    for up in (0.25, 0.05):
        rows.append(cylinder(0.085, 0.03, (x + 0.01, -0.42, z + up), knob, turn=FORWARD))
        grip = rotation(roll=rng.uniform(-60, 60))
        rows.append(box((0.015, 0.018, 0.07), (x + 0.045, -0.42, z + up), dark, turn=grip))
    rows.append(box((0.02, 0.09, 0.11), (x, -0.42, z - 0.19), knob, paint=bands(DARK, 13, 0.0, 0.5)))
    for k in range(4):  # vents
        rows.append(
            box((0.02, 0.34, 0.028), (-0.435, 0, z + 0.20 - 0.10 * k), DARK if max(case) > 0.3 else knob)
        )
    rows += [
        cylinder(0.06, 0.02, (-0.445, -0.28, z - 0.24), STEEL, turn=FORWARD),
        limb((-0.45, 0.28, z - 0.24), (-0.52, 0.32, z - 0.46), 0.03, DARK),
        ball((0.12, 0.12, 0.07), (-0.05, 0, z + tall), dark),
    ]
    for s in (-1, 1):
        tip = (-0.05, s * (0.38 + rng.uniform(-0.06, 0.06)), 0.82)
        rows += [
            limb((-0.05, 0, z + tall + 0.04), tip, 0.022, STEEL),
            ball(0.042, tip, DARK),
            limb((0.20, s * 0.46, z - tall), (0.23, s * 0.48, -0.73), 0.07, dark, end_radius=0.05),
            limb((-0.20, s * 0.46, z - tall), (-0.23, s * 0.48, -0.73), 0.07, dark, end_radius=0.05),
        ]
    return rows


@thing(
    "gift",
    "red",
    part_option="ribbon",
    default_part="yellow",
    view_groups=ROUND,
    decorations=("spots", "hearts", "stars", "dots", "checks", "stripes"),
)
def gift(paper, ribbon, rng, decoration):
    """A box with a lid, paper with small spots or printed, a ribbon crosswise, a bow."""
    w, tall = 0.52 * vary(rng, 0.04), 0.42 * vary(rng)
    z = -0.20
    rows = [
        box((w, w, tall), (0, 0, z), paper, paint=decoration(paper, 2.4, 2.4)),
        box(
            (w + 0.04, w + 0.04, 0.10),
            (0, 0, z + tall),
            paper,
            round=0.03,
            paint=decoration(paper, 2.4, 2.4, 0.5),
        ),
        box((w + 0.015, 0.10, tall + 0.01), (0, 0, z), ribbon),
        box((0.10, w + 0.015, tall + 0.01), (0, 0, z), ribbon),
        box((w + 0.055, 0.10, 0.115), (0, 0, z + tall), ribbon, round=0.03),
        box((0.10, w + 0.055, 0.115), (0, 0, z + tall), ribbon, round=0.03),
    ]
    knot = z + tall + 0.16
    for k in range(4):
        turn = rotation(yaw=45 + 90 * k)
        out = turn @ np.array([0.20, 0, 0.08])
        rows.append(
            ring(
                0.12,
                0.055,
                np.add(out, (0, 0, knot)),
                ribbon,
                turn=turn @ rotation(pitch=-22) @ rotation(roll=90),
            )
        )
    rows.append(
        ball((0.11, 0.11, 0.09), (0, 0, knot), darker(ribbon, 0.8) if max(ribbon) > 0.3 else (0.3, 0.3, 0.33))
    )
    if decoration.own:
        rows += gift_spots(contrast(paper), w, z, tall)
    return rows


def gift_spots(color: Color, w: float, z: float, tall: float) -> list[np.ndarray]:
    """Spots on the sides and on the lid of a gift."""
    rows = []
    for k in range(4):
        turn = rotation(yaw=90 * k)
        for y, up in ((-0.30, 0.10), (0.30, 0.10), (-0.30, -0.24), (0.30, -0.24)):
            at = turn @ np.array([w, y, 0]) + (0, 0, z + up)
            rows.append(ball((0.03, 0.055, 0.055), at, color, turn=turn))
        at = turn @ rotation(yaw=45) @ np.array([0.50, 0, 0])
        rows.append(ball((0.055, 0.055, 0.03), np.add(at, (0, 0, z + tall + 0.10)), color))
    return rows
