"""Which triangle a pixel sees: a z-buffer for small meshes, compiled for the CPU.

The cameras are the Gaussian rasterizer's (`data.orbit.opencv_cameras`), so what is drawn here lies on what
is drawn there. Not differentiable: it draws what a ControlNet is shown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import prange

from ..compiled import cached

NEAR = 0.05  # triangles with a corner nearer to the camera plane are left out


@dataclass(frozen=True)
class Fragments:
    """What the pixels of B views see.

    face: int32 [B, H, W], -1 where there is nothing.
    weights: float32 [B, H, W, 3], of the triangle's corners; they sum to 1.
    depth: float32 [B, H, W], along the optical axis; 0 where there is nothing.
    """

    face: np.ndarray
    weights: np.ndarray
    depth: np.ndarray

    def interpolate(self, corners: np.ndarray) -> np.ndarray:
        """Values [B, H, W, C] of those at triangles' corners [F, 3, C]; 0 where there is nothing."""
        seen = self.face >= 0
        out = np.zeros((*self.face.shape, corners.shape[-1]), np.float32)
        out[seen] = np.einsum("nk,nkc->nc", self.weights[seen], corners[self.face[seen]])
        return out


def draw_triangles(
    vertices: np.ndarray, faces: np.ndarray, viewmats: np.ndarray, Ks: np.ndarray, width: int, height: int
) -> Fragments:
    """Fragments of a mesh; a pixel belongs to the nearest triangle that its centre lies in.

    Args:
        vertices: [V, 3], world.
        faces: [F, 3].
        viewmats, Ks: [B, 4, 4] world to camera, OpenCV, and [B, 3, 3] in pixels, centres at +0.5.
    """
    arrays = (np.ascontiguousarray(a, np.float32) for a in (vertices, viewmats, Ks))
    vertices, viewmats, Ks = arrays
    return Fragments(*_draw(vertices, np.ascontiguousarray(faces, np.int32), viewmats, Ks, width, height))


@cached(parallel=True)
def _draw(vertices, faces, viewmats, Ks, width, height):
    views = viewmats.shape[0]
    face = np.full((views, height, width), -1, np.int32)
    weights = np.zeros((views, height, width, 3), np.float32)
    depth = np.zeros((views, height, width), np.float32)
    for b in prange(views):
        n = vertices.shape[0]
        u, v, z = np.empty(n, np.float64), np.empty(n, np.float64), np.empty(n, np.float64)
        m, k = viewmats[b], Ks[b]
        for i in range(n):
            x, y, w = vertices[i, 0], vertices[i, 1], vertices[i, 2]
            z[i] = m[2, 0] * x + m[2, 1] * y + m[2, 2] * w + m[2, 3]
            if z[i] > NEAR:
                u[i] = k[0, 0] * (m[0, 0] * x + m[0, 1] * y + m[0, 2] * w + m[0, 3]) / z[i] + k[0, 2]
                v[i] = k[1, 1] * (m[1, 0] * x + m[1, 1] * y + m[1, 2] * w + m[1, 3]) / z[i] + k[1, 2]
        for f in range(faces.shape[0]):
            p, q, r = faces[f, 0], faces[f, 1], faces[f, 2]
            if min(z[p], z[q], z[r]) <= NEAR:
                continue
            area = (u[q] - u[p]) * (v[r] - v[p]) - (u[r] - u[p]) * (v[q] - v[p])
            if area == 0.0:
                continue
            left = max(math.ceil(min(u[p], u[q], u[r]) - 0.5), 0)
            right = min(math.floor(max(u[p], u[q], u[r]) - 0.5), width - 1)
            top = max(math.ceil(min(v[p], v[q], v[r]) - 0.5), 0)
            bottom = min(math.floor(max(v[p], v[q], v[r]) - 0.5), height - 1)
            for row in range(top, bottom + 1):
                for column in range(left, right + 1):
                    cu, cv = column + 0.5, row + 0.5
                    # on screen, and then, since 1/z is linear there, in space
                    a = ((u[q] - cu) * (v[r] - cv) - (u[r] - cu) * (v[q] - cv)) / area
                    c = ((u[r] - cu) * (v[p] - cv) - (u[p] - cu) * (v[r] - cv)) / area
                    d = 1.0 - a - c
                    if a < 0.0 or c < 0.0 or d < 0.0:
                        continue
                    inverse = a / z[p] + c / z[q] + d / z[r]
                    here = 1.0 / inverse
                    if face[b, row, column] >= 0 and here >= depth[b, row, column]:
                        continue
                    face[b, row, column] = f
                    depth[b, row, column] = here
                    weights[b, row, column, 0] = a / z[p] * here
                    weights[b, row, column, 1] = c / z[q] * here
                    weights[b, row, column, 2] = d / z[r] * here
    return face, weights, depth
