"""The compiled kernels of the CPU back end. Importing this module compiles them or loads them from a cache.

Every kernel with `start` and `stop` works on that range of independent items and writes nothing that another
item reads, so `threads.run` may split the range over threads in any way: results are bit-identical for any
number of threads. Where vectors hold LANES rows of a range, lanes beyond its last row repeat that row, and so
write the same value to the same place once more.

Notation (with that of projection.py):
    B views, N Gaussians, a splat g = view * N + Gaussian
    tile        a block of TILE_W x TILE_H pixels; tiles are numbered view by view, row by row
    pair p      one splat on one tile; the pairs of splat g are pair_offsets[g] ... pair_offsets[g + 1] - 1
    entries     the same pairs, listed tile by tile, in the end nearest first: (splat, pair) numbers
    f4[:, ::1]  in a signature: a C-contiguous array [., .] of 4-byte floats; i8, u8: an 8-byte integer
    log alpha   log2(opacity) - (A dx^2 + B dx dy + C dy^2), (A, B, C) = log2(e) (a / 2, b, c / 2)

A row of the records [B N, 16] holds all that compositing needs of a splat, in one cache line; see the REC_
names.
An ellipse alpha >= 1/255 is kept in sheared coordinates: on the pixel row at dy it is the interval with the
centre mean_x - shear dy and the half-width sqrt(half_width^2 - taper dy^2).

What makes it fast: the innermost loops handle a block of LANES pixels at a time, in vectors and without
branches (see simd.py). The forward pass takes a batch of entries block by block, keeps the block's pixels in
registers, and reads from the bits of an integer which entries show there; the backward pass takes entry by
entry, keeps its gradients in registers, and reads from bits which blocks it showed in. So only blocks that an
ellipse touches are looked at, in loops whose end the processor can tell early. Inside of loops an array is
indexed with all its indices and never cut into views, because numba counts references to every view, with an
atomic instruction.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from ..compiled import cached
from ..simd import (
    LANES,
    any_lane,
    exp2,
    floor,
    gather,
    load,
    load_every,
    lowest_bit,
    maximum,
    minimum,
    numbers,
    read,
    scatter,
    select,
    spread,
    sqrt,
    store,
    store_ranges,
    total,
    totals,
    with_bit,
    write,
)
from .constants import (
    ALPHA_MAX,
    ALPHA_MIN,
    FOV_MARGIN,
    SH_C0,
    SH_C1,
    SH_C2,
    SH_C3,
    TRANSMITTANCE_MIN,
)

f32, f64, u32, u64 = np.float32, np.float64, np.uint32, np.uint64

TILE_W, TILE_H = 32, 16
BLOCK_W, BLOCK_H = LANES // 2, 2  # the pixels of a vector: nearly square, so that little of it is outside
BLOCK_COLUMNS, BLOCK_ROWS = TILE_W // BLOCK_W, TILE_H // BLOCK_H
TILE_BLOCKS = BLOCK_COLUMNS * BLOCK_ROWS
BATCH = 64  # entries of a tile that are made ready at a time
assert TILE_BLOCKS == BATCH == 64 and BLOCK_COLUMNS == 8  # the bits of an integer, of a byte
assert BLOCK_H == 2  # `_find_blocks` looks at the first and the last row of a block

REC_X, REC_Y, REC_A, REC_B, REC_C, REC_LOG_OPACITY = range(6)
REC_R, REC_G, REC_BLUE, REC_Z = range(6, 10)
REC_SHEAR, REC_HALF2, REC_TAPER, REC_HALF_H = range(10, 14)
REC_NUMBER = 14  # of an entry in its tile, for compositing; exact up to 2^24
RECORD = 16
NOTED_ROWS = 4  # of tiles, whose columns `make_records` notes for `fill_tiles`
TOUCHED = 2 + 2 * NOTED_ROWS

# Gradients of a pair, summed over the pixels of the tile, with v = alpha dL/dalpha:
# sum of v, v dx, v dy, v dx^2, v dx dy, v dy^2, then of w dL/d(r, g, b, depth).
PAIR_GRADS = 10

# Vectors of a block of pixels in a tile's scratch array, in the forward and the backward pass.
V1, V2, V3, V4, V5, V6, V7, V8 = (i * LANES for i in range(1, 9))
FORWARD, BACKWARD = 7 * LANES, 9 * LANES
LEFT = TILE_BLOCKS * 2 * LANES  # what the former leaves to the latter of a tile: V1 and V6

LOG2_E = math.log2(math.e)
LOG2_ALPHA_MIN = math.log2(ALPHA_MIN)
F_LOG2_ALPHA_MIN = f32(LOG2_ALPHA_MIN)
F_ALPHA_MAX = f32(ALPHA_MAX)
F_T_MIN = f32(TRANSMITTANCE_MIN)
F_T_STOPPED = f32(1e-9)  # anything below the former, far from where numbers become slow to work with
ZERO, HALF, ONE = f32(0), f32(0.5), f32(1)
ALMOST_HALF = f32(0.499)  # rounding up by truncation, with a hair of slack
ROW_SLACK = f32(2e-3)  # pixels by which an ellipse may miss a row: rounding must never leave one out
# float32 may put a pixel on the wrong side of the ellipse's edge: never leave one out
SPAN_SLACK = 1.0 + 1e-5

# Everything of "fast" but the promise that there are no infinities or NaNs.
FAST_MATH = {"reassoc", "contract", "arcp", "afn", "nsz"}


# A hash of constants.py and simd.py, which are compiled in here. Numba's cache looks at the date of this file
# alone, so that this line has to change with them; a test says what it should be.
COMPILED_IN = "cd9ff1cfa276"


def _kernel(signature: str):
    """Compiles for exactly one signature; runs without the interpreter lock; caches on disk if it can."""
    return cached(signature, nogil=True, fastmath=FAST_MATH, error_model="numpy")


_inline = njit(fastmath=FAST_MATH, error_model="numpy")
# What two kernels compute from plain numbers and must agree on to the last bit: `_columns_of_record`.
_exact = njit(error_model="numpy")


# --- projection -----------------------------------------------------------------------------------
# LANES Gaussians at a time, in float64: thin, long ones need the digits. All arrays but the cameras are flat.


@_inline
def _triples(array, n, last, first):
    """Three columns of LANES rows of an array [., 3], of which row 0 is the row `first`."""
    i = 3 * first
    return gather(array, n, last, 3, i), gather(array, n, last, 3, i + 1), gather(array, n, last, 3, i + 2)


@_inline
def _rotation_of(quats, n, last):
    """`_rotation` of LANES quaternions [., 4]."""
    return _rotation(
        gather(quats, n, last, 4, 0), gather(quats, n, last, 4, 1),
        gather(quats, n, last, 4, 2), gather(quats, n, last, 4, 3),
    )  # fmt: skip


@_inline
def _rotation(w, x, y, z):
    """Rotation matrix (nine numbers), unit quaternion and the length of the given one."""
    length = maximum(sqrt(w * w + x * x + y * y + z * z), 1e-12)
    inverse = 1.0 / length
    w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
    rotation = (
        1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y),
        2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x),
        2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y),
    )  # fmt: skip
    return rotation, (w, x, y, z), length


@_inline
def _view(viewmats, v):
    """Rows 0, 1, 2 of a view's matrix."""
    w = viewmats
    return (
        (w[v, 0, 0], w[v, 0, 1], w[v, 0, 2], w[v, 0, 3]),
        (w[v, 1, 0], w[v, 1, 1], w[v, 1, 2], w[v, 1, 3]),
        (w[v, 2, 0], w[v, 2, 1], w[v, 2, 2], w[v, 2, 3]),
    )


