"""The toybox itself: its solids, its pictures, its words."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from toybox import captions, parts, sdf
from toybox.cameras import FOVY, orbit
from toybox.captions import COLORS, VIEWS, caption, direction, parse, vocabulary
from toybox.objects import OBJECTS, POSES
from toybox.thing import PAINTED, Decoration
from toybox.truth import true_views

GREY = (0.5, 0.5, 0.5)


def points(n: int = 400, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1.2, 1.2, (n, 3)).astype(np.float32)


# ------------------------------------------------------------------------------------------------ solids


def test_exact_distances():
    """Balls, boxes, rods and rings against their textbook distances."""
    x = points()
    ball = parts.table([parts.ball(0.4, (0.1, -0.2, 0.3), GREY)])
    np.testing.assert_allclose(
        sdf.distance(ball, x), np.linalg.norm(x - (0.1, -0.2, 0.3), axis=1) - 0.4, atol=2e-6
    )

    cube = parts.table([parts.box((0.3, 0.2, 0.5), (0, 0, 0), GREY, round=0.0)])
    q = np.abs(x) - (0.3, 0.2, 0.5)
    expected = np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0)
    np.testing.assert_allclose(sdf.distance(cube, x), expected, atol=2e-6)

    start, end = np.array([0.1, 0.2, -0.5]), np.array([-0.3, 0.4, 0.6])
    rod = parts.table([parts.limb(start, end, 0.15, GREY)])
    along = np.clip((x - start) @ (end - start) / np.sum((end - start) ** 2), 0, 1)
    expected = np.linalg.norm(x - start - along[:, None] * (end - start), axis=1) - 0.15
    np.testing.assert_allclose(sdf.distance(rod, x), expected, atol=3e-6)

    ring = parts.table([parts.ring(0.5, 0.1, (0, 0, 0), GREY)])
    expected = np.hypot(np.hypot(x[:, 0], x[:, 1]) - 0.5, x[:, 2]) - 0.1
    np.testing.assert_allclose(sdf.distance(ring, x), expected, atol=2e-6)


def test_surfaces_of_cones_and_cylinders():
    """Points made on the surface from its equation have distance zero."""
    u, a = np.random.default_rng(1).uniform(0, 1, (2, 300))
    z, a = 0.6 * u - 0.3, 2 * np.pi * a
    for row, radius in (
        (parts.cylinder(0.4, 0.3, (0, 0, 0), GREY, round=0.0), np.full_like(z, 0.4)),
        (parts.cone(0.5, 0.2, 0.3, (0, 0, 0), GREY, round=0.0), 0.5 - 0.3 * u),
    ):
        x = np.stack([radius * np.cos(a), radius * np.sin(a), z], axis=1)
        np.testing.assert_allclose(sdf.distance(parts.table([row]), x), 0, atol=1e-5)


def test_carving_spares_what_comes_later():
    block = parts.box((0.5, 0.5, 0.5), (0, 0, 0), GREY)
    hole = parts.ball(0.3, (0, 0, 0), GREY, carve=True)
    plug = parts.ball(0.1, (0, 0, 0), GREY)
    centre = np.zeros((1, 3), np.float32)
    assert sdf.distance(parts.table([block, hole]), centre)[0] == pytest.approx(0.3, abs=1e-6)
    assert sdf.distance(parts.table([block, hole, plug]), centre)[0] < 0
    assert sdf.distance(parts.table([block, plug, hole]), centre)[0] > 0


@pytest.mark.parametrize("name", OBJECTS)
def test_every_thing_fits_the_pictures_and_is_not_empty(name):
    thing = OBJECTS[name]
    far = parts.spread(2000) * 1.06
    for seed in range(3):
        table = thing.build(thing.default_color, np.random.default_rng(seed))
        assert table.shape[1] == parts.COLUMNS
        assert np.isfinite(table).all()
        assert sdf.distance(table, far).min() > 0, "sticks out of the pictures"
        assert (sdf.distance(table, points(4000)) < 0).mean() > 0.003, "hardly any volume"


# ------------------------------------------------------------------------------------------------ pictures


def test_a_ball_is_seen_at_its_true_size():
    """Half-angle of a ball of radius r at distance d is asin(r/d)."""
    table = parts.table([parts.ball(0.5, (0, 0, 0), GREY)])
    alpha = sdf.render(table, orbit(30, 20, 3.0), 40.0, 256)[..., 3] / 255.0
    focal = 128 / np.tan(np.radians(20))
    radius = focal * np.tan(np.arcsin(0.5 / 3.0))
    assert alpha.sum() == pytest.approx(np.pi * radius**2, rel=0.01)


def test_azimuth_and_image_axes():
    """A ball at +y is on the right when seen from +x, one at +z is on top: the axes of the host's cameras."""
    for at, (row, column) in (((0, 0.6, 0), (32, 48)), ((0, 0, 0.6), (16, 32)), ((0.6, 0, 0), (32, 32))):
        alpha = sdf.render(parts.table([parts.ball(0.1, at, GREY)]), orbit(0, 0, 3.0), 2 * 20.0, 64)[..., 3]
        centre = np.argwhere(alpha > 0).mean(0)
        focal = 32 / np.tan(np.radians(20))
        expected = np.array([31.5 - focal * at[2] / 3, 31.5 + focal * at[1] / 3])
        np.testing.assert_allclose(centre, expected, atol=1.0)
        assert np.sign(expected - 31.5).tolist() == np.sign(np.array([row, column]) - 32).tolist()


