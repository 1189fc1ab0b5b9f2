"""Points on the surface of a mesh, even by area, in its colours: OBJ, GLB, and PLY files with faces."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from .cloud import PointCloud
from .colors import linear_to_srgb, srgb_to_linear
from .files import columns, read_colors, read_vertices
from .shapes import GREY

MAX_BYTES = 256 * 1024**2  # of an OBJ or GLB file
MAX_TRIANGLES = 4_000_000  # of all instances together
MAX_PIXELS = 8192**2  # of a texture


@dataclass(frozen=True)
class Draw:
    """Where points were drawn: on which triangle [n], and where in it, weights of its corners [n, 3]."""

    triangle: np.ndarray
    weights: np.ndarray

    def of(self, corners: np.ndarray) -> np.ndarray:
        """Values [n, C] at the points, from those at corners [F, 3, C]."""
        return np.einsum("nk,nkc->nc", self.weights, corners[self.triangle])


def draw_by_area(corners: np.ndarray, n: int, generator: torch.Generator) -> Draw:
    """`n` places, uniform on the triangles [F, 3, 3].

    Raises:
        ValueError: the triangles have no area.
    """
    total = np.cumsum(areas(corners))
    if not len(total) or not total[-1] > 0.0:
        raise ValueError("the triangles have no area")
    where, u, v = torch.rand(3, n, generator=generator, dtype=torch.float64).numpy()
    triangle = np.searchsorted(total, where * total[-1], side="right").clip(max=len(total) - 1)
    root = np.sqrt(u)  # towards the first corner there is less room
    return Draw(triangle, np.stack([1.0 - root, root * (1.0 - v), root * v], axis=1))


def areas(corners: np.ndarray) -> np.ndarray:
    """[F] of triangles [F, 3, 3]."""
    return 0.5 * np.linalg.norm(_cross(corners), axis=1)


def sample_surface(corners: np.ndarray, colors: np.ndarray, n: int, generator: torch.Generator) -> PointCloud:
    """`n` points on triangles, with normals.

    Args:
        corners: [F, 3, 3], counter-clockwise from outside.
        colors: of the corners, [F, 3, 3] in [0, 1].

    Raises:
        ValueError: the triangles have no area.
    """
    draw = draw_by_area(corners, n, generator)
    return _cloud(draw.of(corners), draw.of(colors), _cross(corners[draw.triangle]))


def read_mesh(path: str | Path, n: int, generator: torch.Generator) -> PointCloud:
    """`n` points on the mesh of an OBJ or GLB file, in the file's axes.

    Colours are those of the texture, the vertices, the faces or the material, whatever there is, as shown (in
    GLB files all but textures are amounts of light). A file of points without faces gives these points, of
    which there may then be fewer or more than `n`.

    Raises:
        UserError: missing file, damaged, too large, compressed, empty, or not finite.
    """
    path = Path(path)
    parts = _load(path)
    linear = path.suffix.lower() == ".glb"
    meshes = _with_faces(path, parts)
    if not meshes:
        return _points_of(path, parts, linear)
    corners = [vertices[_faces(path, part)] for part, vertices in meshes]
    try:
        draw = draw_by_area(np.concatenate(corners), n, generator)
    except ValueError:
        raise UserError(f"{path} has no surface: its triangles have no area.") from None
    places, ends = np.empty((n, 3)), np.cumsum([len(part.faces) for part, _ in meshes])
    colors, normals = np.empty((n, 3)), np.empty((n, 3))
    owner = np.searchsorted(ends, draw.triangle, side="right")
    for k, (part, _) in enumerate(meshes):
        mine = owner == k
        local = Draw(draw.triangle[mine] - (ends[k] - len(part.faces)), draw.weights[mine])
        places[mine], normals[mine] = local.of(corners[k]), _cross(corners[k][local.triangle])
        colors[mine] = _colors(path, part, local, linear)
    return _cloud(places, colors, normals)


def read_surface(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices float64 [V, 3] in the file's axes and triangles int64 [F, 3] of an OBJ or GLB file.

    Raises:
        UserError: see `read_mesh`; a file without triangles.
    """
    path = Path(path)
    meshes = _with_faces(path, _load(path))
    if not meshes:
        raise UserError(f"{path} holds no triangles, so it has no surface.")
    starts = np.cumsum([0, *(len(vertices) for _, vertices in meshes)])
    faces = [_faces(path, part) + start for (part, _), start in zip(meshes, starts, strict=False)]
    return np.concatenate([vertices for _, vertices in meshes]), np.concatenate(faces)


