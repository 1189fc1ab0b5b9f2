"""How detailed and how colourful pictures are: numbers for over-smoothing and over-saturation.

Pictures are [H, W, 3] in [0, 1] of an object before a plain background.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

# Detail is what a blur with this standard deviation takes away, in shares of the picture's width: 1.5 pixels
# of 128.
BLUR = 1.5 / 128
# How far a colour must be from the background's to belong to the object.
DIFFERENT = 0.03


def object_mask(picture: np.ndarray) -> np.ndarray:
    """Where the object is [H, W]: what differs from the background, holes filled.

    The background's colour is the median of the picture's border. White eyes on a white background belong to
    the object, if something around them does.
    """
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    differs = np.abs(picture - np.median(border, axis=0)).max(axis=-1) > DIFFERENT
    return ndimage.binary_fill_holes(differs)


def detail(picture: np.ndarray, mask: np.ndarray) -> float:
    """Energy of the high frequencies: mean square of what a blur takes away, over the mask's inside.

    The outline is no detail, so pixels nearer to it than two standard deviations of the blur do not count.
    0 where nothing is left.

    Args:
        mask: [H, W], where the object is.
    """
    sigma = BLUR * picture.shape[1]
    # what lies beyond the picture's edge is no background
    inside = ndimage.binary_erosion(mask, iterations=max(round(2 * sigma), 1), border_value=1)
    if not inside.any():
        return 0.0
    fine = picture - ndimage.gaussian_filter(picture, (sigma, sigma, 0), mode="reflect")
    return float(np.square(fine[inside]).mean())


def saturation(picture: np.ndarray, mask: np.ndarray) -> float:
    """Mean saturation of HSV, (max - min) / max, over the mask; 0 is gray, 1 pure. 0 for an empty mask."""
    if not mask.any():
        return 0.0
    high, low = picture[mask].max(axis=-1), picture[mask].min(axis=-1)
    return float(((high - low) / np.maximum(high, 1e-6)).mean())
