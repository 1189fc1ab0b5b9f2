"""Wavefront OBJ and MTL files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from threestudio.utils import images
from threestudio.utils.files import atomic_path, write_text


def write_obj(
    path: str,
    v_pos: np.ndarray,
    t_pos_idx: np.ndarray,
    v_nrm: np.ndarray | None = None,
    v_tex: np.ndarray | None = None,
    t_tex_idx: np.ndarray | None = None,
    v_rgb: np.ndarray | None = None,
    maps: dict[str, np.ndarray] | None = None,
    map_format: str = "jpg",
) -> list[str]:
    """Write a triangle mesh, and its material when ``maps`` is given (``{}`` is a plain material).

    Args:
        v_pos, t_pos_idx: vertices [Nv, 3] and triangles [Nf, 3].
        v_nrm: normals [Nv, 3]; they share the vertices' indices.
        v_tex, t_tex_idx: texture coordinates [Nt, 2], v up, and their triangles [Nf, 3].
        v_rgb: vertex colours [Nv, 3] in [0, 1], written after the positions.
        maps: textures in [0, 1] by MTL name: Kd, Ks, Bump [H, W, 3]; Pm, Pr [H, W].

    Returns:
        The paths written, the .obj first.  The .obj is written last, so that it never names missing files.
    """
    obj_path = Path(path)
    lines: list[str] = []
    material_files: list[str] = []
    if maps is not None:
        material_files = _write_mtl(obj_path.with_suffix(".mtl"), maps, map_format)
        lines += [f"mtllib {obj_path.with_suffix('.mtl').name}", "g object", "usemtl default"]
    vertices = v_pos if v_rgb is None else np.concatenate([v_pos, np.clip(v_rgb, 0, 1)], axis=1)
    lines += [_numbers("v", row) for row in vertices]
    lines += [_numbers("vt", row) for row in v_tex] if v_tex is not None else []
    lines += [_numbers("vn", row) for row in v_nrm] if v_nrm is not None else []
    lines += _faces(t_pos_idx, t_tex_idx if v_tex is not None else None, v_nrm is not None)
    write_text(obj_path, "\n".join(lines) + "\n")
    return [str(obj_path), *material_files]


def _numbers(keyword: str, row: np.ndarray) -> str:
    return keyword + "".join(f" {value:.7g}" for value in row)


def _faces(t_pos_idx: np.ndarray, t_tex_idx: np.ndarray | None, normals: bool) -> list[str]:
    """The ``f`` lines: OBJ counts from 1, and writes position/texture/normal with empty places left out."""
    lines = []
    for face, corners in enumerate(t_pos_idx + 1):
        words = []
        for corner, position in enumerate(corners):
            texture = "" if t_tex_idx is None else str(t_tex_idx[face, corner] + 1)
            normal = f"/{position}" if normals else ""
            words.append(f"{position}/{texture}{normal}" if texture or normal else str(position))
        lines.append("f " + " ".join(words))
    return lines


def _write_mtl(path: Path, maps: dict[str, np.ndarray], map_format: str) -> list[str]:
    written = [str(path)]
    lines = ["newmtl default", "Ka 0.0 0.0 0.0"]
    for name, plain in (("Kd", "1.0 1.0 1.0"), ("Ks", "0.0 0.0 0.0")):
        if name not in maps:
            lines.append(f"{name} {plain}")
    for name, texture in maps.items():
        file = path.with_name(f"texture_{name.lower()}.{map_format}")
        picture = (
            images.rgb_image(texture) if texture.ndim == 3 else images.grayscale_image(texture, (0, 1), None)
        )
        with atomic_path(file) as temporary:
            Image.fromarray(picture).save(temporary, quality=95)
        lines.append(f"map_{name} {file.name}")
        written.append(str(file))
    write_text(path, "\n".join(lines) + "\n")
    return written
