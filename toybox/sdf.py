"""Signed distance to a table of parts, and a sphere tracer that draws it (Hart 1996), compiled with Numba.

Pictures are RGBA with straight alpha, so that training can put any background behind them. Pixels on an
outline or on a sharp change of colour are traced again with four rays.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from . import parts as P

_LIGHT = np.array([0.45, -0.35, 0.82], np.float32)
_LIGHT /= np.linalg.norm(_LIGHT)
_LX, _LY, _LZ = (float(v) for v in _LIGHT)

KIND, CARVED, BLEND, CENTRE, AXES, SIZE = P.KIND, P.CARVED, P.BLEND, P.CENTRE, P.AXES, P.SIZE
COLOR, PAINT, COLOR2, PAINT_ARGS, BOUND = P.COLOR, P.PAINT, P.COLOR2, P.PAINT_ARGS, P.BOUND

MAX_STEPS = 96
STEP_SHARE = 0.9  # the ellipsoid's distance is a bound only to first order: step a little less
HIT = 0.0015  # a tenth of a pixel at 128 pixels
EDGE = 0.06  # change of colour between neighbours above which a pixel is traced again


@njit(fastmath=True, cache=True)
def _local(parts, i, x, y, z):
    """A world point in the axes of part ``i``."""
    x -= parts[i, CENTRE]
    y -= parts[i, CENTRE + 1]
    z -= parts[i, CENTRE + 2]
    a = AXES
    return (
        parts[i, a] * x + parts[i, a + 1] * y + parts[i, a + 2] * z,
        parts[i, a + 3] * x + parts[i, a + 4] * y + parts[i, a + 5] * z,
        parts[i, a + 6] * x + parts[i, a + 7] * y + parts[i, a + 8] * z,
    )


@njit(fastmath=True, cache=True)
def _solid(parts, i, x, y, z):
    """Signed distance from a world point to part ``i``."""
    x, y, z = _local(parts, i, x, y, z)
    a, b, c, r = parts[i, SIZE], parts[i, SIZE + 1], parts[i, SIZE + 2], parts[i, SIZE + 3]
    kind = int(parts[i, KIND])
    if kind == P.ELLIPSOID:
        if a == b and b == c:
            return math.sqrt(x * x + y * y + z * z) - a
        k0 = math.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
        k1 = math.sqrt((x / (a * a)) ** 2 + (y / (b * b)) ** 2 + (z / (c * c)) ** 2)
        return k0 * (k0 - 1.0) / max(k1, 1e-6)
    if kind == P.BOX:
        qx, qy, qz = abs(x) - a + r, abs(y) - b + r, abs(z) - c + r
        outside = math.sqrt(max(qx, 0.0) ** 2 + max(qy, 0.0) ** 2 + max(qz, 0.0) ** 2)
        return outside + min(max(qx, max(qy, qz)), 0.0) - r
    if kind == P.CYLINDER:
        q, h = math.sqrt(x * x + y * y) - a + r, abs(z) - b + r
        return min(max(q, h), 0.0) + math.sqrt(max(q, 0.0) ** 2 + max(h, 0.0) ** 2) - r
    if kind == P.CONE:
        # Capped cone (Quilez): a bottom radius, b top radius, c half height.
        q = math.sqrt(x * x + y * y)
        cap = q - min(q, a if z < 0.0 else b)
        cap_z = abs(z) - c
        kx, kz = b - a, 2.0 * c
        t = min(max(((b - q) * kx + (c - z) * kz) / (kx * kx + kz * kz), 0.0), 1.0)
        side_q, side_z = q - b + kx * t, z - c + kz * t
        sign = -1.0 if (side_q < 0.0 and cap_z < 0.0) else 1.0
        near = min(cap * cap + cap_z * cap_z, side_q * side_q + side_z * side_z)
        return sign * math.sqrt(near) - r
    if kind == P.LIMB:
        # Round cone (Quilez): radius a at the origin, b at height c.
        slope = (a - b) / max(c, 1e-6)
        rest = math.sqrt(max(1.0 - slope * slope, 1e-9))
        q = math.sqrt(x * x + y * y)
        k = -slope * q + rest * z
        if k < 0.0:
            return math.sqrt(q * q + z * z) - a
        if k > rest * c:
            return math.sqrt(q * q + (z - c) ** 2) - b
        return q * rest + z * slope - a
    q = math.sqrt(x * x + y * y) - a
    return math.sqrt(q * q + z * z) - b


@njit(fastmath=True, cache=True)
def _scene(parts, rows, count, x, y, z):
    """Signed distance to the first ``count`` of the parts ``rows``, and the row of the part that gives it."""
    d = 1e9
    nearest = 0
    for n in range(count):
        i = rows[n]
        dx, dy, dz = x - parts[i, CENTRE], y - parts[i, CENTRE + 1], z - parts[i, CENTRE + 2]
        squared = dx * dx + dy * dy + dz * dz
        if parts[i, CARVED] > 0.0:
            reach = parts[i, BOUND] - d  # the part matters only where its distance is below -d
            if reach <= 0.0 or squared > reach * reach:
                continue
            inside = -_solid(parts, i, x, y, z)
            if inside > d:
                d = inside
                nearest = i
            continue
        blend = parts[i, BLEND]
        reach = d + blend + parts[i, BOUND]
        if reach <= 0.0 or squared > reach * reach:
            continue
        di = _solid(parts, i, x, y, z)
        closer = di < d
        if blend > 0.0:
            overlap = max(blend - abs(d - di), 0.0) / blend
            d = min(d, di) - 0.25 * blend * overlap * overlap
        elif closer:
            d = di
        if closer:
            nearest = i
    return d, nearest


@njit(fastmath=True, cache=True)
def _figure(kind, u, v):
    """Whether the figure of a decoration covers a point of its cell, ``u`` and ``v`` from -1 to 1."""
    if kind == P.HEARTS:
        u, v = 1.3 * u, 1.3 * v + 0.12
        k = u * u + v * v - 1.0
        return k * k * k < u * u * v * v * v
    if kind == P.STARS:
        # Fold the plane into one of ten wedges; its edge runs from a tip to a notch.
        r = math.sqrt(u * u + v * v)
        wedge = math.pi / 5.0
        angle = abs((math.atan2(u, v) / wedge + 11.0) % 2.0 - 1.0) * wedge  # 0 at a tip
        tip, notch = 0.98, 0.46
        x, y = r * math.cos(angle), r * math.sin(angle)
        nx, ny = notch * math.cos(wedge), notch * math.sin(wedge)
        return ny * (x - tip) < (nx - tip) * y
    if kind == P.DOTS:
        return u * u + v * v < 0.45
    if kind == P.CHECKS:
        return u * v > 0.0
    if kind == P.HOOPS:
        return v > 0.0
    if kind == P.SMILES:
        if u * u + v * v > 0.80:
            return False
        mouth = u * u + (v - 0.05) * (v - 0.05)
        eye = (abs(u) - 0.34) * (abs(u) - 0.34) + (v - 0.30) * (v - 0.30)
        return eye > 0.026 and not (0.20 < mouth < 0.42 and v < -0.06)
    if kind == P.PLANKS:
        return abs(v) > 0.62
    if kind == P.BEAMS:
        return abs(u) > 0.72 or abs(v) > 0.72 or abs(u - v) < 0.22
    return abs(v) > 0.70 or abs(u) > 0.80  # MASONRY; `_decorated` shifts every other row


@njit(fastmath=True, cache=True)
def _decorated(parts, i, kind, x, y, z):
    """Whether a decoration of part ``i`` covers a point, given in the part's axes."""
    a, b, c = parts[i, PAINT_ARGS], parts[i, PAINT_ARGS + 1], parts[i, PAINT_ARGS + 2]
    v = z * b + c
    if int(parts[i, KIND]) == P.BOX:
        # The side of the box that the point lies on: where it is outermost, measured from the surface.
        qx, qy, qz = (
            abs(x) - parts[i, SIZE],
            abs(y) - parts[i, SIZE + 1],
            abs(z) - parts[i, SIZE + 2],
        )
        u = y * a
        if qz > max(qx, qy):
            v = x * b + c
        elif qy > qx:
            u = x * a
    else:
        u = math.atan2(y, x) / (2.0 * math.pi) * a
        if int(parts[i, KIND]) == P.TORUS:  # over the tube: 0 at its outer side, 1 at its inner side
            v = math.atan2(z, math.sqrt(x * x + y * y) - parts[i, SIZE]) / math.pi * b + c
    row = math.floor(v)
    if kind == P.MASONRY or kind == P.DOTS:
        u += 0.5 * (row % 2)
    u += 0.5
    return _figure(kind, 2.0 * (u - math.floor(u)) - 1.0, 2.0 * (v - row) - 1.0)


