"""Creatures, and a robot."""

from __future__ import annotations

import numpy as np

from ..parts import Color, ball, bands, box, cone, cylinder, limb, ring, rotation
from ..thing import DARK, LIGHT, STEEL, contrast, darker, shade, thing, vary


def marking(color: Color) -> Color:
    """A stripe on fur of this colour: darker, or grey on black."""
    return darker(color, 0.55) if max(color) > 0.3 else (0.36, 0.36, 0.40)


def pale(color: Color) -> Color:
    """A belly or a muzzle: off-white, or grey on white."""
    return (0.66, 0.70, 0.76) if min(color) > 0.85 else (0.97, 0.95, 0.90)


def beak_color(color: Color) -> Color:
    """Orange, or yellow where orange would not show."""
    reddish = color[0] > 0.7 and color[1] < 0.65 and color[2] < 0.4
    return (0.99, 0.84, 0.15) if reddish else (0.98, 0.50, 0.06)


def eyes(x: float, y: float, z: float, size: float, skin: Color) -> list[np.ndarray]:
    """A pair that looks along +x: white with pupils on dark skin, dark with a glint on light skin."""
    dark_skin = contrast(skin) == LIGHT
    inner, by = (DARK, 0.62) if dark_skin else (LIGHT, 0.36)
    rows = []
    for side in (-1, 1):
        rows.append(ball((0.6 * size, size, size), (x, side * y, z), LIGHT if dark_skin else DARK))
        at = (
            (x + 0.42 * size, side * y, z)
            if dark_skin
            else (x + 0.5 * size, side * y + 0.2 * size, z + 0.35 * size)
        )
        rows.append(ball((0.4 * size, by * size, by * size), at, inner))
    return rows


@thing("cat", "orange", part_option="collar", default_part="red")
def cat(fur, collar, rng):
    """Sitting: striped back, tail up behind, pale muzzle and bib, whiskers, a collar with a bell."""
    w = vary(rng)
    dark, light, tail = marking(fur), pale(fur), rng.uniform(0.10, 0.24)
    whisker = LIGHT if max(fur) < 0.3 else DARK
    inner_ear = (0.95, 0.58, 0.62) if fur[0] < 0.9 or fur[2] < 0.5 else dark
    rows = [
        limb(
            (-0.20, 0, -0.54),
            (0.04, 0, 0.06),
            0.38 * w,
            fur,
            end_radius=0.25,
            paint=bands(dark, 5.2, 0.2, 0.36),
        ),
        ball((0.14, 0.21, 0.30), (0.20, 0, -0.22), light),
        ball((0.33, 0.38 * w, 0.32), (0.14, 0, 0.44), fur),
        ball((0.12, 0.18, 0.11), (0.42, 0, 0.34), light),
        ball((0.05, 0.06, 0.04), (0.53, 0, 0.40), (0.92, 0.35, 0.42)),
        limb((0.54, 0, 0.37), (0.535, 0, 0.31), 0.016, DARK),
        *eyes(0.41, 0.17, 0.51, 0.095, fur),
        ring(0.255, 0.05, (0.08, 0, 0.13), collar, turn=rotation(pitch=12)),
        ball(0.075, (0.36, 0, 0.05), (0.98, 0.80, 0.15)),
        limb((-0.43, 0, -0.73), (-0.70, tail / 2, -0.50), 0.085, fur),
        limb((-0.70, tail / 2, -0.50), (-0.74, tail, -0.12), 0.085, fur, paint=bands(dark, 7, 0, 0.4)),
        limb((-0.74, tail, -0.12), (-0.66, tail, 0.14), 0.085, light, end_radius=0.06),
    ]
    for y in (-0.12, 0.0, 0.12):  # stripes over the crown
        rows.append(ball((0.16, 0.03, 0.06), (0.12, y, 0.735 - 0.25 * abs(y)), dark))
    for s in (-1, 1):
        ear = rotation(roll=-14 * s)
        rows += [
            ball((0.27, 0.15, 0.25), (-0.06, s * 0.28 * w, -0.66), fur),
            limb((0.20, s * 0.14, -0.20), (0.27, s * 0.15, -0.78), 0.105, fur),
            ball((0.14, 0.11, 0.085), (0.30, s * 0.15, -0.815), light),
            ball((0.15, 0.10, 0.085), (0.17, s * 0.34, -0.80), light),
            cone(0.13, 0.01, 0.12, (0.10, s * 0.22, 0.775), fur, turn=ear),
            cone(0.08, 0.005, 0.085, (0.165, s * 0.22, 0.755), inner_ear, turn=ear),
        ]
        for dz in (-0.03, 0.06):
            rows.append(limb((0.46, s * 0.13, 0.33), (0.40, s * 0.50, 0.32 + 1.4 * dz), 0.015, whisker))
    return rows


