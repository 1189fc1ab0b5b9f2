"""How like an asset is to the object that it should be, in numbers.

Of both there are N views from the same cameras, on white. All numbers are over the views together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage

SOLID = 0.5  # the silhouette is where the opacity is above this
DENSE = 0.9  # inside an object nothing should be below
FAINT = 0.1  # outside nothing should be above
INNER, OUTER = 2.0, 3.0  # pixels from the outline that belong to it, inwards and outwards


@dataclass(frozen=True)
class Views:
    """Pictures of one object: rgb [N, H, W, 3] on white, alpha [N, H, W]; float32 in [0, 1]."""

    rgb: np.ndarray
    alpha: np.ndarray


@dataclass(frozen=True)
class Likeness:
    """What `compare` measures.

    psnr: of the pictures, in decibels; inf where they are equal.
    inside: the same over the true silhouette without its rim, which the outline says nothing about.
    iou: of the silhouettes, in [0, 1].
    fuzz: half-transparent area in units of the truth's, which has it along its outline alone.
    holes: share of the true silhouette without its rim that something shines through.
    strays: area of what is there outside the true silhouette and off its rim, in units of the silhouette's.
    """

    psnr: float
    inside: float
    iou: float
    fuzz: float
    holes: float
    strays: float

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, value and meaning of each."""
        return [
            ("PSNR", f"{self.psnr:.1f} dB", "of the pictures"),
            ("inside", f"{self.inside:.1f} dB", f"{INNER:.0f} pixels and more inside the true outline"),
            ("IoU", f"{self.iou:.3f}", "of the silhouettes"),
            ("fuzz", f"{self.fuzz:.1f}", "half-transparent area, where a true outline has 1"),
            ("holes", f"{100 * self.holes:.1f} %", "of the inside"),
            ("strays", f"{100 * self.strays:.1f} %", f"of its area, {OUTER:.0f} pixels and more outside"),
        ]

    def numbers(self) -> dict[str, float | None]:
        """For JSON, which knows no infinity: None."""
        return {key: value if math.isfinite(value) else None for key, value in asdict(self).items()}


def compare(asset: Views, truth: Views) -> Likeness:
    """An asset against what it should be, from the same cameras.

    Raises:
        ValueError: of other sizes or numbers of views.
    """
    if asset.rgb.shape != truth.rgb.shape:
        raise ValueError(f"views of {list(asset.rgb.shape)} cannot be compared with {list(truth.rgb.shape)}")
    return Likeness(
        psnr(asset.rgb, truth.rgb),
        psnr(asset.rgb, truth.rgb, inner(truth.alpha)),
        iou(asset.alpha, truth.alpha),
        fuzz(asset.alpha, truth.alpha),
        holes(asset.alpha, truth.alpha),
        strays(asset.alpha, truth.alpha),
    )


def psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in decibels of pictures [N, H, W, 3] in [0, 1]; inf where they are equal.

    Args:
        where: over these pixels [N, H, W] alone; inf if there are none.
    """
    difference = a - b if where is None else a[where] - b[where]
    error = float(np.square(difference, dtype=np.float64).mean()) if difference.size else 0.0
    return -10.0 * math.log10(error) if error > 0.0 else math.inf


def iou(alpha: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of the silhouettes; 1 if there are none.

    >>> iou(np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0]))
    0.5
    """
    a, b = alpha > SOLID, truth > SOLID
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def fuzz(alpha: np.ndarray, truth: np.ndarray) -> float:
    """Sum of 4 a (1 - a), which is 1 where a pixel is half transparent, over the truth's.

    A truth without half-transparent pixels has none to measure by: 1 against its like, else inf.

    >>> fuzz(np.array([0.5, 0.5, 1.0]), np.array([0.5, 0.0, 1.0]))
    2.0
    """
    mine, true = (float((4.0 * a * (1.0 - a)).sum(dtype=np.float64)) for a in (alpha, truth))
    if true == 0.0:
        return 1.0 if mine == 0.0 else math.inf
    return mine / true


def holes(alpha: np.ndarray, truth: np.ndarray) -> float:
    """Share of the inside of the true silhouettes [N, H, W] that is not dense; 0 where there is no inside.

    Where the truth itself is not dense, as in a gap of less than a pixel, nobody need be.
    """
    inside = inner(truth) & (truth >= DENSE)
    return float((alpha[inside] < DENSE).mean()) if inside.any() else 0.0


def strays(alpha: np.ndarray, truth: np.ndarray) -> float:
    """Area of what is to be seen well outside of the true silhouettes [N, H, W], over their area.

    0 where nothing is to be seen, inf where there is no true silhouette to measure by.
    """
    area = int(((alpha > FAINT) & outer(truth)).sum())
    silhouette = int((truth > SOLID).sum())
    return area / silhouette if silhouette else (math.inf if area else 0.0)


def inner(alpha: np.ndarray, by: float = INNER) -> np.ndarray:
    """The silhouettes [N, H, W] without what lies within `by` pixels of the outside. The picture's edge is
    no outline.
    """
    return _each(alpha > SOLID, lambda mask: ndimage.distance_transform_edt(mask) > by)


def outer(alpha: np.ndarray, by: float = OUTER) -> np.ndarray:
    """What lies further than `by` pixels from the silhouettes [N, H, W]."""
    return _each(alpha <= SOLID, lambda mask: ndimage.distance_transform_edt(mask) > by)


def _each(masks: np.ndarray, distance: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A function of each mask; one that covers its picture stays as it is, for it has no border."""
    return np.stack([mask if mask.all() else distance(mask) for mask in masks])
