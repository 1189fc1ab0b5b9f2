"""Things to eat, and what they grow on."""

from __future__ import annotations

import numpy as np

from ..parts import ball, box, cone, cylinder, limb, ring, rotation, sectors, spread, waffle
from ..thing import DARK, FRONT_ONLY, LIGHT, ROUND, TWO_FACED, contrast, darker, thing, vary


@thing("hamburger", "brown", view_groups=ROUND)
def hamburger(bun, _part, rng):
    """A bun with sesame seeds; lettuce, tomato, cheese with its corners, meat."""
    w = 0.74 * vary(rng)
    bun = tuple(np.clip(np.asarray(bun) * 1.35 + 0.03, 0, 1)) if max(bun) < 0.6 and bun[0] > 0.3 else bun
    dome_at = 0.10
    rows = [
        ball((w, w, 0.50), (0, 0, dome_at), bun),
        box((1, 1, 0.4), (0, 0, dome_at - 0.37), bun, carve=True),
        ball((w * 1.04, w * 1.04, 0.09), (0, 0, 0.05), (0.25, 0.72, 0.18)),
        cylinder(w * 0.98, 0.045, (0, 0, -0.05), (0.85, 0.16, 0.10), round=0.04),
        box(
            (w * 0.78, w * 0.78, 0.022),
            (0, 0, -0.12),
            (1.0, 0.80, 0.10),
            turn=rotation(yaw=45 + rng.uniform(-20, 20)),
        ),
        cylinder(w * 1.0, 0.09, (0, 0, -0.23), (0.26, 0.12, 0.06), round=0.08),
        cylinder(w * 0.97, 0.13, (0, 0, -0.44), bun, round=0.11),
    ]
    seed = (0.99, 0.95, 0.80) if np.mean(bun) < 0.8 else (0.72, 0.52, 0.28)
    for u in spread(26, 0.35, 1.0, rng.uniform(0, 6)):
        rows.append(ball((0.034, 0.034, 0.03), (w * u[0], w * u[1], dome_at + 0.50 * u[2]), seed))
    return rows


@thing(
    "donut",
    "pink",
    view_groups=ROUND,
    decorations=("sprinkles", "hearts", "stars", "dots", "checks", "stripes"),
)
def donut(icing, _part, rng, decoration):
    """Dough below, icing above with sprinkles of four colours, or painted in two rings."""
    big, tube = 0.56 * vary(rng), 0.27 * vary(rng)
    rows = [
        ring(big, tube * 1.04, (0, 0, 0.05), icing, paint=decoration(icing, 8, 2.0)),
        box((1.2, 1.2, 0.4), (0, 0, -0.36), icing, carve=True),
        ring(big, tube, (0, 0, 0), (0.80, 0.58, 0.30)),
    ]
    for k in range(34 if decoration.own else 0):
        a, b = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, np.pi - 0.25)
        r = big + tube * 1.04 * np.cos(b)
        at = np.array([r * np.cos(a), r * np.sin(a), 0.05 + tube * 1.04 * np.sin(b)])
        along = 0.05 * np.array([np.cos(k * 2.4), np.sin(k * 2.4), 0])
        hue = ((1, 1, 1), (0.1, 0.4, 0.95), (1, 0.85, 0.1), (0.15, 0.75, 0.3))[k % 4]
        rows.append(limb(at - along, at + along, 0.022, hue))
    return rows