@thing("duck", "yellow")
def duck(down, _part, rng):
    """Wings and tail with feathers, a flat beak, webbed feet."""
    w, lift = vary(rng), rng.uniform(-6, 8)
    dark, orange = marking(down), beak_color(down)
    rows = [
        ball((0.58, 0.42 * w, 0.38), (-0.10, 0, -0.34), down),
        limb((-0.46, 0, -0.26), (-0.80, 0, 0.02), 0.22, down, end_radius=0.06),
        limb((-0.58, 0, -0.10), (-0.76, 0, 0.14), 0.07, dark, end_radius=0.035),
        limb((0.24, 0, -0.20), (0.32, 0, 0.30), 0.25, down, end_radius=0.18, blend=0.10),
        ball(0.30 * w, (0.34, 0, 0.48), down),
        ball((0.22, 0.18, 0.055), (0.64, 0, 0.43), orange),
        ball((0.17, 0.15, 0.04), (0.63, 0, 0.35), darker(orange, 0.8)),
        limb((0.30, 0, 0.76), (0.20, 0, 0.90), 0.04, down, end_radius=0.025),
        *eyes(0.53, 0.17, 0.57, 0.085, down),
    ]
    for s in (-1, 1):
        turn = rotation(pitch=8 + lift, yaw=-4 * s)
        rows += [
            ball((0.34, 0.10, 0.20), (-0.14, s * 0.39 * w, -0.26), dark, turn=turn),
            ball((0.27, 0.10, 0.135), (-0.08, s * 0.425 * w, -0.24), down, turn=turn),
            ball(0.035, (0.81, s * 0.06, 0.455), darker(orange, 0.45)),
            limb((-0.02, s * 0.20, -0.62), (0.0, s * 0.20, -0.84), 0.05, orange),
            ball((0.17, 0.13, 0.045), (0.09, s * 0.20, -0.86), orange),
        ]
        for k in range(3):  # feather tips
            at = (-0.40 + 0.06 * k, s * 0.41 * w, -0.16 - 0.09 * k)
            rows.append(limb(at, (at[0] - 0.13, at[1], at[2] + 0.03), 0.045, dark, end_radius=0.025))
    return rows


@thing("penguin", "black", part_option="scarf", default_part="red")
def penguin(coat, scarf, rng):
    """A pale belly and face on the front, beak, flippers, feet, a scarf with one hanging end."""
    w = vary(rng)
    light, orange, fringe = pale(coat), beak_color(coat), contrast(scarf)
    rows = [
        ball((0.44, 0.45 * w, 0.60), (-0.02, 0, -0.27), coat),
        ball((0.34, 0.34, 0.48), (0.13, 0, -0.33), light),
        ball((0.33, 0.34 * w, 0.32), (0, 0, 0.54), coat),
        limb((0.24, 0, 0.52), (0.50, 0, 0.48), 0.085, orange, end_radius=0.03),
        ring(0.30, 0.09, (0, 0, 0.27), scarf, paint=bands(scarf, 1)),
        box(
            (0.045, 0.10, 0.20),
            (0.42, 0.17, 0.05),
            scarf,
            turn=rotation(pitch=-6),
            paint=bands(fringe, 7, 0.2, 0.3),
        ),
        limb((-0.34, 0, -0.70), (-0.54, 0, -0.72), 0.12, coat, end_radius=0.04),
    ]
    for s in (-1, 1):
        rows += [
            ball((0.10, 0.125, 0.15), (0.24, s * 0.13, 0.54), light),
            ball((0.04, 0.05, 0.06), (0.335, s * 0.12, 0.58), DARK),
            ball((0.02, 0.022, 0.022), (0.368, s * 0.12 + 0.015, 0.60), LIGHT),
            ball((0.17, 0.065, 0.38), (-0.02, s * 0.52 * w, -0.16), coat, turn=rotation(roll=22 * s)),
            ball((0.20, 0.14, 0.06), (0.15, s * 0.19, -0.83), orange),
        ]
        for k in (-1, 0, 1):
            rows.append(ball(0.045, (0.31 - 0.02 * abs(k), s * 0.19 + 0.08 * k, -0.84), darker(orange, 0.75)))
    return rows


@thing("snowman", "white", part_option="hat", default_part="black")
def snowman(snow, hat, rng):
    """Three balls; coal eyes, mouth and buttons on the front, a carrot, stick arms, a top hat with a band."""
    w = vary(rng, 0.04)
    coal = DARK if max(snow) > 0.3 else LIGHT
    rows = [
        ball((0.47 * w, 0.47 * w, 0.40), (0, 0, -0.54), snow),
        ball((0.33, 0.33, 0.31), (0, 0, 0.0), snow),
        ball(0.245, (0, 0, 0.44), snow),
        cylinder(0.235, 0.028, (0, 0, 0.615), hat),
        cylinder(0.155, 0.14, (0, 0, 0.76), hat),
        cylinder(0.165, 0.04, (0, 0, 0.68), contrast(hat)),
        limb((0.20, 0, 0.44), (0.52, 0, 0.41), 0.06, beak_color(snow), end_radius=0.018),
    ]
    for s in (-1, 1):
        stick = (0.36, 0.22, 0.10) if abs(snow[0] - 0.5) > 0.1 else (0.80, 0.62, 0.38)
        hand = np.array([0.04, s * 0.72, 0.22 + rng.uniform(-0.06, 0.14)])
        rows += [
            ball(0.045, (0.215, s * 0.09, 0.51), coal),
            limb((0, s * 0.26, 0.08), hand, 0.035, stick, end_radius=0.025),
            limb(np.subtract(hand, (0, s * 0.06, 0)), np.add(hand, (0, s * 0.04, 0.14)), 0.02, stick),
            limb(np.subtract(hand, (0, s * 0.02, 0)), np.add(hand, (0.06, s * 0.13, -0.02)), 0.02, stick),
        ]
    for k in range(-2, 3):
        rows.append(ball(0.026, (0.225 - 0.012 * k * k, 0.055 * k, 0.335 + 0.016 * k * k), coal))
    for x, z in ((0.30, 0.12), (0.33, -0.02), (0.30, -0.16), (0.41, -0.40)):
        rows.append(ball(0.048, (x, 0, z), coal))
    return rows


