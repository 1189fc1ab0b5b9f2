"""A body mesh of the user's, OBJ or glTF, in the pose that it stands in.

It comes without parts, so each triangle is given the part of the mannequin's nearest one, the mannequin
standing in the same pose and being as tall. A rigged one is read as it stands; its skeleton is not moved.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from ..errors import UserError
from ..points.frame import GLTF, GLTF_SUFFIXES, OURS
from ..points.meshes import read_surface
from .body import Body
from .mannequin import Pose, mannequin

# A body with its arms out is about as wide as tall; what is wider than so many heights lies down, or is none.
MAX_WIDTH = 2.0


def read_body(path: str | Path, pose: str | Pose, height: float, *, up: str = "", front: str = "") -> Body:
    """A body from a file, moved and scaled: as tall as the mannequin in the pose, and centred where it is.

    Args:
        pose: which pose the file stands in.
        height: of the standing mannequin, world units.
        up, front: axes of the file; empty: +z and +x, in glTF files +y and +z.

    Raises:
        UserError: another kind of file; no triangles; wider than `MAX_WIDTH` heights; see
            `meshes.read_surface`.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".obj", *GLTF_SUFFIXES):
        raise UserError(f"{str(path)!r} is no body mesh that is read; it must end in .obj, .glb or .gltf.")
    guide = mannequin(pose)
    guide = guide.scaled(height / mannequin("t").height)
    vertices, faces = read_surface(path)
    frame = (GLTF if path.suffix.lower() in GLTF_SUFFIXES else OURS).changed(up, front)
    vertices = vertices @ frame.to_world().double().numpy().T

    used = vertices[np.unique(faces)]
    low, high = used.min(axis=0), used.max(axis=0)
    size = high - low
    width, allowed = size[:2].max(), MAX_WIDTH * _slack(guide)
    if not size[2] > 0.0 or width > allowed * size[2]:
        raise UserError(
            f"{path} is {width:.3g} wide and {size[2]:.3g} tall, which is no body that stands up. If it "
            "lies down, tell which of its axes point up and forwards: system.body.up=+y "
            "system.body.front=+z."
        )
    middle = 0.5 * (guide.vertices.min(axis=0) + guide.vertices.max(axis=0))
    vertices = (vertices - 0.5 * (low + high)) * (guide.height / size[2]) + middle

    labels, uv = _borrowed(vertices[faces], guide)
    return Body(vertices.astype(np.float32), faces.astype(np.int32), labels, uv, np.zeros(len(faces), bool))


def _slack(guide: Body) -> float:
    """How wide the pose is in its heights, at least 1: sitting people are short."""
    return max(float(np.ptp(guide.vertices[:, :2], axis=0).max()) / guide.height, 1.0)


def _borrowed(corners: np.ndarray, guide: Body) -> tuple[np.ndarray, np.ndarray]:
    """Parts [F] and charts [F, 3, 2] of the guide's nearest visible triangles."""
    there = np.flatnonzero(~guide.hidden)
    tree = cKDTree(guide.corners[there].mean(axis=1))
    _, nearest = tree.query(corners.mean(axis=1))
    _, at_corners = tree.query(corners.reshape(-1, 3))
    labels = guide.labels[there[nearest]]
    uv = guide.uv[there[at_corners]].mean(axis=1).reshape(-1, 3, 2)
    # a corner whose nearest triangle is on another part takes the place of its own triangle's
    strange = guide.labels[there[at_corners]].reshape(-1, 3) != labels[:, None]
    uv[strange] = np.repeat(guide.uv[there[nearest]].mean(axis=1)[:, None], 3, axis=1)[strange]
    return labels, uv