def sample_ply(path: str | Path, triangles: np.ndarray, n: int, generator: torch.Generator) -> PointCloud:
    """`n` points on triangles [F, 3] of a PLY file, in its vertices' colours; without an area, the vertices.

    Raises:
        UserError: see `files.read_vertices`.
    """
    rows = read_vertices(path)
    points, colors = columns(path, rows, ("x", "y", "z")), read_colors(path, rows)
    try:
        return sample_surface(points.double().numpy()[triangles], colors.numpy()[triangles], n, generator)
    except ValueError:
        return PointCloud(points, colors)


def _with_faces(path: Path, parts: list[tuple[Any, np.ndarray]]) -> list[tuple[Any, np.ndarray]]:
    """The parts of a scene that have triangles, each with its vertices where they stand.

    Raises:
        UserError: more than `MAX_TRIANGLES`, or see `_placed`.
    """
    triangles = sum(len(part.faces) for part, _ in parts if hasattr(part, "faces"))
    if triangles > MAX_TRIANGLES:
        raise UserError(
            f"{path} has {triangles:,} triangles; at most {MAX_TRIANGLES:,} are read. Simplify it first."
        )
    meshes = [(part, _placed(path, part, place)) for part, place in parts if hasattr(part, "faces")]
    return [(part, vertices) for part, vertices in meshes if len(part.faces)]


# --- files --------------------------------------------------------------------------------------------------


def _load(path: Path) -> list[tuple[Any, np.ndarray]]:
    """What trimesh reads in a file, once for each place where it stands: (geometry, transform [4, 4])."""
    import trimesh

    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise UserError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are read. Simplify it first.")
    try:
        if path.suffix.lower() == ".glb":
            data = path.read_bytes()
            _check_glb(path, data)
            # without a resolver: what the file names elsewhere is not fetched
            scene = trimesh.load(io.BytesIO(data), file_type="glb", force="scene", process=False)
        else:
            scene = trimesh.load(str(path), file_type="obj", force="scene", process=False)
        nodes = [scene.graph[node] for node in scene.graph.nodes_geometry]
        return [(scene.geometry[name], np.asarray(matrix, float)) for matrix, name in nodes]
    except UserError:
        raise
    except Exception as error:  # a parser of others' files: whatever it stumbles over, the file is at fault
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {reason}). Is it damaged, or no "
            f"{path.suffix[1:].upper()} file?"
        ) from None


def _check_glb(path: Path, data: bytes) -> None:
    """What would make a loader of GLB files hang or allocate without end.

    Raises:
        UserError: no GLB, arrays that the file does not hold, compression, or nodes that are their own
            parents.
    """
    if len(data) < 20 or data[:4] != b"glTF":
        raise UserError(f"{path} is not a GLB file.")
    (length,) = struct.unpack_from("<I", data, 12)
    tree = json.loads(data[20 : 20 + length])
    if packed := [name for name in tree.get("extensionsRequired", []) if "compression" in name]:
        raise UserError(
            f"{path} needs {', '.join(packed)}, which is not read. Export it without compression."
        )
    unbacked = sum(item["count"] for item in tree.get("accessors", []) if "bufferView" not in item)
    if unbacked > MAX_TRIANGLES or any(item["count"] > len(data) for item in tree.get("accessors", [])):
        raise UserError(f"{path} promises more than it holds. Is it damaged?")
    parent: dict[int, int] = {}
    for index, node in enumerate(tree.get("nodes", [])):
        for child in node.get("children", []):
            if child in parent:
                raise UserError(f"{path} has a node with two parents. Is it damaged?")
            parent[child] = index
    above: set[int] = set()  # nodes that are known to hang from a root
    for node in parent:
        way = []
        while node in parent and node not in above:
            way.append(node)
            if len(way) > len(parent):
                raise UserError(f"{path} has nodes that are their own parents. Is it damaged?")
            node = parent[node]
        above.update(way)


