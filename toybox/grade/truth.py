"""How close an asset is to the truth: its views against those of true instances of what the prompt asks for.

One prompt has many true objects, and their size is free, so the nearest of several instances is taken, and
the uniform scale of the asset that fits it best; both are those with the highest PSNR over all views.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from threestudio_lucid.gaussians.ply import read_ply
from toybox import captions, runs
from toybox.ceiling import train_ceiling
from toybox.grade.asset import prompt_of_run
from toybox.grade.drawing import AZIMUTHS, draw_gaussians
from toybox.grade.fields import draw_run, zoomed
from toybox.likeness import Likeness, Views, compare, psnr
from toybox.pictures import write_sheet
from toybox.truth import build, draw

SIZE = 128  # pixels of a view
INSTANCES = 16
COARSE, STEP = np.arange(0.75, 1.26, 0.05), 0.01  # scales that are tried, and the steps between them
TOYBOX = runs.Camera(elevation=15.0, distance=3.0, fovy=40.0)  # for assets that no run has made

# Headings of tables, by the names of `Verdict.numbers`.
COLUMNS = {
    "psnr": "PSNR, dB",
    "inside": "inside, dB",
    "iou": "IoU",
    "fuzz": "fuzz",
    "holes": "holes",
    "strays": "strays",
    "scale": "scale",
}

Asset = Callable[[runs.Camera], Views]
"""An asset as a camera that goes around it sees it, from `AZIMUTHS`, `SIZE` pixels wide and high."""


@dataclass(frozen=True)
class Verdict:
    """An asset beside the true instance that it is nearest to.

    scale: what the asset is multiplied by to fit best; below 1 it is too large.
    unscaled: the PSNR, in decibels, of the asset as large as it is.
    instance: which of the instances is the nearest, by its seed.
    another: the PSNR of the next true instance, in decibels; None where there is one alone.
    asset, truth: the views that were compared.
    """

    likeness: Likeness
    scale: float
    unscaled: float
    instance: int
    another: float | None
    asset: Views
    truth: Views

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, value and meaning of each number."""
        return [
            *self.likeness.rows(),
            ("scale", f"{self.scale:.2f}", "fits best"),
            ("unscaled", f"{self.unscaled:.1f} dB", "as large as it is"),
        ]

    def numbers(self) -> dict[str, Any]:
        """For JSON."""
        own = {"scale": self.scale, "instance": self.instance}
        decibels = {"unscaled": self.unscaled, "another": self.another}
        finite = {k: v if v is not None and math.isfinite(v) else None for k, v in decibels.items()}
        return self.likeness.numbers() | own | finite


def grade_truth(path: Path, prompt: str | None = None, instances: int = INSTANCES) -> Verdict:
    """Compare a run's asset with the truth.

    Args:
        path: a run's folder, or a file of Gaussians.
        prompt: None: the run's own.

    Raises:
        FileNotFoundError: no run, or one that left no asset.
        ValueError: no prompt, or one that names nothing of the toybox.
    """
    spec = captions.parse(prompt or prompt_of_run(path))
    camera = camera_of(path)
    asset, slow = asset_of(path)
    return nearest_truth(asset, true_instances(spec, camera, instances), camera, slow)


def nearest_truth(asset: Asset, truths: Sequence[Views], camera: runs.Camera, slow: bool = False) -> Verdict:
    """The verdict on an asset, given the views of true instances from the same camera.

    Args:
        slow: the asset takes long to draw, so its scale is sought by zooming into its pictures.
    """
    own = asset(camera)
    sketch = (lambda nearer: zoomed(own, camera.distance / nearer.distance)) if slow else asset
    scale = best_scale(sketch, truths, camera)
    views = own if scale == 1.0 else asset(_scaled(camera, scale))
    decibels = _decibels(views, truths)
    k = int(np.argmax(decibels))
    others = _decibels(truths[k], [truth for i, truth in enumerate(truths) if i != k])
    return Verdict(
        compare(views, truths[k]),
        scale,
        max(_decibels(own, truths)),
        k,
        max(others, default=None),
        views,
        truths[k],
    )


def best_scale(asset: Asset, truths: Sequence[Views], camera: runs.Camera) -> float:
    """What the asset is to be multiplied by for the highest PSNR to any of the true instances."""
    found: dict[float, float] = {}

    def best(scales: Sequence[float]) -> float:
        for scale in {round(float(s), 3) for s in scales} - found.keys():
            found[scale] = max(_decibels(asset(_scaled(camera, scale)), truths))
        return max(found, key=lambda scale: (found[scale], -abs(scale - 1.0)))

    return best(best([*COARSE, 1.0]) + STEP * np.arange(-4, 5))


