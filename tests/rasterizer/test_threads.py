"""Work handed out to threads: every item once, errors come back, a forked child starts afresh."""

from __future__ import annotations

import os
import threading
import weakref

import numpy as np
import pytest
import torch

from threestudio_lucid.rasterizer import threads


@pytest.fixture(autouse=True)
def _three_threads():
    count = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(count)


def _mark(start, stop, seen):
    seen[start:stop] += 1


@pytest.mark.parametrize(("items", "pieces", "grain"), [(0, 1, 1), (1, 1, 1), (100, 4, 1), (100, 4, 30)])
def test_every_item_is_worked_on_once(items, pieces, grain):
    seen = np.zeros(items, int)
    threads.run(_mark, items, seen, pieces=pieces, grain=grain)
    assert (seen == 1).all()


def test_ranges_are_no_smaller_than_the_grain():
    sizes = []
    threads.run(lambda start, stop: sizes.append(stop - start), 100, pieces=8, grain=30)
    assert sum(sizes) == 100 and min(sizes) >= 30


def test_an_error_is_raised_once_all_have_ended():
    seen = np.zeros(9, int)

    def fail(start, stop):
        seen[start:stop] += 1
        if start == 3:
            raise ValueError("the fourth")

    with pytest.raises(ValueError, match="the fourth"):
        threads.run(fail, 9, pieces=3)
    assert (seen == 1).all()


def test_helpers_that_do_not_come_are_not_waited_for():
    threads.run(_mark, 6, np.zeros(6, int))
    begun, may_end = threading.Semaphore(0), threading.Event()

    def keep_busy():
        begun.release()
        may_end.wait()

    try:
        for _ in range(threads._helpers):
            threads._jobs.put(keep_busy)
        for _ in range(threads._helpers):
            begun.acquire()
        kept = np.zeros(100, int)
        reference = weakref.ref(kept)
        threads.run(_mark, 100, kept, pieces=4)
        assert (kept == 1).all()
        del kept
        assert reference() is None  # though jobs are still waiting for the helpers
    finally:
        may_end.set()


def test_calls_within_calls_and_from_several_threads():
    seen = np.zeros((40, 30), int)

    def rows(start, stop):
        for row in range(start, stop):
            threads.run(_mark, 30, seen[row], pieces=2)

    callers = [
        threading.Thread(target=threads.run, args=(lambda a, b, k=k: rows(10 * k + a, 10 * k + b), 10))
        for k in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert (seen == 1).all()


def test_without_new_threads_the_caller_works_alone(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    torch.set_num_threads(threads._helpers + 5)
    seen = np.zeros(100, int)
    threads.run(_mark, 100, seen)
    assert (seen == 1).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_starts_helpers_of_its_own():
    threads.run(_mark, 6, np.zeros(6, int))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            seen = np.zeros(6, int)
            threads.run(_mark, 6, seen)
            code = 0 if (seen == 1).all() and threads._helpers == 2 else 1
        finally:
            os._exit(code)  # whatever happens, no second session of tests
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
