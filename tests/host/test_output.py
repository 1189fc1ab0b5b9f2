"""A run that cannot write says in one line what and why, ends with 2, and keeps what it has written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_launch import CONFIG, TINY, launch, trial  # noqa: F401 - a fixture
from test_writing import small_files

TRAIN = ("--config", "tiny.yaml", "--train")
LIMIT = 200_000
NOISE = {"validation": "torch.rand(400, 400, 3)", "film": "torch.rand(128, 128, 3)"}


def told(capfd) -> str:
    """The one line."""
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if "error" in line.lower()]
    return line


def check_files(folder: Path) -> None:
    assert not list(folder.rglob(".tmp-*"))
    for path in folder.rglob("*.png"):
        Image.open(path).load()
    for path in folder.rglob("*.ckpt"):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    "place",
    ["/proc/lucid", "/sys/lucid", "/dev/null", "tiny.yaml/x", "n" * 300, "/proc/self/fd/lucid/x"],
)
@pytest.mark.parametrize("stage", ["--train", "--test", "--export"])
def test_folders_that_cannot_be_made(launch, capfd, place, stage):  # noqa: F811
    assert launch("--config", "tiny.yaml", stage, f"exp_root_dir={place}") == 2
    assert place in told(capfd)
    assert sorted(path.name for path in Path().iterdir() if path.name != "cache") == ["custom", "tiny.yaml"]


def test_a_full_disk_before_the_first_step_leaves_nothing(launch, capfd):  # noqa: F811
    with small_files(20_000):
        assert launch(*TRAIN) == 2  # by the code's snapshot
    line = told(capfd)
    assert "/code/" in line and "larger than files may be" in line and "ulimit -f" in line
    assert not Path("outputs").exists()
    Path("tiny.yaml").write_text(CONFIG.replace("four numbers", "x" * LIMIT))
    with small_files(LIMIT):
        assert launch(*TRAIN) == 2
    assert "/configs/raw.yaml cannot be written" in told(capfd)
    assert not Path("outputs").exists()


def test_a_full_disk_at_a_checkpoint(launch, capfd):  # noqa: F811
    with small_files(LIMIT):
        assert launch(*TRAIN, "system.size=60000") == 2
    assert "/ckpts/epoch=0-step=2.ckpt cannot be written: larger than" in told(capfd)
    check_files(trial())


@pytest.mark.parametrize("what", ["validation", "film"])
def test_a_full_disk_at_a_picture_or_film(launch, capfd, what):  # noqa: F811
    before, after = TINY.split(f"def {'validation' if what == 'validation' else 'test'}_step")
    noisy = f"def {'validation' if what == 'validation' else 'test'}_step".join(
        [before, after.replace("torch.rand(8, 8, 3)", NOISE[what], 1)]
    )
    Path("custom/tiny/__init__.py").write_text(noisy)
    with small_files(LIMIT):
        assert launch(*TRAIN, "data.n_test_views=40") == 2
    line = told(capfd)
    name = {"validation": "it3-0.png", "film": "it6-test.mp4"}[what]
    assert f"/save/{name} cannot be written: larger than files may be" in line
    assert f"resume={trial()}/ckpts/last.ckpt goes on from there" in line
    check_files(trial())


def test_what_is_printed_onto_a_full_disk(root):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    code = "import launch; print('the files of this run'); launch.leave(0)"
    command = [sys.executable, "-c", code]
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=root, env=buffered, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr == ""
    assert subprocess.run(command, cwd=root, stdout=subprocess.DEVNULL).returncode == 0


def test_a_bug_is_no_full_disk(launch, capfd):  # noqa: F811
    assert launch(*TRAIN, "system.fail_at=3") == 1
    assert "RuntimeError: a bug" in capfd.readouterr().err
