"""The hash grid's compiled kernels for points in space, on the CPU.  Importing this needs numba.

Notation:
    x [N, 3]            points in [0, 1]; cells and offsets in the cell as in hash_layout.py
    w(c)                the weight of corner c of the cell: the product over axes of t or 1 - t
    h [N, 3]            a direction for each point; with it, kernels use dw(c) = sum_d h_d dw(c)/dx_d for w(c)
    y [N, L F]          features: sum_c w(c) table[row(c)], level by level
    g [N, L F]          a gradient on y
    levels_f, levels_i  see `level_arrays`

Each kernel works on a range of independent items and sums in a fixed order within each, so results do not
depend on the number of threads.  The number of features a level is known when a kernel is compiled; compiled
kernels are kept on disk where that is possible.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from threestudio.models.networks.hash_layout import HASH_PRIMES, Layout

BLOCK = 128  # points that visit one level before the next: their rows of y stay in the first-level cache

_u64 = np.uint64
_P1, _P2 = _u64(HASH_PRIMES[1]), _u64(HASH_PRIMES[2])
_f32 = np.float32
_ONE, _HALF = _f32(1), _f32(0.5)
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
}


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        return njit(**_OPTIONS)(function)  # neither this folder nor the user's can be written to


@functools.cache
def level_arrays(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """scale [L], and (offset, rows, resolution or 0 where hashed) [L, 3]."""
    levels = layout.levels
    return (
        np.array([level.scale for level in levels], np.float32),
        np.array(
            [[level.offset, level.rows, 0 if level.hashed else level.resolution] for level in levels],
            np.uint64,
        ),
    )


@njit(inline="always")
def _corner_rows(cx, cy, cz, offset, rows, resolution):  # type: ignore[no-untyped-def]
    """Rows of the 8 corners, x fastest."""
    if resolution:
        dy, dz = resolution, resolution * resolution
        r000 = cx + cy * dy + cz * dz
        r100, r010, r110 = r000 + _u64(1), r000 + dy, r000 + dy + _u64(1)
        r001, r101, r011, r111 = r000 + dz, r100 + dz, r010 + dz, r110 + dz
        # modulo: what is beyond the end is so by less than a whole level
        r100 = r100 - rows if r100 >= rows else r100
        r010 = r010 - rows if r010 >= rows else r010
        r110 = r110 - rows if r110 >= rows else r110
        r001 = r001 - rows if r001 >= rows else r001
        r101 = r101 - rows if r101 >= rows else r101
        r011 = r011 - rows if r011 >= rows else r011
        r111 = r111 - rows if r111 >= rows else r111
    else:
        last = rows - _u64(1)  # rows is a power of two here
        x0, x1 = cx, cx + _u64(1)
        y0 = cy * _P1
        y1 = y0 + _P1
        z0 = cz * _P2
        z1 = z0 + _P2
        r000, r100 = (x0 ^ y0 ^ z0) & last, (x1 ^ y0 ^ z0) & last
        r010, r110 = (x0 ^ y1 ^ z0) & last, (x1 ^ y1 ^ z0) & last
        r001, r101 = (x0 ^ y0 ^ z1) & last, (x1 ^ y0 ^ z1) & last
        r011, r111 = (x0 ^ y1 ^ z1) & last, (x1 ^ y1 ^ z1) & last
    return (
        offset + r000,
        offset + r100,
        offset + r010,
        offset + r110,
        offset + r001,
        offset + r101,
        offset + r011,
        offset + r111,
    )


@njit(inline="always")
def _locate(x, n, scale):  # type: ignore[no-untyped-def]
    """Cell and offset in it of point n."""
    px, py, pz = x[n, 0] * scale + _HALF, x[n, 1] * scale + _HALF, x[n, 2] * scale + _HALF
    cx, cy, cz = np.int32(px), np.int32(py), np.int32(pz)  # px >= 1/2: truncation is floor
    return _u64(cx), _u64(cy), _u64(cz), px - _f32(cx), py - _f32(cy), pz - _f32(cz)


@njit(inline="always")
def _plain_weights(tx, ty, tz):  # type: ignore[no-untyped-def]
    sx, sy, sz = _ONE - tx, _ONE - ty, _ONE - tz
    return (
        sx * sy * sz,
        tx * sy * sz,
        sx * ty * sz,
        tx * ty * sz,
        sx * sy * tz,
        tx * sy * tz,
        sx * ty * tz,
        tx * ty * tz,
    )


@njit(inline="always")
def _directional_weights(tx, ty, tz, hx, hy, hz):  # type: ignore[no-untyped-def]
    """Derivatives of the weights along h, which is in grid units."""
    sx, sy, sz = _ONE - tx, _ONE - ty, _ONE - tz
    return (
        -hx * sy * sz - sx * hy * sz - sx * sy * hz,
        hx * sy * sz - tx * hy * sz - tx * sy * hz,
        -hx * ty * sz + sx * hy * sz - sx * ty * hz,
        hx * ty * sz + tx * hy * sz - tx * ty * hz,
        -hx * sy * tz - sx * hy * tz + sx * sy * hz,
        hx * sy * tz - tx * hy * tz + tx * sy * hz,
        -hx * ty * tz + sx * hy * tz + sx * ty * hz,
        hx * ty * tz + tx * hy * tz + tx * ty * hz,
    )


@functools.cache
def gather(n_features: int, directional: bool) -> Callable[..., None]:
    """``kernel(start, stop, x, h, table, levels_f, levels_i, n_active, y)`` over points; fills rows of y."""

    def hash_gather(start, stop, x, h, table, levels_f, levels_i, n_active, y):  # type: ignore[no-untyped-def]
        for first in range(start, stop, BLOCK):
            last = min(first + BLOCK, stop)
            for level in range(n_active):
                scale = levels_f[level]
                offset, rows, resolution = levels_i[level, 0], levels_i[level, 1], levels_i[level, 2]
                for n in range(first, last):
                    cx, cy, cz, tx, ty, tz = _locate(x, n, scale)
                    r0, r1, r2, r3, r4, r5, r6, r7 = _corner_rows(cx, cy, cz, offset, rows, resolution)
                    if directional:
                        w0, w1, w2, w3, w4, w5, w6, w7 = _directional_weights(
                            tx, ty, tz, h[n, 0] * scale, h[n, 1] * scale, h[n, 2] * scale
                        )
                    else:
                        w0, w1, w2, w3, w4, w5, w6, w7 = _plain_weights(tx, ty, tz)
                    for f in range(n_features):
                        y[n, level * n_features + f] = (
                            (w0 * table[r0, f] + w1 * table[r1, f])
                            + (w2 * table[r2, f] + w3 * table[r3, f])
                            + (w4 * table[r4, f] + w5 * table[r5, f])
                            + (w6 * table[r6, f] + w7 * table[r7, f])
                        )

    return _compiled(hash_gather)


@functools.cache
def scatter(n_features: int, directional: bool) -> Callable[..., None]:
    """``kernel(start, stop, x, h, g, levels_f, levels_i, v_table)`` over levels; adds w(c) g to v_table."""

    def hash_scatter(start, stop, x, h, g, levels_f, levels_i, v_table):  # type: ignore[no-untyped-def]
        for level in range(start, stop):
            scale = levels_f[level]
            offset, rows, resolution = levels_i[level, 0], levels_i[level, 1], levels_i[level, 2]
            for n in range(x.shape[0]):
                cx, cy, cz, tx, ty, tz = _locate(x, n, scale)
                r0, r1, r2, r3, r4, r5, r6, r7 = _corner_rows(cx, cy, cz, offset, rows, resolution)
                if directional:
                    w0, w1, w2, w3, w4, w5, w6, w7 = _directional_weights(
                        tx, ty, tz, h[n, 0] * scale, h[n, 1] * scale, h[n, 2] * scale
                    )
                else:
                    w0, w1, w2, w3, w4, w5, w6, w7 = _plain_weights(tx, ty, tz)
                for f in range(n_features):
                    value = g[n, level * n_features + f]
                    v_table[r0, f] += w0 * value
                    v_table[r1, f] += w1 * value
                    v_table[r2, f] += w2 * value
                    v_table[r3, f] += w3 * value
                    v_table[r4, f] += w4 * value
                    v_table[r5, f] += w5 * value
                    v_table[r6, f] += w6 * value
                    v_table[r7, f] += w7 * value

    return _compiled(hash_scatter)


@functools.cache
def slope(n_features: int, directional: bool) -> Callable[..., None]:
    """``kernel(start, stop, x, h, g, table, levels_f, levels_i, n_active, v_x)`` over points.

    Adds to v_x [N, 3] the gradient on x of sum(g y); directional: of the derivative of sum(g y) along h.
    """

    def hash_slope(start, stop, x, h, g, table, levels_f, levels_i, n_active, v_x):  # type: ignore[no-untyped-def]
        for first in range(start, stop, BLOCK):
            last = min(first + BLOCK, stop)
            for level in range(n_active):
                scale = levels_f[level]
                offset, rows, resolution = levels_i[level, 0], levels_i[level, 1], levels_i[level, 2]
                for n in range(first, last):
                    cx, cy, cz, tx, ty, tz = _locate(x, n, scale)
                    r0, r1, r2, r3, r4, r5, r6, r7 = _corner_rows(cx, cy, cz, offset, rows, resolution)
                    q0 = q1 = q2 = q3 = q4 = q5 = q6 = q7 = _f32(0)
                    for f in range(n_features):
                        value = g[n, level * n_features + f]
                        q0 += value * table[r0, f]
                        q1 += value * table[r1, f]
                        q2 += value * table[r2, f]
                        q3 += value * table[r3, f]
                        q4 += value * table[r4, f]
                        q5 += value * table[r5, f]
                        q6 += value * table[r6, f]
                        q7 += value * table[r7, f]
                    sx, sy, sz = _ONE - tx, _ONE - ty, _ONE - tz
                    if directional:
                        square = scale * scale
                        xy = square * (sz * (q3 - q2 - q1 + q0) + tz * (q7 - q6 - q5 + q4))
                        xz = square * (sy * (q5 - q4 - q1 + q0) + ty * (q7 - q6 - q3 + q2))
                        yz = square * (sx * (q6 - q4 - q2 + q0) + tx * (q7 - q5 - q3 + q1))
                        v_x[n, 0] += h[n, 1] * xy + h[n, 2] * xz
                        v_x[n, 1] += h[n, 0] * xy + h[n, 2] * yz
                        v_x[n, 2] += h[n, 0] * xz + h[n, 1] * yz
                    else:
                        v_x[n, 0] += scale * (
                            sy * (sz * (q1 - q0) + tz * (q5 - q4)) + ty * (sz * (q3 - q2) + tz * (q7 - q6))
                        )
                        v_x[n, 1] += scale * (
                            sx * (sz * (q2 - q0) + tz * (q6 - q4)) + tx * (sz * (q3 - q1) + tz * (q7 - q5))
                        )
                        v_x[n, 2] += scale * (
                            sx * (sy * (q4 - q0) + ty * (q6 - q2)) + tx * (sy * (q5 - q1) + ty * (q7 - q3))
                        )

    return _compiled(hash_slope)
