"""What the benchmarks share: the machine, and files of numbers."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from threestudio_lucid.files import write_text

FOLDER = Path("outputs/benchmarks")


def machine() -> dict[str, str | int]:
    """What the numbers were measured on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    about: dict[str, str | int] = {
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or "unknown",
    }
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    for package in ("numba", "diffusers", "gsplat"):
        try:
            about[package] = version(package)
        except PackageNotFoundError:
            continue
    return about


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def print_machine() -> None:
    print(", ".join(f"{key} {value}" for key, value in machine().items()))


def write(report: dict[str, Any], path: Path) -> None:
    """Write a report as JSON, with the machine it was measured on."""
    write_text(path, json.dumps({"machine": machine(), **report}, indent=2) + "\n")
    print(f"\nwritten: {path}")