@njit(fastmath=True, cache=True)
def _second_color(parts, i, x, y, z):
    """Whether the paint of part ``i`` shows its second colour at a world point."""
    paint = int(parts[i, PAINT])
    if paint == P.PLAIN:
        return False
    a, b, c = parts[i, PAINT_ARGS], parts[i, PAINT_ARGS + 1], parts[i, PAINT_ARGS + 2]
    if paint == P.STRIPES:
        u = z * a + b
        return u - math.floor(u) < c
    x, y, z = _local(parts, i, x, y, z)
    if paint >= P.HEARTS:
        return _decorated(parts, i, paint, x, y, z)
    if paint == P.BANDS:
        u = z * a + b
        return u - math.floor(u) < c
    turn = math.atan2(y, x) / (2.0 * math.pi)
    if paint == P.SECTORS:
        u = turn * a + b
        return u - math.floor(u) < c
    if paint == P.BRICKS:
        row = z * a
        u = (x + y) * b + 0.5 * (math.floor(row) % 2)
        return row - math.floor(row) < c or u - math.floor(u) < c * b / a
    u, v = turn * a + z * b, turn * a - z * b
    return u - math.floor(u) < c or v - math.floor(v) < c


@njit(fastmath=True, cache=True)
def _march(parts, all_rows, rows, ox, oy, oz, dx, dy, dz):
    """Length of one ray up to the surface, and the part it meets there; -1 where it misses.

    ``rows``: scratch space, one number per part.
    """
    # Only parts whose ball the ray pierces can be hit: march through those alone, between their balls.
    count = 0
    t, end = 1e9, 0.0
    for i in all_rows:
        cx, cy, cz = parts[i, CENTRE] - ox, parts[i, CENTRE + 1] - oy, parts[i, CENTRE + 2] - oz
        along = cx * dx + cy * dy + cz * dz
        radius = parts[i, BOUND] + parts[i, BLEND]
        open_space = radius * radius - (cx * cx + cy * cy + cz * cz - along * along)
        if open_space > 0.0:
            rows[count] = i
            count += 1
            if parts[i, CARVED] == 0.0:
                half = math.sqrt(open_space)
                t, end = min(t, along - half), max(end, along + half)
    t = max(t, 0.0)
    for _ in range(MAX_STEPS):
        if t > end:
            return -1.0, 0
        d, i = _scene(parts, rows, count, ox + t * dx, oy + t * dy, oz + t * dz)
        if d < HIT:
            return t, i
        t += STEP_SHARE * d
    return -1.0, 0


