"""SuperSplat's compressed PLY files: Gaussians in 16 bytes each, in chunks of 256 that share their bounds.

The element "chunk" has bounds min_x, max_x, ... of positions, min_scale_x, ... of logarithms of scales and,
in newer files, min_r, ... of colours. "vertex" has four words a Gaussian; from the highest bits down:

    packed_position, packed_scale   11, 10 and 11 bits for x, y and z, between the chunk's bounds
    packed_rotation                 2 bits that say which of w, x, y and z is largest and left out, and 10
                                    bits for each of the others, between -sqrt(1/2) and sqrt(1/2)
    packed_color                    8 bits each for red, green and blue, between bounds, and opacity

"sh", if there is one, has a byte for each f_rest_0, ..., between -4 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHUNK = 256
_WORDS = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_SH_C0 = 0.28209479177387814  # colour = 0.5 + _SH_C0 * f_dc, as in gaussians/cloud.py


def is_packed(names: Sequence[str]) -> bool:
    """Whether these are the vertex properties of such a file."""
    return all(word in names for word in _WORDS)


def unpack(elements: dict[str, np.ndarray]) -> np.ndarray:
    """The rows that an ordinary file of the same Gaussians has: x, ..., f_dc_0, ..., rot_3, float32.

    Args:
        elements: "vertex", "chunk" and perhaps "sh", as structured arrays.

    Raises:
        KeyError, ValueError: bounds or chunks are missing.
    """
    vertex, chunks = elements["vertex"], elements["chunk"]
    n = len(vertex)
    if len(chunks) * CHUNK < n:
        raise ValueError(f"{len(chunks)} chunks for {n} splats; one is needed for each {CHUNK}")
    bounds = chunks[np.arange(n) // CHUNK]
    position, rotation, scale, color = (vertex[name].astype(np.uint32) for name in _WORDS)
    out: dict[str, np.ndarray] = {}
    for axis, shift, bits in (("x", 21, 11), ("y", 11, 10), ("z", 0, 11)):
        out[axis] = _between(bounds, axis, _bits(position, shift, bits))
        name = f"scale_{'xyz'.index(axis)}"
        out[name] = _between(bounds, f"scale_{axis}", _bits(scale, shift, bits))
    for k, channel in enumerate("rgb"):
        shown = _bits(color, 24 - 8 * k, 8)
        if f"min_{channel}" in chunks.dtype.names:
            shown = _between(bounds, channel, shown)
        out[f"f_dc_{k}"] = (shown - 0.5) / _SH_C0
    # opaque is not infinitely so: within a quarter of a step, which is what a byte can tell
    opacity = np.clip(_bits(color, 0, 8), 0.25 / 255, 1 - 0.25 / 255)
    out["opacity"] = np.log(opacity / (1 - opacity))
    for k, values in enumerate(_quaternions(rotation).T):
        out[f"rot_{k}"] = values
    rest = elements.get("sh")
    for name in () if rest is None else rest.dtype.names:
        out[name] = _harmonics(rest[name], n)
    rows = np.empty(n, [(name, "f4") for name in out])
    for name, values in out.items():
        rows[name] = values
    return rows


def _bits(words: np.ndarray, shift: int, bits: int) -> np.ndarray:
    """Some bits of words as fractions in [0, 1]."""
    most = (1 << bits) - 1
    return ((words >> np.uint32(shift)) & np.uint32(most)) / most


def _between(bounds: np.ndarray, name: str, t: np.ndarray) -> np.ndarray:
    low, high = bounds[f"min_{name}"].astype(np.float64), bounds[f"max_{name}"].astype(np.float64)
    return low * (1 - t) + high * t


def _quaternions(words: np.ndarray) -> np.ndarray:
    """wxyz [N, 4] of unit length."""
    others = np.stack([np.sqrt(2.0) * (_bits(words, shift, 10) - 0.5) for shift in (20, 10, 0)], axis=1)
    largest = np.sqrt(np.maximum(0.0, 1.0 - (others**2).sum(axis=1)))
    place = (words >> np.uint32(30)).astype(np.int64)
    out = np.empty((len(words), 4))
    out[np.arange(4) != place[:, None]] = others.reshape(-1)
    out[np.arange(len(words)), place] = largest
    return out


def _harmonics(values: np.ndarray, n: int) -> np.ndarray:
    """Bytes as coefficients in [-4, 4]; the first and the last are the ends, the others stand for middles."""
    if len(values) != n:
        raise ValueError(f"{len(values)} rows of spherical harmonics for {n} splats")
    t = (values.astype(np.float64) + 0.5) / 256
    return 8.0 * (np.where(values == 0, 0.0, np.where(values == 255, 1.0, t)) - 0.5)