def _scaled(camera: runs.Camera, scale: float) -> runs.Camera:
    """A larger object looks like one that is nearer in proportion."""
    return replace(camera, distance=camera.distance / scale)


def _decibels(views: Views, truths: Sequence[Views]) -> list[float]:
    return [psnr(views.rgb, truth.rgb) for truth in truths]


@lru_cache(maxsize=4)
def true_instances(spec: captions.Spec, camera: runs.Camera, instances: int = INSTANCES) -> tuple[Views, ...]:
    """Views of true instances, seeds 0, 1, ..., of what a prompt asks for, from `AZIMUTHS`."""
    look = (camera.elevation, camera.distance, camera.fovy, SIZE)
    return tuple(draw(build(spec, seed), AZIMUTHS, *look) for seed in range(instances))


def camera_of(path: Path) -> runs.Camera:
    """The camera of a run's test views; the toybox's for a file that belongs to no run."""
    try:
        return runs.camera_of(path)
    except FileNotFoundError:
        if path.is_file():
            return TOYBOX
        raise


def asset_of(path: Path) -> tuple[Asset, bool]:
    """The asset of a finished run, or of a file of Gaussians, and whether it is slow to draw.

    Raises:
        FileNotFoundError: there is none.
    """
    ply = path if path.is_file() else _latest_ply(path)
    if ply is None:
        return (lambda camera: draw_run(path, camera, SIZE)), True
    gaussians = read_ply(ply)
    return (lambda camera: draw_gaussians(gaussians, camera, SIZE)), False


def _latest_ply(run: Path) -> Path | None:
    try:
        run = runs.config_of(run)[0]
    except FileNotFoundError:
        return None
    named = ((re.fullmatch(r"it(\d+)", path.stem), path) for path in (run / "save").glob("it*.ply"))
    found = {int(match[1]): path for match, path in named if match}
    return found[max(found)] if found else None


def ceiling_of(path: Path, verdict: Verdict) -> Verdict:
    """The verdict on what a run's Gaussians come to when they are shown the true instance itself.

    Training takes about as long as the run did without its prior; it is done once.

    Raises:
        FileNotFoundError, ValueError: see `train_ceiling`.
    """
    ceiling = train_ceiling(path, verdict.instance)
    asset, slow = asset_of(ceiling)
    judged = nearest_truth(asset, [verdict.truth], camera_of(ceiling), slow)
    return replace(judged, instance=verdict.instance, another=verdict.another)


def write_truth_sheet(path: Path, verdict: Verdict, ceiling: Verdict | None = None) -> None:
    """The asset above the truth above the ceiling, eight views, as a PNG."""
    rows = [verdict.asset.rgb, verdict.truth.rgb, *([] if ceiling is None else [ceiling.asset.rgb])]
    pictures = torch.from_numpy(np.concatenate(rows)).permute(0, 3, 1, 2)
    write_sheet(path, pictures, columns=len(AZIMUTHS))


def to_text(verdict: Verdict, ceiling: Verdict | None = None) -> str:
    """A line for each number, the ceiling's beside it."""
    columns = [verdict.rows()] if ceiling is None else [verdict.rows(), ceiling.rows()]
    lines = [] if ceiling is None else [f"{'':8s} {'asset':>9s} {'ceiling':>9s}"]
    for cells in zip(*columns, strict=True):
        name, _, meaning = cells[0]
        lines.append(f"{name:8s} " + " ".join(f"{value:>9s}" for _, value, _ in cells) + f"   {meaning}")
    if verdict.another is not None:
        away = f"another is {verdict.another:.1f} dB from it"
        lines.append(f"The nearest true instance is number {verdict.instance}; {away}.")
    return "\n".join(lines)


def shown(key: str, value: float | None) -> str:
    """A cell of the column `key` of a table."""
    if value is None:
        return "–"
    if key in ("holes", "strays"):
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if key == "iou" else f"{value:.2f}" if key == "scale" else f"{value:.1f}"


def to_json(prompt: str, verdict: Verdict, ceiling: Verdict | None = None) -> str:
    """All numbers of a verdict."""
    beside = {} if ceiling is None else {"ceiling": ceiling.numbers()}
    return json.dumps({"prompt": prompt, **verdict.numbers(), **beside}, indent=1)