@njit(fastmath=True, cache=True)
def _shade(parts, all_rows, i, x, y, z, out):
    """The colour of part ``i`` at a point of the surface, lit, into ``out[3]``."""
    # Normal from a tetrahedron of four distances.
    e = 0.003
    d0, _i = _scene(parts, all_rows, all_rows.size, x + e, y - e, z - e)
    d1, _i = _scene(parts, all_rows, all_rows.size, x - e, y - e, z + e)
    d2, _i = _scene(parts, all_rows, all_rows.size, x - e, y + e, z - e)
    d3, _i = _scene(parts, all_rows, all_rows.size, x + e, y + e, z + e)
    nx, ny, nz = d0 - d1 - d2 + d3, -d0 - d1 + d2 + d3, -d0 + d1 - d2 + d3
    length = max(math.sqrt(nx * nx + ny * ny + nz * nz), 1e-9)
    nx, ny, nz = nx / length, ny / length, nz / length
    # Light of the sky, one lamp, and the shade of nearby surfaces.
    h = 0.09
    open_sky, _i = _scene(parts, all_rows, all_rows.size, x + h * nx, y + h * ny, z + h * nz)
    shade = 0.6 + 0.4 * min(max(open_sky / h, 0.0), 1.0)
    light = shade * (0.66 + 0.12 * nz + 0.34 * max(nx * _LX + ny * _LY + nz * _LZ, 0.0))
    column = COLOR2 if _second_color(parts, i, x, y, z) else COLOR
    for k in range(3):
        out[k] = min(max(parts[i, column + k] * light, 0.0), 1.0)


@njit(fastmath=True, cache=True)
def _trace(parts, all_rows, rows, ox, oy, oz, dx, dy, dz, out):
    """Shade one ray into ``out[3]``; returns whether it hit. ``rows``: as in `_march`."""
    t, i = _march(parts, all_rows, rows, ox, oy, oz, dx, dy, dz)
    if t < 0.0:
        return False
    _shade(parts, all_rows, i, ox + t * dx, oy + t * dy, oz + t * dz, out)
    return True


@njit(fastmath=True, cache=True)
def _ray(c2w, focal, half, column, row):
    """Unit direction of the ray through image position (column, row), in pixels; OpenGL camera axes."""
    u, v = (column - half) / focal, (half - row) / focal
    dx = c2w[0, 0] * u + c2w[0, 1] * v - c2w[0, 2]
    dy = c2w[1, 0] * u + c2w[1, 1] * v - c2w[1, 2]
    dz = c2w[2, 0] * u + c2w[2, 1] * v - c2w[2, 2]
    length = math.sqrt(dx * dx + dy * dy + dz * dz)
    return dx / length, dy / length, dz / length