@_inline
def _along(row, x, y, z):
    """One of the camera coordinates of a world point."""
    return row[0] * x + row[1] * y + row[2] * z + row[3]


@_inline
def _clamped_slope(slope, focal, centre, size):
    """x / z (or y / z) limited to the image and a margin, and whether it was inside of the limits."""
    margin = FOV_MARGIN * size / (2 * focal)
    low, high = -centre / focal - margin, (size - centre) / focal + margin
    return minimum(maximum(slope, low), high), (slope >= low) & (slope <= high)


@_inline
def _image_axis(row, row_z, slope, focal_by_z, rotation, sx, sy, sz):
    """Row j of J W, and row p of J W R S: the covariance on the image is p p^T, of both rows of either."""
    r = rotation
    j = (
        (row[0] - slope * row_z[0]) * focal_by_z,
        (row[1] - slope * row_z[1]) * focal_by_z,
        (row[2] - slope * row_z[2]) * focal_by_z,
    )
    p = (
        (j[0] * r[0] + j[1] * r[3] + j[2] * r[6]) * sx,
        (j[0] * r[1] + j[1] * r[4] + j[2] * r[7]) * sy,
        (j[0] * r[2] + j[1] * r[5] + j[2] * r[8]) * sz,
    )
    return j, p


@_inline
def _dot(p, q):
    return p[0] * q[0] + p[1] * q[1] + p[2] * q[2]


@_kernel(
    "void(i8, i8, f4[::1], f4[::1], f4[::1], f8[:,:,::1], f8[:,:,::1], i8, i8, f8, f8,"
    "f4[::1], f4[::1], f4[::1])"
)
def project_forward(
    start, stop, means, quats, scales, viewmats, Ks, width, height, near, eps2d, means2d, depths, conics
):
    """projection.project, for Gaussians start <= n < stop in all views; scales [B or 1, N, 3]."""
    count, last = len(means) // 3, stop - 1
    own_scales = len(scales) // 3 // max(count, 1)
    for v in range(viewmats.shape[0]):
        row_x, row_y, row_z = _view(viewmats, v)
        fx, fy, cx, cy = Ks[v, 0, 0], Ks[v, 1, 1], Ks[v, 0, 2], Ks[v, 1, 2]
        g, own = v * count, min(v, own_scales - 1) * count
        for n in range(start, stop, LANES):
            mean_x, mean_y, mean_z = _triples(means, n, last, 0)
            rotation, _, _ = _rotation_of(quats, n, last)
            sx, sy, sz = _triples(scales, n, last, own)
            x, y = _along(row_x, mean_x, mean_y, mean_z), _along(row_y, mean_x, mean_y, mean_z)
            z = _along(row_z, mean_x, mean_y, mean_z)
            by_z = 1.0 / z
            slope_x, slope_y = x * by_z, y * by_z
            clamped_x, _ = _clamped_slope(slope_x, fx, cx, width)
            clamped_y, _ = _clamped_slope(slope_y, fy, cy, height)
            _, p0 = _image_axis(row_x, row_z, clamped_x, fx * by_z, rotation, sx, sy, sz)
            _, p1 = _image_axis(row_y, row_z, clamped_y, fy * by_z, rotation, sx, sy, sz)
            xx, xy, yy = _dot(p0, p0) + eps2d, _dot(p0, p1), _dot(p1, p1) + eps2d
            determinant = xx * yy - xy * xy
            drawn = (z >= near) & (determinant > 0.0) & (determinant < math.inf)
            inverse = select(drawn, 1.0 / determinant, 0.0)
            scatter(depths, n, last, 1, g, z)
            scatter(means2d, n, last, 2, 2 * g, select(drawn, fx * slope_x + cx, 0.0))
            scatter(means2d, n, last, 2, 2 * g + 1, select(drawn, fy * slope_y + cy, 0.0))
            scatter(conics, n, last, 3, 3 * g, select(drawn, yy * inverse, 0.0))
            scatter(conics, n, last, 3, 3 * g + 1, select(drawn, -xy * inverse, 0.0))
            scatter(conics, n, last, 3, 3 * g + 2, select(drawn, xx * inverse, 0.0))


