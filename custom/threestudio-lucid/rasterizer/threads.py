"""Runs a compiled kernel over a range of items on several threads."""

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
    """A forked child inherits the pool but none of its threads."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _workers(count: int) -> ThreadPoolExecutor:
    """The pool, grown to at least `count` threads."""
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < count:
            if _pool is not None:
                _pool.shutdown(wait=False)
            _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="rasterizer"), count
        return _pool


def run(kernel: Callable[..., None], items: int, *args: object, pieces: int = 1, grain: int = 1) -> None:
    """Calls `kernel(start, stop, *args)` on consecutive ranges that together cover range(items).

    The kernel must release the interpreter lock and its items must be independent of each other. Ranges are
    handed out as threads become free. As many threads as torch uses (`torch.set_num_threads`), the calling
    one among them.

    Args:
        pieces: ranges per thread; more even out items of unequal cost, each costs some 10 microseconds.
        grain: least number of items worth a range of its own.
    """
    threads = torch.get_num_threads()
    ranges = max(1, min(threads * pieces if threads > 1 else 1, items // grain))
    if ranges == 1:
        kernel(0, items, *args)
        return
    numbers = itertools.count()

    def work() -> None:
        while (i := next(numbers)) < ranges:
            kernel(items * i // ranges, items * (i + 1) // ranges, *args)

    helpers = [_workers(threads - 1).submit(work) for _ in range(min(threads, ranges) - 1)]
    try:
        work()
    finally:
        for helper in helpers:
            if not helper.cancel():  # one that has not begun by now has nothing left to do
                helper.result()