@njit(fastmath=True, cache=True, parallel=True)
def _render(parts, c2w, focal, size):
    all_rows = np.arange(parts.shape[0])
    color = np.zeros((size, size, 3), np.float32)
    hit = np.zeros((size, size), np.float32)
    half = 0.5 * size
    ox, oy, oz = c2w[0, 3], c2w[1, 3], c2w[2, 3]
    for row in prange(size):
        rows = np.empty_like(all_rows)
        for column in range(size):
            dx, dy, dz = _ray(c2w, focal, half, column + 0.5, row + 0.5)
            if _trace(parts, all_rows, rows, ox, oy, oz, dx, dy, dz, color[row, column]):
                hit[row, column] = 1.0
    image = np.zeros((size, size, 4), np.uint8)
    for row in prange(size):
        rows = np.empty_like(all_rows)
        sample = np.zeros(3, np.float32)
        for column in range(size):
            edge = False
            for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                r, c = min(max(row + dr, 0), size - 1), min(max(column + dc, 0), size - 1)
                if hit[r, c] != hit[row, column]:
                    edge = True
                elif hit[r, c] > 0.0:
                    for k in range(3):
                        edge = edge or abs(color[r, c, k] - color[row, column, k]) > EDGE
            red, green, blue, n = (
                color[row, column, 0],
                color[row, column, 1],
                color[row, column, 2],
                hit[row, column],
            )
            rays = 1.0
            if edge:
                red, green, blue, n, rays = 0.0, 0.0, 0.0, 0.0, 4.0
                for sub in range(4):
                    du, dv = 0.25 + 0.5 * (sub % 2), 0.25 + 0.5 * (sub // 2)
                    dx, dy, dz = _ray(c2w, focal, half, column + du, row + dv)
                    if _trace(parts, all_rows, rows, ox, oy, oz, dx, dy, dz, sample):
                        red, green, blue, n = red + sample[0], green + sample[1], blue + sample[2], n + 1.0
            if n > 0.0:
                image[row, column, 0] = np.uint8(255.0 * red / n + 0.5)
                image[row, column, 1] = np.uint8(255.0 * green / n + 0.5)
                image[row, column, 2] = np.uint8(255.0 * blue / n + 0.5)
                image[row, column, 3] = np.uint8(255.0 * n / rays + 0.5)
    return image


@njit(fastmath=True, cache=True, parallel=True)
def _distances(parts, points):
    out = np.empty(points.shape[0], np.float32)
    all_rows = np.arange(parts.shape[0])
    for n in prange(points.shape[0]):
        d, _i = _scene(parts, all_rows, all_rows.size, points[n, 0], points[n, 1], points[n, 2])
        out[n] = d
    return out


@njit(fastmath=True, cache=True, parallel=True)
def _first_hits(parts, origins, directions):
    n = origins.shape[0]
    lengths = np.empty(n, np.float32)
    colors = np.zeros((n, 3), np.float32)
    all_rows = np.arange(parts.shape[0])
    for k in prange(n):
        rows = np.empty_like(all_rows)
        ox, oy, oz = origins[k, 0], origins[k, 1], origins[k, 2]
        dx, dy, dz = directions[k, 0], directions[k, 1], directions[k, 2]
        t, i = _march(parts, all_rows, rows, ox, oy, oz, dx, dy, dz)
        lengths[k] = t
        if t >= 0.0:
            _shade(parts, all_rows, i, ox + t * dx, oy + t * dy, oz + t * dz, colors[k])
    return lengths, colors


def first_hits(
    parts: np.ndarray, origins: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where rays meet an object first.

    Args:
        parts: ``[P, COLUMNS]`` table of ``toybox.parts``.
        origins: ``[N, 3]``.
        directions: ``[N, 3]``, unit vectors.

    Returns:
        Length of each ray ``[N]``, -1 where it misses, and the lit colour it meets ``[N, 3]`` in [0, 1].
    """
    return _first_hits(*(np.ascontiguousarray(x, np.float32) for x in (parts, origins, directions)))


def render(parts: np.ndarray, c2w: np.ndarray, fovy_deg: float, size: int) -> np.ndarray:
    """Draw an object.

    Args:
        parts: ``[P, COLUMNS]`` table of ``toybox.parts``.
        c2w: ``[4, 4]`` camera to world, OpenGL axes (right, up, backward), as threestudio's batches.
        fovy_deg: vertical field of view, degrees.
        size: height and width in pixels.

    Returns:
        uint8 RGBA ``[size, size, 4]``, straight alpha, row 0 on top.
    """
    focal = 0.5 * size / math.tan(math.radians(fovy_deg) / 2)
    return _render(
        np.ascontiguousarray(parts, np.float32), np.ascontiguousarray(c2w, np.float32), focal, size
    )


def distance(parts: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Signed distance ``[N]`` from points ``[N, 3]`` to the object, negative inside."""
    return _distances(np.ascontiguousarray(parts, np.float32), np.ascontiguousarray(points, np.float32))
