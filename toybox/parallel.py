"""Data parallelism over processes of one thread each.

On a CPU this trains small networks about twice as fast as one process with all threads: there are no barriers
inside a step, only one when gradients are averaged. Every process draws its own batch and holds the same
weights.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist

WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def run(function: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Call `function(rank, *arguments)` in `processes` processes that can average gradients.

    Rank 0 is this process; the others end with it.

    Args:
        function: importable by name, as are its arguments picklable.
        processes: 1 calls it here and starts nothing.

    Raises:
        RuntimeError: another process failed; its traceback is on stderr.
    """
    if processes == 1:
        function(0, *arguments)
        return
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        spawn = multiprocessing.get_context("spawn")
        kept = {key: os.environ.get(key) for key in WORKER_ENVIRONMENT}
        os.environ.update(WORKER_ENVIRONMENT)  # read by the new processes, which import torch afresh
        others = [
            spawn.Process(target=_work, args=(function, rank, processes, meeting, arguments), daemon=True)
            for rank in range(1, processes)
        ]
        for other in others:
            other.start()
        _restore(kept)
        try:
            _work(function, 0, processes, meeting, arguments)
        finally:
            torch.set_num_threads(threads)
            for other in others:
                other.join(timeout=30)
                other.terminate()
    if any(other.exitcode for other in others):
        raise RuntimeError("a training process failed; its traceback is above")


def each(function: Callable[[Any], Any], jobs: Iterable[Any], workers: int) -> Iterator[Any]:
    """The results of `function(job)` as they come, from `workers` processes of one thread each.

    Args:
        function: importable by name, as are jobs and results picklable.
    """
    kept = {key: os.environ.get(key) for key in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)  # read by the workers, which import numba and numpy afresh
    try:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            yield from pool.imap_unordered(function, jobs)
    finally:
        _restore(kept)


def _restore(environment: dict[str, str | None]) -> None:
    for key, value in environment.items():
        os.environ.pop(key) if value is None else os.environ.update({key: value})


def _work(function: Callable[..., None], rank: int, processes: int, meeting: str, arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    try:
        function(rank, *arguments)
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number; 0 outside `run`."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many processes take part; 1 outside `run`."""
    return dist.get_world_size() if dist.is_initialized() else 1


def agree(*values: float) -> list[float]:
    """The values that rank 0 has, in every process."""
    if processes() == 1:
        return list(values)
    shared = torch.tensor(values, dtype=torch.float64)
    dist.broadcast(shared, src=0)
    return shared.tolist()


@torch.no_grad()
def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes, in one exchange."""
    if processes() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    flat /= processes()
    parts = flat.split([grad.numel() for grad in grads])
    torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)])
