"""Grades against what was asked for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from toybox import captions
from toybox.grade.grader import Grade

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
