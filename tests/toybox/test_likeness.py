"""Likeness by hand-made pictures, and runs against the truth: of Gaussians, of a true object, of mistakes."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest

from toybox.likeness import Views, compare, fuzz, holes, inner, iou, outer, psnr, strays


def square(low: int, high: int, size: int = 40) -> np.ndarray:
    """Opacity [1, size, size]: 1 on a square of rows and columns low to high, else 0."""
    alpha = np.zeros((1, size, size), np.float32)
    alpha[:, low:high, low:high] = 1.0
    return alpha


def test_psnr_by_hand():
    a, where = np.zeros((1, 2, 2, 3)), np.ones((1, 2, 2), dtype=bool)
    b = a + 0.1
    assert psnr(a, b) == psnr(a, b, where) == pytest.approx(20.0)
    b[0, 0] = 0.0  # half of the pixels are right: half of the error, 3 dB
    assert psnr(a, b) == pytest.approx(20.0 + 10 * math.log10(2))
    where[0, 1] = False
    assert psnr(a, b, where) == math.inf and psnr(a, b, ~where) == pytest.approx(20.0)
    assert psnr(a, b, np.zeros_like(where)) == math.inf


def test_inside_and_outside_by_hand():
    """Ten pixels less two on each side are six; a square of ten with three around has rounded corners."""
    mask = square(10, 20)
    assert inner(mask).sum() == 36 and inner(mask)[0, 12:18, 12:18].all()
    near = ~outer(mask)[0]
    assert near[7:23, 10:20].all() and near[10:20, 7:23].all() and near.sum() < 16 * 16
    assert not near[6].any() and not near[:, 23].any()
    assert not near[7, 7] and near[8, 8]  # corners are at distances 3 sqrt 2 and 2 sqrt 2


def test_the_edge_of_the_picture_is_no_outline():
    half = np.zeros((1, 20, 20))
    half[:, :, :10] = 1.0
    assert inner(half).sum() == 20 * 8
    full, empty = np.ones((1, 8, 8)), np.zeros((1, 8, 8))
    assert inner(full).all() and not outer(full).any()
    assert outer(empty).all() and not inner(empty).any()


def test_iou_by_hand():
    assert iou(square(10, 20), square(10, 20)) == 1.0
    assert iou(square(10, 20), square(15, 25)) == 25 / 175
    assert iou(square(0, 5), square(10, 20)) == 0.0
    assert iou(0.5 * square(10, 20), square(10, 20)) == 0.0  # half is not above a half
    assert iou(square(0, 0), square(0, 0)) == 1.0


def test_fuzz_by_hand():
    """A pixel of opacity a counts 4 a (1 - a): 1 for a half, 3/4 for a quarter, 0 for all or nothing."""
    truth = square(10, 20)
    truth[0, 10, 10:14] = 0.5
    soft = square(10, 20)
    soft[0, 10, 10:20] = 0.5
    soft[0, 9, 10:18] = 0.25
    assert fuzz(soft, truth) == (10 + 8 * 0.75) / 4
    assert fuzz(truth, truth) == 1.0
    assert fuzz(square(10, 20), truth) == 0.0
    assert fuzz(square(10, 20), square(10, 20)) == 1.0 and fuzz(soft, square(10, 20)) == math.inf


def test_holes_by_hand():
    truth, alpha = square(10, 20), square(10, 20)
    alpha[0, 14, 12:15] = 0.89
    alpha[0, 15, 15] = 0.91
    alpha[0, 10] = 0.0  # the rim does not count
    assert holes(alpha, truth) == pytest.approx(3 / 36)
    assert holes(square(10, 20), truth) == 0.0 and holes(square(0, 0), truth) == 1.0
    assert holes(alpha, square(10, 14)) == 0.0  # all rim
    truth[0, 14, 14] = 0.75  # a gap of the truth's own
    assert holes(alpha, truth) == pytest.approx(2 / 35)


def test_strays_by_hand():
    truth, alpha = square(10, 20), square(10, 20)
    alpha[0, 7:10, 15] = 1.0  # within three pixels
    assert strays(alpha, truth) == 0.0
    alpha[0, 0:2, 0:5] = 0.11
    alpha[0, 30] = 0.1  # too faint
    assert strays(alpha, truth) == pytest.approx(10 / 100)
    assert strays(square(1, 2), square(0, 0)) == math.inf and strays(square(0, 0), square(0, 0)) == 0.0


def test_a_thing_is_like_itself():
    alpha = square(10, 30)
    alpha[0, 10, 10:30] = 0.5
    rgb = np.random.default_rng(0).random((1, 40, 40, 3), np.float32)
    same = compare(Views(rgb, alpha), Views(rgb, alpha))
    assert astuple(same) == (math.inf, math.inf, 1.0, 1.0, 0.0, 0.0)
    assert same.numbers()["psnr"] is None and same.numbers()["iou"] == 1.0
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(Views(rgb[:, :20], alpha[:, :20]), Views(rgb, alpha))


def test_inside_counts_only_what_is_off_the_rim():
    alpha, truth = square(10, 20), np.ones((1, 40, 40, 3), np.float32)
    rgb = truth.copy()
    rgb[0, 10] = 0.0
    assert compare(Views(rgb, alpha), Views(truth, alpha)).inside == math.inf
    rgb[0, 15, 12:18] -= 0.6  # 6 of 36 pixels: mean square 0.06
    assert compare(Views(rgb, alpha), Views(truth, alpha)).inside == pytest.approx(
        -10 * math.log10(0.06), rel=1e-5
    )
