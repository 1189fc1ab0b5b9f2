"""Two processes that train together (gloo, on the CPU) have one cloud, and decide as one would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_processes.py")


def start(folder: Path, rank: int, size: int, port: int) -> subprocess.Popen:
    env = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    if size > 1:
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
        env |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    command = [sys.executable, str(SCRIPT), str(folder), str(rank), str(size)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The folder of two processes' runs, and of one with the batch of both."""
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(folder, 0, 2, port), start(folder, 1, 2, port), start(folder, 0, 1, port)]
    told = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], "\n".join(told)
    return folder


def test_density_control_sees_the_views_of_all(runs):
    alone = torch.load(runs / "statistics-0-of-1.pt")
    for rank in (0, 1):
        sums, counts = torch.load(runs / f"statistics-{rank}-of-2.pt")
        torch.testing.assert_close(sums, alone[0], rtol=1e-4, atol=1e-9)
        assert torch.equal(counts, alone[1])
    assert alone[0].count_nonzero() > 30 and alone[1].max() > 1


def test_the_clouds_stay_equal_to_the_bit(runs):
    """From starts that differ, through rounds of clone, split and prune and a reset of opacities."""
    first, second = (
        {name: value for name, value in state.items() if name.startswith("geometry.cloud.")}
        for state in (torch.load(runs / f"final-{rank}-of-2.pt", weights_only=True) for rank in (0, 1))
    )
    assert first.keys() == second.keys() and first["geometry.cloud.n"] > 60
    for name, value in first.items():
        if not name.endswith(("grad_sum", "grad_count")):  # each has those of its own views
            assert torch.equal(value, second[name]), name


def test_the_first_process_writes_the_results(runs):
    def files(rank: int) -> set[str]:
        trial = runs / f"moving-{rank}/toy/run"
        found = {str(path.relative_to(trial)) for path in trial.rglob("*") if path.is_file()}
        return {name for name in found if not name.startswith("save/it12-test/")}  # its share of the views

    assert {"save/it12.ply", "save/it12-test.mp4", "save/it12-views.png", "ckpts/last.ckpt"} <= files(0)
    assert files(1) == set()
