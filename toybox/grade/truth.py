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
from toybox.grade.asset import prompt_of_run
from toybox.grade.drawing import AZIMUTHS, draw_gaussians
from toybox.likeness import Likeness, Views, compare, psnr
from toybox.pictures import write_sheet
from toybox.truth import build, draw

SIZE = 128  # pixels of a view
INSTANCES = 16
COARSE, STEP = np.arange(0.75, 1.26, 0.05), 0.01  # scales that are tried, and the steps between them
TOYBOX = runs.Camera(elevation=15.0, distance=3.0, fovy=40.0)  # for assets that no run has made

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

    def text(self) -> str:
        lines = [self.likeness.text()]
        lines.append(f"scale   {self.scale:9.2f}   fits best; {self.unscaled:.1f} dB as large as it is")
        if self.another is not None:
            lines.append(
                f"another {self.another:6.1f} dB   the true instance nearest to number {self.instance}"
            )
        return "\n".join(lines)

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
    return nearest_truth(asset_of(path), true_instances(spec, camera, instances), camera)


def nearest_truth(asset: Asset, truths: Sequence[Views], camera: runs.Camera) -> Verdict:
    """The verdict on an asset, given the views of true instances from the same camera."""
    tried: dict[float, tuple[float, int, Views]] = {}

    def best(scales: Sequence[float]) -> float:
        for scale in {round(float(s), 3) for s in scales} - tried.keys():
            # a larger object looks like one that is nearer in proportion
            views = asset(replace(camera, distance=camera.distance / scale))
            decibels = [psnr(views.rgb, truth.rgb) for truth in truths]
            k = int(np.argmax(decibels))
            tried[scale] = decibels[k], k, views
        return max(tried, key=lambda scale: (tried[scale][0], -abs(scale - 1.0)))

    around = best([*COARSE, 1.0])
    scale = best(around + STEP * np.arange(-4, 5))
    _, k, views = tried[scale]
    others = [psnr(truths[k].rgb, truth.rgb) for i, truth in enumerate(truths) if i != k]
    likeness = compare(views, truths[k])
    return Verdict(likeness, scale, tried[1.0][0], k, max(others, default=None), views, truths[k])


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


def asset_of(path: Path) -> Asset:
    """The asset of a finished run, or of a file of Gaussians.

    Raises:
        FileNotFoundError: there is none.
    """
    gaussians = read_ply(path if path.is_file() else _latest_ply(path))
    return lambda camera: draw_gaussians(gaussians, camera, SIZE)


def _latest_ply(run: Path) -> Path:
    found = {int(m[1]): path for path in run.rglob("it*.ply") if (m := re.fullmatch(r"it(\d+)", path.stem))}
    if not found:
        raise FileNotFoundError(f"no finished asset in {run}: expected save/itSTEP.ply")
    return found[max(found)]


def write_truth_sheet(path: Path, verdict: Verdict) -> None:
    """The asset above the truth, eight views, as a PNG."""
    rows = np.concatenate([verdict.asset.rgb, verdict.truth.rgb])
    write_sheet(path, torch.from_numpy(rows).permute(0, 3, 1, 2), columns=len(AZIMUTHS))


def to_json(prompt: str, verdict: Verdict) -> str:
    """All numbers of a verdict."""
    return json.dumps({"prompt": prompt, **verdict.numbers()}, indent=1)