@_kernel(
    "void(i8, i8, f4[::1], f4[::1], f4[::1], f8[:,:,::1], f8[:,:,::1], i8, i8, f4[::1], f4[::1], f4[::1],"
    "f4[::1], f4[::1], f4[::1], f4[::1])"
)
def project_backward(
    start, stop, means, quats, scales, viewmats, Ks, width, height, conics, v_means2d, v_depths, v_conics,
    v_means, v_quats, v_scales,
):  # fmt: skip
    """Gradients of `project_forward`, summed over the views in order."""
    count, last = len(means) // 3, stop - 1
    own_scales = len(scales) // 3 // max(count, 1)
    nothing = spread(0.0)
    for n in range(start, stop, LANES):
        mean_x, mean_y, mean_z = _triples(means, n, last, 0)
        r, quat, length = _rotation_of(quats, n, last)
        gx, gy, gz = nothing, nothing, nothing  # dL/dmean
        v_sx, v_sy, v_sz = nothing, nothing, nothing
        # dL/dR: nine numbers, row by row
        m00, m01, m02, m10, m11 = nothing, nothing, nothing, nothing, nothing
        m12, m20, m21, m22 = nothing, nothing, nothing, nothing
        for v in range(viewmats.shape[0]):
            row_x, row_y, row_z = _view(viewmats, v)
            fx, fy = Ks[v, 0, 0], Ks[v, 1, 1]
            g, own = v * count, min(v, own_scales - 1) * count
            sx, sy, sz = _triples(scales, n, last, own)
            a, b, c = _triples(conics, n, last, g)
            v_a, v_b, v_c = _triples(v_conics, n, last, g)
            v_z = gather(v_depths, n, last, 1, g)
            # one that is not drawn gets nothing from a, b, c = 0, and must not divide by 0
            drawn = a > 0.0
            v_u = select(drawn, gather(v_means2d, n, last, 2, 2 * g), 0.0)
            v_v = select(drawn, gather(v_means2d, n, last, 2, 2 * g + 1), 0.0)
            x, y = _along(row_x, mean_x, mean_y, mean_z), _along(row_y, mean_x, mean_y, mean_z)
            z = select(drawn, _along(row_z, mean_x, mean_y, mean_z), 1.0)
            by_z = 1.0 / z
            slope_x, free_x = _clamped_slope(x * by_z, fx, Ks[v, 0, 2], width)
            slope_y, free_y = _clamped_slope(y * by_z, fy, Ks[v, 1, 2], height)
            j0, p0 = _image_axis(row_x, row_z, slope_x, fx * by_z, r, sx, sy, sz)
            j1, p1 = _image_axis(row_y, row_z, slope_y, fy * by_z, r, sx, sy, sz)

            # 1. conic = cov^-1:  dL/dcov = -conic dL/dconic conic, both symmetric
            half_b = 0.5 * v_b
            t00, t01 = v_a * a + half_b * b, v_a * b + half_b * c
            t10, t11 = half_b * a + v_c * b, half_b * b + v_c * c
            v_xx, v_yy = -(a * t00 + b * t10), -(b * t01 + c * t11)
            v_xy = -(a * t01 + b * t11)

            # 2. cov = p p^T:  dL/dp = 2 dL/dcov p
            q0 = (
                2.0 * (v_xx * p0[0] + v_xy * p1[0]),
                2.0 * (v_xx * p0[1] + v_xy * p1[1]),
                2.0 * (v_xx * p0[2] + v_xy * p1[2]),
            )
            q1 = (
                2.0 * (v_xy * p0[0] + v_yy * p1[0]),
                2.0 * (v_xy * p0[1] + v_yy * p1[1]),
                2.0 * (v_xy * p0[2] + v_yy * p1[2]),
            )

            # 3. p = (J W) (R S):  to S, to R, and to J W (k0, k1)
            if v < own_scales:
                v_sx, v_sy, v_sz = nothing, nothing, nothing
            column_0, column_1, column_2 = (r[0], r[3], r[6]), (r[1], r[4], r[7]), (r[2], r[5], r[8])
            v_sx += q0[0] * _dot(j0, column_0) + q1[0] * _dot(j1, column_0)
            v_sy += q0[1] * _dot(j0, column_1) + q1[1] * _dot(j1, column_1)
            v_sz += q0[2] * _dot(j0, column_2) + q1[2] * _dot(j1, column_2)
            scatter(v_scales, n, last, 3, 3 * own, v_sx)
            scatter(v_scales, n, last, 3, 3 * own + 1, v_sy)
            scatter(v_scales, n, last, 3, 3 * own + 2, v_sz)
            q0 = (q0[0] * sx, q0[1] * sy, q0[2] * sz)
            q1 = (q1[0] * sx, q1[1] * sy, q1[2] * sz)
            m00 += j0[0] * q0[0] + j1[0] * q1[0]
            m01 += j0[0] * q0[1] + j1[0] * q1[1]
            m02 += j0[0] * q0[2] + j1[0] * q1[2]
            m10 += j0[1] * q0[0] + j1[1] * q1[0]
            m11 += j0[1] * q0[1] + j1[1] * q1[1]
            m12 += j0[1] * q0[2] + j1[1] * q1[2]
            m20 += j0[2] * q0[0] + j1[2] * q1[0]
            m21 += j0[2] * q0[1] + j1[2] * q1[1]
            m22 += j0[2] * q0[2] + j1[2] * q1[2]
            row_0, row_1, row_2 = (r[0], r[1], r[2]), (r[3], r[4], r[5]), (r[6], r[7], r[8])
            k0 = (_dot(q0, row_0), _dot(q0, row_1), _dot(q0, row_2))
            k1 = (_dot(q1, row_0), _dot(q1, row_1), _dot(q1, row_2))

            # 4. J W: row 0 is fx / z (W_0 - slope_x W_2), row 1 fy / z (W_1 - slope_y W_2)
            v_slope_x, v_slope_y = -fx * by_z * _dot(k0, row_z), -fy * by_z * _dot(k1, row_z)
            v_z = v_z - (_dot(k0, j0) + _dot(k1, j1)) * by_z

            # 5. centre (u, v) = (fx x / z + cx, fy y / z + cy), and the slopes where they are not clamped
            v_slope_x = v_u * fx + select(free_x, v_slope_x, 0.0)
            v_slope_y = v_v * fy + select(free_y, v_slope_y, 0.0)
            v_x, v_y = v_slope_x * by_z, v_slope_y * by_z
            v_z = v_z - (v_x * x + v_y * y) * by_z

            # 6. camera = W mean + t
            gx += row_x[0] * v_x + row_y[0] * v_y + row_z[0] * v_z
            gy += row_x[1] * v_x + row_y[1] * v_y + row_z[1] * v_z
            gz += row_x[2] * v_x + row_y[2] * v_y + row_z[2] * v_z

        scatter(v_means, n, last, 3, 0, gx)
        scatter(v_means, n, last, 3, 1, gy)
        scatter(v_means, n, last, 3, 2, gz)

        # 7. R of the unit quaternion, then the normalisation
        w, x, y, z = quat
        v_w = 2.0 * (x * (m21 - m12) + y * (m02 - m20) + z * (m10 - m01))
        v_x = 2.0 * (y * (m01 + m10) + z * (m02 + m20) + w * (m21 - m12) - 2.0 * x * (m11 + m22))
        v_y = 2.0 * (x * (m01 + m10) + z * (m12 + m21) + w * (m02 - m20) - 2.0 * y * (m00 + m22))
        v_z = 2.0 * (x * (m02 + m20) + y * (m12 + m21) + w * (m10 - m01) - 2.0 * z * (m00 + m11))
        along, inverse = w * v_w + x * v_x + y * v_y + z * v_z, 1.0 / length
        scatter(v_quats, n, last, 4, 0, (v_w - along * w) * inverse)
        scatter(v_quats, n, last, 4, 1, (v_x - along * x) * inverse)
        scatter(v_quats, n, last, 4, 2, (v_y - along * y) * inverse)
        scatter(v_quats, n, last, 4, 3, (v_z - along * z) * inverse)


# --- spherical harmonics --------------------------------------------------------------------------


@_inline
def _sh_basis(degree, x, y, z, basis):
    """sh.sh_basis at one unit direction, into basis[:(degree + 1)^2]."""
    basis[0] = SH_C0
    if degree >= 1:
        basis[1], basis[2], basis[3] = -SH_C1 * y, SH_C1 * z, -SH_C1 * x
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        basis[4] = SH_C2[0] * x * y
        basis[5] = SH_C2[1] * y * z
        basis[6] = SH_C2[2] * (2 * zz - xx - yy)
        basis[7] = SH_C2[3] * x * z
        basis[8] = SH_C2[4] * (xx - yy)
        if degree >= 3:
            basis[9] = SH_C3[0] * y * (3 * xx - yy)
            basis[10] = SH_C3[1] * x * y * z
            basis[11] = SH_C3[2] * y * (4 * zz - xx - yy)
            basis[12] = SH_C3[3] * z * (2 * zz - 3 * xx - 3 * yy)
            basis[13] = SH_C3[4] * x * (4 * zz - xx - yy)
            basis[14] = SH_C3[5] * z * (xx - yy)
            basis[15] = SH_C3[6] * x * (xx - 3 * yy)


