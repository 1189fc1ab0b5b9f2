"""The compiled kernels of the CPU back end. Importing this module compiles them or loads them from a cache.

Every kernel works on a range [start, stop) of independent items and writes nothing that another item reads,
so `threads.run` may split the range over threads in any way: results are bit-identical for any number of
threads.

Notation (with that of projection.py):
    B views, N Gaussians, a splat g = view * N + Gaussian, G = B N of them
    tile        a block of TILE_W x TILE_H pixels; tiles are numbered view by view, row by row
    pair p      one splat on one tile; the pairs of splat g are pair_offsets[g] ... pair_offsets[g + 1] - 1
    entries     the same pairs, listed tile by tile, nearest first: (splat, pair) numbers
    f4[:, ::1]  in a signature: a C-contiguous array [., .] of 4-byte floats; i8: an 8-byte integer
    log alpha   log2(opacity) - (A dx^2 + B dx dy + C dy^2), (A, B, C) = log2(e) (a / 2, b, c / 2)

A row of a record [G, 16] holds all that compositing needs of a splat, in one cache line; see the REC_ names.
An ellipse alpha >= 1/255 is kept in sheared coordinates: on the pixel row at dy it is the interval with the
centre mean_x - shear dy and the half-width sqrt(half_width^2 - taper dy^2).

What makes it fast: the innermost loops run over LANES neighbouring pixels, have no branches, and touch one
scratch array at constant distances, so that LLVM turns them into straight vector code; exp is a polynomial;
only a window around the ellipse is visited on each row.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from ..compiled import cached
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

f32, f64, u64 = np.float32, np.float64, np.uint64

LANES = 16  # pixels of an innermost loop: one AVX-512 register, two of AVX2, four of NEON
TILE_W, TILE_H = 32, 16
TILE_PIXELS = TILE_W * TILE_H
BATCH = 64  # entries of a tile that are made ready at a time
LIVE_CHECK = 8  # entries between two looks at which rows of a tile still let light through

REC_X, REC_Y, REC_A, REC_B, REC_C, REC_LOG_OPACITY = range(6)
REC_R, REC_G, REC_BLUE, REC_Z = range(6, 10)
REC_SHEAR, REC_HALF2, REC_TAPER, REC_HALF_H, REC_FIRST_COLUMN, REC_LAST_COLUMN = range(10, 16)
RECORD = 16

# Gradients of a pair, summed over the pixels of the tile, with v = alpha dL/dalpha:
# sum of v, v dx, v dy, v dx^2, v dx dy, v dy^2, then of w dL/d(r, g, b, depth).
PAIR_GRADS = 10

# Planes of a tile's scratch array. Padded: addresses that are equal modulo 4096 would stall each other.
PLANE = TILE_PIXELS + 40
P0, P1, P2, P3, P4, P5, P6 = (u64(i * PLANE) for i in range(7))
A0, A1, A2, A3, A4, A5, A6, A7, A8, A9 = (u64(i * LANES) for i in range(PAIR_GRADS))

LOG2_E = math.log2(math.e)
LOG2_ALPHA_MIN = math.log2(ALPHA_MIN)
F_LOG2_ALPHA_MIN = f32(LOG2_ALPHA_MIN)
F_ALPHA_MAX = f32(ALPHA_MAX)
F_T_MIN = f32(TRANSMITTANCE_MIN)
ZERO, HALF, ONE = f32(0), f32(0.5), f32(1)
ALMOST_ONE, ALMOST_HALF = f32(0.999), f32(0.499)  # rounding up by truncation, with a hair of slack
SPAN_SLACK = (
    1.0 + 1e-5
)  # float32 may put a pixel on the wrong side of the ellipse's edge: never leave one out

# 2^f on (-1, 0], least squares of relative error, degree 5: 8e-8 off at most.
E0, E1, E2, E3, E4, E5 = (
    f32(c)
    for c in (9.99999923e-01, 6.93142171e-01, 2.40171588e-01, 5.52781350e-02, 9.18687438e-03, 9.38116473e-04)
)

# Everything of "fast" but the promise that there are no infinities or NaNs.
FAST_MATH = {"reassoc", "contract", "arcp", "afn", "nsz"}


def _kernel(signature: str):
    """Compiles for exactly one signature; runs without the interpreter lock; caches on disk if it can."""
    return cached(signature, nogil=True, fastmath=FAST_MATH, error_model="numpy")


_inline = njit(fastmath=FAST_MATH, error_model="numpy")


# --- projection -----------------------------------------------------------------------------------
# Scalars are float64 here: it costs nothing in scalar code and thin, long Gaussians need the digits.


@_inline
def _rotation(quats, n):
    """Rotation matrix (nine scalars), unit quaternion and the length of the given one."""
    w, x, y, z = f64(quats[n, 0]), f64(quats[n, 1]), f64(quats[n, 2]), f64(quats[n, 3])
    length = max(math.sqrt(w * w + x * x + y * y + z * z), 1e-12)
    w, x, y, z = w / length, x / length, y / length, z / length
    rotation = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return rotation, (w, x, y, z), length


@_inline
def _scales(scales, v, n):
    """Scales of a Gaussian in a view, of [B or 1, N, 3]."""
    v = min(v, scales.shape[0] - 1)
    return f64(scales[v, n, 0]), f64(scales[v, n, 1]), f64(scales[v, n, 2])


@_inline
def _to_camera(viewmats, v, x, y, z):
    """Camera coordinates of a world point."""
    return (
        viewmats[v, 0, 0] * x + viewmats[v, 0, 1] * y + viewmats[v, 0, 2] * z + viewmats[v, 0, 3],
        viewmats[v, 1, 0] * x + viewmats[v, 1, 1] * y + viewmats[v, 1, 2] * z + viewmats[v, 1, 3],
        viewmats[v, 2, 0] * x + viewmats[v, 2, 1] * y + viewmats[v, 2, 2] * z + viewmats[v, 2, 3],
    )


@_inline
def _clamped_slope(slope, focal, centre, size):
    """x / z (or y / z) limited to the image and a margin, and whether it was inside of the limits."""
    margin = FOV_MARGIN * size / (2 * focal)
    low, high = -centre / focal - margin, (size - centre) / focal + margin
    return min(max(slope, low), high), low <= slope <= high


@_inline
def _covariance(viewmats, v, rotation, sx, sy, sz, fx, fy, slope_x, slope_y, z):
    """Rows j0, j1 of J W, and rows p0, p1 of J W R S, whose product p p^T is the covariance on the image."""
    j0 = (
        (viewmats[v, 0, 0] - slope_x * viewmats[v, 2, 0]) * fx / z,
        (viewmats[v, 0, 1] - slope_x * viewmats[v, 2, 1]) * fx / z,
        (viewmats[v, 0, 2] - slope_x * viewmats[v, 2, 2]) * fx / z,
    )
    j1 = (
        (viewmats[v, 1, 0] - slope_y * viewmats[v, 2, 0]) * fy / z,
        (viewmats[v, 1, 1] - slope_y * viewmats[v, 2, 1]) * fy / z,
        (viewmats[v, 1, 2] - slope_y * viewmats[v, 2, 2]) * fy / z,
    )
    r = rotation
    p0 = (
        (j0[0] * r[0] + j0[1] * r[3] + j0[2] * r[6]) * sx,
        (j0[0] * r[1] + j0[1] * r[4] + j0[2] * r[7]) * sy,
        (j0[0] * r[2] + j0[1] * r[5] + j0[2] * r[8]) * sz,
    )
    p1 = (
        (j1[0] * r[0] + j1[1] * r[3] + j1[2] * r[6]) * sx,
        (j1[0] * r[1] + j1[1] * r[4] + j1[2] * r[7]) * sy,
        (j1[0] * r[2] + j1[1] * r[5] + j1[2] * r[8]) * sz,
    )
    return j0, j1, p0, p1


@_kernel(
    "void(i8, i8, f4[:,::1], f4[:,::1], f4[:,:,::1], f8[:,:,::1], f8[:,:,::1],"
    "i8, i8, f8, f8, f4[:,:,::1], f4[:,::1], f4[:,:,::1])"
)
def project_forward(
    start, stop, means, quats, scales, viewmats, Ks, width, height, near, eps2d, means2d, depths, conics
):
    """projection.project, for Gaussians start <= n < stop in all views; scales [B or 1, N, 3]."""
    for n in range(start, stop):
        rotation, _, _ = _rotation(quats, n)
        for v in range(viewmats.shape[0]):
            sx, sy, sz = _scales(scales, v, n)
            x, y, z = _to_camera(viewmats, v, f64(means[n, 0]), f64(means[n, 1]), f64(means[n, 2]))
            depths[v, n] = z
            means2d[v, n, 0] = 0.0
            means2d[v, n, 1] = 0.0
            conics[v, n, 0] = 0.0
            conics[v, n, 1] = 0.0
            conics[v, n, 2] = 0.0
            if z < near:
                continue
            fx, fy, cx, cy = Ks[v, 0, 0], Ks[v, 1, 1], Ks[v, 0, 2], Ks[v, 1, 2]
            slope_x, _ = _clamped_slope(x / z, fx, cx, width)
            slope_y, _ = _clamped_slope(y / z, fy, cy, height)
            _, _, p0, p1 = _covariance(viewmats, v, rotation, sx, sy, sz, fx, fy, slope_x, slope_y, z)
            xx = p0[0] * p0[0] + p0[1] * p0[1] + p0[2] * p0[2] + eps2d
            xy = p0[0] * p1[0] + p0[1] * p1[1] + p0[2] * p1[2]
            yy = p1[0] * p1[0] + p1[1] * p1[1] + p1[2] * p1[2] + eps2d
            determinant = xx * yy - xy * xy
            if not (determinant > 0.0 and determinant < math.inf):
                continue
            means2d[v, n, 0] = fx * x / z + cx
            means2d[v, n, 1] = fy * y / z + cy
            conics[v, n, 0] = yy / determinant
            conics[v, n, 1] = -xy / determinant
            conics[v, n, 2] = xx / determinant


@_kernel(
    "void(i8, i8, f4[:,::1], f4[:,::1], f4[:,:,::1], f8[:,:,::1], f8[:,:,::1],"
    "i8, i8, f4[:,:,::1], f4[:,:,::1], f4[:,::1], f4[:,:,::1],"
    "f4[:,::1], f4[:,::1], f4[:,:,::1])"
)
def project_backward(
    start, stop, means, quats, scales, viewmats, Ks, width, height, conics, v_means2d, v_depths, v_conics,
    v_means, v_quats, v_scales,
):  # fmt: skip
    """Gradients of `project_forward`, summed over the views in order."""
    for n in range(start, stop):
        r, quat, length = _rotation(quats, n)
        gx, gy, gz = 0.0, 0.0, 0.0  # dL/dmean
        # dL/dR: nine scalars, row by row
        m00, m01, m02, m10, m11, m12, m20, m21, m22 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for v in range(scales.shape[0]):
            v_scales[v, n, 0], v_scales[v, n, 1], v_scales[v, n, 2] = ZERO, ZERO, ZERO
        for v in range(viewmats.shape[0]):
            sx, sy, sz = _scales(scales, v, n)
            v_u, v_v, v_z = f64(v_means2d[v, n, 0]), f64(v_means2d[v, n, 1]), f64(v_depths[v, n])
            v_a, v_b, v_c = f64(v_conics[v, n, 0]), f64(v_conics[v, n, 1]), f64(v_conics[v, n, 2])
            a, b, c = f64(conics[v, n, 0]), f64(conics[v, n, 1]), f64(conics[v, n, 2])
            if a > 0.0:
                x, y, z = _to_camera(viewmats, v, f64(means[n, 0]), f64(means[n, 1]), f64(means[n, 2]))
                fx, fy = Ks[v, 0, 0], Ks[v, 1, 1]
                slope_x, free_x = _clamped_slope(x / z, fx, Ks[v, 0, 2], width)
                slope_y, free_y = _clamped_slope(y / z, fy, Ks[v, 1, 2], height)
                j0, j1, p0, p1 = _covariance(viewmats, v, r, sx, sy, sz, fx, fy, slope_x, slope_y, z)

                # 1. conic = cov^-1:  dL/dcov = -conic dL/dconic conic, both symmetric
                t00, t01 = v_a * a + v_b * b / 2, v_a * b + v_b * c / 2
                t10, t11 = v_b * a / 2 + v_c * b, v_b * b / 2 + v_c * c
                v_xx, v_yy = -(a * t00 + b * t10), -(b * t01 + c * t11)
                v_xy = -(a * t01 + b * t11)

                # 2. cov = p p^T:  dL/dp = 2 dL/dcov p
                q0 = (
                    2 * (v_xx * p0[0] + v_xy * p1[0]),
                    2 * (v_xx * p0[1] + v_xy * p1[1]),
                    2 * (v_xx * p0[2] + v_xy * p1[2]),
                )
                q1 = (
                    2 * (v_xy * p0[0] + v_yy * p1[0]),
                    2 * (v_xy * p0[1] + v_yy * p1[1]),
                    2 * (v_xy * p0[2] + v_yy * p1[2]),
                )

                # 3. p = (J W) (R S):  to S, to R, and to J W (k0, k1)
                own = min(v, scales.shape[0] - 1)
                for axis in range(3):
                    along_0 = j0[0] * r[axis] + j0[1] * r[3 + axis] + j0[2] * r[6 + axis]
                    along_1 = j1[0] * r[axis] + j1[1] * r[3 + axis] + j1[2] * r[6 + axis]
                    v_scales[own, n, axis] += q0[axis] * along_0 + q1[axis] * along_1
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
                k0 = (
                    q0[0] * r[0] + q0[1] * r[1] + q0[2] * r[2],
                    q0[0] * r[3] + q0[1] * r[4] + q0[2] * r[5],
                    q0[0] * r[6] + q0[1] * r[7] + q0[2] * r[8],
                )
                k1 = (
                    q1[0] * r[0] + q1[1] * r[1] + q1[2] * r[2],
                    q1[0] * r[3] + q1[1] * r[4] + q1[2] * r[5],
                    q1[0] * r[6] + q1[1] * r[7] + q1[2] * r[8],
                )

                # 4. J W: row 0 is fx / z (W_0 - slope_x W_2), row 1 fy / z (W_1 - slope_y W_2)
                w20, w21, w22 = viewmats[v, 2, 0], viewmats[v, 2, 1], viewmats[v, 2, 2]
                v_slope_x = -(k0[0] * w20 + k0[1] * w21 + k0[2] * w22) * fx / z
                v_slope_y = -(k1[0] * w20 + k1[1] * w21 + k1[2] * w22) * fy / z
                v_z -= (k0[0] * j0[0] + k0[1] * j0[1] + k0[2] * j0[2]) / z
                v_z -= (k1[0] * j1[0] + k1[1] * j1[1] + k1[2] * j1[2]) / z

                # 5. centre (u, v) = (fx x / z + cx, fy y / z + cy), and the slopes where they are not clamped
                v_slope_x = v_u * fx + (v_slope_x if free_x else 0.0)
                v_slope_y = v_v * fy + (v_slope_y if free_y else 0.0)
                v_x, v_y = v_slope_x / z, v_slope_y / z
                v_z -= (v_slope_x * x + v_slope_y * y) / (z * z)
            else:
                v_x, v_y = 0.0, 0.0

            # 6. camera = W mean + t
            gx += viewmats[v, 0, 0] * v_x + viewmats[v, 1, 0] * v_y + viewmats[v, 2, 0] * v_z
            gy += viewmats[v, 0, 1] * v_x + viewmats[v, 1, 1] * v_y + viewmats[v, 2, 1] * v_z
            gz += viewmats[v, 0, 2] * v_x + viewmats[v, 1, 2] * v_y + viewmats[v, 2, 2] * v_z

        v_means[n, 0], v_means[n, 1], v_means[n, 2] = gx, gy, gz

        # 7. R of the unit quaternion, then the normalisation
        w, x, y, z = quat
        v_qw = 2 * (x * (m21 - m12) + y * (m02 - m20) + z * (m10 - m01))
        v_qx = 2 * (-2 * x * (m11 + m22) + y * (m01 + m10) + z * (m02 + m20) + w * (m21 - m12))
        v_qy = 2 * (x * (m01 + m10) - 2 * y * (m00 + m22) + z * (m12 + m21) + w * (m02 - m20))
        v_qz = 2 * (x * (m02 + m20) + y * (m12 + m21) - 2 * z * (m00 + m11) + w * (m10 - m01))
        along = w * v_qw + x * v_qx + y * v_qy + z * v_qz
        v_quats[n, 0] = (v_qw - along * w) / length
        v_quats[n, 1] = (v_qx - along * x) / length
        v_quats[n, 2] = (v_qy - along * y) / length
        v_quats[n, 3] = (v_qz - along * z) / length


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


@_inline
def _tile_row_range(record, height):
    """Rows of tiles [first, last) that hold pixel centres between the ellipse's top and bottom."""
    top = max(record[REC_Y] - record[REC_HALF_H] - 0.5, 0.0)
    bottom = min(record[REC_Y] + record[REC_HALF_H] - 0.5, height - 1.0)
    if not top <= bottom:
        return 0, 0
    return math.ceil(top) // TILE_H, int(bottom) // TILE_H + 1


