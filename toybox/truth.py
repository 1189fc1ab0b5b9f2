"""What a prompt of the toybox asks for, drawn: the pictures that a perfect asset would give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toybox.cameras import orbit
from toybox.captions import Spec
from toybox.objects import OBJECTS
from toybox.sdf import render


def build(spec: Spec, seed: int) -> np.ndarray:
    """The table of parts of what a prompt asks for, in its colours and pose.

    Args:
        seed: which instance: they vary a little in shape and shade.
    """
    pose = {"pose": spec.pose} if spec.pose else {}
    return OBJECTS[spec.object].build(spec.color, np.random.default_rng(seed), spec.part_color, **pose)


def true_views(
    spec: Spec,
    azimuths: Sequence[float],
    elevation: float = 15.0,
    distance: float = 3.0,
    fovy: float = 40.0,
    size: int = 256,
    seed: int = 0,
) -> np.ndarray:
    """Pictures of one instance of the object, on white.

    Args:
        spec: object and colours, see `captions.parse`.
        azimuths: degrees, 0 looks at the front.
        elevation, fovy: degrees.
        size: width and height in pixels.
        seed: which instance: they vary a little in shape and shade.

    Returns:
        [N, size, size, 3] in [0, 1].
    """
    parts = build(spec, seed)
    pictures = []
    for azimuth in azimuths:
        rgba = render(parts, orbit(azimuth, elevation, distance), fovy, size).astype(np.float32) / 255
        pictures.append(rgba[..., :3] * rgba[..., 3:] + 1.0 - rgba[..., 3:])
    return np.stack(pictures)