@_inline
def _sh_direction_grad(degree, x, y, z, g):
    """sum_k g[k] dY_k/d(x, y, z) at one direction."""
    v_x, v_y, v_z = 0.0, 0.0, 0.0
    if degree >= 1:
        v_x, v_y, v_z = -SH_C1 * g[3], -SH_C1 * g[1], SH_C1 * g[2]
    if degree >= 2:
        v_x += SH_C2[0] * y * g[4] - 2 * SH_C2[2] * x * g[6] + SH_C2[3] * z * g[7] + 2 * SH_C2[4] * x * g[8]
        v_y += SH_C2[0] * x * g[4] + SH_C2[1] * z * g[5] - 2 * SH_C2[2] * y * g[6] - 2 * SH_C2[4] * y * g[8]
        v_z += SH_C2[1] * y * g[5] + 4 * SH_C2[2] * z * g[6] + SH_C2[3] * x * g[7]
    if degree >= 3:
        xx, yy, zz = x * x, y * y, z * z
        h9, h10, h11, h12 = SH_C3[0] * g[9], SH_C3[1] * g[10], SH_C3[2] * g[11], SH_C3[3] * g[12]
        h13, h14, h15 = SH_C3[4] * g[13], SH_C3[5] * g[14], SH_C3[6] * g[15]
        v_x += 6 * x * y * h9 + y * z * h10 - 2 * x * y * h11 - 6 * x * z * h12
        v_x += (4 * zz - 3 * xx - yy) * h13 + 2 * x * z * h14 + 3 * (xx - yy) * h15
        v_y += 3 * (xx - yy) * h9 + x * z * h10 + (4 * zz - xx - 3 * yy) * h11 - 6 * y * z * h12
        v_y += -2 * x * y * h13 - 2 * y * z * h14 - 6 * x * y * h15
        v_z += (
            x * y * h10
            + 8 * y * z * h11
            + (6 * zz - 3 * xx - 3 * yy) * h12
            + 8 * x * z * h13
            + (xx - yy) * h14
        )
    return v_x, v_y, v_z


@_inline
def _view_direction(means, n, viewmats, v):
    """Unit vector from the camera's centre -R^T t to a Gaussian, and their distance."""
    t0, t1, t2 = viewmats[v, 0, 3], viewmats[v, 1, 3], viewmats[v, 2, 3]
    x = means[n, 0] + viewmats[v, 0, 0] * t0 + viewmats[v, 1, 0] * t1 + viewmats[v, 2, 0] * t2
    y = means[n, 1] + viewmats[v, 0, 1] * t0 + viewmats[v, 1, 1] * t1 + viewmats[v, 2, 1] * t2
    z = means[n, 2] + viewmats[v, 0, 2] * t0 + viewmats[v, 1, 2] * t1 + viewmats[v, 2, 2] * t2
    distance = max(math.sqrt(x * x + y * y + z * z), 1e-12)
    return x / distance, y / distance, z / distance, distance


@_kernel("void(i8, i8, f4[:,::1], f8[:,:,::1], f4[:,:,::1], i8, f4[:,:,::1])")
def sh_forward(start, stop, means, viewmats, sh, degree, colors):
    """sh.sh_to_colors for Gaussians start <= n < stop in all views."""
    basis = np.zeros(16)
    for n in range(start, stop):
        for v in range(viewmats.shape[0]):
            x, y, z, _ = _view_direction(means, n, viewmats, v)
            _sh_basis(degree, x, y, z, basis)
            red, green, blue = 0.5, 0.5, 0.5
            for k in range((degree + 1) * (degree + 1)):
                red += basis[k] * sh[n, k, 0]
                green += basis[k] * sh[n, k, 1]
                blue += basis[k] * sh[n, k, 2]
            colors[v, n, 0], colors[v, n, 1], colors[v, n, 2] = max(red, 0.0), max(green, 0.0), max(blue, 0.0)


@_kernel(
    "void(i8, i8, f4[:,::1], f8[:,:,::1], f4[:,:,::1], i8, f4[:,:,::1],f4[:,:,::1], f4[:,::1], f4[:,:,::1])"
)
def sh_backward(start, stop, means, viewmats, sh, degree, colors, v_colors, v_means, v_sh):
    """Gradients of `sh_forward`, summed over the views in order; a colour clamped at 0 passes none."""
    count = (degree + 1) * (degree + 1)
    basis = np.zeros(16)
    v_basis = np.zeros(16)
    for n in range(start, stop):
        v_sh[n] = 0.0
        gx, gy, gz = 0.0, 0.0, 0.0
        for v in range(viewmats.shape[0]):
            red = f64(v_colors[v, n, 0]) if colors[v, n, 0] > 0 else 0.0
            green = f64(v_colors[v, n, 1]) if colors[v, n, 1] > 0 else 0.0
            blue = f64(v_colors[v, n, 2]) if colors[v, n, 2] > 0 else 0.0
            if red == 0.0 and green == 0.0 and blue == 0.0:
                continue
            x, y, z, distance = _view_direction(means, n, viewmats, v)
            _sh_basis(degree, x, y, z, basis)
            for k in range(count):
                v_sh[n, k, 0] += basis[k] * red
                v_sh[n, k, 1] += basis[k] * green
                v_sh[n, k, 2] += basis[k] * blue
                v_basis[k] = sh[n, k, 0] * red + sh[n, k, 1] * green + sh[n, k, 2] * blue
            v_x, v_y, v_z = _sh_direction_grad(degree, x, y, z, v_basis)
            along = v_x * x + v_y * y + v_z * z
            gx += (v_x - along * x) / distance
            gy += (v_y - along * y) / distance
            gz += (v_z - along * z) / distance
        v_means[n, 0], v_means[n, 1], v_means[n, 2] = gx, gy, gz


# --- which splats touch which tiles ---------------------------------------------------------------


@_exact
def _tiles_between(low, high, size, tile_size):
    """Tiles [first, last) that hold the pixel centres between low and high, of `size` pixels."""
    first, last = -floor(-maximum(low - 0.5, 0.0)), floor(minimum(high - 0.5, size - 1.0))
    some = first <= last
    first, last = floor(first * (1.0 / tile_size)), floor(last * (1.0 / tile_size)) + 1.0
    return select(some, first, 0.0), select(some, last, 0.0)


@_exact
def _columns_on_row(mean_x, mean_y, shear, half2, taper, half_h, tile_row, width, height):
    """Columns of tiles [first, last) that the ellipse touches in the pixel rows of one row of tiles.

    The right edge, mean_x - shear dy + sqrt(half_width^2 - taper dy^2), is concave in dy, so its largest
    value lies at its apex or at the end of the slab nearest to it; the left edge mirrors it.
    """
    low = maximum(tile_row * f64(TILE_H) + 0.5 - mean_y, -half_h)
    high = minimum(minimum((tile_row + 1.0) * f64(TILE_H), f64(height)) - 0.5 - mean_y, half_h)
    apex = shear * sqrt(half2 / (1.0 + shear * shear / taper)) / taper
    at_right, at_left = minimum(maximum(-apex, low), high), minimum(maximum(apex, low), high)
    right = mean_x - shear * at_right + sqrt(maximum(half2 - taper * at_right * at_right, 0.0))
    left = mean_x - shear * at_left - sqrt(maximum(half2 - taper * at_left * at_left, 0.0))
    first, last = _tiles_between(left, right, width, TILE_W)
    some = low <= high
    return select(some, first, 0.0), select(some, last, 0.0)


@_exact
def _columns_of_record(records, r, tile_row, width, height):
    """The same of the record at r, as whole numbers."""
    left, right = _columns_on_row(
        f64(records[r + REC_X]), f64(records[r + REC_Y]), f64(records[r + REC_SHEAR]),
        f64(records[r + REC_HALF2]), f64(records[r + REC_TAPER]), f64(records[r + REC_HALF_H]), f64(tile_row),
        width, height,
    )  # fmt: skip
    return np.int64(left), np.int64(right)