@_inline
def _tile_column_range(record, tile_row, width, height):
    """Columns of tiles [first, last) that the ellipse touches in the pixel rows of one row of tiles.

    The right edge, mean_x - shear dy + sqrt(half_width^2 - taper dy^2), is concave in dy, so its largest
    value lies at its apex or at the end of the slab nearest to it; the left edge mirrors it.
    """
    if (
        record[REC_LAST_COLUMN] - record[REC_FIRST_COLUMN] <= ONE
    ):  # the usual case: all of it is in one column
        return np.int64(record[REC_FIRST_COLUMN]), np.int64(record[REC_LAST_COLUMN])
    half2, taper, shear, half_h = record[REC_HALF2], record[REC_TAPER], record[REC_SHEAR], record[REC_HALF_H]
    low = max(tile_row * TILE_H + 0.5 - record[REC_Y], -half_h)
    high = min(min((tile_row + 1) * TILE_H, height) - 0.5 - record[REC_Y], half_h)
    if not low <= high:
        return 0, 0
    apex = shear * math.sqrt(half2 / (1.0 + shear * shear / taper)) / taper
    at_right, at_left = min(max(-apex, low), high), min(max(apex, low), high)
    right = record[REC_X] - shear * at_right + math.sqrt(max(half2 - taper * at_right * at_right, 0.0)) - 0.5
    left = record[REC_X] - shear * at_left - math.sqrt(max(half2 - taper * at_left * at_left, 0.0)) - 0.5
    left, right = max(left, 0.0), min(right, width - 1.0)
    if not left <= right:
        return 0, 0
    return math.ceil(left) // TILE_W, int(right) // TILE_W + 1


