"""Cameras on a sphere about the origin, in the axes of threestudio's random-camera datamodule."""

from __future__ import annotations

import numpy as np

FOVY = 40.0  # degrees
DISTANCE = (2.75, 3.35)  # an object fills the unit ball, which spans the picture at 2.92
ELEVATION = (-12.0, 82.0)  # degrees


def orbit(azimuth: float, elevation: float, distance: float, target: np.ndarray | None = None) -> np.ndarray:
    """Camera to world ``[4, 4]`` float32, OpenGL axes. Degrees; azimuth 0 looks from +x, 90 from +y."""
    a, e = np.radians(azimuth), np.radians(elevation)
    back = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    target = np.zeros(3) if target is None else np.asarray(target, float)
    right = np.array([-np.sin(a), np.cos(a), 0.0])
    c2w = np.eye(4, dtype=np.float32)
    c2w[:3, 0], c2w[:3, 1], c2w[:3, 2] = right, np.cross(back, right), back
    c2w[:3, 3] = target + distance * back
    return c2w


def sample(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A camera for training data: azimuth, elevation (degrees), distance, vertical field of view (degrees).

    A fifth of the pictures look from above 60 degrees, where captions say "overhead view"; the rest crowd
    the heights from which people look at things.
    """
    azimuth = rng.uniform(-180.0, 180.0)
    if rng.random() < 0.2:
        elevation = rng.uniform(60.0, ELEVATION[1])
    else:
        elevation = rng.triangular(ELEVATION[0], 15.0, 60.0)
    return azimuth, elevation, rng.uniform(*DISTANCE), FOVY * rng.uniform(0.95, 1.05)
