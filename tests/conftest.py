"""Makes `threestudio` (the real one if installed, else host/) and `threestudio_lucid` importable."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("NUMBA_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "LUCID_TEST_CUDA" not in os.environ:  # set by `make test-cuda`; all other tests are about CPUs
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

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
def told(monkeypatch):
    """What is said in the log, one text each."""
    said: list[str] = []
    host = sys.modules.get("threestudio")
    if host is None:
        monkeypatch.setitem(sys.modules, "threestudio", SimpleNamespace(info=said.append))
    else:
        monkeypatch.setattr(host, "info", said.append)
    return said


@pytest.fixture(scope="session")
def load_script():
    """`load_script("gallery")` is the module in launch_examples/gallery.py, loaded once."""

    def load(name: str) -> ModuleType:
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, ROOT / f"launch_examples/{name}.py")
            sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
            spec.loader.exec_module(sys.modules[name])
        return sys.modules[name]

    return load


@pytest.fixture(scope="session")
def small_prior(tmp_path_factory) -> Path:
    """A tiny diffusion model with a card, for runs of two steps."""
    import yaml
    from tiny import save_prior

    folder = save_prior(tmp_path_factory.mktemp("prior") / "tiny", vae="tiny")
    card = {"name": "tiny", "path": ".", "image_size": 32, "latent_size": 8, "render_size": 32}
    card |= {"num_points": 50, "guidance_scale": 3.0, "dtype": "float32"}
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    return folder


@pytest.fixture
def root() -> Path:
    """The repository."""
    return ROOT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of `unsettled.txt`, and whole graded runs, may fail for now; they are run and reported."""
    lines = (Path(__file__).parent / "unsettled.txt").read_text(encoding="utf-8").splitlines()
    unsettled = [line for line in lines if line and not line.startswith("#")]
    for item in items:
        name = item.nodeid.split("[")[0]
        if item.get_closest_marker("graded") or any(name.startswith(line) for line in unsettled):
            item.add_marker(pytest.mark.xfail(strict=False, reason="unsettled, see tests/unsettled.txt"))
