"""A posed body: what every body model makes, and all that is asked of one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Body:
    """A surface of triangles in world units: z up, the front towards +x, the left side towards +y.

    vertices: float32 [V, 3].
    faces: int32 [F, 3], counter-clockwise from outside. Closed pieces may overlap, as a mannequin's limbs do.
    labels: uint8 [F], DensePose's part 1 to 24 (see `parts`).
    uv: float32 [F, 3, 2] in [0, 1], places of the corners on their part's chart.
    hidden: bool [F], faces that lie inside the body.
    """

    vertices: np.ndarray
    faces: np.ndarray
    labels: np.ndarray
    uv: np.ndarray
    hidden: np.ndarray

    @property
    def corners(self) -> np.ndarray:
        """[F, 3, 3]."""
        return self.vertices[self.faces]

    @property
    def height(self) -> float:
        """Of the bounding box, as posed."""
        return float(np.ptp(self.vertices[:, 2]))

    def normals(self) -> np.ndarray:
        """Of the vertices, float32 [V, 3], of unit length: means of the faces', weighed by area."""
        corners = self.corners
        areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        out = np.zeros_like(self.vertices)
        for k in range(3):
            np.add.at(out, self.faces[:, k], areas)
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)

    def scaled(self, factor: float) -> Body:
        """About the origin."""
        return replace(self, vertices=(factor * self.vertices).astype(np.float32))
