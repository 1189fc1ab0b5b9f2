"""Binary glTF files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from threestudio.utils import images
from threestudio.utils.files import atomic_path


def to_gltf_axes(vectors: np.ndarray) -> np.ndarray:
    """Our axes [N, 3] (z up, front +x) as glTF's (y up, front +z): the same object, upright in viewers."""
    return vectors[:, [1, 2, 0]]


def srgb_to_linear(values: np.ndarray) -> np.ndarray:
    """Colours in [0, 1] as shown to amounts of light (IEC 61966-2-1): what glTF wants of vertices.

    Textures stay as they are, for glTF takes those as shown.
    """
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def write_glb(
    path: str | Path,
    v_pos: np.ndarray,
    t_pos_idx: np.ndarray,
    v_nrm: np.ndarray | None = None,
    v_tex: np.ndarray | None = None,
    t_tex_idx: np.ndarray | None = None,
    v_rgb: np.ndarray | None = None,
    maps: dict[str, np.ndarray] | None = None,
) -> str:
    """Write a triangle mesh as .glb, in glTF's axes.

    Args:
        v_pos, t_pos_idx: vertices [Nv, 3] and triangles [Nf, 3], in our axes.
        v_nrm: normals [Nv, 3].
        v_tex, t_tex_idx: texture coordinates [Nt, 2], v up, and their triangles [Nf, 3]. Vertices at seams
            are doubled, for glTF has one texture coordinate a vertex.
        v_rgb: vertex colours [Nv, 3] in [0, 1], as shown; they matter where there is no texture.
        maps: textures in [0, 1], with ``v_tex``: Kd [H, W, 3]; Pm, Pr [H, W].

    Returns:
        ``path``.
    """
    import trimesh
    from trimesh.visual import ColorVisuals, TextureVisuals

    normals = None if v_nrm is None else to_gltf_axes(v_nrm)
    if v_tex is not None and maps:
        pairs = np.stack([t_pos_idx.reshape(-1), t_tex_idx.reshape(-1)], axis=1)
        vertices, triangles = np.unique(pairs, axis=0, return_inverse=True)
        positions, triangles = v_pos[vertices[:, 0]], triangles.reshape(-1, 3)
        normals = normals if normals is None else normals[vertices[:, 0]]
        visual = TextureVisuals(uv=v_tex[vertices[:, 1]], material=_material(maps))
    else:
        positions, triangles = v_pos, t_pos_idx
        colors = None if v_rgb is None else images.to_bytes(srgb_to_linear(np.clip(v_rgb, 0, 1)))
        visual = ColorVisuals(vertex_colors=colors)
    mesh = trimesh.Trimesh(
        vertices=to_gltf_axes(positions),
        faces=triangles,
        vertex_normals=normals,
        visual=visual,
        process=False,
    )
    with atomic_path(path) as temporary:
        Path(temporary).write_bytes(
            trimesh.exchange.gltf.export_glb(trimesh.Scene(mesh), include_normals=normals is not None)
        )
    return str(path)


def _material(maps: dict[str, np.ndarray]) -> object:
    """glTF's material: roughness is the green channel and metallic the blue one of a single texture."""
    from trimesh.visual.material import PBRMaterial

    given = {"baseColorTexture": Image.fromarray(images.rgb_image(maps["Kd"]))} if "Kd" in maps else {}
    if "Pm" in maps or "Pr" in maps:
        like = maps.get("Pm", maps.get("Pr"))
        rough, metallic = maps.get("Pr", np.ones_like(like)), maps.get("Pm", np.zeros_like(like))
        picture = Image.fromarray(images.rgb_image(np.stack([np.ones_like(like), rough, metallic], axis=-1)))
        return PBRMaterial(metallicRoughnessTexture=picture, metallicFactor=1.0, roughnessFactor=1.0, **given)
    return PBRMaterial(metallicFactor=0.0, roughnessFactor=1.0, **given)