@thing(
    "cupcake",
    "pink",
    view_groups=ROUND,
    part_option="cherry",
    default_part="red",
    decorations=("sprinkles", "hearts", "stars", "dots", "checks", "stripes"),
)
def cupcake(icing, cherry, rng, decoration):
    """A pleated paper cup, three turns of icing with sprinkles, or both painted; a cherry."""
    w = 0.52 * vary(rng)
    if decoration.own:
        rows = [cone(w * 0.68, w, 0.30, (0, 0, -0.45), LIGHT, paint=sectors(darker(icing, 0.75), 16))]
    else:
        cup = darker(icing, 0.8) if max(icing) > 0.3 else (0.34, 0.34, 0.38)
        rows = [cone(w * 0.68, w, 0.30, (0, 0, -0.45), cup, paint=decoration(cup, 6, 1.6, 0.5))]
    for r, z in ((1.12, -0.10), (0.88, 0.14), (0.56, 0.36)):
        rows.append(
            ball(
                (w * r, w * r, 0.20),
                (0, 0, z),
                icing,
                blend=0.04,
                paint=decoration(icing, round(8 * r), 3.0, 0.6),
            )
        )
    rows.append(ball(0.13, (0, 0, 0.62), cherry))
    rows.append(limb((0, 0, 0.72), (0.06, 0.04, 0.88), 0.018, (0.25, 0.45, 0.12)))
    for n, u in enumerate(spread(26, -0.1, 0.9, rng.uniform(0, 6)) if decoration.own else ()):
        r = w * (1.14 if u[2] < 0.25 else 0.90 if u[2] < 0.6 else 0.6)
        z = -0.06 + 0.20 * u[2] if u[2] < 0.25 else 0.20 if u[2] < 0.6 else 0.42
        flat = np.hypot(u[0], u[1])
        hue = ((1, 0.9, 0.1), (0.1, 0.45, 0.95), (1, 1, 1) if np.mean(icing) < 0.8 else (0.9, 0.1, 0.3))[
            n % 3
        ]
        rows.append(ball(0.03, (r * u[0] / flat, r * u[1] / flat, z), hue))
    return rows


@thing("ice cream", "white", view_groups=ROUND, part_option="cherry", default_part="red")
def ice_cream(scoop, cherry, rng):
    """A waffle cone, two scoops, a cherry."""
    w = 0.40 * vary(rng)
    return [
        cone(
            0.05,
            w * 0.92,
            0.46,
            (0, 0, -0.46),
            (0.85, 0.60, 0.28),
            paint=waffle((0.55, 0.33, 0.12), 10, 4.0, 0.16),
        ),
        ring(w * 0.86, 0.10, (0, 0, 0.02), scoop),
        ball(w, (0, 0, 0.18), scoop),
        ball(w * 0.82, (0, 0, 0.55), scoop, blend=0.05),
        ball(0.12, (0, 0, 0.93), cherry),
    ] + [
        ball(0.035, (0.8 * w * u[0], 0.8 * w * u[1], 0.55 + 0.8 * w * u[2]), contrast(scoop))
        for u in spread(14, -0.2, 0.8)
    ]


@thing("mushroom", "red", view_groups=ROUND, decorations=("spots", "hearts", "stars", "checks", "stripes"))
def mushroom(cap, _part, rng, decoration):
    """A stalk with a skirt, a spotted or painted cap with gills below."""
    w = 0.70 * vary(rng)
    rows = [
        ball((w, w, 0.52), (0, 0, 0.20), cap, paint=decoration(cap, 8, 2.1, 0.15)),
        box(
            (1, 1, 0.5), (0, 0, -0.32), (0.88, 0.80, 0.66), carve=True, paint=sectors((0.70, 0.58, 0.44), 40)
        ),
        cone(0.26, 0.17, 0.42, (0, 0, -0.38), (0.93, 0.89, 0.78)),
        ring(0.19, 0.045, (0, 0, -0.10), (0.98, 0.96, 0.88)),
    ]
    for u in spread(15, 0.08, 1.0, rng.uniform(0, 6)) if decoration.own else ():
        s = rng.uniform(0.06, 0.10)
        rows.append(ball(s, (w * 0.97 * u[0], w * 0.97 * u[1], 0.20 + 0.50 * u[2]), contrast(cap)))
    return rows