@njit(inline="always")  # a call that is handed arrays costs more than all that is done here
def _columns(records, touched, g, first_row, last_row, tile_row, width, height):
    """Columns of tiles [first, last) that splat g touches on a row of tiles: as noted, or computed anew."""
    if last_row - first_row > NOTED_ROWS:
        left, right = _columns_of_record(records, g * RECORD, tile_row, width, height)
    else:
        k = g * TOUCHED + 2 + 2 * (tile_row - first_row)
        left, right = np.int64(touched[k]), np.int64(touched[k + 1])
    return left, right


@_kernel(
    "void(i8, i8, f4[::1], f4[::1], f4[::1], f4[::1], f4[::1], i8, i8, i8,"
    "f4[::1], i4[::1], i4[::1], i8[::1], i8[:,:,::1])"
)
def make_records(
    start, stop, means2d, depths, conics, log_opacities, colors, width, height, tiles_x,
    records, touched, radii, pair_counts, tile_counts,
):  # fmt: skip
    """Records and radii (see projection.compute_radii) of the splats, and which tiles they touch.

    An item is a (view, part): the Gaussians are cut into tile_counts.shape[1] parts.

    Args:
        touched: [B N TOUCHED], rows of tiles [first, last), then columns [first, last) on each if they are at
            most NOTED_ROWS, as they nearly always are.
        pair_counts: [B N], numbers of tiles. tile_counts: [view, part, tile], numbers of splats.
    """
    count, parts = len(log_opacities), tile_counts.shape[1]
    own_colors = len(colors) // 3 // max(count, 1)
    edges = np.empty(tile_counts.shape[2] + 1, np.int64)  # splats of a tile, less those of the one before
    for item in range(start, stop):
        v, part = item // parts, item % parts
        begin, end = count * part // parts, count * (part + 1) // parts
        first_splat, own, last = v * count, min(v, own_colors - 1) * count, end - 1
        edges[:] = 0
        for n in range(begin, end, LANES):
            a, b, c = _triples(conics, n, last, first_splat)
            k = 2 * first_splat
            x, y = gather(means2d, n, last, 2, k), gather(means2d, n, last, 2, k + 1)
            log_opacity = gather(log_opacities, n, last, 1, 0)
            determinant = a * c - b * b
            reach = (2 / LOG2_E) * (log_opacity - LOG2_ALPHA_MIN)
            inverse, inverse_a = 1.0 / determinant, 1.0 / a
            half_x, half_y = sqrt(reach * c * inverse), sqrt(reach * a * inverse)
            shown = (a > 0.0) & (determinant > 0.0) & (reach >= 0.0)
            shown = shown & (x + half_x >= 0.5) & (x - half_x <= width - 0.5)
            shown = shown & (y + half_y >= 0.5) & (y - half_y <= height - 0.5)
            longest = (0.5 * (a + c) + sqrt(0.25 * (a - c) * (a - c) + b * b)) * inverse
            radius = minimum(maximum(-floor(-sqrt(reach * longest)), 1.0), 2.0**30)

            shear, half_h = b * inverse_a, half_y * SPAN_SLACK
            half2, taper = reach * inverse_a * SPAN_SLACK, determinant * (inverse_a * inverse_a)
            r = first_splat * RECORD
            scatter(records, n, last, RECORD, r + REC_X, x)
            scatter(records, n, last, RECORD, r + REC_Y, y)
            scatter(records, n, last, RECORD, r + REC_A, (LOG2_E / 2) * a)
            scatter(records, n, last, RECORD, r + REC_B, LOG2_E * b)
            scatter(records, n, last, RECORD, r + REC_C, (LOG2_E / 2) * c)
            scatter(records, n, last, RECORD, r + REC_LOG_OPACITY, log_opacity)
            scatter(records, n, last, RECORD, r + REC_R, gather(colors, n, last, 3, 3 * own))
            scatter(records, n, last, RECORD, r + REC_G, gather(colors, n, last, 3, 3 * own + 1))
            scatter(records, n, last, RECORD, r + REC_BLUE, gather(colors, n, last, 3, 3 * own + 2))
            scatter(records, n, last, RECORD, r + REC_Z, gather(depths, n, last, 1, first_splat))
            scatter(records, n, last, RECORD, r + REC_SHEAR, shear)
            scatter(records, n, last, RECORD, r + REC_HALF2, half2)
            scatter(records, n, last, RECORD, r + REC_TAPER, taper)
            scatter(records, n, last, RECORD, r + REC_HALF_H, half_h)

            top, bottom = _tiles_between(y - half_h, y + half_h, height, TILE_H)
            k = first_splat * TOUCHED
            scatter(radii, n, last, 1, first_splat, select(shown, radius, 0.0))
            scatter(touched, n, last, TOUCHED, k, select(shown, top, 0.0))
            scatter(touched, n, last, TOUCHED, k + 1, select(shown, bottom, 0.0))
            for i in range(NOTED_ROWS):
                row = top + f64(i)
                if not any_lane(shown & (row < bottom)):
                    break
                left, right = _columns_on_row(x, y, shear, half2, taper, half_h, row, width, height)
                scatter(touched, n, last, TOUCHED, k + 2 + 2 * i, left)
                scatter(touched, n, last, TOUCHED, k + 3 + 2 * i, right)

            for g in range(first_splat + n, first_splat + min(n + LANES, end)):
                pairs = 0
                first_row, last_row = np.int64(touched[g * TOUCHED]), np.int64(touched[g * TOUCHED + 1])
                for tile_row in range(first_row, last_row):
                    left, right = _columns(records, touched, g, first_row, last_row, tile_row, width, height)
                    pairs += right - left
                    edges[tile_row * tiles_x + left] += 1
                    edges[tile_row * tiles_x + right] -= 1
                pair_counts[g] = pairs

        here = 0
        for tile in range(tile_counts.shape[2]):
            here += edges[tile]
            tile_counts[v, part, tile] = here


