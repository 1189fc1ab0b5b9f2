"""Whole runs of the command line: seconds from launch to finished files, memory, and what the grader says.

    python -m benchmarks.end_to_end                          # the demo, on this machine
    python -m benchmarks.end_to_end --large                  # and with more pixels and Gaussians
    python -m benchmarks.end_to_end --config configs/ism-nerf.yaml --prompt "a red mug"

`start` is all before the first step: imports, weights, the first points; `end` all after the last: turntable,
views, files.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from threestudio_lucid.files import write_text
from toybox import captions, page
from toybox.grade import Grader, grade_asset

ROOT = Path(__file__).resolve().parents[1]
# The mini prior's pictures stay 128 pixels, so what is drawn at 256 is made smaller for it.
LARGE = ("data.height=256", "system.geometry.num_points=16000", "system.geometry.capacity=32768")
PARTS = ("start", "training", "end")
STEP = re.compile(r"Training (\d+)/(\d+)")


def run(config: Path, prompt: str, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Times of one run, in seconds, its largest memory, and right views of all.

    Raises:
        RuntimeError: it failed; with its last lines.
    """
    shutil.rmtree(folder, ignore_errors=True)
    command = [
        *(sys.executable, "launch.py", "--config", str(config), "--train"),
        f"system.prompt_processor.prompt={prompt}",
        *(f"exp_root_dir={folder}", "name=run", "tag=run", "use_timestamp=false"),
        *overrides,
    ]
    began, first, last, lines = time.monotonic(), None, None, []
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        lines.append(line)
        if "Validation results will be saved" in line:
            first = time.monotonic()
        if (seen := STEP.search(line)) and seen[1] == seen[2]:
            last = time.monotonic()
    _, status, usage = os.wait4(process.pid, 0)
    ended = time.monotonic()
    if status or first is None or last is None:
        raise RuntimeError("".join(lines[-20:]))
    trial = folder / "run/run"
    wanted, (_, rows) = captions.parse(prompt), grade_asset(Grader.load(), trial, prompt)
    right = sum(grade.object == wanted.object and grade.color == wanted.color for _, grade in rows)
    return {
        "start_s": first - began,
        "training_s": last - first,
        "end_s": ended - last,
        "all_s": ended - began,
        "peak_mb": usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3),
        "right": right,
        "views": len(rows),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.end_to_end",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, default=ROOT / "configs/ism-gs.yaml", help="(%(default)s)")
    parser.add_argument("--prompt", default="a hamburger", help="(%(default)s)")
    parser.add_argument("--large", action="store_true", help="a second run, larger")
    parser.add_argument("--out", type=Path, default=report.FOLDER / "end_to_end.json", help="(%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the runs")
    options = parser.parse_intermixed_args(arguments)
    report.print_machine()
    sizes: dict[str, tuple[str, ...]] = {"as it is": ()} | ({"large": LARGE} if options.large else {})
    rows = {}
    print(f"\n{'':12} {'start':>7} {'training':>9} {'end':>6} {'all':>7}  memory  right")
    for name, extra in sizes.items():
        folder = report.FOLDER.resolve() / "end_to_end" / name.replace(" ", "_")
        row = rows[name] = run(options.config.resolve(), options.prompt, [*extra, *options.overrides], folder)
        print(
            f"{name:12} {row['start_s']:6.1f}s {row['training_s']:8.1f}s {row['end_s']:5.1f}s "
            f"{row['all_s']:6.1f}s  {row['peak_mb']:.0f} MB  {row['right']}/{row['views']}"
        )
    bars = {name: {part: row[f"{part}_s"] for part in PARTS} for name, row in rows.items()}
    chart = page.bar_chart(f"{options.config.name}, {options.prompt!r}", bars, "s")
    write_text(options.out.with_suffix(".html"), page.page("Whole runs", [chart]))
    report.write({"config": options.config.name, "prompt": options.prompt, "runs": rows}, options.out)


if __name__ == "__main__":
    main()