@thing("robot", "blue", decorations=("enamel", "hearts", "stars", "dots", "checks", "stripes"))
def robot(metal, _part, rng, decoration):
    """A square head with an antenna, plain or painted; dials on the chest, a battery behind."""
    w = vary(rng)
    dark, panel = marking(metal), contrast(metal)
    lamp = (0.99, 0.85, 0.20) if metal[0] < 0.9 or metal[2] > 0.5 or metal[1] < 0.7 else (0.15, 0.75, 0.95)
    grey = shade(STEEL if max(metal) < 0.9 else (0.40, 0.42, 0.46), rng)
    body = 0.37 * w
    foot = decoration(metal, 4.0, 4.0, 0.5)
    rows = [
        box((0.28, body, 0.34), (0, 0, -0.12), metal, round=0.06, paint=decoration(metal, 2.9, 2.9, 0.5)),
        cylinder(0.12, 0.08, (0, 0, 0.28), grey),
        box((0.26, 0.31, 0.22), (0, 0, 0.52), metal, round=0.06, paint=decoration(metal, 2.9, 2.9, 0.5)),
        limb((0, 0, 0.72), (0, 0, 0.86), 0.025, grey),
        ball(0.06, (0, 0, 0.89), (0.93, 0.15, 0.15) if metal[0] < 0.7 else (0.15, 0.35, 0.95)),
        # Mouth grille: upright bars.
        box(
            (0.03, 0.05, 0.17),
            (0.25, 0, 0.40),
            LIGHT,
            turn=rotation(roll=90),
            paint=bands(DARK, 14, 0.0, 0.45),
        ),
        # Chest panel.
        box((0.03, 0.25, 0.20), (0.27, 0, -0.12), panel),
        cylinder(0.085, 0.03, (0.29, 0.12, -0.05), (0.93, 0.15, 0.15), turn=rotation(pitch=90)),
        box((0.012, 0.014, 0.06), (0.325, 0.12, -0.03), LIGHT, turn=rotation(roll=rng.uniform(-50, 50))),
        box((0.02, 0.08, 0.06), (0.29, -0.12, -0.04), (0.15, 0.75, 0.45)),
        # Battery pack.
        box((0.09, 0.22, 0.24), (-0.32, 0, -0.10), dark, round=0.03),
        box(
            (0.02, 0.05, 0.23),
            (-0.405, 0, -0.10),
            lamp,
            turn=rotation(roll=90),
            paint=bands(DARK, 9, 0.2, 0.5),
        ),
    ]
    for k, hue in enumerate(((0.98, 0.80, 0.15), (0.15, 0.45, 0.95), (0.95, 0.35, 0.15), (0.2, 0.7, 0.3))):
        rows.append(ball(0.04, (0.305, -0.165 + 0.11 * k, -0.23), hue))
    for s in (-1, 1):
        shoulder, elbow = (0, s * (body + 0.08), 0.10), np.array([0.0, s * (body + 0.16), -0.14])
        rows += [
            cylinder(0.125, 0.03, (0.26, s * 0.145, 0.57), DARK, turn=rotation(pitch=90)),
            ball((0.05, 0.095, 0.095), (0.28, s * 0.145, 0.57), lamp),
            cylinder(0.06, 0.05, (0, s * 0.33, 0.52), grey, turn=rotation(roll=90)),
            limb(shoulder, elbow, 0.10, metal, paint=decoration(metal, 2, 3.5)),
            limb(elbow, np.add(elbow, (0.14, 0, -0.18)), 0.075, metal),
            ball(0.085, np.add(elbow, (0.19, 0, -0.23)), grey),
            cylinder(0.11, 0.14, (0, s * 0.18, -0.56), grey),
            box((0.23, 0.16, 0.11), (0.06, s * 0.19, -0.77), metal, round=0.05, paint=foot),
            ball(0.035, (-0.41, s * 0.17, 0.09), STEEL),
            ball(0.035, (-0.41, s * 0.17, -0.29), STEEL),
        ]
    return rows
