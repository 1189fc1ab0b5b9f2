"""``python -m toybox.show``: draw a sheet of all things, one row each, from five sides."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .cameras import FOVY, orbit
from .captions import COLORS
from .objects import OBJECTS
from .sdf import render

# azimuth, elevation: front, front and side, side, back, overhead
SIDES = ((0, 15), (40, 25), (90, 15), (180, 15), (0, 75))


def picture(
    parts: np.ndarray, azimuth: float, elevation: float, size: int, distance: float = 3.05
) -> np.ndarray:
    """One view on white, uint8 RGB ``[size, size, 3]``."""
    rgba = render(parts, orbit(azimuth, elevation, distance), FOVY, size).astype(np.float32)
    alpha = rgba[..., 3:] / 255.0
    return np.uint8(rgba[..., :3] * alpha + 255.0 * (1 - alpha) + 0.5)


def decorations(names: list[str], color: str | None, size: int) -> Image.Image:
    """The decorations of all `names` that have any, a row for each thing: front and side."""
    rows = [name for name in names if OBJECTS[name].decorations]
    most = max((len(OBJECTS[name].decorations) for name in rows), default=0)
    canvas = Image.new("RGB", (2 * most * size, len(rows) * size), "white")
    for y, name in enumerate(rows):
        thing = OBJECTS[name]
        for x, word in enumerate(thing.decorations):
            parts = thing.build(color or thing.default_color, np.random.default_rng(y), decoration=word)
            for k, azimuth in enumerate((0, 45)):
                one = Image.fromarray(picture(parts, azimuth, 15, size))
                canvas.paste(one, ((2 * x + k) * size, y * size))
    return canvas


def sheet(names: list[str], color: str | None, size: int, columns: int) -> Image.Image:
    """All ``names`` in blocks of five views, ``columns`` blocks wide, in ``color`` or their own."""
    label = 14
    rows = -(-len(names) // columns)
    canvas = Image.new("RGB", (columns * (len(SIDES) * size + 8), rows * (size + label)), "white")
    pen = ImageDraw.Draw(canvas)
    for n, name in enumerate(names):
        thing = OBJECTS[name]
        parts = thing.build(color or thing.default_color, np.random.default_rng(n), decoration=thing.own)
        x, y = (n % columns) * (len(SIDES) * size + 8), (n // columns) * (size + label)
        pen.text((x + 4, y + 1), name, fill="black")
        for k, (azimuth, elevation) in enumerate(SIDES):
            canvas.paste(Image.fromarray(picture(parts, azimuth, elevation, size)), (x + k * size, y + label))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="which things; all by default")
    parser.add_argument("--out", type=Path, default=Path("outputs/toybox.png"), help="(%(default)s)")
    parser.add_argument("--color", choices=[*COLORS, "own"], default="own")
    parser.add_argument("--decorations", action="store_true", help="a row of its decorations for each thing")
    parser.add_argument("--size", type=int, default=128, help="pixels of one view")
    parser.add_argument("--columns", type=int, default=2, help="things side by side")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in OBJECTS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}. The toybox holds: {', '.join(OBJECTS)}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    names, color = args.names or list(OBJECTS), None if args.color == "own" else args.color
    drawn = (
        decorations(names, color, args.size)
        if args.decorations
        else sheet(names, color, args.size, args.columns)
    )
    drawn.save(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