@_kernel(
    "void(i8, i8, f4[:,::1], f4[::1], f4[:,::1], f4[::1], f4[:,:,::1],i8, i8, f4[:,::1], i4[::1], i8[::1])"
)
def make_records(
    start, stop, means2d, depths, conics, opacities, colors, width, height, records, radii, pair_counts
):
    """Records, radii (see projection.compute_radii) and numbers of tiles of the splats start <= g < stop."""
    count = opacities.shape[0]
    for g in range(start, stop):
        n = g % count
        v = min(g // count, colors.shape[0] - 1)
        radii[g] = 0
        pair_counts[g] = 0
        opacity = f64(opacities[n])
        a, b, c = f64(conics[g, 0]), f64(conics[g, 1]), f64(conics[g, 2])
        determinant = a * c - b * b
        if not (a > 0.0 and determinant > 0.0 and opacity >= ALPHA_MIN):
            continue
        x, y = f64(means2d[g, 0]), f64(means2d[g, 1])
        log_opacity = math.log2(opacity)
        reach = 2 * (log_opacity - LOG2_ALPHA_MIN) / LOG2_E
        half_x, half_y = math.sqrt(reach * c / determinant), math.sqrt(reach * a / determinant)
        if x + half_x < 0.5 or x - half_x > width - 0.5 or y + half_y < 0.5 or y - half_y > height - 0.5:
            continue
        largest = ((a + c) / 2 + math.sqrt((a - c) * (a - c) / 4 + b * b)) / determinant
        radii[g] = int(min(max(math.ceil(math.sqrt(reach * largest)), 1.0), 2.0**30))

        record = records[g]
        record[REC_X], record[REC_Y] = x, y
        record[REC_A], record[REC_B], record[REC_C] = LOG2_E * a / 2, LOG2_E * b, LOG2_E * c / 2
        record[REC_LOG_OPACITY] = log_opacity
        record[REC_R], record[REC_G], record[REC_BLUE] = colors[v, n, 0], colors[v, n, 1], colors[v, n, 2]
        record[REC_Z] = depths[g]
        record[REC_SHEAR] = b / a
        record[REC_HALF2] = reach / a * SPAN_SLACK
        record[REC_TAPER] = determinant / (a * a)
        record[REC_HALF_H] = half_y * SPAN_SLACK
        left, right = x - half_x * SPAN_SLACK - 0.5, x + half_x * SPAN_SLACK - 0.5
        record[REC_FIRST_COLUMN] = int(min(max(left, 0.0), width - 1.0)) // TILE_W
        record[REC_LAST_COLUMN] = int(min(max(right, 0.0), width - 1.0)) // TILE_W + 1
        first, last = _tile_row_range(record, height)
        for tile_row in range(first, last):
            left, right = _tile_column_range(record, tile_row, width, height)
            pair_counts[g] += right - left


@_kernel("void(i8, i8, f4[:,::1], i8[:,::1], i4[:,::1], i8[::1])")
def sort_by_depth(start, stop, depths, pair_counts, order, num_shown):
    """For views start <= v < stop: order[v, :num_shown[v]], the Gaussians that show, nearest first.

    Ties keep the order of the Gaussians. Radix sort by the bits of the depth, which for positive floats sort
    like the numbers.
    """
    count = depths.shape[1]
    keys, keys_swap = np.empty(count, np.uint32), np.empty(count, np.uint32)
    items, items_swap = np.empty(count, np.int32), np.empty(count, np.int32)
    for v in range(start, stop):
        bits = depths[v].view(np.uint32)
        shown = 0
        for n in range(count):
            if pair_counts[v, n] > 0:
                keys[shown] = bits[n]
                items[shown] = n
                shown += 1
        for digit in range(3):
            shift = np.uint32(11 * digit)
            places = np.zeros(2049, np.int64)
            for i in range(shown):
                places[((keys[i] >> shift) & np.uint32(2047)) + 1] += 1
            for i in range(2048):
                places[i + 1] += places[i]
            for i in range(shown):
                bucket = (keys[i] >> shift) & np.uint32(2047)
                keys_swap[places[bucket]] = keys[i]
                items_swap[places[bucket]] = items[i]
                places[bucket] += 1
            keys, keys_swap = keys_swap, keys
            items, items_swap = items_swap, items
        num_shown[v] = shown
        for i in range(shown):
            order[v, i] = items[i]


@_kernel("void(i8, i8, f4[:,::1], i4[:,::1], i8[::1], i8, i8, i8, i8[:,:,::1])")
def count_tiles(start, stop, records, order, num_shown, width, height, tiles_x, tile_counts):
    """tile_counts[view, part, tile]: how many splats of one part of the depth order touch each tile.

    An item is a (view, part): the order of each view is cut into tile_counts.shape[1] parts.
    """
    count, parts = order.shape[1], tile_counts.shape[1]
    for item in range(start, stop):
        v, part = item // parts, item % parts
        counts = tile_counts[v, part]
        counts[:] = 0
        for i in range(num_shown[v] * part // parts, num_shown[v] * (part + 1) // parts):
            record = records[v * count + order[v, i]]
            first, last = _tile_row_range(record, height)
            for tile_row in range(first, last):
                left, right = _tile_column_range(record, tile_row, width, height)
                for tile in range(tile_row * tiles_x + left, tile_row * tiles_x + right):
                    counts[tile] += 1


@_kernel("void(i8, i8, f4[:,::1], i4[:,::1], i8[::1], i8[::1], i8, i8, i8, i8[:,:,::1],i4[::1], i4[::1])")
def fill_tiles(
    start,
    stop,
    records,
    order,
    num_shown,
    pair_offsets,
    width,
    height,
    tiles_x,
    places,
    entry_splats,
    entry_pairs,
):
    """Lists the entries of every tile in depth order.

    Items as in `count_tiles`; places[view, part, tile]: where the entries of a part in a tile start.
    """
    count, parts = order.shape[1], places.shape[1]
    for item in range(start, stop):
        v, part = item // parts, item % parts
        cursor = places[v, part].copy()
        for i in range(num_shown[v] * part // parts, num_shown[v] * (part + 1) // parts):
            splat = v * count + order[v, i]
            record = records[splat]
            pair = pair_offsets[splat]
            first, last = _tile_row_range(record, height)
            for tile_row in range(first, last):
                left, right = _tile_column_range(record, tile_row, width, height)
                for tile in range(tile_row * tiles_x + left, tile_row * tiles_x + right):
                    entry_splats[cursor[tile]] = splat
                    entry_pairs[cursor[tile]] = pair
                    cursor[tile] += 1
                    pair += 1


# --- compositing ----------------------------------------------------------------------------------


@_inline
def _exp2(t):
    """2^t for -126 < t <= 0."""
    whole = np.int32(t)
    fraction = t - f32(whole)
    mantissa = ((((E5 * fraction + E4) * fraction + E3) * fraction + E2) * fraction + E1) * fraction + E0
    return mantissa * np.int32((whole + np.int32(127)) << np.int32(23)).view(np.float32)


@_inline
def _window(record, half, rows):
    """Where a splat may show in a tile: its rows [first, last), and how many windows on each.

    A window is LANES pixels wide. The windows slide along the ellipse's sheared axis, see `_window_start`;
    their number is that of the row where the ellipse has most of its width inside of the tile.
    """
    mean_x, mean_y, half_h, shear = record[REC_X], record[REC_Y], record[REC_HALF_H], record[REC_SHEAR]
    first = np.int64(min(max(mean_y - half_h + ALMOST_HALF, ZERO), rows))
    last = np.int64(min(max(mean_y + half_h + HALF, ZERO), rows))
    at_first = mean_x - shear * (f32(first) + HALF - mean_y)
    at_last = mean_x - shear * (f32(last) - HALF - mean_y)
    centre = max(min(at_first, at_last), min(max(at_first, at_last), f32(TILE_W / 2)))
    left, right = max(centre - half, ZERO), min(centre + half, f32(TILE_W))
    if not left <= right or first >= last:
        return 0, 0, 0
    windows = min((np.int64(right - left + ONE) + (LANES - 1)) // LANES, TILE_W // LANES)
    return first, last, windows


@_inline
def _load_batch(records, entry_splats, begin, end, x0, y0, rows, batch, spans):
    """Readies the entries begin <= entry < end of the tile at (x0, y0).

    Into `batch` [BATCH, 16] their records, the means counted from the tile's corner and REC_HALF2 replaced by
    its root; into `spans` [BATCH, 3] their `_window`s. Fetching many at once hides how slow memory is.
    """
    for j in range(end - begin):
        splat = entry_splats[begin + j]
        for k in range(RECORD):
            batch[j, k] = records[splat, k]
    for j in range(end - begin):
        record = batch[j]
        record[REC_X] -= x0
        record[REC_Y] -= y0
        record[REC_HALF2] = math.sqrt(record[REC_HALF2])
        spans[j, 0], spans[j, 1], spans[j, 2] = _window(record, record[REC_HALF2], rows)


@_inline
def _window_start(mean_x, dy, shear, half, windows):
    """First column, counted as `mean_x` from the tile's left, of the windows on the row at dy."""
    return np.int64(min(max(mean_x - shear * dy - half + ALMOST_HALF, ZERO), f32(TILE_W - LANES * windows)))


@_inline
def _stopped(scratch, row):
    """Whether every pixel of a tile row has stopped."""
    live = ZERO
    for column in range(TILE_W):
        live += ONE if scratch[row * TILE_W + column] > ZERO else ZERO
    return live == ZERO


@_inline
def _live_rows(scratch, first, last):
    """Shrinks the range [first, last) of tile rows to those where some pixel has not stopped."""
    while first < last and _stopped(scratch, first):
        first += 1
    while first < last and _stopped(scratch, last - 1):
        last -= 1
    return first, last


@_kernel(
    "void(i8, i8, i8[::1], i4[::1], f4[:,::1], f4[:,::1], i8, i8, i8, i8,"
    "f4[:,:,:,::1], f4[:,:,::1], f4[:,:,::1], f4[:,:,::1], f4[:,:,::1])"
)
def composite_forward(
    start, stop, tile_starts, entry_splats, records, backgrounds, width, height, tiles_x, tiles_y,
    rgb, alpha, depth, transmittance, last_entry,
):  # fmt: skip
    """Composites the tiles start <= tile < stop, front to back.

    Also written, for the backward pass: the final transmittance and, counted from the tile's first entry, the
    last entry that contributed (-1: none), per pixel.

    Scratch planes: P0 transmittance, negated once the pixel has stopped; P1 ... P4 sums of r, g, b, depth; P5
    last entry (a float, so that the planes are one array).
    """
    scratch = np.empty(6 * PLANE, np.float32)
    batch, spans = np.empty((BATCH, RECORD), np.float32), np.empty((BATCH, 3), np.int64)
    for tile in range(start, stop):
        v = tile // (tiles_x * tiles_y)
        x0 = tile % tiles_x * TILE_W
        y0 = tile // tiles_x % tiles_y * TILE_H
        columns, rows = min(TILE_W, width - x0), min(TILE_H, height - y0)
        fx0, fy0 = f32(x0), f32(y0)
        scratch[:PLANE] = -ONE  # columns beyond the image are stopped from the start
        scratch[PLANE : 5 * PLANE] = ZERO
        scratch[5 * PLANE :] = -ONE
        for row in range(rows):
            scratch[row * TILE_W : row * TILE_W + columns] = ONE

        live_first, live_last = 0, rows
        begin = tile_starts[tile]
        for entry in range(begin, tile_starts[tile + 1]):
            j = (entry - begin) % BATCH
            if j == 0:
                end = min(entry + BATCH, tile_starts[tile + 1])
                _load_batch(records, entry_splats, entry, end, fx0, fy0, f32(rows), batch, spans)
            if j % LIVE_CHECK == LIVE_CHECK - 1:
                live_first, live_last = _live_rows(scratch, live_first, live_last)
                if live_first == live_last:
                    break
            record = batch[j]
            first, last, windows = spans[j, 0], spans[j, 1], spans[j, 2]
            mean_x, mean_y, half = record[REC_X], record[REC_Y], record[REC_HALF2]
            A, B, C, log_opacity = record[REC_A], record[REC_B], record[REC_C], record[REC_LOG_OPACITY]
            red, green, blue, z = record[REC_R], record[REC_G], record[REC_BLUE], record[REC_Z]
            shear = record[REC_SHEAR]
            number = f32(entry - begin)
            for row in range(max(first, live_first), min(last, live_last)):
                dy = f32(row) + HALF - mean_y
                column = _window_start(mean_x, dy, shear, half, windows)
                constant, linear = log_opacity - C * dy * dy, B * dy
                dx0 = f32(column) + HALF - mean_x
                base = u64(row * TILE_W + column)
                for _ in range(windows):
                    for lane in range(LANES):
                        i = base + u64(lane)
                        dx = dx0 + f32(lane)
                        t = constant - dx * (A * dx + linear)
                        a = _exp2(t if t > F_LOG2_ALPHA_MIN else F_LOG2_ALPHA_MIN)
                        a = a if a < F_ALPHA_MAX else F_ALPHA_MAX
                        a = a if t >= F_LOG2_ALPHA_MIN else ZERO
                        T = scratch[i + P0]
                        w = a * T
                        after = T - w
                        stops = after < F_T_MIN
                        w = ZERO if stops else w
                        scratch[i + P0] = -abs(T) if stops else after
                        scratch[i + P1] += w * red
                        scratch[i + P2] += w * green
                        scratch[i + P3] += w * blue
                        scratch[i + P4] += w * z
                        previous = scratch[i + P5]
                        scratch[i + P5] = number if w > ZERO else previous
                    base += u64(LANES)
                    dx0 += f32(LANES)

        for row in range(rows):
            for column in range(columns):
                i = row * TILE_W + column
                y, x = y0 + row, x0 + column
                T = abs(scratch[i])
                rgb[v, y, x, 0] = scratch[i + PLANE] + T * backgrounds[v, 0]
                rgb[v, y, x, 1] = scratch[i + 2 * PLANE] + T * backgrounds[v, 1]
                rgb[v, y, x, 2] = scratch[i + 3 * PLANE] + T * backgrounds[v, 2]
                depth[v, y, x] = scratch[i + 4 * PLANE]
                alpha[v, y, x] = ONE - T
                transmittance[v, y, x] = T
                last_entry[v, y, x] = scratch[i + 5 * PLANE]


@_kernel(
    "void(i8, i8, i8[::1], i4[::1], i4[::1], f4[:,::1], f4[:,::1], i8, i8, i8, i8,"
    "f4[:,:,::1], f4[:,:,::1], f4[:,:,:,::1], f4[:,:,::1], f4[:,:,::1], f4[:,::1])"
)
def composite_backward(
    start, stop, tile_starts, entry_splats, entry_pairs, records, backgrounds, width, height, tiles_x,
    tiles_y, transmittance, last_entry, v_rgb, v_alpha, v_depth, pair_grads,
):  # fmt: skip
    """Gradients of every pair (PAIR_GRADS) of the tiles start <= tile < stop, back to front.

    With q_i = c_i . dL/drgb + z_i dL/ddepth, what lies behind entry i adds up to

        S_i = sum_{j > i} w_j q_j + T (background . dL/drgb - dL/dalpha)

    and dL/dalpha_i = T_i q_i - S_i / (1 - alpha_i). T_i comes from the saved T by dividing through 1 - alpha.

    Scratch planes: P0 T_i, P1 S_i, P2 ... P5 dL/d(r, g, b, depth), P6 last entry. `sums`: one per
    lane of each of PAIR_GRADS; an array of its own, because LLVM must see that the two do not overlap.
    """
    scratch = np.empty(7 * PLANE, np.float32)
    sums = np.empty(PAIR_GRADS * LANES, np.float32)
    batch, spans = np.empty((BATCH, RECORD), np.float32), np.empty((BATCH, 3), np.int64)
    for tile in range(start, stop):
        v = tile // (tiles_x * tiles_y)
        x0 = tile % tiles_x * TILE_W
        y0 = tile // tiles_x % tiles_y * TILE_H
        columns, rows = min(TILE_W, width - x0), min(TILE_H, height - y0)
        fx0, fy0 = f32(x0), f32(y0)
        scratch[: 6 * PLANE] = ZERO
        scratch[6 * PLANE : 7 * PLANE] = -ONE
        furthest = -ONE
        for row in range(rows):
            for column in range(columns):
                i = row * TILE_W + column
                y, x = y0 + row, x0 + column
                T, red, green, blue = (
                    transmittance[v, y, x],
                    v_rgb[v, y, x, 0],
                    v_rgb[v, y, x, 1],
                    v_rgb[v, y, x, 2],
                )
                scratch[i] = T
                behind = red * backgrounds[v, 0] + green * backgrounds[v, 1] + blue * backgrounds[v, 2]
                scratch[i + PLANE] = T * (behind - v_alpha[v, y, x])
                scratch[i + 2 * PLANE] = red
                scratch[i + 3 * PLANE] = green
                scratch[i + 4 * PLANE] = blue
                scratch[i + 5 * PLANE] = v_depth[v, y, x]
                scratch[i + 6 * PLANE] = last_entry[v, y, x]
                furthest = max(furthest, last_entry[v, y, x])

        begin = tile_starts[tile]
        beyond = begin + np.int64(furthest) + 1
        for entry in range(beyond, tile_starts[tile + 1]):
            pair_grads[entry_pairs[entry]] = ZERO
        for entry in range(beyond - 1, begin - 1, -1):
            j = (entry - begin) % BATCH
            if j == BATCH - 1 or entry == beyond - 1:
                _load_batch(records, entry_splats, entry - j, entry + 1, fx0, fy0, f32(rows), batch, spans)
            record = batch[j]
            first, last, windows = spans[j, 0], spans[j, 1], spans[j, 2]
            mean_x, mean_y, half = record[REC_X], record[REC_Y], record[REC_HALF2]
            A, B, C, log_opacity = record[REC_A], record[REC_B], record[REC_C], record[REC_LOG_OPACITY]
            red, green, blue, z = record[REC_R], record[REC_G], record[REC_BLUE], record[REC_Z]
            shear = record[REC_SHEAR]
            number = f32(entry - begin)
            sums[:] = ZERO
            for row in range(first, last):
                dy = f32(row) + HALF - mean_y
                dy2 = dy * dy
                column = _window_start(mean_x, dy, shear, half, windows)
                constant, linear = log_opacity - C * dy2, B * dy
                dx0 = f32(column) + HALF - mean_x
                base = u64(row * TILE_W + column)
                for _ in range(windows):
                    for lane in range(LANES):
                        k = u64(lane)
                        i = base + k
                        dx = dx0 + f32(lane)
                        t = constant - dx * (A * dx + linear)
                        raw = _exp2(t if t > F_LOG2_ALPHA_MIN else F_LOG2_ALPHA_MIN)
                        raw = raw if t >= F_LOG2_ALPHA_MIN else ZERO
                        raw = raw if number <= scratch[i + P6] else ZERO
                        a = raw if raw < F_ALPHA_MAX else F_ALPHA_MAX
                        inverse = ONE / (ONE - a)
                        v_r, v_g, v_b, v_z = (
                            scratch[i + P2],
                            scratch[i + P3],
                            scratch[i + P4],
                            scratch[i + P5],
                        )
                        q = red * v_r + green * v_g + blue * v_b + z * v_z
                        T = scratch[i + P0] * inverse
                        S = scratch[i + P1]
                        w = a * T
                        g = raw * (T * q - S * inverse)
                        g = g if raw < F_ALPHA_MAX else ZERO  # at the cap alpha is constant
                        scratch[i + P0] = T
                        scratch[i + P1] = S + w * q
                        g_dx = g * dx
                        sums[k + A0] += g
                        sums[k + A1] += g_dx
                        sums[k + A2] += g * dy
                        sums[k + A3] += g_dx * dx
                        sums[k + A4] += g_dx * dy
                        sums[k + A5] += g * dy2
                        sums[k + A6] += w * v_r
                        sums[k + A7] += w * v_g
                        sums[k + A8] += w * v_b
                        sums[k + A9] += w * v_z
                    base += u64(LANES)
                    dx0 += f32(LANES)
            out = pair_grads[entry_pairs[entry]]
            for k in range(PAIR_GRADS):
                total = ZERO
                for lane in range(LANES):
                    total += sums[k * LANES + lane]
                out[k] = total


@_kernel(
    "void(i8, i8, i8[::1], f4[:,::1], f4[:,:,::1], f4[::1],"
    "f4[:,:,::1], f4[:,::1], f4[:,:,::1], f4[::1], f4[:,:,::1])"
)
def reduce_pairs(
    start,
    stop,
    pair_offsets,
    pair_grads,
    conics,
    opacities,
    v_means2d,
    v_depths,
    v_conics,
    v_opacities,
    v_colors,
):
    """Sums the gradients of the pairs of the Gaussians start <= n < stop, in order."""
    count = opacities.shape[0]
    sums = np.empty(PAIR_GRADS)
    for n in range(start, stop):
        v_opacity = 0.0
        for v in range(v_colors.shape[0]):
            v_colors[v, n, 0], v_colors[v, n, 1], v_colors[v, n, 2] = ZERO, ZERO, ZERO
        for v in range(conics.shape[0]):
            g = v * count + n
            sums[:] = 0.0
            for pair in range(pair_offsets[g], pair_offsets[g + 1]):
                for j in range(PAIR_GRADS):
                    sums[j] += pair_grads[pair, j]
            a, b, c = conics[v, n, 0], conics[v, n, 1], conics[v, n, 2]
            v_means2d[v, n, 0] = a * sums[1] + b * sums[2]
            v_means2d[v, n, 1] = b * sums[1] + c * sums[2]
            v_conics[v, n, 0] = -0.5 * sums[3]
            v_conics[v, n, 1] = -sums[4]
            v_conics[v, n, 2] = -0.5 * sums[5]
            v_depths[v, n] = sums[9]
            v_opacity += sums[0]
            seen = min(v, v_colors.shape[0] - 1)
            v_colors[seen, n, 0] += sums[6]
            v_colors[seen, n, 1] += sums[7]
            v_colors[seen, n, 2] += sums[8]
        v_opacities[n] = v_opacity / opacities[n] if opacities[n] > ZERO else 0.0
