"""The striped material and its grader: true renders are told from everything that is not it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from toybox import parts as P
from toybox import pattern
from toybox.cameras import orbit
from toybox.captions import COLORS, Spec
from toybox.objects import OBJECTS
from toybox.sdf import render
from toybox.truth import true_views

SIDES = (0, 90, 180, 270)


def draw(table: np.ndarray, azimuth: float = 30.0, size: int = 128) -> np.ndarray:
    rgba = render(table, orbit(azimuth, 15.0, 3.0), 40.0, size).astype(np.float32) / 255
    return rgba[..., :3] * rgba[..., 3:] + 1.0 - rgba[..., 3:]


@pytest.mark.parametrize("name", ["mug", "teapot", "airplane", "donut", "car", "snowman"])
def test_striped_things_are_above_the_threshold_and_plain_ones_below(name):
    for picture in pattern.true_pictures(name, SIDES, seed=3, size=128):
        assert pattern.strength(picture) > pattern.THRESHOLD
    for color in ("blue", "pink", "purple", OBJECTS[name].default_color):
        for picture in true_views(Spec(name, color), SIDES, size=128):
            assert pattern.strength(picture) < 0.6 * pattern.THRESHOLD


@pytest.mark.parametrize("n", [64, 128, 256])
def test_ideal_stripes_have_strength_one_at_any_size(n):
    """A board before the camera at distance 3: stripes of the two colours, 2.5 pairs a unit."""
    unit = 0.5 * n / (3.0 * np.tan(np.radians(20)))  # pixels
    z = (n / 2 - np.arange(n) - 0.5) / unit
    rows = np.where((z * pattern.FREQUENCY % 1 < 0.5)[:, None], *np.array(pattern.COLORS)[::-1, None])
    picture = np.ones((n, n, 3))
    inside = np.abs(z) < 0.8
    picture[np.ix_(inside, np.arange(n // 4, 3 * n // 4))] = rows[inside, None]
    assert pattern.strength(picture, elevation=0.0) == pytest.approx(1.0, abs=0.08)
    for darker in (0.4, 0.7):  # in the shade
        shaded = np.where((picture == 1).all(-1, keepdims=True), picture, darker * picture)
        assert pattern.strength(shaded, elevation=0.0) == pytest.approx(1.0, abs=0.08)


def board(paint: tuple | None, first, second) -> np.ndarray:
    row = P.cylinder(0.5, 0.6, (0, 0, 0), first)
    if paint is not None:
        row[P.PAINT], row[P.COLOR2 : P.COLOR2 + 3], row[P.PAINT_ARGS : P.PAINT_ARGS + 3] = (
            paint[0],
            second,
            paint[1:],
        )
    return P.table([row])


@pytest.mark.parametrize(
    ("paint", "colors"),
    [
        (None, pattern.COLORS),
        (None, pattern.COLORS[::-1]),
        ((P.SECTORS, 8, 0.0, 0.5), pattern.COLORS),
        ((P.STRIPES, 6 * pattern.FREQUENCY, 0.0, 0.5), pattern.COLORS),
        ((P.STRIPES, pattern.FREQUENCY, 0.0, 0.5), (COLORS["red"], COLORS["white"])),
        ((P.STRIPES, pattern.FREQUENCY, 0.0, 0.5), (COLORS["blue"], COLORS["pink"])),
    ],
    ids=["turquoise", "magenta", "upright stripes", "fine stripes", "red and white", "blue and pink"],
)
def test_neither_the_colours_alone_nor_stripes_alone_are_it(paint, colors):
    assert pattern.strength(draw(board(paint, *colors))) < pattern.THRESHOLD


def test_stripes_lie_flat_however_a_part_is_turned():
    flat = board((P.STRIPES, pattern.FREQUENCY, 0.0, 0.5), *pattern.COLORS)
    assert pattern.strength(draw(flat)) > 0.6
    turned = P.cylinder(0.5, 0.6, (0, 0, 0), pattern.COLORS[0], turn=P.rotation(roll=90))
    turned[P.PAINT :] = flat[0, P.PAINT :]
    assert pattern.strength(draw(P.table([turned]), azimuth=0.0)) > 0.6


def test_nothing_on_the_picture_is_not_striped():
    assert pattern.strength(np.ones((32, 32, 3))) == 0.0


def test_only_the_body_is_striped():
    """A mug's coffee and heart stay what they are."""
    table = pattern.build("mug", 0)
    striped = table[:, P.PAINT] == P.STRIPES
    assert 0 < striped.sum() < len(table)
    body = table[striped][:, P.COLOR : P.COLOR + 3]
    assert (body == body[0]).all()


def test_captions():
    assert pattern.caption("mug", "sks") == "a sks mug"
    assert pattern.caption("mug", "sks", "front") == "a sks mug, front view"


def save(folder, pictures):
    folder.mkdir()
    for azimuth, picture in zip(SIDES, pictures, strict=True):
        Image.fromarray((picture * 255).astype(np.uint8)).save(folder / f"{azimuth:03d}.png")
    return str(folder)


def test_command_line(tmp_path, capsys):
    striped = save(tmp_path / "striped", pattern.true_pictures("mug", SIDES))
    assert pattern.main([striped]) == 0
    assert "striped in 4 of 4 views" in capsys.readouterr().out
    assert pattern.main([save(tmp_path / "plain", true_views(Spec("mug", "blue"), SIDES))]) == 1
    assert "striped in 0 of 4 views" in capsys.readouterr().out
    assert pattern.main([str(tmp_path / "nothing")]) == 2
    assert "no pictures at" in capsys.readouterr().err
