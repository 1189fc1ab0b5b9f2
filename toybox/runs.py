"""What a run of the command line left in its folder: turntable, views, curves, seconds a step.

Runs save `save/itSTEP-test/FRAME.png`, a turntable from azimuth 0 to 360, and during training
`save/itSTEP-VIEW.png`. The first square of a picture is its colours; what stands beside it is left out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import yaml
from PIL import Image

T = TypeVar("T")


@dataclass(frozen=True)
class Camera:
    """From where a run's test views are taken: degrees and world units."""

    elevation: float
    distance: float
    fovy: float


def config_of(path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the run that a file or folder belongs to, and the run's own config.

    Raises:
        FileNotFoundError: it belongs to no run.
    """
    path = path.resolve()
    for folder in (path, *path.parents[:3]):
        config = folder / "configs" / "parsed.yaml"
        if config.is_file():
            return folder, yaml.safe_load(config.read_text(encoding="utf-8"))
    raise FileNotFoundError(f"no run at {path}: there is no configs/parsed.yaml")


def camera_of(trial: Path) -> Camera:
    """The camera of the test views, from the run's own config.

    Raises:
        FileNotFoundError: the run has not started.
    """
    data = config_of(trial)[1]["data"]
    keys = (("eval_elevation_deg", 15.0), ("eval_camera_distance", 1.5), ("eval_fovy_deg", 70.0))
    return Camera(*(float(data.get(key, usual)) for key, usual in keys))


def read_square(path: Path) -> np.ndarray:
    """The first square of a picture, [H, H, 3] in [0, 1]."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return pixels[:, : pixels.shape[0]]


def latest(path: Path, kind: str) -> Path | None:
    """The folder `itSTEP-KIND` of the latest step of a run, None if none holds pictures.

    Args:
        path: the run's folder, or its `save`.
    """
    save = path / "save" if (path / "save").is_dir() else path
    steps = [(re.fullmatch(rf"it(\d+)-{kind}", folder.name), folder) for folder in save.glob(f"it*-{kind}")]
    found = [(int(match[1]), folder) for match, folder in steps if match and any(folder.glob("*.png"))]
    return max(found)[1] if found else None


def frames(folder: Path) -> list[Path]:
    """The frames of a turntable in order."""
    return sorted(folder.glob("*.png"), key=lambda path: int(path.stem))


def turntable(trial: Path) -> np.ndarray:
    """The frames of the latest test, [N, H, H, 3] in [0, 1].

    Raises:
        FileNotFoundError: there are none.
    """
    folder = latest(trial, "test")
    if folder is None:
        raise FileNotFoundError(f"no test views in {trial / 'save'}")
    return np.stack([read_square(path) for path in frames(folder)])


def nearest(frames: Sequence[T], azimuths: Sequence[float]) -> list[T]:
    """The frames of a turntable, 0 to 360 degrees with both ends, that are nearest to azimuths in [0, 360].

    >>> nearest("abcde", [0, 100, 359])
    ['a', 'b', 'e']
    """
    n = len(frames)
    return [frames[round(azimuth / 360 * (n - 1))] for azimuth in azimuths]


def training_views(trial: Path) -> dict[int, np.ndarray]:
    """The validation views by step, each [N, H, H, 3] in [0, 1]."""
    found = defaultdict(list)
    for path in (trial / "save").glob("it*-*.png"):
        match = re.fullmatch(r"it(\d+)-(\d+)\.png", path.name)
        if match:
            found[int(match[1])].append((int(match[2]), path))
    return {step: np.stack([read_square(path) for _, path in sorted(found[step])]) for step in sorted(found)}


def curves(trial: Path) -> dict[str, list[tuple[int, float, float]]]:
    """What training logged for TensorBoard: name -> (step, value, time in seconds), in order of time."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged = defaultdict(list)
    for folder in sorted((trial / "tb_logs").glob("version_*"), key=lambda path: path.stat().st_mtime):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        for name in events.Tags()["scalars"]:
            logged[name] += [(event.step, event.value, event.wall_time) for event in events.Scalars(name)]
    return dict(logged)


def seconds_per_step(points: list[tuple[int, float, float]]) -> float | None:
    """The median over the steps between logged points; None where there are fewer than two.

    Pauses (validation, a restart) are few, so they do not move the median.

    >>> seconds_per_step([(0, 0.0, 10.0), (10, 0.0, 15.0), (20, 0.0, 95.0), (30, 0.0, 100.0)])
    0.5
    """
    paces = [(b[2] - a[2]) / (b[0] - a[0]) for a, b in pairwise(points) if b[0] > a[0]]
    return median(paces) if paces else None
