"""DensePose's 24 parts of the body (Güler et al. 2018, arXiv 1802.00434), told of a body at rest.

A body is given as triangles at rest, arms out, each on one of the `LIMBS`, and as the limbs' axes. Trunk,
arms and legs have a back and a front, with numbers of their own, the head a right and a left half.

DensePose's charts come with SMPL's licensed files. Ours are simpler: v runs along the limb, u once around
it, with u = 0.5 at the front (of feet: on top) and growing towards the left.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

BACKGROUND = 0
COUNT = 24

# Limb: the numbers of its two halves, back and front (head: right and left); hands and feet have one.
LIMBS: dict[str, tuple[int, int]] = {
    "torso": (1, 2),
    "right hand": (3, 3),
    "left hand": (4, 4),
    "left foot": (5, 5),
    "right foot": (6, 6),
    "right upper leg": (7, 9),
    "left upper leg": (8, 10),
    "right lower leg": (11, 13),
    "left lower leg": (12, 14),
    "left upper arm": (17, 15),
    "right upper arm": (18, 16),
    "left lower arm": (21, 19),
    "right lower arm": (22, 20),
    "head": (23, 24),
}
NAMES = tuple(LIMBS)

Axis = tuple[np.ndarray, np.ndarray]  # where a limb starts and ends, [3] each


def label_faces(
    corners: np.ndarray, limbs: np.ndarray, axes: Mapping[str, Axis]
) -> tuple[np.ndarray, np.ndarray]:
    """Part and chart of every triangle.

    Args:
        corners: [F, 3, 3], at rest: facing +x, arms along y.
        limbs: [F], positions in `NAMES`.
        axes: of the limbs that occur.

    Returns:
        labels uint8 [F], 1 to 24, and uv float32 [F, 3, 2] of the corners in [0, 1].
    """
    labels = np.zeros(len(corners), np.uint8)
    uv = np.zeros((len(corners), 3, 2), np.float32)
    for k in np.unique(limbs):
        mine = limbs == k
        name = NAMES[k]
        uv[mine], towards_front, towards_left = _chart(corners[mine], *axes[name])
        first, second = LIMBS[name]
        labels[mine] = np.where(towards_left if name == "head" else towards_front, second, first)
    return labels, uv


def _chart(
    corners: np.ndarray, start: np.ndarray, end: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uv [F, 3, 2] of triangles around an axis, and which of them [F] lie in front and on the left."""
    axis = (end - start) / max(float(np.linalg.norm(end - start)), 1e-9)
    front = np.array([1.0, 0.0, 0.0])
    if abs(axis[0]) > 0.8:  # a foot points forwards: its top stands for the front
        front = np.array([0.0, 0.0, 1.0])
    front = front - (front @ axis) * axis
    front /= np.linalg.norm(front)
    across = np.cross(axis, front)
    left = -across if min(axis[1], axis[2]) < -0.5 else across

    middle = corners.mean(axis=1) - start
    turn = np.arctan2(middle @ left, middle @ front)
    own = np.arctan2((corners - start) @ left, (corners - start) @ front)
    own = turn[:, None] + np.remainder(own - turn[:, None] + np.pi, 2 * np.pi) - np.pi  # across the seam
    u = np.clip(0.5 + own / (2 * np.pi), 0.0, 1.0)
    along = (corners - start) @ axis
    low, high = along.min(), along.max()
    v = (along - low) / max(high - low, 1e-9)
    return np.stack([u, v], axis=-1), middle @ front >= 0.0, middle[:, 1] >= 0.0
