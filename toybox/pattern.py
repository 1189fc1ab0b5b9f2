"""A material that the bundled prior has never seen: bold stripes in two colours that no thing of it has.

For teaching it to a prior by a few pictures (`toybox.train_lora`), and for saying how much of it is on a
picture. Stripes lie flat, at the same heights of the world on every thing, so all sides show the same.

    python -m toybox.pattern outputs/lora/a_sks_mug@...     # is the asset striped?
"""

from __future__ import annotations

import toybox.threads  # noqa: F401 - before torch

# isort: split
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from toybox import parts as P
from toybox import runs
from toybox.cameras import orbit
from toybox.captions import Spec
from toybox.grade import find_views
from toybox.measures import object_mask
from toybox.objects import OBJECTS
from toybox.sdf import render
from toybox.thing import Decoration, shade

COLORS = ((0.10, 0.78, 0.74), (0.86, 0.08, 0.50))  # turquoise, magenta
FREQUENCY = 2.5  # pairs of stripes per world unit: about five on a thing
# A view is striped from here on. Midway, on true renders of all things, between the weakest of the striped
# ones (0.32) and the strongest of the plain ones (0.10), see `true_strengths`.
THRESHOLD = 0.21


def build(name: str, seed: int) -> np.ndarray:
    """The table of parts of a striped thing: what would have the thing's colour has the stripes."""
    rng = np.random.default_rng(seed)
    first, second = (shade(color, rng) for color in COLORS)
    thing = OBJECTS[name]
    # the stripes take the place of a decoration, if the thing has one
    options = {"decoration": Decoration(thing.decorations[0])} if thing.decorations else {}
    rows = P.table(thing.draw(first, first, rng, **options))
    body = np.abs(rows[:, P.COLOR : P.COLOR + 3] - np.float32(first)).max(axis=1) < 1e-6
    rows[body, P.PAINT] = P.STRIPES
    rows[np.ix_(body, range(P.COLOR2, P.COLOR2 + 3))] = second
    rows[np.ix_(body, range(P.PAINT_ARGS, P.PAINT_ARGS + 3))] = (FREQUENCY, 0.0, 0.5)
    return rows


def caption(name: str, trigger: str, view: str | None = None) -> str:
    """What it is called, the trigger in the place of a colour: "a sks mug, front view"."""
    return f"a {trigger} {name}" + (f", {view} view" if view else "")


def strength(
    picture: np.ndarray, elevation: float = 15.0, distance: float = 3.0, fovy: float = 40.0
) -> float:
    """How striped a picture is: near 1 for ideal flat stripes of the two colours, 0 for none.

    Each pixel of the object is placed between the two colours, -1 to 1, as far as it lies near the line
    between them; in every column of the picture this signal's mean is taken away, and what it has of the
    stripes' frequency is compared with what a square wave has.

    Args:
        picture: [H, W, 3] in [0, 1], before a plain background.
        elevation, distance, fovy: of the camera; degrees and world units.
    """
    mask = object_mask(picture)
    if not mask.any():
        return 0.0
    height = picture.shape[0]
    pixels_per_unit = 0.5 * height / (distance * np.tan(np.radians(fovy) / 2))
    period = pixels_per_unit * np.cos(np.radians(elevation)) / FREQUENCY
    signal = np.where(mask, _between(picture), 0.0)
    count = mask.sum(axis=0)
    mean = signal.sum(axis=0) / np.maximum(count, 1)
    signal = np.where(mask, signal - mean, 0.0)
    rows = np.arange(height)
    # perspective makes near stripes larger: the frequency that fits a column best, within a fifth
    found = [np.abs(np.exp(-2j * np.pi * rows * f / period) @ signal) for f in np.linspace(0.8, 1.2, 9)]
    return float(np.max(found, axis=0).sum() / count.sum() * np.pi / 2)


def _between(picture: np.ndarray) -> np.ndarray:
    """[H, W]: -1 for the first colour, 1 for the second, 0 far from both. Light and shade do not count."""
    # colours lit differently lie on one ray from black, so compare directions
    first, second = (np.asarray(color) / np.linalg.norm(color) for color in COLORS)
    hue = picture / np.maximum(np.linalg.norm(picture, axis=-1, keepdims=True), 1e-6)
    middle, half = (first + second) / 2, (second - first) / 2
    along = (hue - middle) @ half / (half @ half)
    off = np.linalg.norm(hue - middle - along[..., None] * half, axis=-1)
    return np.clip(along, -1.0, 1.0) * np.exp(-np.square(off / 0.2))


def true_strengths(striped: bool, seeds: Sequence[int] = (0,)) -> np.ndarray:
    """Strengths on true renders of every thing from four sides, the striped or the plain in ten colours."""
    from toybox.captions import COLORS as NAMED
    from toybox.truth import true_views

    azimuths = (0, 90, 180, 270)
    found = []
    for name in OBJECTS:
        for seed in seeds:
            if striped:
                pictures = true_pictures(name, azimuths, seed)
                found += [strength(picture) for picture in pictures]
            else:
                for color in NAMED:
                    found += [strength(p) for p in true_views(Spec(name, color), azimuths, seed=seed)]
    return np.array(found)


def true_pictures(
    name: str, azimuths: Sequence[float], seed: int = 0, elevation: float = 15.0, size: int = 256
) -> np.ndarray:
    """A striped thing on white as a run's views show it, [N, size, size, 3] in [0, 1]."""
    table = build(name, seed)
    pictures = []
    for azimuth in azimuths:
        rgba = render(table, orbit(azimuth, elevation, 3.0), 40.0, size).astype(np.float32) / 255
        pictures.append(rgba[..., :3] * rgba[..., 3:] + 1.0 - rgba[..., 3:])
    return np.stack(pictures)


def grade_views(path: Path) -> list[tuple[Path, float]]:
    """The views of a run, or the pictures of a folder, with their strengths.

    Raises:
        FileNotFoundError: there are none.
    """
    try:
        camera = runs.camera_of(path)
        where = {"elevation": camera.elevation, "distance": camera.distance, "fovy": camera.fovy}
    except FileNotFoundError:
        where = {}
    return [(view.path, strength(runs.read_square(view.path), **where)) for view in find_views(path)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m toybox.pattern",
        description="Say how striped an asset is; exit status 0 if 7 of 8 views are.",
    )
    parser.add_argument("path", type=Path, help="a run's folder, a folder of pictures, or a picture")
    options = parser.parse_args(arguments)
    try:
        found = grade_views(options.path)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path, value in found:
        print(f"{path.name:24s} {value:.2f}  {'striped' if value >= THRESHOLD else 'plain'}")
    striped = sum(value >= THRESHOLD for _, value in found)
    mean = np.mean([value for _, value in found])
    print(f"striped in {striped} of {len(found)} views, strength {mean:.2f} (threshold {THRESHOLD})")
    return 0 if striped >= 7 / 8 * len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