def _placed(path: Path, part: Any, place: np.ndarray) -> np.ndarray:
    """Vertices [V, 3] where the scene puts them.

    Raises:
        UserError: not three finite coordinates each.
    """
    vertices = np.asarray(part.vertices, float)
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise UserError(f"{path} has vertices without three coordinates. Is it damaged?")
    vertices = vertices @ place[:3, :3].T + place[:3, 3]
    if not np.isfinite(vertices).all():
        raise UserError(f"{path} holds vertices that are not finite.")
    return vertices


def _faces(path: Path, part: Any) -> np.ndarray:
    faces = np.asarray(part.faces)
    if faces.min() < 0 or faces.max() >= len(part.vertices):
        raise UserError(f"{path} has faces with vertices that are not in the file. Is it damaged?")
    return faces


def _points_of(path: Path, parts: list[tuple[Any, np.ndarray]], linear: bool) -> PointCloud:
    """The vertices of a file without faces."""
    places = [_placed(path, part, place) for part, place in parts]
    if not sum(map(len, places)):
        raise UserError(f"{path} holds neither triangles nor points.")
    colors = []
    for (part, _), vertices in zip(parts, places, strict=True):
        given = np.asarray(getattr(part, "colors", ())).reshape(-1, 4)
        own = given[:, :3] / 255.0 if len(given) == len(vertices) else np.full((len(vertices), 3), GREY)
        colors.append(linear_to_srgb(own) if linear and len(given) else own)
    return _cloud(np.concatenate(places), np.concatenate(colors), None)


# --- colours ------------------------------------------------------------------------------------------------


def _colors(path: Path, part: Any, draw: Draw, linear: bool) -> np.ndarray:
    """Colours as shown, [n, 3], at places on a part.

    Args:
        linear: the file gives vertices and materials amounts of light, as GLB files do.
    """
    visual, corners = part.visual, np.asarray(part.faces)
    n = len(draw.triangle)
    if visual.kind == "face":
        return visual.face_colors[draw.triangle, :3] / 255.0
    if visual.kind == "vertex":
        colors = draw.of(visual.vertex_colors[corners][..., :3] / 255.0)
        return linear_to_srgb(colors) if linear else colors
    if visual.kind != "texture":
        return np.full((n, 3), GREY)
    material = visual.material
    picture = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    base = getattr(material, "baseColorFactor", None) if linear else getattr(material, "diffuse", None)
    base = np.ones(3) if base is None else np.asarray(base)[:3] / 255.0
    shown = None
    if picture is not None and visual.uv is not None and len(visual.uv) == len(part.vertices):
        shown = _texels(path, picture, draw.of(np.asarray(visual.uv, float)[corners]))
    if not linear:
        # many programs write a diffuse colour of 0 or 0.8 beside a texture, and mean the texture
        return np.broadcast_to(base, (n, 3)) if shown is None else shown
    light = base * (1.0 if shown is None else srgb_to_linear(shown))
    if len(given := np.asarray(visual.vertex_attributes.get("color", ()))) == len(part.vertices):
        given = given / np.iinfo(given.dtype).max if given.dtype.kind == "u" else given
        light = light * draw.of(given[corners][..., :3].astype(float))
    return linear_to_srgb(np.broadcast_to(light, (n, 3)))


def _texels(path: Path, picture: Any, uv: np.ndarray) -> np.ndarray:
    """Colours as shown [n, 3] of a picture at uv [n, 2], v upwards, repeated beyond [0, 1].

    Raises:
        UserError: the picture is too large or damaged.
    """
    from trimesh.visual.color import uv_to_interpolated_color

    if picture.width * picture.height > MAX_PIXELS:
        raise UserError(
            f"{path} has a texture of {picture.width} x {picture.height} pixels; at most {MAX_PIXELS:,} are "
            "read. Scale it down."
        )
    try:
        return uv_to_interpolated_color(np.nan_to_num(uv), picture)[:, :3] / 255.0
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path} has a texture that cannot be read: {error}.") from None


def _cross(corners: np.ndarray) -> np.ndarray:
    """Normals [F, 3], twice as long as the triangles [F, 3, 3] are large."""
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def _cloud(points: np.ndarray, colors: np.ndarray, normals: np.ndarray | None) -> PointCloud:
    if normals is not None:
        normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
    tensors = [None if a is None else torch.from_numpy(a).float() for a in (points, colors, normals)]
    return PointCloud(tensors[0], tensors[1].clamp(0.0, 1.0), tensors[2])
