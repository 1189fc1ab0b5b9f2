"""Vectors for numba: each function against numpy on the same numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from threestudio_lucid import simd
from threestudio_lucid.guidance import norms
from threestudio_lucid.rasterizer import constants, kernels
from threestudio_lucid.simd import LANES

f32 = np.float32


@njit
def _everything(a, b, out):
    """One row of `out` for each function of a[:LANES], b[:LANES]."""
    v, w = simd.load(a, 0), simd.load(b, 0)
    rows = (
        v + w, v - w, v * w, v / w, v + f32(2), f32(2) - v,
        simd.minimum(v, w), simd.maximum(v, f32(0.25)), simd.sqrt(v * v), -v, simd.floor(v),
        simd.select(v < w, v, f32(7)), simd.select((v <= w) & (w > f32(0)), f32(1), f32(0)),
        simd.select(v >= w, w, v), simd.numbers(), simd.spread(f32(3)), simd.load(a, 3),
        simd.load_every(a, 1, 2), simd.totals(v, w, v + w, v - w, v * w, v, w, v),
    )  # fmt: skip
    for i, row in enumerate(rows):
        simd.store(out, i * LANES, row)
    simd.write(out, len(rows) * LANES, simd.read(a, 2))
    total = v
    total += w
    return simd.total(total), simd.any_lane(v > w), simd.any_lane(v > f32(100))


def test_every_function_does_what_numpy_does():
    rng = np.random.default_rng(0)
    a, b = (5 * rng.standard_normal(2 * LANES).astype(f32) for _ in range(2))
    v, w = a[:LANES], b[:LANES]
    expected = [
        v + w, v - w, v * w, v / w, v + 2, 2 - v,
        np.minimum(v, w), np.maximum(v, 0.25), np.abs(v), -v, np.floor(v),
        np.where(v < w, v, 7), (v <= w) & (w > 0), np.where(v >= w, w, v),
        np.arange(LANES), np.full(LANES, 3), a[3 : LANES + 3], a[1::2],
        [row.sum() for row in (v, w, v + w, v - w, v * w, v, w, v)],
    ]  # fmt: skip
    out = np.empty(len(expected) * LANES + 1, f32)
    total, some, none = _everything(a, b, out)
    *rows, totals = out[:-1].reshape(-1, LANES)
    for row, value in zip(rows, expected[:-1], strict=True):
        np.testing.assert_allclose(row, value, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(totals, expected[-1], rtol=2e-6, atol=2e-6)
    assert out[-1] == a[2]
    assert total == pytest.approx((v + w).sum(), rel=1e-5)
    assert some and not none


@njit
def _bits(first, last, ranges):
    simd.store_ranges(ranges, 1, simd.load(first, 0), simd.load(last, 0))
    return simd.with_bit(ranges, 0, 3), simd.lowest_bit(np.uint64(2**63 + 48))


def test_bits():
    first, last = (
        np.array(edges, f32) for edges in ([0, 0.9, 3, 7.5, 8, 5, 2, 3.9], [8, 1.9, 4, 8, 8, 2, 3, 9])
    )
    last = np.minimum(last, 8)
    ranges = np.zeros(32, np.uint8)
    with_third, lowest = _bits(first, last, ranges)
    expected = [sum(1 << k for k in range(int(f), int(t))) for f, t in zip(first, last, strict=True)]
    assert ranges.tolist() == [0, *expected, *[0] * (31 - LANES)]
    assert with_third == sum(1 << i for i, bits in enumerate(ranges) if bits & 8) and with_third
    assert lowest == 4


@njit
def _exp2(t, out):
    for i in range(0, len(t), LANES):
        simd.store(out, i, simd.exp2(simd.load(t, i)))


def test_exp2_is_as_exact_as_float32_arithmetic():
    t = np.linspace(-120, 120, 100 * LANES).astype(f32)
    out = np.empty_like(t)
    _exp2(t, out)
    np.testing.assert_allclose(out, np.exp2(t.astype(np.float64)), rtol=2.5e-7)
    _exp2(np.zeros(LANES, f32), out)
    assert (out[:LANES] == 1).all()


@njit
def _in_doubles(table, out, whole):
    """Columns 0 and 1 of the 3 rows of a table, as two columns of `out` and one of `whole`."""
    first, second = simd.gather(table, 0, 2, 2, 0), simd.gather(table, 0, 2, 2, 1)
    positive = simd.maximum(simd.sqrt(simd.maximum(first, -first)) * 2.0 - second / 3.0, 0.1)
    simd.scatter(out, 0, 2, 2, 0, positive)
    simd.scatter(out, 0, 2, 2, 1, simd.select(first < second, -simd.floor(first), simd.spread(1e-3)))
    simd.scatter(whole, 0, 2, 1, 1, 10.0 * second)
    return simd.floor(-2.5), simd.maximum(1.0, 2.0), simd.select(whole[0] == 7, 1.0, 0.0)


def test_doubles_of_a_table_whose_rows_are_fewer_than_lanes():
    table = np.array([[1.5, 2.5], [-0.5, -3.5], [4.0, 0.25]], f32)
    out, whole = np.zeros(8, f32), np.full(5, 7, np.int32)
    plain = _in_doubles(table.reshape(-1), out, whole)
    first, second = table.T.astype(np.float64)
    expected = [
        np.maximum(2 * np.sqrt(np.abs(first)) - second / 3, 0.1),
        np.where(first < second, -np.floor(first), 1e-3),
    ]
    np.testing.assert_array_equal(out[:6].reshape(3, 2), np.stack(expected, axis=1).astype(f32))
    assert (out[6:] == 0).all() and whole.tolist() == [7, 25, -35, 2, 7]
    assert plain == (-3, 2, 1)


@njit
def _sum_of_products(a, b):
    total = simd.spread(f32(0))
    for i in range(0, len(a), LANES):
        total += simd.load(a, i) * simd.load(b, i)
    return simd.total(total)


def test_a_loop_in_vectors():
    a, b = (np.arange(4 * LANES, dtype=f32) for _ in range(2))
    assert _sum_of_products(a, b) == (a * b).sum()


@pytest.mark.parametrize("array", [np.zeros(LANES), np.zeros((2, LANES), f32), np.zeros(2 * LANES, f32)[::2]])
def test_only_flat_float32_arrays_are_loaded(array):
    @njit
    def first(a):
        return simd.total(simd.load(a, 0))

    with pytest.raises(TypingError):
        first(array)


@pytest.mark.parametrize("module,parts", [(kernels, (constants, simd)), (norms, (simd,))])
def test_kernels_say_what_is_compiled_into_them(module, parts):
    text = "".join(Path(part.__file__).read_text() for part in parts)
    now = hashlib.sha1(text.encode()).hexdigest()[:12]
    assert now == module.COMPILED_IN, f'write COMPILED_IN = "{now}" in {module.__file__}, or old code is kept'
