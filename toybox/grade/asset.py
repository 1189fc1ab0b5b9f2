"""What the grader sees on the views of an asset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from toybox import captions, runs
from toybox.grade.grader import Grade, Grader
from toybox.grade.scores import Score, score


class View(NamedTuple):
    """A picture of an asset, and the azimuth that it was taken from in degrees, None where nobody knows."""

    path: Path
    azimuth: float | None

    @property
    def direction(self) -> str | None:
        """The direction word for it; None on the border between two."""
        return None if self.azimuth is None else direction_or_none(self.azimuth)


def direction_or_none(azimuth: float) -> str | None:
    """The direction word of a view from a little above, None halfway between two."""
    words = {captions.direction(15.0, azimuth + e) for e in (-1.0, 1.0)}
    return words.pop() if len(words) == 1 else None


def read_pictures(paths: Sequence[Path]) -> Tensor:
    """PNG files as [n, 3, h, w] in [0, 1]; all are brought to the size of the first.

    Of pictures side by side in one file, the first is read.
    """
    images = [torch.from_numpy(runs.read_square(path)).permute(2, 0, 1) for path in paths]
    size = images[0].shape[1:]
    return torch.stack([F.adaptive_avg_pool2d(image, size) for image in images])


def find_views(path: Path) -> list[View]:
    """The pictures of an asset: a run's latest views, the pictures of a folder, or the one picture `path`.

    Runs of Gaussians keep the views of their contact sheet in `save/itN-views/AZIMUTH.png`; of other runs,
    eight frames of the turntable `save/itN-test` are taken.

    Raises:
        FileNotFoundError: there are none.
    """
    if path.is_file():
        beside = path.with_suffix("")
        return _named_views(beside) if beside.is_dir() and _named_views(beside) else [_named_view(path)]
    if views := runs.latest(path, "views"):
        return _named_views(views)
    if test := runs.latest(path, "test"):
        azimuths = [45.0 * k for k in range(8)]
        return [View(*pair) for pair in zip(runs.nearest(runs.frames(test), azimuths), azimuths, strict=True)]
    if not path.is_dir() or not _named_views(path):
        raise FileNotFoundError(
            f"no pictures at {path}: expected a run's folder, a folder of PNG files or a PNG file"
            f"{_runs_in(path)}"
        )
    return _named_views(path)


def _runs_in(path: Path) -> str:
    """The runs in a folder of runs, for a message."""
    found = sorted(str(file.parents[1]) for file in path.glob("**/configs/parsed.yaml"))
    return f"; runs there: {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}" if found else ""


def _named_views(folder: Path) -> list[View]:
    return [_named_view(path) for path in sorted(folder.glob("*.png"))]


def _named_view(path: Path) -> View:
    return View(path, float(path.stem) if path.stem.isdigit() else None)


def prompt_of_run(path: Path) -> str:
    """The prompt of a run, from its parsed config.

    Raises:
        ValueError: there is no config, or no prompt in it.
    """
    try:
        prompt = runs.config_of(path)[1]["system"]["prompt_processor"]["prompt"]
    except (FileNotFoundError, KeyError):
        prompt = None
    if prompt:
        return str(prompt)
    raise ValueError(f'no run at {path} tells the prompt: say what it should be, --prompt "a red mug"')


def grade_asset(
    grader: Grader, path: Path, prompt: str | None = None
) -> tuple[Score, list[tuple[Path, Grade]]]:
    """Grade an asset's views against its prompt (see `find_views`).

    Args:
        path: a run's folder, a folder of pictures, or a picture.
        prompt: None: the run's own (`prompt_of_run`).

    Raises:
        ValueError: no prompt, or one that names nothing of the toybox.
    """
    spec = captions.parse(prompt or prompt_of_run(path))
    views = find_views(path)
    grades = grader(read_pictures([view.path for view in views]))
    wanted = [captions.Spec(spec.object, spec.color, view=view.direction) for view in views]
    return score(grades, wanted), [(view.path, grade) for view, grade in zip(views, grades, strict=True)]
