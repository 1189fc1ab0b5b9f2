"""What a prompt of the toybox asks for, drawn: the pictures that a perfect asset would give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toybox.cameras import orbit
from toybox.captions import Spec
from toybox.likeness import Views
from toybox.objects import OBJECTS
from toybox.sdf import render


def build(spec: Spec, seed: int) -> np.ndarray:
    """The table of parts of what a prompt asks for, in its colours and pose.

    Args:
        seed: which instance: they vary a little in shape and shade.
    """
    pose = {"pose": spec.pose} if spec.pose else {}
    return OBJECTS[spec.object].build(
        spec.color, np.random.default_rng(seed), spec.part_color, spec.decoration, **pose
    )


def true_views(
    spec: Spec,
    azimuths: Sequence[float],
    elevation: float = 15.0,
    distance: float = 3.0,
    fovy: float = 40.0,
    size: int = 256,
    seed: int = 0,
) -> np.ndarray:
    """Pictures [N, size, size, 3] in [0, 1] of one instance of the object, on white; see `draw`."""
    return draw(build(spec, seed), azimuths, elevation, distance, fovy, size).rgb


def draw(
    parts: np.ndarray,
    azimuths: Sequence[float],
    elevation: float = 15.0,
    distance: float = 3.0,
    fovy: float = 40.0,
    size: int = 256,
) -> Views:
    """Views of an object.

    Args:
        parts: what `build` gives.
        azimuths: degrees, 0 looks at the front.
        elevation, fovy: degrees.
        size: width and height in pixels.
    """
    pictures = np.stack([render(parts, orbit(a, elevation, distance), fovy, size) for a in azimuths])
    pictures = pictures.astype(np.float32) / 255
    alpha = pictures[..., 3]
    return Views(pictures[..., :3] * alpha[..., None] + 1.0 - alpha[..., None], alpha)
