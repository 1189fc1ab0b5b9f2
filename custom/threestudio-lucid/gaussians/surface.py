"""A closed triangle mesh of a Gaussian cloud: where half of the light is gone, wherever one looks from.

The cloud becomes a volume (`volume.py`); a place is inside if, from every direction, at least half of the
light is taken away before it. So the inside fills although the Gaussians sit on the surface, and the surface
is where a picture shows it. Marching cubes cut it, colours come from the Gaussians around each vertex.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import atomic_path
from ..points.colors import srgb_to_linear
from .cloud import Gaussians
from .volume import Volume, bounds_of, depth_inside, fill

# The first look, which finds where the object is, has so many cells along the longest side.
COARSE = 64
# Cells left free around the object in the second look.
MARGIN = 3


@dataclass(frozen=True)
class ColoredMesh:
    """A surface, coloured at its vertices.

    vertices [V, 3] world units; triangles [F, 3], counter-clockwise from outside; colors [V, 3] in [0, 1].
    """

    vertices: np.ndarray
    triangles: np.ndarray
    colors: np.ndarray


def mesh_of(
    gaussians: Gaussians,
    resolution: int = 192,
    threshold: float = 0.5,
    smooth: float = 0.7,
    smallest_part: float = 0.02,
) -> ColoredMesh:
    """The surface of a Gaussian cloud.

    Args:
        resolution: cells along the longest side of the object. Time and memory grow with its cube: 2 s and
            1 GB at 192.
        threshold: share of the light, in (0, 1), that is gone at the surface; lower is fatter.
        smooth: standard deviation, in cells, of the blur of the opacity before it is cut; 0 for none.
        smallest_part: loose parts with fewer triangles than this share of the largest part's are dropped.

    Raises:
        UserError: nothing is opaque enough.
    """
    try:
        bounds = bounds_of(gaussians)
    except ValueError as error:
        raise UserError(f"There is no surface: {error}. Train longer.") from error
    volume = fill(gaussians, bounds, min(COARSE, resolution))
    vertices, _ = _largest_parts(*_cut(volume, threshold, 0.0), smallest_part)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    margin = volume.cell + MARGIN * (high - low).max() / resolution
    volume = fill(gaussians, np.stack([low - margin, high + margin]), resolution)
    vertices, triangles = _largest_parts(*_cut(volume, threshold, smooth), smallest_part)
    return ColoredMesh(vertices, triangles, _colors_at(volume, vertices))


def _cut(volume: Volume, threshold: float, smooth: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and triangles of the surface at a share of lost light, closed at the box.

    Raises:
        UserError: there is none.
    """
    from scipy.ndimage import gaussian_filter

    try:
        from skimage.measure import marching_cubes
    except ModuleNotFoundError as error:
        raise UserError("A mesh of Gaussians needs scikit-image: pip install scikit-image.") from error
    opacity = -np.expm1(-depth_inside(volume))
    if smooth > 0:
        opacity = gaussian_filter(opacity, smooth)
    if not (opacity > threshold).any():
        raise UserError(
            f"There is no surface: at most {opacity.max():.2f} of the light is gone anywhere. Train longer, "
            f"or lower system.exporter.threshold, which is {threshold:g}."
        )
    # A layer of nothing closes what reaches the box; a corner exactly at the threshold would make triangles
    # without area.
    opacity = np.pad(opacity, 1)
    opacity[opacity == threshold] -= 1e-9
    vertices, triangles, _, _ = marching_cubes(opacity, level=threshold)
    # scikit-image winds its triangles clockwise, seen from outside
    return volume.origin + (vertices - 1.0) * volume.cell, triangles[:, ::-1].astype(np.int64)


def _largest_parts(
    vertices: np.ndarray, triangles: np.ndarray, smallest: float
) -> tuple[np.ndarray, np.ndarray]:
    """The connected parts with at least a share of the triangles of the largest one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    sides = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]]])
    graph = coo_array((np.ones(len(sides), bool), (sides[:, 0], sides[:, 1])), shape=2 * (len(vertices),))
    _, part = connected_components(graph, directed=False)
    part = part[triangles[:, 0]]
    count = np.bincount(part)
    triangles = triangles[count[part] >= smallest * count.max()]
    used, triangles = np.unique(triangles, return_inverse=True)
    return vertices[used], triangles.reshape(-1, 3)


def _colors_at(volume: Volume, points: np.ndarray) -> np.ndarray:
    """Colours [V, 3] at points: of the corners of the cell around each, weighted by nearness and density."""
    from scipy.ndimage import map_coordinates

    places = ((points - volume.origin) / volume.cell).T
    weight = np.maximum(map_coordinates(volume.density, places, order=1, mode="nearest"), 1e-12)
    channels = [
        map_coordinates(volume.density * volume.color[..., c], places, order=1, mode="nearest") / weight
        for c in range(3)
    ]
    return np.clip(np.stack(channels, axis=1), 0.0, 1.0)


def mesh_report(mesh: ColoredMesh) -> dict[str, Any]:
    """Size and state of a mesh, as plain values: watertight, volume, area, bounds, ...; world units."""
    out = _trimesh().Trimesh(mesh.vertices, mesh.triangles, process=False)
    return {
        "vertices": len(mesh.vertices),
        "triangles": len(mesh.triangles),
        "parts": int(out.body_count),
        "watertight": bool(out.is_watertight),
        "area": float(out.area),
        "volume": float(out.volume),
        "bounds": out.bounds.tolist(),
    }


def write_mesh(path: str | Path, mesh: ColoredMesh) -> Path:
    """Writes a mesh in the suffix's format: .glb (y up, front +z, as glTF has it), .obj or .ply (our axes).

    Raises:
        UserError: trimesh is not installed.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    vertices, colors = mesh.vertices, mesh.colors
    if path.suffix == ".glb":
        # glTF wants amounts of light at vertices, not colours as shown
        vertices, colors = vertices[:, [1, 2, 0]], srgb_to_linear(colors)
    out = _trimesh().Trimesh(
        vertices, mesh.triangles, vertex_colors=np.uint8(255 * colors + 0.5), process=False
    )
    with atomic_path(path, durable=True) as temporary:
        out.export(temporary)
    return path


def _trimesh() -> Any:
    try:
        import trimesh
    except ModuleNotFoundError as error:
        raise UserError("A mesh needs trimesh: pip install trimesh.") from error
    return trimesh
