"""Memory that was freed stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from threestudio.systems import base

ROOT = Path(__file__).parents[2]

# The second of two arrays is written to: how many pages the system had to hand out for it.
PAGES = """
import resource, sys
import numpy as np
from threestudio.utils.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array = np.empty(40_000_000, np.uint8)
    array[:] = 1
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    del array
print(pages)
"""


def pages(keep: bool) -> int:
    command = [sys.executable, "-c", PAGES.format(keep=keep)]
    done = subprocess.run(command, cwd=ROOT / "host", capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_an_array_takes_the_pages_of_the_one_before():
    assert pages(keep=True) < pages(keep=False) / 4


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_systems_on_a_cpu_keep_it(device, monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(base, "get_device", lambda: torch.device(device))
    monkeypatch.setattr(base, "keep_freed_memory", lambda: calls.append(device))
    base.BaseSystem({})
    assert calls == ["cpu"] * (device == "cpu")
