"""The surface of a field, cut by marching cubes (Lewiner et al. 2003, from scikit-image)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import threestudio
from threestudio.models.mesh import Mesh
from threestudio.utils.errors import ConfigValueError

Level = Callable[[Tensor], Tensor]
"""Points [N, 3] -> level [N]: zero on the surface, negative inside."""

# The box of the second, finer cut: that of the first surface and so much more on every side.
MARGIN = 0.1
# A field counts as something from here on, when its mean is the threshold ("auto").
SOMETHING = 1e-5


class EmptySurfaceError(ConfigValueError):
    """The level is nowhere negative: there is no surface to cut."""


def sample_grid(function: Level, bbox: Tensor, resolution: int, chunk: int = 0) -> Tensor:
    """A function of points at the corners of a grid of cells, [r + 1, r + 1, r + 1], axes x, y, z.

    Args:
        bbox: lowest and highest corner of the box [2, 3]; both are corners of the grid.
        resolution: cells along each side, r.
        chunk: points asked at once; 0 asks all at once.
    """
    n = resolution + 1
    axes = [torch.linspace(float(low), float(high), n, device=bbox.device) for low, high in bbox.T]
    values = []
    for start in range(0, n**3, chunk or n**3):
        index = torch.arange(start, min(start + (chunk or n**3), n**3), device=bbox.device)
        points = torch.stack([axes[0][index // (n * n)], axes[1][index // n % n], axes[2][index % n]], dim=-1)
        values.append(function(points).float().cpu())
    return torch.cat(values).view(n, n, n)


def cut(level: np.ndarray, bbox: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The zero level of values on a grid, as a closed surface: what reaches the box is capped there.

    Args:
        level: [nx, ny, nz] at the corners of cells, negative inside.
        bbox: lowest and highest corner of the box [2, 3].

    Returns:
        vertices [Nv, 3] float32 and triangles [Nf, 3] int64, counter-clockwise seen from outside.

    Raises:
        EmptySurfaceError: nothing is inside.
    """
    from skimage.measure import marching_cubes

    if not (level < 0).any():
        raise EmptySurfaceError("The surface is empty: the level is nowhere below 0.")
    # A layer of "outside" all around closes the surface; its vertices are then drawn back onto the box. A
    # corner exactly on the surface would make triangles without area, so it counts as just outside.
    inside = -np.pad(level.astype(np.float32), 1, constant_values=float(np.abs(level).max()) + 1e-6)
    inside[inside == 0] = -1e-12
    vertices, faces, _, _ = marching_cubes(inside, level=0.0)
    cells = np.array(level.shape) - 1
    vertices = np.clip(vertices - 1.0, 0.0, cells) / cells
    vertices = bbox[0] + vertices * (bbox[1] - bbox[0])
    # scikit-image winds its triangles clockwise, seen from outside
    return vertices.astype(np.float32), faces[:, ::-1].astype(np.int64)


@torch.no_grad()
def isosurface(geometry: object) -> Mesh:
    """The surface of a `BaseImplicitGeometry`, as its config's isosurface_* keys say.

    Returns:
        A closed mesh within the geometry's box, with ``extras["bbox"]`` [2, 3], the box that was cut.

    Raises:
        ConfigValueError: isosurface is false, or no part of the field reaches the threshold.
    """
    cfg = geometry.cfg
    if not cfg.isosurface:
        raise ConfigValueError("geometry.isosurface is false: set it to true to cut a surface.")
    if cfg.isosurface_method == "mt":
        threestudio.info("isosurface_method 'mt': this host cuts with marching cubes instead (mc-cpu).")
    if cfg.isosurface_deformable_grid:
        threestudio.warn("isosurface_deformable_grid: marching cubes keep their grid, so it is ignored.")

    def ask(box: Tensor) -> Tensor:
        field = sample_grid(
            lambda points: geometry.forward_field(points)[0][..., 0],
            box,
            cfg.isosurface_resolution,
            cfg.isosurface_chunk,
        )
        if not field.isfinite().all():
            raise ConfigValueError("The field is not finite everywhere: the training went wrong (NaN).")
        return field

    def level(values: Tensor) -> np.ndarray:
        return geometry.forward_level(values[..., None], threshold)[..., 0].cpu().numpy()

    bbox = geometry.bbox
    field = ask(bbox)
    threshold = _threshold(cfg.isosurface_threshold, field)
    box = bbox.cpu().numpy()
    try:
        vertices, faces = cut(level(field), box)
        if cfg.isosurface_coarse_to_fine:
            box = _around(vertices, box, cfg.isosurface_resolution)
            bbox = torch.from_numpy(box).to(bbox)
            field = ask(bbox)
            vertices, faces = cut(level(field), box)
    except EmptySurfaceError:
        raise EmptySurfaceError(
            f"The surface is empty: no part of the field, which lies between {field.min():.4g} and "
            f"{field.max():.4g}, is inside at a threshold of {threshold:.4g}. Try "
            "system.geometry.isosurface_threshold=auto or a number between those two."
        ) from None
    if (level(field) < 0).all():
        threestudio.warn(
            f"The surface is the box itself: the whole field lies inside at a threshold of {threshold:.4g}."
        )
    mesh = Mesh(torch.from_numpy(vertices).to(bbox), torch.from_numpy(faces).to(bbox.device))
    if cfg.isosurface_remove_outliers:
        mesh = mesh.remove_outlier(cfg.isosurface_outlier_n_faces_threshold)
    mesh.add_extra("bbox", bbox)
    return mesh


def _around(vertices: np.ndarray, box: np.ndarray, resolution: int) -> np.ndarray:
    """The vertices' own box [2, 3] with a margin, within ``box``."""
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    margin = MARGIN * (high - low) + (box[1] - box[0]) / resolution
    return np.stack([np.maximum(low - margin, box[0]), np.minimum(high + margin, box[1])])


def _threshold(value: float | str, field: Tensor) -> float:
    """The number that "auto" stands for: the field's mean where there is something."""
    if value != "auto":
        return float(value)
    something = field[field > SOMETHING]
    if not len(something):
        raise EmptySurfaceError(
            "isosurface_threshold auto: the field is 0 everywhere, there is nothing to cut yet. Train longer."
        )
    threshold = float(something.mean())
    threestudio.info(f"isosurface_threshold auto: {threshold:.4g}")
    return threshold
