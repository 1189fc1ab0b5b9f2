"""Processes that share a training step."""

import pytest
import torch

from toybox import parallel


def different_gradients(rank: int, folder: str) -> None:
    weights = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3, 1))]
    weights[0].grad = torch.tensor([1.0, 2.0]) * (rank + 1)
    weights[1].grad = torch.full((3, 1), float(rank))
    parallel.average_gradients(weights)
    fraction, stop = parallel.agree(0.25 + rank, rank)
    torch.save([weights[0].grad, weights[1].grad, fraction, stop], f"{folder}/{rank}.pt")


def test_gradients_are_averaged_and_rank_0_decides(tmp_path):
    parallel.run(different_gradients, 2, str(tmp_path))
    for rank in range(2):
        first, second, fraction, stop = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(first, torch.tensor([1.5, 3.0]))
        torch.testing.assert_close(second, torch.full((3, 1), 0.5))
        assert (fraction, stop) == (0.25, 0)


def fail_in_another(rank: int) -> None:
    if rank == 1:
        raise ValueError("no")


def test_a_failure_elsewhere_is_an_error_here():
    with pytest.raises(RuntimeError, match="process failed"):
        parallel.run(fail_in_another, 2)


def test_one_process_is_this_one():
    seen = []
    parallel.run(lambda rank: seen.append((rank, parallel.processes(), parallel.agree(3.0))), 1)
    assert seen == [(0, 1, [3.0])]
