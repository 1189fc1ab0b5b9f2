"""Colours as shown (sRGB) and as amounts of light (linear)."""

from __future__ import annotations

import numpy as np


def srgb_to_linear(values: np.ndarray) -> np.ndarray:
    """Colours as shown, in [0, 1], to amounts of light in [0, 1]."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(values: np.ndarray) -> np.ndarray:
    """Amounts of light, clipped to [0, 1], to colours as shown in [0, 1]."""
    values = np.clip(values, 0.0, 1.0)
    return np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)


def from_stored(values: np.ndarray) -> np.ndarray:
    """Colours in [0, 1], float32, from numbers as files have them.

    Bytes and 16-bit numbers are scaled by their range. Wider integers, and floats of which one is above 1,
    are taken to mean 0 to 255.

    >>> from_stored(np.array([0, 255], np.uint8)), from_stored(np.array([0.0, 255.0]))
    (array([0., 1.], dtype=float32), array([0., 1.], dtype=float32))
    """
    kind = values.dtype
    if kind.kind in "iu" and kind.itemsize <= 2:
        scale = np.iinfo(kind).max
    else:
        scale = 255.0 if kind.kind in "iu" or values.max(initial=0.0) > 1.0 else 1.0
    return np.clip(values.astype(np.float32) / np.float32(scale), 0.0, 1.0)