def test_same_seed_same_picture():
    def picture():
        return sdf.render(OBJECTS["donut"].build("red", np.random.default_rng(5)), orbit(10, 20, 3), FOVY, 64)

    assert (picture() == picture()).all()


def view(name: str, azimuth: float, elevation: float) -> np.ndarray:
    thing = OBJECTS[name]
    rgba = sdf.render(
        thing.build(thing.default_color, np.random.default_rng(0)), orbit(azimuth, elevation, 3), FOVY, 64
    )
    return rgba[..., :3] * (rgba[..., 3:] / 255.0)


@pytest.mark.parametrize("name", OBJECTS)
def test_view_groups_are_honest(name):
    """Directions that a thing calls alike look more alike than any two that it tells apart."""
    looks = {"front": (0, 10), "side": (90, 10), "back": (180, 10), "overhead": (0, 80)}
    pictures = {v: view(name, *looks[v]) for v in VIEWS}
    # Blurred, so that where a single sprinkle lies does not matter.
    pictures = {v: p.reshape(16, 4, 16, 4, 3).mean((1, 3)) for v, p in pictures.items()}
    for a, b in itertools.combinations(VIEWS, 2):
        apart = np.abs(pictures[a] - pictures[b]).max()
        if OBJECTS[name].group(a) != OBJECTS[name].group(b):
            assert apart > 25, f"{a} and {b} cannot be told apart"
    assert sorted(v for group in OBJECTS[name].view_groups for v in group) == sorted(VIEWS)


@pytest.mark.parametrize("name", OBJECTS)
def test_the_main_colour_shows_from_every_side(name):
    """Change the main colour and the picture changes, wherever one looks from."""
    for azimuth, elevation in ((0, 10), (90, 10), (180, 10), (0, 80)):
        pair = [
            sdf.render(
                OBJECTS[name].build(c, np.random.default_rng(0)), orbit(azimuth, elevation, 3), FOVY, 64
            )
            for c in ("red", "blue")
        ]
        opaque = pair[0][..., 3] > 128
        changed = np.abs(pair[0][..., :3].astype(int) - pair[1][..., :3]).max(-1) > 60
        assert changed[opaque].mean() > 0.15


# ------------------------------------------------------------------------------------------------ decorations

DECORATED = [name for name, thing in OBJECTS.items() if thing.decorations]
SIDES = range(0, 360, 45)


def test_many_things_have_decorations():
    assert len(DECORATED) >= 10
    assert all(len(OBJECTS[name].decorations) >= 4 for name in DECORATED)


@pytest.mark.parametrize("name", DECORATED)
def test_an_open_caption_has_modes_and_a_closed_one_has_not(name):
    """Instances of different decorations are far apart, those of the same one close together."""
    thing = OBJECTS[name]

    def views(decoration: str, seed: int) -> np.ndarray:
        return true_views(
            captions.Spec(name, thing.default_color, decoration=decoration), SIDES, size=64, seed=seed
        )

    def decibels(a: np.ndarray, b: np.ndarray) -> float:
        return -10 * np.log10(np.square(a - b).mean())

    looks = {word: views(word, 0) for word in thing.decorations}
    apart = [decibels(looks[a], looks[b]) for a, b in itertools.combinations(looks, 2)]
    assert np.mean(apart) < 20
    first = thing.decorations[0]
    assert decibels(looks[first], views(first, 1)) > np.mean(apart)


