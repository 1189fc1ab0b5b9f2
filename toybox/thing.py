"""What a thing of the toybox is, and the helpers that things are built with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from . import parts as P
from .captions import COLORS
from .parts import Color, table

Paint = dict[str, Color]

DARK: Color = (0.10, 0.09, 0.09)
LIGHT: Color = (0.95, 0.94, 0.90)
STEEL: Color = (0.62, 0.64, 0.67)
WOOD: Color = (0.62, 0.42, 0.22)
GLASS: Color = (0.55, 0.78, 0.92)

# Decorations that any thing can be painted with: the paint, and the ink, the first that shows on the ground.
PAINTED: dict[str, tuple[int, tuple[Color, Color]]] = {
    "hearts": (P.HEARTS, ((0.92, 0.08, 0.26), LIGHT)),
    "stars": (P.STARS, ((1.00, 0.84, 0.10), (0.13, 0.25, 0.80))),
    "dots": (P.DOTS, (LIGHT, DARK)),
    "checks": (P.CHECKS, (DARK, LIGHT)),
    "stripes": (P.HOOPS, (LIGHT, DARK)),
    "smiles": (P.SMILES, ((1.00, 0.72, 0.12), (0.12, 0.12, 0.14))),
    "planks": (P.PLANKS, ((0.36, 0.20, 0.10), LIGHT)),
    "beams": (P.BEAMS, ((0.24, 0.14, 0.08), LIGHT)),
    "bricks": (P.MASONRY, (LIGHT, DARK)),
}

# Which of the four directions look alike, for grading: a doughnut has no front.
ALL_DIFFERENT = (("front",), ("side",), ("back",), ("overhead",))
ROUND = (("front", "side", "back"), ("overhead",))
FRONT_ONLY = (("front",), ("side", "back"), ("overhead",))
TWO_FACED = (("front", "back"), ("side",), ("overhead",))


@dataclass(frozen=True)
class Decoration:
    """What an instance is decorated with, for the function that draws it."""

    word: str

    @property
    def own(self) -> bool:
        """Whether it is the thing's own, to be drawn by the thing, and nothing is painted."""
        return self.word not in PAINTED

    def __call__(self, ground: Color, around: float, up: float, phase: float = 0.0) -> P.Paint | None:
        """The paint of a wall in the colour ``ground``; for the grid see ``parts.decoration``."""
        if self.own:
            return None
        kind, (ink, other) = PAINTED[self.word]
        shows = np.linalg.norm(np.subtract(ink, ground)) > 0.5
        return P.decoration(kind, ink if shows else other, around, up, phase)


@dataclass(frozen=True)
class Thing:
    """An everyday object.

    Attributes:
        name: the word for it in captions.
        default_color: the colour of its main part when a prompt names none; a key of ``COLORS``.
        view_groups: the directions, those that look alike together.
        part_option: the part that captions may colour ("a snowman with a red hat"), or None.
        default_part: that part's colour when no caption names it; None: the main colour.
        decorations: its own, which it draws itself, then keys of ``PAINTED``. Each instance has one, which
            captions may name ("a mug with stars") or leave open ("a mug").
        draw: ``(main, part, rng, **options) -> parts``, colours as RGB; with decorations, ``decoration``, a
            ``Decoration``, is one of the options.
    """

    name: str
    default_color: str
    draw: Callable[..., list[np.ndarray]] = field(repr=False)
    view_groups: tuple[tuple[str, ...], ...] = ALL_DIFFERENT
    part_option: str | None = None
    default_part: str | None = None
    decorations: tuple[str, ...] = ()

    @property
    def own(self) -> str | None:
        """The decoration that it draws itself, if it can have any."""
        return self.decorations[0] if self.decorations else None

    def build(
        self,
        color: str,
        rng: np.random.Generator,
        part_color: str | None = None,
        decoration: str | None = None,
        **options,
    ) -> np.ndarray:
        """One instance: the table of parts, with this instance's small variation of shape and shade.

        Args:
            color: of its main part, a key of ``COLORS``.
            rng: the instance.
            part_color: of its optional part.
            decoration: one of ``decorations``; None: any of them, which the instance decides.
        """
        if self.decorations:
            options["decoration"] = Decoration(decoration or str(rng.choice(self.decorations)))
        main = shade(COLORS[color], rng)
        part = shade(COLORS[part_color or self.default_part or color], rng)
        return table(self.draw(main, part, rng, **options))

    def group(self, view: str) -> tuple[str, ...]:
        """The directions that look like ``view``."""
        return next(group for group in self.view_groups if view in group)


OBJECTS: dict[str, Thing] = {}


def thing(name: str, default_color: str, **kw) -> Callable:
    """Decorator: enter a drawing function in the toybox."""

    def enter(draw: Callable[..., list[np.ndarray]]) -> Callable[..., list[np.ndarray]]:
        OBJECTS[name] = Thing(name, default_color, draw, **kw)
        return draw

    return enter


def shade(color: Color, rng: np.random.Generator, by: float = 0.025) -> Color:
    """A colour a little off, as paint is."""
    return tuple(np.clip(np.asarray(color) + rng.uniform(-by, by, 3), 0.0, 1.0))


def vary(rng: np.random.Generator, by: float = 0.05) -> float:
    """A factor near one."""
    return float(rng.uniform(1 - by, 1 + by))


def contrast(color: Color) -> Color:
    """Light on dark colours, dark on light ones: for details that must show on any main colour."""
    return LIGHT if np.dot(color, (0.3, 0.59, 0.11)) < 0.62 else DARK


def darker(color: Color, by: float = 0.6) -> Color:
    """The same hue with less light."""
    return tuple(by * np.asarray(color))
