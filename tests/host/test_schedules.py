"""Scheduled scalars."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from threestudio.utils.config import C_max
from threestudio.utils.errors import UserError
from threestudio.utils.misc import C


@pytest.mark.parametrize(
    ("value", "epoch", "step", "expected"),
    [
        (3, 0, 0, 3),
        (0.5, 0, 99, 0.5),
        # [v0, v1, end] starts at 0
        ([1.0, 0.0, 100], 0, 0, 1.0),
        ([1.0, 0.0, 100], 0, 25, 0.75),
        ([1.0, 0.0, 100], 0, 1000, 0.0),
        # [start, v0, v1, end] is constant outside
        ([100, 1.0, 0.0, 200], 0, 0, 1.0),
        ([100, 1.0, 0.0, 200], 0, 150, 0.5),
        ([100, 1.0, 0.0, 200], 0, 201, 0.0),
        # a float end counts epochs
        ([0, 1.0, 0.0, 10.0], 5, 9999, 0.5),
        ([0, 1.0, 0.0, 10], 5, 0, 1.0),
        # longer ones go through (start, v0), (s1, v1), (s2, v2), ...
        ([0, 0.0, 1.0, 100, 3.0, 200], 0, 50, 0.5),
        ([0, 0.0, 1.0, 100, 3.0, 200], 0, 100, 1.0),
        ([0, 0.0, 1.0, 100, 3.0, 200], 0, 150, 2.0),
        ([0, 0.0, 1.0, 100, 3.0, 200], 0, 500, 3.0),
        ([10, 0.0, 1.0, 100, 3.0, 200, 0.0, 300], 0, 0, 0.0),
        ([10, 0.0, 1.0, 100, 3.0, 200, 0.0, 300], 0, 250, 1.5),
        # an end at the start is a jump
        ([100, 1.0, 0.0, 100], 0, 99, 1.0),
        ([100, 1.0, 0.0, 100], 0, 100, 0.0),
    ],
)
@pytest.mark.parametrize("wrap", [lambda v: v, OmegaConf.create], ids=["plain", "omegaconf"])
def test_table(value, epoch, step, expected, wrap):
    wrapped = wrap(value) if isinstance(value, list) else value
    assert C(wrapped, epoch, step) == pytest.approx(expected)


def test_exponential_interpolation_is_geometric():
    assert C([0, 1.0, 100.0, 10], 0, 5, interpolation="exp") == pytest.approx(10.0)
    with pytest.raises(UserError, match="> 0"):
        C([0, 0.0, 100.0, 10], 0, 5, interpolation="exp")


@pytest.mark.parametrize(
    "value", [[1, 2], [1, 2, 3, 4, 5], "0.5", None, {"a": 1}, [0, "a", 1, 2], [0, True, 1, 2]]
)
def test_rejects(value):
    with pytest.raises(UserError):
        C(value, 0, 0)


def test_unknown_interpolation():
    with pytest.raises(UserError, match="'linear' or 'exp'"):
        C([0, 1.0, 2.0, 3], 0, 1, interpolation="cubic")


@pytest.mark.parametrize(
    ("value", "largest"),
    [(2, 2), ([1.0, 5.0, 10000], 5.0), ([9999, 1.0, 0.5, 10000], 1.0), ([0, 0.0, 1.0, 100, 3.0, 200], 3.0)],
)
def test_largest_value_ignores_steps(value, largest):
    assert C_max(value) == largest
