"""Work handed out to threads: every item once, errors come back, a forked child starts afresh."""

from __future__ import annotations

import os

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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_starts_helpers_of_its_own():
    threads.run(_mark, 6, np.zeros(6, int))
    child = os.fork()
    if child == 0:
        seen = np.zeros(6, int)
        threads.run(_mark, 6, seen)
        os._exit(0 if (seen == 1).all() and threads._helpers == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