@thing("pumpkin", "orange", view_groups=FRONT_ONLY)
def pumpkin(skin, _part, rng):
    """Ribs, a stalk, and a carved face on the front."""
    rows = []
    for k in range(10):
        a = 2 * np.pi * (k + 0.5) / 10
        rows.append(ball((0.34, 0.34, 0.56), (0.38 * np.cos(a), 0.38 * np.sin(a), -0.10), skin, blend=0.02))
    face = (0.99, 0.86, 0.25) if skin[2] > 0.25 or skin[0] < 0.8 or skin[1] < 0.6 else DARK
    if sum(abs(np.asarray(skin) - (0.98, 0.86, 0.12))) < 0.3:
        face = DARK
    for y in (-0.24, 0.24):
        rows.append(ball((0.10, 0.115, 0.13), (0.60, y, 0.08), face))
    rows.append(box((0.06, 0.06, 0.06), (0.66, 0, -0.07), face, turn=rotation(roll=45)))
    for k in range(-4, 5):
        rows.append(ball((0.08, 0.06, 0.06), (0.665 - 0.012 * k * k, 0.085 * k, -0.34 + 0.012 * k * k), face))
    rows.append(limb((0, 0, 0.35), (0.04, 0.06, 0.66), 0.11, (0.30, 0.42, 0.14), end_radius=0.07))
    return rows


@thing("tree", "green", view_groups=ROUND, part_option="baubles", default_part="red")
def tree(needles, baubles, rng):
    """A fir in three tiers with baubles and a star."""
    w = 0.60 * vary(rng)
    tiers = ((1.0, 0.42, -0.35), (0.80, 0.36, 0.02), (0.56, 0.30, 0.36))
    rows = [cylinder(0.11, 0.18, (0, 0, -0.80), (0.42, 0.26, 0.12))]
    for share, half, z in tiers:
        rows.append(cone(w * share, 0.04, half * 0.75, (0, 0, z), needles))
    for n, u in enumerate(spread(30, -1, 1, rng.uniform(0, 6))):
        share, half, z = tiers[n % 3]
        up = 0.15 + 0.5 * (u[2] + 1) / 2
        a = np.arctan2(u[1], u[0])
        r = (w * share * (1 - up) + 0.04 * up) + 0.015
        rows.append(ball(0.052, (r * np.cos(a), r * np.sin(a), z + half * 0.75 * (2 * up - 1)), baubles))
    star = (0.99, 0.85, 0.15) if needles[0] < 0.8 or needles[1] < 0.7 else (0.9, 0.15, 0.15)
    for turn in (0, 60, 120):
        rows.append(box((0.035, 0.13, 0.035), (0, 0, 0.66), star, turn=rotation(roll=turn), round=0.01))
    return rows


@thing("cactus", "green", view_groups=TWO_FACED, part_option="pot", default_part="brown")
def cactus(skin, pot, rng):
    """A ribbed trunk with two arms and a flower, in a pot."""
    rib = sectors(darker(skin, 0.62), 12, 0.0, 0.3)
    left, right = rng.uniform(0.0, 0.12), rng.uniform(-0.12, 0.0)
    flower = (0.98, 0.35, 0.65) if abs(skin[0] - 0.98) > 0.1 or skin[1] > 0.7 else (0.99, 0.9, 0.2)
    rows = [
        cone(0.26, 0.36, 0.20, (0, 0, -0.70), pot),
        cylinder(0.40, 0.05, (0, 0, -0.47), darker(pot, 0.8)),
        limb((0, 0, -0.45), (0, 0, 0.58), 0.22, skin, paint=rib),
        limb((0, 0.15, left), (0, 0.50, left), 0.11, skin),
        limb((0, 0.50, left), (0, 0.50, left + 0.36), 0.12, skin, paint=rib),
        limb((0, -0.15, right - 0.1), (0, -0.50, right - 0.1), 0.11, skin),
        limb((0, -0.50, right - 0.1), (0, -0.50, right + 0.22), 0.12, skin, paint=rib),
    ]
    for k in range(6):
        a = 2 * np.pi * k / 6
        rows.append(ball(0.07, (0.09 * np.cos(a), 0.09 * np.sin(a), 0.83), flower))
    rows.append(ball(0.06, (0, 0, 0.87), (0.99, 0.85, 0.2)))
    return rows
