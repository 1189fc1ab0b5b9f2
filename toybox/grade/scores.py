"""Grades against what was asked for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toybox import captions
from toybox.grade.grader import Grade
from toybox.objects import OBJECTS

SURE = 0.9  # a view names a decoration from this probability on
COMMITTED = 6 / 8  # share of the views that must name the same one
BARS = {"object": 0.97, "color": 0.95, "view": 0.90}  # for samples of a prior


@dataclass(frozen=True)
class Score:
    """Shares of pictures whose object, colour and view are right, and what went wrong."""

    object: float
    color: float
    view: float
    mistakes: Counter

    def text(self, bars: dict[str, float] = BARS) -> str:
        """A line for each of the three, with its bar."""
        lines = []
        for key, bar in bars.items():
            value = getattr(self, key)
            lines.append(
                f"{key:7s} {100 * value:5.1f} %   bar {100 * bar:.0f} %   {'ok' if value >= bar else 'BELOW'}"
            )
        return "\n".join(lines)


def score(grades: Sequence[Grade], wanted: Sequence[captions.Spec]) -> Score:
    """Compare grades with what was asked for; views are judged on the object asked for, None is right."""
    mistakes: Counter = Counter()
    right = defaultdict(int)
    for grade, spec in zip(grades, wanted, strict=True):
        checks = {
            "object": (grade.object, spec.object, grade.object == spec.object),
            "color": (grade.color, spec.color, grade.color == spec.color),
            "view": (grade.view, spec.view, spec.view is None or grade.view_is(spec.view, spec.object)),
        }
        for key, (seen, asked, ok) in checks.items():
            right[key] += ok
            if not ok:
                of = "" if key == "object" else f" of {spec.object}"
                mistakes[f"{key}{of}: {asked} seen as {seen}"] += 1
    n = max(len(grades), 1)
    return Score(right["object"] / n, right["color"] / n, right["view"] / n, mistakes)


@dataclass(frozen=True)
class Commitment:
    """How surely, and on how many views alike, an asset shows one decoration.

    decoration: the one that most speaks for.
    probability: the grader's for it, mean over the views.
    sure: how many of the views name it with at least `SURE`.
    """

    decoration: str
    probability: float
    sure: int
    views: int

    @property
    def committed(self) -> bool:
        """Whether the asset has decided."""
        return self.sure >= COMMITTED * self.views

    def text(self) -> str:
        verdict = "committed" if self.committed else "undecided"
        return (
            f"decoration {self.decoration} (mean probability {self.probability:.2f}), "
            f"named by {self.sure} of {self.views} views: {verdict}"
        )


def commitment(grades: Sequence[Grade], spec: captions.Spec) -> Commitment | None:
    """Which decoration the views of an asset show, and how much they agree.

    None for things without any, and from a grader that does not know them.
    """
    words = OBJECTS[spec.object].decorations
    if not words or not any(g.probabilities["decoration"] for g in grades):
        return None
    table = np.array([[g.probabilities["decoration"].get(word, 0.0) for word in words] for g in grades])
    k = int(table.mean(0).argmax())
    return Commitment(words[k], float(table[:, k].mean()), int((table[:, k] >= SURE).sum()), len(grades))