@_kernel("void(i8, i8, f4[::1], i4[::1], i8[::1], i8, i8, i8, i8[:,:,::1], u4[:,::1])")
def fill_tiles(start, stop, records, touched, pair_offsets, width, height, tiles_x, places, entries):
    """Lists the entries of every tile, in the order of the Gaussians.

    Items as in `make_records`; places[view, part, tile]: where the entries of a part in a tile start, which
    is counted up to where they end.
    """
    parts = places.shape[1]
    count = len(touched) // TOUCHED // places.shape[0]
    bits = records.view(np.uint32)
    for item in range(start, stop):
        v, part = item // parts, item % parts
        for g in range(v * count + count * part // parts, v * count + count * (part + 1) // parts):
            pair = pair_offsets[g]
            if pair == pair_offsets[g + 1]:
                continue
            key = bits[g * RECORD + REC_Z]
            first_row, last_row = np.int64(touched[g * TOUCHED]), np.int64(touched[g * TOUCHED + 1])
            for tile_row in range(first_row, last_row):
                left, right = _columns(records, touched, g, first_row, last_row, tile_row, width, height)
                for tile in range(tile_row * tiles_x + left, tile_row * tiles_x + right):
                    place = places[v, part, tile]
                    entries[place, 0], entries[place, 1], entries[place, 2] = key, g, pair
                    places[v, part, tile] = place + 1
                    pair += 1


@_kernel("void(i8[::1])")
def add_up(counts):
    """Each number becomes the sum of all up to it."""
    so_far = 0
    for i in range(len(counts)):
        so_far += counts[i]
        counts[i] = so_far


@_inline
def _by_digit(source, source_start, target, target_start, count, shift, ends, digit):
    """One pass of the radix sort: `count` rows to where ends[digit] says that their digits come."""
    for i in range(source_start, source_start + count):
        bucket = (source[i, 0] >> shift) & u32(255)
        to = target_start + ends[digit, bucket]
        target[to, 0], target[to, 1], target[to, 2] = source[i, 0], source[i, 1], source[i, 2]
        ends[digit, bucket] += 1


@_kernel("void(i8, i8, i8[::1], u4[:,::1], i4[::1], i4[::1])")
def sort_tiles(start, stop, tile_starts, entries, entry_splats, entry_pairs):
    """The entries of the tiles start <= tile < stop in depth order, nearest first, as splats and pairs.

    Ties keep the order of the Gaussians. Radix sort by the bits of the depth, which for positive floats sort
    like the numbers; a byte that all depths share is passed over. Leaves `entries` in disorder.
    """
    longest = 0
    for tile in range(start, stop):
        longest = max(longest, tile_starts[tile + 1] - tile_starts[tile])
    swap = np.empty((longest, 3), np.uint32)
    ends = np.empty((4, 257), np.int64)
    for tile in range(start, stop):
        begin, count = tile_starts[tile], tile_starts[tile + 1] - tile_starts[tile]
        ends[:] = 0
        for i in range(begin, begin + count):
            for digit in range(4):
                ends[digit, ((entries[i, 0] >> u32(8 * digit)) & u32(255)) + 1] += 1
        swapped = False
        for digit in range(4):
            shift = u32(8 * digit)
            if count == 0 or ends[digit, ((entries[begin, 0] >> shift) & u32(255)) + 1] == count:
                continue
            for k in range(256):
                ends[digit, k + 1] += ends[digit, k]
            if swapped:
                _by_digit(swap, 0, entries, begin, count, shift, ends, digit)
            else:
                _by_digit(entries, begin, swap, 0, count, shift, ends, digit)
            swapped = not swapped
        for i in range(count):
            if swapped:
                entry_splats[begin + i], entry_pairs[begin + i] = swap[i, 1], swap[i, 2]
            else:
                entry_splats[begin + i], entry_pairs[begin + i] = entries[begin + i, 1], entries[begin + i, 2]


# --- compositing ----------------------------------------------------------------------------------
# A tile's pixels stand in blocks of BLOCK_W x BLOCK_H, the lanes of one vector, and the blocks row by row.
# `scratch` holds, block by block, FORWARD or BACKWARD vectors.


@_inline
def _lane_offsets():
    """dx and dy of the centres of a block's pixels from its corner."""
    y = select(numbers() < f32(BLOCK_W), ZERO, ONE)
    return numbers() - f32(BLOCK_W) * y + HALF, y + HALF


@_inline
def _pixel(row, column, size):
    """Where a tile's pixel is in a scratch array with blocks of `size` numbers: its lane of vector 0."""
    block = row // BLOCK_H * BLOCK_COLUMNS + column // BLOCK_W
    return block * size + row % BLOCK_H * BLOCK_W + column % BLOCK_W


@_inline
def _load_records(records, entry_splats, begin, end, tile_start, x0, y0, batch):
    """The records of the entries begin <= entry < end of the tile at (x0, y0), into `batch` [BATCH * RECORD].

    The means are counted from the tile's corner. Fetching many at once hides how slow memory is.
    """
    corner = select(numbers() < ONE, x0, select(numbers() < f32(2), y0, ZERO))
    for j in range(end - begin):
        r, splat = j * RECORD, np.int64(entry_splats[begin + j]) * RECORD
        store(batch, r, load(records, splat) - corner)
        store(batch, r + LANES, load(records, splat + LANES))
        batch[r + REC_NUMBER] = f32(begin - tile_start + j)


@_inline
def _find_blocks(batch, count, columns, shows):
    """Which blocks of a tile the first `count` entries of a batch show in.

    Into `shows` [TILE_BLOCKS * BATCH / 32], for each block: a bit for each entry. `columns` [BLOCK_ROWS *
    BATCH] is for its own use: for a row of blocks and an entry, a bit for each column.
    """
    for j in range(0, count, LANES):
        r = j * RECORD
        mean_x, mean_y = load_every(batch, r + REC_X, RECORD), load_every(batch, r + REC_Y, RECORD)
        half2, taper = load_every(batch, r + REC_HALF2, RECORD), load_every(batch, r + REC_TAPER, RECORD)
        shear, half_h = load_every(batch, r + REC_SHEAR, RECORD), load_every(batch, r + REC_HALF_H, RECORD)
        for row in range(BLOCK_ROWS):
            # Both edges of the ellipse bulge outwards: on a row of blocks they reach furthest on its first
            # pixel row or its last, or where the ellipse ends between them.
            dy = f32(row * BLOCK_H + 0.5) - mean_y
            first, last = maximum(dy, ZERO - half_h), minimum(dy + f32(BLOCK_H - 1), half_h)
            width_first = sqrt(maximum(half2 - taper * first * first, ZERO))
            width_last = sqrt(maximum(half2 - taper * last * last, ZERO))
            left = mean_x + minimum(ZERO - shear * first - width_first, ZERO - shear * last - width_last)
            right = mean_x + maximum(width_first - shear * first, width_last - shear * last)
            left = minimum(maximum(left + ALMOST_HALF, ZERO), f32(TILE_W)) * f32(1 / BLOCK_W)
            right = minimum(maximum(right + f32(BLOCK_W - 0.5), ZERO), f32(TILE_W)) * f32(1 / BLOCK_W)
            right = select(first <= last + ROW_SLACK, right, ZERO)
            store_ranges(columns, row * BATCH + j, left, right)
    for block in range(TILE_BLOCKS):
        for j in range(0, BATCH, 32):
            i = block // BLOCK_COLUMNS * BATCH + j
            shows[(block * BATCH + j) // 32] = with_bit(columns, i, block % BLOCK_COLUMNS)


@_kernel(
    "void(i8, i8, i8[::1], i4[::1], f4[::1], f4[:,::1], i8, i8, i8, i8,"
    "f4[::1], f4[::1], f4[::1], f4[::1], u8[::1])"
)
def composite_forward(
    start, stop, tile_starts, entry_splats, records, backgrounds, width, height, tiles_x, tiles_y,
    rgb, alpha, depth, left, entry_blocks,
):  # fmt: skip
    """Composites the tiles start <= tile < stop, front to back.

    A batch of entries at a time, and of it block by block: a block's pixels stay in registers while all
    entries of the batch that show in it pass.

    Also written, for the backward pass: into `left`, of each block of each tile the final transmittances and,
    counted from the tile's first entry, the last entries before the pixels stopped (-1: none); and into
    `entry_blocks`, of each entry, a bit for each block that it may have contributed to.

    Vectors of a block: V0 transmittance, below TRANSMITTANCE_MIN once a pixel has stopped; V1 the last one
    above; V2 ... V5 sums of r, g, b, depth; V6 the entry of V1.
    """
    scratch = np.empty(TILE_BLOCKS * FORWARD, np.float32)
    batch, shows = np.zeros(BATCH * RECORD, np.float32), np.empty(TILE_BLOCKS * 2, np.uint32)
    block_columns = np.empty(BLOCK_ROWS * BATCH, np.uint8)
    lane_x, lane_y = _lane_offsets()
    nothing = spread(ZERO)
    for tile in range(start, stop):
        v = tile // (tiles_x * tiles_y)
        x0 = tile % tiles_x * TILE_W
        y0 = tile // tiles_x % tiles_y * TILE_H
        columns, rows = min(TILE_W, width - x0), min(TILE_H, height - y0)
        live = u64(0)  # a bit for each block that still lets light through
        for block in range(TILE_BLOCKS):
            i = block * FORWARD
            x = lane_x + f32(block % BLOCK_COLUMNS * BLOCK_W)
            y = lane_y + f32(block // BLOCK_COLUMNS * BLOCK_H)
            inside = (x < f32(columns)) & (y < f32(rows))
            store(scratch, i, select(inside, ONE, ZERO))  # pixels beyond the image have stopped
            if any_lane(inside):
                live |= u64(1) << u64(block)
            store(scratch, i + V1, nothing + ONE)
            for k in range(V2, V6, LANES):
                store(scratch, i + k, nothing)
            store(scratch, i + V6, nothing - ONE)

        tile_start, tile_end = tile_starts[tile], tile_starts[tile + 1]
        for begin in range(tile_start, tile_end, BATCH):
            end = min(begin + BATCH, tile_end)
            for entry in range(begin, end):
                entry_blocks[entry] = u64(0)
            if live == u64(0):  # what is left shows nowhere
                continue
            _load_records(records, entry_splats, begin, end, tile_start, f32(x0), f32(y0), batch)
            _find_blocks(batch, end - begin, block_columns, shows)
            loaded = ~u64(0) if end - begin == BATCH else ~(~u64(0) << u64(end - begin))
            for block in range(TILE_BLOCKS):
                row, column = block // BLOCK_COLUMNS, block % BLOCK_COLUMNS
                waiting = (u64(shows[2 * block]) | u64(shows[2 * block + 1]) << u64(32)) & loaded
                if waiting == u64(0) or live & u64(1) << u64(block) == u64(0):
                    continue
                x, y = lane_x + f32(column * BLOCK_W), lane_y + f32(row * BLOCK_H)
                i = block * FORWARD
                T, final, last = load(scratch, i), load(scratch, i + V1), load(scratch, i + V6)
                sum_r, sum_g = load(scratch, i + V2), load(scratch, i + V3)
                sum_b, sum_z = load(scratch, i + V4), load(scratch, i + V5)
                while waiting != u64(0):
                    j = lowest_bit(waiting)
                    waiting &= waiting - u64(1)
                    r = j * RECORD
                    dx, dy = x - batch[r + REC_X], y - batch[r + REC_Y]
                    t = batch[r + REC_LOG_OPACITY] - dx * (batch[r + REC_A] * dx)
                    t = t - dy * (batch[r + REC_B] * dx + batch[r + REC_C] * dy)
                    a = select(t >= F_LOG2_ALPHA_MIN, minimum(exp2(t), F_ALPHA_MAX), ZERO)
                    after = T * (ONE - a)
                    passes = after >= F_T_MIN
                    w = select(passes, a * T, ZERO)
                    T = maximum(after, F_T_STOPPED)
                    final = select(passes, after, final)
                    last = select(passes, batch[r + REC_NUMBER], last)
                    sum_r += w * batch[r + REC_R]
                    sum_g += w * batch[r + REC_G]
                    sum_b += w * batch[r + REC_BLUE]
                    sum_z += w * batch[r + REC_Z]
                    entry_blocks[begin + j] |= u64(1) << u64(block)
                store(scratch, i, T)
                store(scratch, i + V1, final)
                store(scratch, i + V2, sum_r)
                store(scratch, i + V3, sum_g)
                store(scratch, i + V4, sum_b)
                store(scratch, i + V5, sum_z)
                store(scratch, i + V6, last)
                if not any_lane(T >= F_T_MIN):
                    live &= ~(u64(1) << u64(block))

        for block in range(TILE_BLOCKS):
            i, k = block * FORWARD, tile * LEFT + block * 2 * LANES
            store(left, k, load(scratch, i + V1))
            store(left, k + LANES, load(scratch, i + V6))
        red, green, blue = backgrounds[v, 0], backgrounds[v, 1], backgrounds[v, 2]
        for row in range(rows):
            for column in range(columns):
                i = _pixel(row, column, FORWARD)
                pixel = (v * height + y0 + row) * width + x0 + column
                T = read(scratch, i + V1)
                write(rgb, 3 * pixel, read(scratch, i + V2) + T * red)
                write(rgb, 3 * pixel + 1, read(scratch, i + V3) + T * green)
                write(rgb, 3 * pixel + 2, read(scratch, i + V4) + T * blue)
                write(depth, pixel, read(scratch, i + V5))
                write(alpha, pixel, ONE - T)


@_kernel(
    "void(i8, i8, i8[::1], i4[::1], i4[::1], u8[::1], f4[::1], f4[:,::1], i8, i8, i8, i8,"
    "f4[::1], f4[::1], f4[::1], f4[::1], f4[::1])"
)
def composite_backward(
    start, stop, tile_starts, entry_splats, entry_pairs, entry_blocks, records, backgrounds, width, height,
    tiles_x, tiles_y, left, v_rgb, v_alpha, v_depth, pair_grads,
):  # fmt: skip
    """Gradients of every pair (PAIR_GRADS) of the tiles start <= tile < stop, back to front.

    With q_i = c_i . dL/drgb + z_i dL/ddepth, what shows behind entry i is, as if nothing stood before it,

        S_i = alpha_{i+1} q_{i+1} + (1 - alpha_{i+1}) S_{i+1},  at last background . dL/drgb - dL/dalpha

    and dL/dalpha_i = T_i (q_i - S_i). T_i comes from the saved T by dividing through 1 - alpha.

    Vectors of a block: V0 T_i, V1 S_i, V2 ... V5 dL/d(r, g, b, depth), V6 last entry, V7 and V8 x and y.
    """
    scratch = np.empty(TILE_BLOCKS * BACKWARD, np.float32)
    batch = np.empty(BATCH * RECORD, np.float32)
    lane_x, lane_y = _lane_offsets()
    nothing = spread(ZERO)
    for tile in range(start, stop):
        v = tile // (tiles_x * tiles_y)
        x0 = tile % tiles_x * TILE_W
        y0 = tile // tiles_x % tiles_y * TILE_H
        columns, rows = min(TILE_W, width - x0), min(TILE_H, height - y0)
        scratch[:] = ZERO
        for row in range(rows):
            for column in range(columns):
                i = _pixel(row, column, BACKWARD)
                pixel = (v * height + y0 + row) * width + x0 + column
                write(scratch, i + V1, -read(v_alpha, pixel))
                write(scratch, i + V2, read(v_rgb, 3 * pixel))
                write(scratch, i + V3, read(v_rgb, 3 * pixel + 1))
                write(scratch, i + V4, read(v_rgb, 3 * pixel + 2))
                write(scratch, i + V5, read(v_depth, pixel))
        red, green, blue = backgrounds[v, 0], backgrounds[v, 1], backgrounds[v, 2]
        for block in range(TILE_BLOCKS):
            i, k = block * BACKWARD, tile * LEFT + block * 2 * LANES
            behind = red * load(scratch, i + V2) + green * load(scratch, i + V3)
            behind = behind + blue * load(scratch, i + V4) + load(scratch, i + V1)
            store(scratch, i, load(left, k))
            store(scratch, i + V1, behind)
            store(scratch, i + V6, load(left, k + LANES))
            store(scratch, i + V7, lane_x + f32(block % BLOCK_COLUMNS * BLOCK_W))
            store(scratch, i + V8, lane_y + f32(block // BLOCK_COLUMNS * BLOCK_H))

        begin = tile_starts[tile]
        for entry in range(tile_starts[tile + 1] - 1, begin - 1, -1):
            j = (entry - begin) % BATCH
            if j == BATCH - 1 or entry == tile_starts[tile + 1] - 1:
                _load_records(records, entry_splats, entry - j, entry + 1, begin, f32(x0), f32(y0), batch)
            p, waiting = entry_pairs[entry] * PAIR_GRADS, entry_blocks[entry]
            if waiting == u64(0):
                for k in range(PAIR_GRADS):
                    pair_grads[p + k] = ZERO
                continue
            r = j * RECORD
            mean_x, mean_y, log_opacity = batch[r + REC_X], batch[r + REC_Y], batch[r + REC_LOG_OPACITY]
            A, B, C = batch[r + REC_A], batch[r + REC_B], batch[r + REC_C]
            red, green, blue, z = (
                batch[r + REC_R], batch[r + REC_G], batch[r + REC_BLUE], batch[r + REC_Z]
            )  # fmt: skip
            number = spread(batch[r + REC_NUMBER])
            g_1, g_x, g_y, g_xx, g_xy, g_yy = nothing, nothing, nothing, nothing, nothing, nothing
            g_red, g_green, g_blue, g_z = nothing, nothing, nothing, nothing
            while waiting != u64(0):
                i = lowest_bit(waiting) * BACKWARD
                waiting &= waiting - u64(1)
                dx, dy = load(scratch, i + V7) - mean_x, load(scratch, i + V8) - mean_y
                t = log_opacity - dx * (A * dx) - dy * (B * dx + C * dy)
                counts = (t >= F_LOG2_ALPHA_MIN) & (number <= load(scratch, i + V6))
                raw = select(counts, exp2(t), ZERO)
                a = minimum(raw, F_ALPHA_MAX)
                v_r, v_g = load(scratch, i + V2), load(scratch, i + V3)
                v_b, v_z = load(scratch, i + V4), load(scratch, i + V5)
                T, behind = load(scratch, i) / (ONE - a), load(scratch, i + V1)
                contrast = red * v_r + green * v_g + blue * v_b + z * v_z - behind
                store(scratch, i, T)
                store(scratch, i + V1, behind + a * contrast)
                w = a * T
                g = select(raw < F_ALPHA_MAX, w * contrast, ZERO)  # at the cap alpha is constant
                g_dx, g_dy = g * dx, g * dy
                g_1 += g
                g_x += g_dx
                g_y += g_dy
                g_xx += g_dx * dx
                g_xy += g_dx * dy
                g_yy += g_dy * dy
                g_red += w * v_r
                g_green += w * v_g
                g_blue += w * v_b
                g_z += w * v_z
            store(pair_grads, p, totals(g_1, g_x, g_y, g_xx, g_xy, g_yy, g_red, g_green))
            pair_grads[p + 8], pair_grads[p + 9] = total(g_blue), total(g_z)


@_kernel("void(i8, i8, i8[::1], f4[::1], f4[::1], f4[::1], f4[::1], f4[::1], f4[::1], f4[::1], f4[::1])")
def reduce_pairs(
    start, stop, pair_offsets, pair_grads, conics, opacities,
    v_means2d, v_depths, v_conics, v_opacities, v_colors,
):  # fmt: skip
    """Sums the gradients of the pairs of the Gaussians start <= n < stop, in order. All arrays are flat.

    Over the tiles of a view in float32, as over the pixels of a tile; over the views in float64.
    """
    count, last = len(opacities), stop - 1
    views, own_colors = len(v_depths) // max(count, 1), len(v_colors) // 3 // max(count, 1)
    sums, row, last_lane = np.zeros(LANES * 2 * LANES, np.float32), np.int64(2 * LANES), np.int64(LANES - 1)
    rest = PAIR_GRADS - LANES
    nothing = spread(0.0)
    for n in range(start, stop, LANES):
        v_opacity, v_red, v_green, v_blue = nothing, nothing, nothing, nothing
        for v in range(views):
            g, own = v * count, min(v, own_colors - 1) * count
            for lane in range(LANES):
                splat = g + min(n + lane, last)
                first, second = spread(ZERO), spread(ZERO)
                for pair in range(pair_offsets[splat], pair_offsets[splat + 1]):
                    first += load(pair_grads, pair * PAIR_GRADS)
                    second += load(pair_grads, pair * PAIR_GRADS + rest)  # the last LANES
                store(sums, lane * row, first)
                store(sums, lane * row + rest, second)
            a, b, c = _triples(conics, n, last, g)
            along_x, along_y = gather(sums, 0, last_lane, row, 1), gather(sums, 0, last_lane, row, 2)
            scatter(v_means2d, n, last, 2, 2 * g, a * along_x + b * along_y)
            scatter(v_means2d, n, last, 2, 2 * g + 1, b * along_x + c * along_y)
            scatter(v_conics, n, last, 3, 3 * g, -0.5 * gather(sums, 0, last_lane, row, 3))
            scatter(v_conics, n, last, 3, 3 * g + 1, -gather(sums, 0, last_lane, row, 4))
            scatter(v_conics, n, last, 3, 3 * g + 2, -0.5 * gather(sums, 0, last_lane, row, 5))
            scatter(v_depths, n, last, 1, g, gather(sums, 0, last_lane, row, 9))
            v_opacity += gather(sums, 0, last_lane, row, 0)
            if v < own_colors:
                v_red, v_green, v_blue = nothing, nothing, nothing
            v_red += gather(sums, 0, last_lane, row, 6)
            v_green += gather(sums, 0, last_lane, row, 7)
            v_blue += gather(sums, 0, last_lane, row, 8)
            scatter(v_colors, n, last, 3, 3 * own, v_red)
            scatter(v_colors, n, last, 3, 3 * own + 1, v_green)
            scatter(v_colors, n, last, 3, 3 * own + 2, v_blue)
        opacity = gather(opacities, n, last, 1, 0)
        scatter(v_opacities, n, last, 1, 0, select(opacity > 0.0, v_opacity / opacity, 0.0))