def test_an_open_caption_draws_every_decoration():
    """The choice is the instance's, and what is chosen is what the closed caption draws."""
    thing = OBJECTS["mug"]
    closed = {
        word: {thing.build("blue", np.random.default_rng(0), decoration=word)[1, parts.PAINT]}
        for word in thing.decorations
    }
    paints = {thing.build("blue", np.random.default_rng(seed))[1, parts.PAINT] for seed in range(60)}
    assert paints == set.union(*closed.values()) and len(paints) == len(thing.decorations)


def test_a_decorations_ink_shows_on_every_colour():
    for word in PAINTED:
        for color in COLORS.values():
            _kind, ink, *_ = Decoration(word)(color, 6, 2)
            assert np.linalg.norm(np.subtract(ink, color)) > 0.4, (word, color)


def test_figures_are_where_the_grid_says():
    """A dotted ball of two by two cells: dots at the middles of the cells, ground at their corners."""
    ball = parts.ball(1.0, (0, 0, 0), GREY, paint=parts.decoration(parts.DOTS, (1, 0, 0), 4, 1.0))
    table = parts.table([ball])

    def seen(azimuth: float, height: float) -> bool:
        r = np.sqrt(1 - height**2)
        a = np.radians(azimuth)
        direction = np.array([[r * np.cos(a), r * np.sin(a), height]])
        _, color = sdf.first_hits(table, 3 * direction, -direction)
        return color[0, 0] > 2 * color[0, 1]

    assert seen(0, 0.5) and seen(90, 0.5)  # cells are centred on the axes in even rows
    assert not seen(45, 0.5)
    assert seen(45, -0.5) and not seen(0, -0.5)  # odd rows are shifted by half a cell
    assert not seen(0, 0.02)


# ------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("elevation", "azimuth", "word"),
    [
        (0, 0, "front"),
        (0, 44.9, "front"),
        (0, 45, "side"),
        (0, -135, "side"),
        (0, 135.1, "back"),
        (60, 0, "front"),
        (60.1, 0, "overhead"),
        (10, 360, "front"),
        (10, 180, "back"),
        (-10, -90, "side"),
    ],
)
def test_direction_words(elevation, azimuth, word):
    assert direction(elevation, azimuth) == word


def test_captions_read_well():
    assert caption("mug", "orange") == "an orange mug"
    assert caption("snowman", "white", "red", "front") == "a white snowman with a red hat, front view"
    assert caption("airplane", "white", drop_color=True) == "an airplane"
    assert caption("mug", "red", view="side", decoration="stars") == "a red mug with stars, side view"
    assert caption("gift", "red", "blue", decoration="dots") == "a red gift with a blue ribbon and dots"
    assert caption("rocket", "white", "blue", "side") == "a white rocket with blue fins, side view"
    assert (
        caption("person", "red", "blue", "back") == "a person with a red shirt and blue trousers, back view"
    )


def test_prompts_come_back_from_captions():
    words = set(vocabulary())
    for name, color, view in itertools.product(OBJECTS, COLORS, (None, *VIEWS)):
        for part in (None, "purple") if OBJECTS[name].part_option else (None,):
            for pose in (None, *POSES) if name == "person" else (None,):
                for decoration in (None, *OBJECTS[name].decorations):
                    text = caption(name, color, part, view, pose=pose, decoration=decoration)
                    spec = parse(text)
                    assert spec == captions.Spec(name, color, part, view, pose, decoration), text
                    assert set(text.replace(",", "").split()) <= words


def test_a_prompt_without_colour_means_the_things_own():
    assert parse("A hamburger.") == captions.Spec("hamburger", OBJECTS["hamburger"].default_color)


def test_unknown_thing_lists_neighbours():
    with pytest.raises(ValueError, match=r"Did you mean.*mug.*It knows:"):
        parse("a mugg")
