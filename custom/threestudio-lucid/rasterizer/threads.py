"""Runs a compiled kernel over a range of items on several threads."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

import torch

_jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()  # what the helpers are asked to join in
_helpers = 0
_lock = threading.Lock()


def _forget_helpers() -> None:
    """A forked child inherits none of the threads."""
    global _jobs, _helpers, _lock
    _jobs, _helpers, _lock = SimpleQueue(), 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helpers)


def _help(jobs: SimpleQueue[Callable[[], None]]) -> None:
    """The life of a helper."""
    while True:
        jobs.get()()


def _want_helpers(count: int) -> None:
    """Sees to it that there are at least `count`, if the system lets us have so many."""
    global _helpers
    with _lock, contextlib.suppress(RuntimeError):  # the calling thread can do it all
        while _helpers < count:
            threading.Thread(target=_help, args=(_jobs,), name="rasterizer", daemon=True).start()
            _helpers += 1


def run(kernel: Callable[..., None], items: int, *args: object, pieces: int = 1, grain: int = 1) -> None:
    """Calls `kernel(start, stop, *args)` on consecutive ranges that together cover range(items).

    The kernel must release the interpreter lock and its items must be independent of each other. Ranges are
    handed out as threads become free; a thread that gets no processor in time, because others spin, is not
    waited for. As many threads as torch uses (`torch.set_num_threads`), the calling one among them.

    Args:
        pieces: ranges per thread; more even out items of unequal cost, each costs some 10 microseconds.
        grain: least number of items worth a range of its own.
    """
    threads = torch.get_num_threads()
    ranges = max(1, min(threads * pieces if threads > 1 else 1, items // grain))
    if ranges == 1:
        kernel(0, items, *args)
        return
    numbers, ended = itertools.count(), SimpleQueue()

    def work() -> None:
        while (i := next(numbers)) < ranges:
            error = None
            try:
                kernel(items * i // ranges, items * (i + 1) // ranges, *args)
            except BaseException as caught:
                error = caught
            ended.put(error)
            del error  # it holds this frame, which would hold it

    helpers = min(threads, ranges) - 1
    _want_helpers(helpers)
    for _ in range(helpers):
        _jobs.put(work)
    work()
    errors = [ended.get() for _ in range(ranges)]
    args = ()  # a helper may find `work` only now: it must not keep the arrays alive until then
    for error in filter(None, errors):
        raise error
