"""Valid meshes, clouds, splats and masks, and what reads them."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from plyfile import PlyData, PlyElement

from threestudio_lucid.bodies.files import read_body
from threestudio_lucid.gaussians.cloud import Gaussians
from threestudio_lucid.gaussians.mask import read_indices
from threestudio_lucid.gaussians.ply import read_ply, write_ply
from threestudio_lucid.points import read_file

from .trial import Reader

CORNERS = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0.2], [0, 1, 0]], "<f4")


def picture(kind: str = "PNG", size: tuple[int, int] = (6, 4)) -> bytes:
    """Half red, half blue."""
    image = Image.new("RGB", size, (255, 0, 0))
    image.paste((0, 0, 255), (size[0] // 2, 0, *size))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def glb(tree: dict, buffer: bytes) -> bytes:
    """A GLB file of a JSON tree and its binary chunk."""
    text = json.dumps({"asset": {"version": "2.0"}} | tree).encode()
    text += b" " * (-len(text) % 4)
    buffer += bytes(-len(buffer) % 4)
    chunks = (
        struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(buffer), b"BIN\0") + buffer
    )
    return b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks


def scene(
    *pieces: bytes, accessors: list[dict], strides: Mapping[int, int] = MappingProxyType({}), **tree: object
) -> bytes:
    """A GLB file whose buffer views are the pieces, one after the other; some have a stride."""
    views, buffer = [], b""
    for piece in pieces:
        views.append({"buffer": 0, "byteOffset": len(buffer), "byteLength": len(piece)})
        if (k := len(views) - 1) in strides:
            views[k]["byteStride"] = strides[k]
        buffer += piece + bytes(-len(piece) % 4)
    tree = {"nodes": [{"mesh": 0}], "scenes": [{"nodes": [0]}], "scene": 0} | tree
    tree |= {"accessors": accessors, "bufferViews": views, "buffers": [{"byteLength": len(buffer)}]}
    return glb(tree, buffer)


def _textured() -> bytes:
    """A square with a texture, vertex colours, a mirrored and nested node, and a skin of one bone."""
    uv, index = CORNERS[:, :2].astype("<f4"), np.array([0, 1, 2, 0, 2, 3], "<u2")
    colors, joints = np.full((4, 4), 255, "u1"), np.zeros((4, 4), "u1")
    weights, bind = np.tile(np.array([1, 0, 0, 0], "<f4"), (4, 1)), np.eye(4, dtype="<f4")
    pieces = [array.tobytes() for array in (CORNERS, uv, index, colors, joints, weights, bind)]
    kinds = [(5126, 4, "VEC3"), (5126, 4, "VEC2"), (5123, 6, "SCALAR"), (5121, 4, "VEC4"), (5121, 4, "VEC4")]
    kinds += [(5126, 4, "VEC4"), (5126, 1, "MAT4")]
    accessors = [
        {"bufferView": k, "componentType": kind, "count": count, "type": name}
        for k, (kind, count, name) in enumerate(kinds)
    ]
    accessors[3]["normalized"] = True
    sparse = {"bufferView": 2, "componentType": 5123}
    accessors[0]["sparse"] = {"count": 1, "indices": sparse, "values": {"bufferView": 0}}
    names = ("POSITION", "TEXCOORD_0", "COLOR_0", "JOINTS_0", "WEIGHTS_0")
    attributes = dict(zip(names, (0, 1, 3, 4, 5), strict=True))
    moved = {"KHR_texture_transform": {"offset": [0.1, 0], "rotation": 0.2, "scale": [2, 1]}}
    return scene(
        *pieces,
        picture(),
        accessors=accessors,
        meshes=[{"primitives": [{"attributes": attributes, "indices": 2, "material": 0}]}],
        materials=[
            {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0, "texCoord": 0, "extensions": moved}}}
        ],
        textures=[{"source": 0, "sampler": 0}],
        samplers=[{"wrapS": 33648}],
        images=[{"bufferView": 7, "mimeType": "image/png"}],
        nodes=[
            {"children": [1], "scale": [-1, 2, 1], "rotation": [0, 0, 0.6, 0.8]},
            {"mesh": 0, "translation": [1, 2, 3]},
            {"mesh": 0, "skin": 0},
        ],
        scenes=[{"nodes": [0, 2]}],
        skins=[{"joints": [1], "inverseBindMatrices": 6}],
    )


def _fan() -> bytes:
    """A fan of quantised positions, three times as wide apart as it needs, with morph targets."""
    packed = np.zeros((4, 6), "<i2")
    packed[:, :3] = CORNERS * 32767
    accessors = [{"bufferView": 0, "componentType": 5122, "count": 4, "type": "VEC3", "normalized": True}]
    mesh = {"primitives": [{"attributes": {"POSITION": 0}, "mode": 6, "targets": [{"POSITION": 0}]}]}
    gloss = {"KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [1, 0, 0, 1]}}
    mesh["primitives"][0]["material"] = 0
    return scene(
        packed.tobytes(),
        accessors=accessors,
        strides={0: 12},
        meshes=[mesh | {"weights": [0.5]}],
        materials=[{"extensions": gloss}],
        extensionsRequired=["KHR_mesh_quantization"],
    )


_OBJ = """# a square, a triangle of another material, and points that nothing uses
mtllib m.mtl
v 0 0 0 1 0 0
v 1 0 0 0 1 0
v 1 1 0.5 0 0 1
v 0 1 0 1 1 1
vt 0 0
vt 1 0
vt 1 1
usemtl picture
f 1/1 2/2 3/3 4/1
v 5 5 5
usemtl plain
f -5 \\
  -4 -1
