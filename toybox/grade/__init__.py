"""The grader: names object, colour and view of pictures, and so says how good a prior or an asset is.

    python -m toybox.grade images a.png b.png              # what is on these pictures?
    python -m toybox.grade asset outputs/ism-gs/a_mug@...  # is the asset what the run's prompt says?
    python -m toybox.grade truth outputs/ism-gs/a_mug@...  # how close is it to a true one?
    python -m toybox.grade edit outputs/edit-3d/a_mug@...  # is the edit there, and the rest what it was?
    python -m toybox.grade avatar outputs/avatar/a_person… # pose, clothes, face of an avatar
    python -m toybox.grade prior                           # 300 samples of the bundled prior
    python -m toybox.grade points                          # the bundled point prior, all prompts
    python -m toybox.grade train --minutes 10              # train it again, on the pictures of the cache

The classifier was trained on renders of the toybox over all kinds of backgrounds, at several sizes, with
slight blur, noise and shifts of colour. A view counts as right when it looks like the right one on that
object: a doughnut's front, side and back are the same (`Thing.view_groups`).
"""

from __future__ import annotations

import toybox.threads  # noqa: F401 - before torch

# isort: split
from toybox.grade.asset import (
    View,
    direction_or_none,
    find_views,
    grade_asset,
    prompt_of_run,
    read_pictures,
)
from toybox.grade.grader import Grade, Grader
from toybox.grade.scores import Score, score

__all__ = [
    "Grade",
    "Grader",
    "Score",
    "View",
    "direction_or_none",
    "find_views",
    "grade_asset",
    "prompt_of_run",
    "read_pictures",
    "score",
]
