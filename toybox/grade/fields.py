"""NeRFs and whatever else a system draws, as the grader sees it: the run's own system draws it once more."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from toybox import runs
from toybox.grade.drawing import AZIMUTHS
from toybox.likeness import Views

LAUNCH = Path(__file__).parents[2] / "launch.py"


def draw_run(run: Path, camera: runs.Camera, size: int) -> Views:
    """What the last checkpoint of a run looks like from `AZIMUTHS`; a process of its own takes seconds.

    Raises:
        FileNotFoundError: no run, or no checkpoint.
        ValueError: it is not drawn on white, or its system shows no opacity.
    """
    folder, config = runs.config_of(run)
    checkpoint = folder / "ckpts" / "last.ckpt"
    if not checkpoint.exists():
        raise FileNotFoundError(f"no finished asset in {folder}: neither save/itSTEP.ply nor {checkpoint}")
    background = config["system"].get("background_type")
    if background != "solid-color-background":
        raise ValueError(f"{folder} draws on a {background}; the truth is on white.")
    with tempfile.TemporaryDirectory(prefix="views-") as out:
        settings = {
            "exp_root_dir": out,
            "name": "views",
            "tag": "views",
            "use_timestamp": "false",
            "resume": checkpoint,
            "data.eval_height": size,
            "data.eval_width": size,
            "data.eval_elevation_deg": camera.elevation,
            "data.eval_camera_distance": camera.distance,
            "data.eval_fovy_deg": camera.fovy,
            "data.n_test_views": len(AZIMUTHS) + 1,  # the last is the first again
            "trainer.enable_progress_bar": "false",
        }
        command = [sys.executable, str(LAUNCH), "--config", str(folder / "configs/parsed.yaml"), "--test"]
        command += [f"{key}={value}" for key, value in settings.items()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        drawn = runs.latest(Path(out), "test")
        if done.returncode != 0 or drawn is None:
            raise ValueError(f"{folder} cannot be drawn again: {_last_words(done.stderr)}")
        return _read(runs.frames(drawn)[: len(AZIMUTHS)])


def _read(frames: list[Path]) -> Views:
    """Pictures that show colours on the left, opacity on the right, and perhaps something between."""
    pictures = []
    for path in frames:
        with Image.open(path) as image:
            pictures.append(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)
    height, width = pictures[0].shape[:2]
    if width < 2 * height:
        raise ValueError("the test views show colours alone, so nobody knows where the object is.")
    views = np.stack(pictures)
    return Views(views[:, :, :height], views[:, :, -height:, 0])


def zoomed(views: Views, factor: float) -> Views:
    """About what cameras would see that are nearer by a factor: the pictures enlarged about their middle."""
    size = views.alpha.shape[1]
    middle = (size - 1) / 2
    offset = middle - middle / factor

    def zoom(picture: np.ndarray, beyond: float) -> np.ndarray:
        return ndimage.affine_transform(
            picture, (1 / factor, 1 / factor), (offset, offset), order=1, mode="constant", cval=beyond
        )

    colors = [np.stack([zoom(picture[..., k], 1.0) for k in range(3)], axis=-1) for picture in views.rgb]
    return Views(np.stack(colors), np.stack([zoom(alpha, 0.0) for alpha in views.alpha]))


def _last_words(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "no output"
