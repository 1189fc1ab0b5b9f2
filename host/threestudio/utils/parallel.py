"""Runs a compiled kernel over a range of items on as many threads as torch uses."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_lock = threading.Lock()


def _forget_pool() -> None:
    """A forked child (a data loader's worker) has the pool's object but none of its threads."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _helpers(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < count:
            _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="kernel"), count
        return _pool


def run_in_ranges(kernel: Callable[..., None], items: int, *args: object, grain: int = 1) -> None:
    """Call ``kernel(start, stop, *args)`` on consecutive ranges that together cover ``range(items)``.

    The kernel must release the interpreter lock, and no item may read what another one writes: then the
    result is the same for any number of threads.

    Args:
        grain: items a range; ranges are handed out, in order, to whichever thread is free.
    """
    ranges = -(-items // grain)
    threads = min(torch.get_num_threads(), ranges)
    if threads <= 1:
        kernel(0, items, *args)
        return
    numbers = itertools.count()

    def work() -> None:
        while (i := next(numbers)) < ranges:
            kernel(i * grain, min((i + 1) * grain, items), *args)

    others = [_helpers(threads - 1).submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for other in others:
            other.result()
