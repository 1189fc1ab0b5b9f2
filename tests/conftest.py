"""Makes `threestudio` (the real one if installed, else host/) and `threestudio_lucid` importable."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("NUMBA_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
if importlib.util.find_spec("threestudio") is None:
    sys.path.append(str(ROOT / "host"))


def _make_extension_importable() -> None:
    """`custom/threestudio-lucid` is the package `threestudio_lucid`, installed or not."""
    folder = ROOT / "custom" / "threestudio-lucid"
    if importlib.util.find_spec("threestudio_lucid") is not None or not (folder / "__init__.py").is_file():
        return

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name != "threestudio_lucid":
                return None
            return importlib.util.spec_from_file_location(
                name, folder / "__init__.py", submodule_search_locations=[str(folder)]
            )

    sys.meta_path.append(Finder)


_make_extension_importable()


@pytest.fixture(autouse=True, scope="session")
def _two_threads():
    """Two torch threads, however many cores there are: sums keep their order, and xdist workers share."""
    import torch

    torch.set_num_threads(2)


@pytest.fixture
def root() -> Path:
    """The repository."""
    return ROOT