f 1/1/1 2//2 3
"""
_MTL = """newmtl picture
map_Kd -s 2 1 1 -o 0.5 -clamp on t.png
newmtl plain
Kd 1 0 0.25 # red
"""
_HEAD = "ply\nformat ascii 1.0\ncomment TextureFile t.png\nelement vertex 4\n" + "".join(
    f"property float {name}\n" for name in "xyzst"
)
_PLY = (
    _HEAD
    + """property uchar red
property uchar green
property uchar blue
element face 3
property list uchar int vertex_indices
property list uchar float texcoord
property int texnumber
end_header
0 0 0 0 0 1 2 3
1 0 0 1 0 1 2 3
1 1 0 1 1 1 2 3
0 1 0 0 1 1 2 3
3 0 1 2 6 0 0 1 0 1 1 0
4 0 1 2 3 0 -1
3 0 2 3 6 0 0 1 1 0 1 0
"""
)
_STRIPS = (
    _HEAD
    + """element tristrips 1
property list int int vertex_indices
end_header
0 0 0 0 0
1 0 0 1 0
1 1 0 1 1
0 1 0 0 1
7 0 1 2 3 -1 0 1
"""
)


def gaussians(n: int = 12, degree: int = 1) -> Gaussians:
    draw = torch.Generator().manual_seed(0)
    shapes = [(n, 3), (n, 4), (n, 3), (n,), (n, 1, 3), (n, (degree + 1) ** 2 - 1, 3)]
    return Gaussians(*(torch.randn(shape, generator=draw) for shape in shapes))


def packed_ply(path: Path, words: np.ndarray, chunk: dict[str, float], sh: np.ndarray | None = None) -> Path:
    """SuperSplat's layout: words [N, 4] of position, rotation, scale and colour, and one chunk's bounds."""
    names = ("position", "rotation", "scale", "color")
    rows = np.empty(len(words), [(f"packed_{name}", "<u4") for name in names])
    for k, name in enumerate(names):
        rows[f"packed_{name}"] = words[:, k]
    bounds = np.array([tuple(chunk.values())], [(name, "<f4") for name in chunk])
    elements = [PlyElement.describe(bounds, "chunk"), PlyElement.describe(rows, "vertex")]
    if sh is not None:
        rest = np.empty(len(sh), [(f"f_rest_{k}", "u1") for k in range(sh.shape[1])])
        for k in range(sh.shape[1]):
            rest[f"f_rest_{k}"] = sh[:, k]
        elements.append(PlyElement.describe(rest, "sh"))
    PlyData(elements, byte_order="<").write(str(path))
    return path


def bounds(**others: float) -> dict[str, float]:
    """Of a chunk: positions in [-1, 1], logarithms of scales in [-4, 0], unless others are given."""
    found = {f"{end}_{axis}": value for end, value in (("min", -1.0), ("max", 1.0)) for axis in "xyz"}
    found |= {f"{end}_scale_{axis}": value for end, value in (("min", -4.0), ("max", 0.0)) for axis in "xyz"}
    return found | others


def _make_meshes(folder: Path, names: Sequence[str]) -> list[Path]:
    (folder / "t.png").write_bytes(picture())
    (folder / "m.mtl").write_text(_MTL)
    texts = {"a.obj": _OBJ, "a.ply": _PLY, "strips.ply": _STRIPS}
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "a.glb").write_bytes(_textured())
    (folder / "fan.glb").write_bytes(_fan())
    data = "data:application/octet-stream;base64,AAAAAAAAAAAAAAAAAACAPwAAAAAAAAAAAAAAAAAAgD8AAAAA"
    tree = {
        "asset": {"version": "2.0"},
        "buffers": [{"byteLength": 36, "uri": data}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "nodes": [{"mesh": 0}],
    }
    (folder / "a.gltf").write_text(json.dumps(tree))
    return [folder / name for name in names]


def _make_splats(folder: Path) -> list[Path]:
    words = np.random.default_rng(0).integers(0, 2**32, (5, 4))
    packed = packed_ply(folder / "packed.ply", words, bounds(), np.zeros((5, 9), "u1"))
    return [write_ply(folder / "a.ply", gaussians()), packed]


def _make_archives(folder: Path) -> list[Path]:
    points = np.random.default_rng(0).uniform(-1, 1, (6, 3))
    np.savez(folder / "a.npz", points=points, colors=np.full((6, 3), 200, "u1"), normals=points)
    np.savez_compressed(folder / "b.npz", coords=points, R=points[:, 0], G=points[:, 1], B=points[:, 2])
    return [folder / "a.npz", folder / "b.npz"]


def _make_indices(folder: Path) -> list[Path]:
    (folder / "rows.txt").write_text("0, 1 2\n30 400\n")
    return [folder / "rows.txt"]


def _points(path: Path) -> None:
    assert read_file(path, 50, torch.Generator().manual_seed(0)).points.isfinite().all()


def _splats(path: Path) -> None:
    found = read_ply(path)
    assert found.means.isfinite().all() and found.log_scales.exp().isfinite().all()


def _body(path: Path) -> None:
    assert np.isfinite(read_body(path, "a", 1.0).vertices).all()


def _meshes(name: str, *files: str, read: Callable[[Path], object] = _points) -> Reader:
    return Reader(name, lambda folder: _make_meshes(folder, files), read)


def _beside(name: str, file: str, owner: str) -> Reader:
    """Spoils what a mesh names, not the mesh."""
    return _meshes(name, file, read=lambda path: _points(path.parent / owner))


READERS = (
    _meshes("glb", "a.glb", "fan.glb"),
    _meshes("gltf", "a.gltf"),
    _meshes("obj", "a.obj"),
    _beside("mtl", "m.mtl", "a.obj"),
    _beside("texture", "t.png", "a.obj"),
    _meshes("ply-mesh", "a.ply", "strips.ply"),
    _meshes("body", "a.obj", "a.gltf", read=_body),
    Reader("splats", _make_splats, _splats),
    Reader("points", lambda folder: [*_make_splats(folder), *_make_archives(folder)], _points),
    Reader("mask", _make_indices, read_indices),
)
