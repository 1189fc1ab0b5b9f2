"""Textures: which point of a surface each texel shows, found on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Candidate pairs of triangle and texel looked at together: about 100 MB.
PAIRS_AT_ONCE = 2_000_000
# How far outside of a triangle, in barycentric coordinates, a texel's centre may lie, for rounding's sake.
SLACK = 1e-5


@dataclass(frozen=True)
class Texels:
    """The texels of a texture [H, W] that lie on a surface, row 0 at v = 1.

    index: [n] positions in the flattened texture; triangle: [n]; weights: [n, 3] of the triangle's corners.
    """

    size: int
    index: np.ndarray
    triangle: np.ndarray
    weights: np.ndarray

    def interpolate(self, values: np.ndarray, triangles: np.ndarray) -> np.ndarray:
        """Values [Nv, C] of vertices at the texels, [n, C]."""
        return (values[triangles[self.triangle]] * self.weights[..., None]).sum(axis=1).astype(np.float32)

    def picture(self, values: np.ndarray) -> np.ndarray:
        """Values [n, C] of the texels as a texture [H, W, C].

        Texels beside the surface take the nearest texel's value, so that a renderer that filters across the
        edge of a chart meets no foreign colour: seams do not show.
        """
        from scipy.ndimage import distance_transform_edt

        size = self.size
        empty = np.ones(size * size, dtype=bool)
        empty[self.index] = False
        texture = np.zeros((size * size, values.shape[1]), dtype=np.float32)
        texture[self.index] = values
        if len(self.index):
            nearest = distance_transform_edt(
                empty.reshape(size, size), return_distances=False, return_indices=True
            )
            texture = texture[(nearest[0] * size + nearest[1]).reshape(-1)]
        return texture.reshape(size, size, -1)


def rasterize_uv(v_tex: np.ndarray, t_tex_idx: np.ndarray, size: int) -> Texels:
    """The texels whose centres lie in a triangle of texture coordinates.

    Args:
        v_tex, t_tex_idx: texture coordinates [Nt, 2] in [0, 1], v up, and their triangles [Nf, 3].
        size: width and height in texels.
    """
    # Corners in texels: the centre of texel (row, column) is at (column, row).
    corners = np.stack([v_tex[:, 0] * size - 0.5, (1.0 - v_tex[:, 1]) * size - 0.5], axis=1)[t_tex_idx]
    low = np.clip(np.ceil(corners.min(axis=1) - 1e-3), 0, size).astype(np.int64)
    high = np.clip(np.floor(corners.max(axis=1) + 1e-3) + 1, 0, size).astype(np.int64)
    wide, tall = np.maximum(high - low, 0).T
    found = [_inside(corners, low, wide, part, size) for part in _groups(wide * tall)]
    index, triangle, weights = (np.concatenate(parts) for parts in zip(*found, strict=True))
    # Where triangles share a texel, on a side or through overlapping charts, the first one has it.
    index, first = np.unique(index, return_index=True)
    return Texels(size, index, triangle[first], weights[first])


def _groups(counts: np.ndarray) -> list[np.ndarray]:
    """All pairs of a triangle and the k-th texel of the box around it, in groups of about `PAIRS_AT_ONCE`.

    Args:
        counts: texels in the box of each triangle.

    Returns:
        arrays [2, m] of triangle and k.
    """
    some = np.flatnonzero(counts)
    if not len(some):
        return [np.zeros((2, 0), dtype=np.int64)]
    pieces = np.flatnonzero(np.diff(np.cumsum(counts[some]) // PAIRS_AT_ONCE)) + 1
    groups = []
    for triangles in np.split(some, pieces):
        n = counts[triangles]
        k = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        groups.append(np.stack([np.repeat(triangles, n), k]))
    return groups


def _inside(
    corners: np.ndarray, low: np.ndarray, wide: np.ndarray, pairs: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of pairs [2, m] of triangle and texel, those that lie in each other: texel, triangle, weights."""
    triangle, k = pairs
    x, y = low[triangle, 0] + k % wide[triangle], low[triangle, 1] + k // wide[triangle]
    a, b, c = (corners[triangle, corner].T for corner in range(3))
    area = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        second = ((x - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (y - a[1])) / area
        third = ((b[0] - a[0]) * (y - a[1]) - (x - a[0]) * (b[1] - a[1])) / area
        weights = np.stack([1.0 - second - third, second, third], axis=1)
    inside = (weights >= -SLACK).all(axis=1)  # not for NaN: a triangle without area shows nowhere
    return (y * size + x)[inside], triangle[inside], weights[inside]
