"""The compiled kernels of marching.py.  Importing this needs numba.

They compute what `march_reference` does, in the same float32 operations and order (so no fused or reordered
arithmetic here): the same samples, to the bit.  Each works on a range of rays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

_f32 = np.float32
_HALF = _f32(0.5)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        return njit(**options)(function)  # neither this folder nor the user's can be written to


@njit(inline="always")
def _is_occupied(rays_o, rays_d, ray, t, low, per_unit, occupied):  # type: ignore[no-untyped-def]
    x = np.floor((rays_o[ray, 0] + t * rays_d[ray, 0] - low[0]) * per_unit[0])
    y = np.floor((rays_o[ray, 1] + t * rays_d[ray, 1] - low[1]) * per_unit[1])
    z = np.floor((rays_o[ray, 2] + t * rays_d[ray, 2] - low[2]) * per_unit[2])
    nx, ny, nz = occupied.shape
    if x < 0 or y < 0 or z < 0 or x >= nx or y >= ny or z >= nz:
        return False
    return occupied[int(x), int(y), int(z)]


@_compiled
def count(  # type: ignore[no-untyped-def]
    start, stop, rays_o, rays_d, near, first, last, low, per_unit, occupied, step, far, counts
):
    """counts[ray + 1]: the number of steps of each ray that are kept."""
    step, far = _f32(step), _f32(far)
    for ray in range(start, stop):
        n = 0
        for k in range(first[ray], last[ray] + 1):
            t0 = near[ray] + _f32(k) * step
            t1 = near[ray] + _f32(k + 1) * step
            t = (t0 + t1) * _HALF
            if t <= far and _is_occupied(rays_o, rays_d, ray, t, low, per_unit, occupied):
                n += 1
        counts[ray + 1] = n


@_compiled
def fill(  # type: ignore[no-untyped-def]
    start,
    stop,
    rays_o,
    rays_d,
    near,
    first,
    last,
    low,
    per_unit,
    occupied,
    step,
    far,
    ends,
    ray_indices,
    t_starts,
    t_ends,
):
    """The steps themselves, a ray's from ends[ray] on."""
    step, far = _f32(step), _f32(far)
    for ray in range(start, stop):
        n = ends[ray]
        for k in range(first[ray], last[ray] + 1):
            t0 = near[ray] + _f32(k) * step
            t1 = near[ray] + _f32(k + 1) * step
            t = (t0 + t1) * _HALF
            if t <= far and _is_occupied(rays_o, rays_d, ray, t, low, per_unit, occupied):
                ray_indices[n] = ray
                t_starts[n] = t0
                t_ends[n] = t1
                n += 1
