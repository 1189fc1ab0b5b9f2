"""Runs of the command line for pages that compare them: started, resumed, graded, shown side by side."""

from __future__ import annotations

import html
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from threestudio_lucid.errors import UserError
from threestudio_lucid.files import write_text
from toybox import captions, page, runs
from toybox.grade import Grade, Grader, direction_or_none, score

ROOT = Path(__file__).resolve().parents[1]
AZIMUTHS = [45.0 * k for k in range(8)]
SHOWN = [0, 2, 4, 6]  # of AZIMUTHS: front, left, back, right
LAST_LINES = 15  # of a failed run's log


class Mistake(Exception):
    """What was asked for cannot be done; the message says what to change."""


def run_script(main: Callable[[], int]) -> NoReturn:
    """Exit with what a script's `main` returns; 2 and one line for a user's mistake, 130 for Ctrl-C."""
    try:
        sys.exit(main())
    except (Mistake, UserError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)


# ---- training ----------------------------------------------------------------------------------------------


def trial_of(name: str, out: Path) -> Path:
    """The folder of a run."""
    return out / "runs" / name


def command(
    config: Path, name: str, out: Path, settings: Mapping[str, Any], overrides: Sequence[str]
) -> list[str]:
    """The command line of a run in `trial_of(name, out)`, which resumes if there is a checkpoint.

    Args:
        settings: key=value of this run.
        overrides: the user's own, which come last.
    """
    given = {
        "name": "runs",
        "exp_root_dir": str(out),
        "tag": name,
        "use_timestamp": "false",
        "trainer.log_every_n_steps": "${even:100}",
        "checkpoint.save_top_k": 1,
    }
    given |= settings
    checkpoint = trial_of(name, out) / "ckpts/last.ckpt"
    if checkpoint.exists():
        given["resume"] = json.dumps(str(checkpoint))
    return [
        *(sys.executable, str(ROOT / "launch.py"), "--config", str(config), "--train"),
        *(f"{key}={value}" for key, value in given.items()),
        *overrides,
    ]


def train(name: str, out: Path, command: Callable[[], Sequence[str]]) -> str | None:
    """Run a command unless the run is finished; the last lines of its log if it failed.

    Args:
        command: gives the command, if it is needed.

    Raises:
        KeyboardInterrupt: it was stopped.
    """
    done = trial_of(name, out) / "finished.json"
    if done.exists():
        return None
    log = out / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with subprocess.Popen(command(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        with log.open("wb") as file:
            while chunk := process.stdout.read1(4096):
                file.write(chunk)
                file.flush()
                sys.stderr.write(chunk.decode(errors="replace"))
                sys.stderr.flush()
    if process.returncode == 130:
        raise KeyboardInterrupt
    said = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode != 0 and "nothing is left to train" not in said:
        lines = said.replace("\r", "\n").splitlines()
        return "\n".join([line for line in lines if line.strip()][-LAST_LINES:]) or "no output"
    write_text(done, json.dumps({"seconds": round(time.monotonic() - start, 1)}))
    return None


def remember_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Runs of one page are made alike.

    Raises:
        Mistake: the folder holds runs that were made with other settings.
    """
    file = out / "settings.json"
    if not file.exists():
        write_text(file, json.dumps(settings, ensure_ascii=False))
    elif (before := json.loads(file.read_text(encoding="utf-8"))) != settings:
        raise Mistake(f"{out} holds arms made with {before}: choose another --out.")


# ---- judging -----------------------------------------------------------------------------------------------


def look(trial: Path) -> tuple[Path, np.ndarray]:
    """The turntable of a finished run as a video, and its views [8, H, H, 3] in [0, 1] from `AZIMUTHS`.

    Raises:
        FileNotFoundError: it left no pictures.
    """
    frames = runs.turntable(trial)
    video = trial / "turntable.mp4"
    if not video.exists():
        page.write_video(video, frames)
    return video, np.stack(runs.nearest(frames, AZIMUTHS))


@dataclass(frozen=True)
class Opinion:
    """The grader's of eight views: how many objects, colours and directions it names rightly, in [0, 1]."""

    object: float
    color: float
    direction: float
    sure: float
    """The probability that it gives the right object."""


def grade(views: np.ndarray, spec: captions.Spec, grader: Grader) -> Opinion:
    """What the grader thinks of the views of `look`."""
    wanted = [captions.Spec(spec.object, spec.color, view=direction_or_none(azimuth)) for azimuth in AZIMUTHS]
    grades = grader(channels_first(views))
    given = score(grades, wanted)
    return Opinion(given.object, given.color, given.view, sure(grades, spec))


def sure(grades: Sequence[Grade], spec: captions.Spec) -> float:
    """The probability that the grader gives the right object, mean over the views."""
    return mean(grade.probabilities["object"][spec.object] for grade in grades)


def channels_first(pictures: np.ndarray) -> torch.Tensor:
    """[N, H, W, 3] as the grader takes them."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def mean(values: Iterable[float]) -> float:
    """The mean of some numbers, at least one."""
    return float(np.mean(list(values)))


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean of those that are not None; None if all are."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None


# ---- the page ----------------------------------------------------------------------------------------------


def percent(share: float | None) -> str:
    """ "75 %", or a dash for nothing."""
    return "–" if share is None else f"{100 * share:.0f} %"


def card(title: str, video: Path, views: np.ndarray, below: str) -> str:
    """A turntable over front, left, back and right, as HTML."""
    strip = np.concatenate(list(views[SHOWN]), axis=1)
    return (
        f'<div class="card"><h3>{html.escape(title)}</h3>'
        f'<video src="{page.video_uri(video)}" autoplay loop muted playsinline></video>'
        f'<img src="{page.picture_uri(strip)}" alt="front, left, back, right">'
        f"<small>{html.escape(below)}</small></div>"
    )


def failed_card(title: str, error: str) -> str:
    """The last words of a run that failed, as HTML."""
    return (
        f'<div class="card failed"><h3>{html.escape(title)} failed</h3><pre>{html.escape(error)}</pre></div>'
    )
