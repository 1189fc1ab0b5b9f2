#!/usr/bin/env python3
"""Train a list of prompts, measure how close to the truth they come, and put them on one picture.

    python launch_examples/gallery.py                                  # the ten prompts of the README
    python launch_examples/gallery.py --prompts prompts.txt            # one prompt a line
    python launch_examples/gallery.py --config configs/sds-gs.yaml trainer.max_steps=300

Leaves gallery.png (front, left, back and right of every asset), gallery.md (a table) and gallery.json in
--out, beside the runs. A prompt that is finished is not trained again. Exit status 1 if fewer than four
fifths of the assets are close to the truth: 21 dB to the nearest true object. What the numbers mean, and more
of them, `python -m toybox.grade truth` says.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from threestudio_lucid.files import write_text
from toybox import captions
from toybox.grade import Grader, find_views, grade_asset, read_pictures
from toybox.grade.truth import COLUMNS, INSTANCES, grade_truth, shown
from toybox.pictures import write_sheet
from toybox.trials import mean, mean_of_known

ROOT = Path(__file__).parents[1]
PROMPTS = (
    "a hamburger",
    "a red mushroom",
    "a blue mug",
    "a green cactus",
    "a white snowman with a red hat",
    "a yellow teapot",
    "an orange pumpkin",
    "a pink donut",
    "a red rocket",
    "a person with a blue shirt",
)
SIDES = (0, 90, 180, 270)  # azimuths of the gallery's columns
CELL = 160  # pixels
CLOSE = 21.0  # decibels to the nearest true object


@dataclass(frozen=True)
class Row:
    """A line of the table.

    numbers: how close the asset is to the truth, see `toybox.grade.truth.Verdict`.
    both: views on which the grader names object and colour rightly; of `views`.
    seconds: from launch to finished files.
    """

    prompt: str
    numbers: dict[str, Any]
    both: int
    views: int
    seconds: float

    @property
    def close(self) -> bool:
        return (self.numbers["psnr"] or math.inf) >= CLOSE  # None is equal to the truth


def train(prompt: str, config: Path, out: Path, overrides: Sequence[str]) -> Path:
    """Run the command line for one prompt, unless it has been; returns the run's folder.

    Raises:
        subprocess.CalledProcessError: the run failed; its output is above.
    """
    trial = out / config.stem / prompt.replace(" ", "_")
    done = trial / "finished.json"
    if not done.exists():
        command = [
            *(sys.executable, str(ROOT / "launch.py"), "--config", str(config), "--train"),
            *(f"name={config.stem}", f"exp_root_dir={out}", "use_timestamp=false"),
            *(f"tag={trial.name}", f"system.prompt_processor.prompt={prompt}", *overrides),
        ]
        if (last := trial / "ckpts/last.ckpt").exists():  # it was stopped
            command.append(f"resume={last}")
        start = time.monotonic()
        subprocess.run(command, cwd=ROOT, check=True)
        write_text(done, json.dumps({"seconds": time.monotonic() - start}))
    return trial


def grade(grader: Grader, prompt: str, trial: Path, instances: int) -> Row:
    """How close a run is to the truth, and what the grader sees on its eight views."""
    spec = captions.parse(prompt)
    _, rows = grade_asset(grader, trial, prompt)
    both = sum(g.object == spec.object and g.color == spec.color for _, g in rows)
    seconds = json.loads((trial / "finished.json").read_text())["seconds"]
    return Row(prompt, grade_truth(trial, prompt, instances).numbers(), both, len(rows), seconds)


def sides(trial: Path) -> torch.Tensor:
    """Front, left, back and right of a finished run, [4, 3, CELL, CELL]."""
    pictures = read_pictures([view.path for view in find_views(trial) if view.azimuth in SIDES])
    return torch.nn.functional.interpolate(pictures, (CELL, CELL), mode="area")


def table(rows: Sequence[Row]) -> str:
    """Markdown, the means below."""
    header = ["prompt", *COLUMNS.values(), "object and colour", "seconds"]
    lines = [header, ["---"] * len(header)]
    for r in rows:
        numbers = [shown(key, r.numbers[key]) for key in COLUMNS]
        lines.append([r.prompt, *numbers, f"{r.both}/{r.views}", f"{r.seconds:.0f}"])
    means = [shown(key, mean_of_known(r.numbers[key] for r in rows)) for key in COLUMNS]
    both, seconds = (mean(getattr(r, name) for r in rows) for name in ("both", "seconds"))
    lines.append(["mean", *means, f"{both:.1f}/{rows[0].views}", f"{seconds:.0f}"])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, help="file with a prompt a line (default: ten of the toybox)")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/ism-gs.yaml")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs/gallery", help="folder (%(default)s)")
    parser.add_argument("--columns", type=int, default=2, help="assets side by side (%(default)s)")
    parser.add_argument(
        "--instances", type=int, default=INSTANCES, help="true objects to compare with (%(default)s)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")
    options = parser.parse_args(arguments)
    lines = options.prompts.read_text().splitlines() if options.prompts else PROMPTS
    prompts = [line.strip() for line in lines if line.strip()]
    for prompt in prompts:
        captions.parse(prompt)  # a thing that nobody can grade is better told of before than after
    out, grader = options.out.resolve(), Grader.load()
    rows, pictures = [], []
    for prompt in prompts:
        trial = train(prompt, options.config.resolve(), out, options.overrides)
        rows.append(grade(grader, prompt, trial, options.instances))
        pictures.append(sides(trial))
        write_sheet(out / "gallery.png", torch.cat(pictures), columns=len(SIDES) * options.columns)
        write_text(out / "gallery.md", table(rows))
        write_text(out / "gallery.json", json.dumps([asdict(row) for row in rows], indent=1))
    close = sum(row.close for row in rows)
    print(f"{table(rows)}{close} of {len(rows)} assets are within {CLOSE:.0f} dB\n{out / 'gallery.png'}")
    return 0 if 5 * close >= 4 * len(rows) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (FileNotFoundError, ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
