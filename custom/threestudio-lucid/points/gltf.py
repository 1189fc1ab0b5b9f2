"""Reads the surfaces and points of glTF 2.0 files: .glb, and .gltf with its buffers beside it or inside.

Written after the specification (https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html); section numbers
below are its. Animations are not read: skins stand in the pose of their nodes, morph targets have the weights
that the file gives them.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from ..damaged import reading
from ..errors import UserError
from ..guidance.cards import announce
from .colors import linear_to_srgb
from .limits import MAX_BYTES, check_counts, check_size
from .parts import Corners, Paint, Part, strip
from .textures import Texture, beside, find_texture, texture_of

# Extensions that are read, and those without which a surface looks the same but for its gloss and light.
_READ = {
    "EXT_mesh_gpu_instancing",
    "EXT_texture_avif",
    "EXT_texture_webp",
    "KHR_materials_pbrSpecularGlossiness",
    "KHR_materials_unlit",
    "KHR_mesh_quantization",
    "KHR_node_visibility",
    "KHR_texture_transform",
}
_HARMLESS = {
    "EXT_lights_ies",
    "EXT_lights_image_based",
    "KHR_animation_pointer",
    "KHR_lights_punctual",
    "KHR_materials_anisotropy",
    "KHR_materials_clearcoat",
    "KHR_materials_diffuse_transmission",
    "KHR_materials_dispersion",
    "KHR_materials_emissive_strength",
    "KHR_materials_ior",
    "KHR_materials_iridescence",
    "KHR_materials_sheen",
    "KHR_materials_specular",
    "KHR_materials_transmission",
    "KHR_materials_variants",
    "KHR_materials_volume",
    "KHR_xmp",
    "KHR_xmp_json_ld",
}
_DRACO = "KHR_draco_mesh_compression"
_MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")
_DTYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_WRAPS = {33071: "clamp", 33648: "mirror", 10497: "repeat"}
_POINTS, _TRIANGLES, _STRIP, _FAN = 0, 4, 5, 6  # section 3.7.2.1; 1 to 3 are lines


def read_gltf(path: Path) -> list[Part]:
    """The parts of the file's scene, in its axes: y up, front +z.

    Raises:
        UserError: no glTF 2.0, damaged, larger than is read, or it needs an extension that is not read.
    """
    with reading(path, "glTF", "Is it damaged, or no glTF 2.0 file?"):
        return list(_Gltf(path).parts())


class _Gltf:
    """A file's JSON, `tree`, and its buffers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        data = path.read_bytes()
        self.binary: bytes | None = None
        self.tree = json.loads(self._chunks(data) if path.suffix.lower() == ".glb" else data)
        self.size = len(data)  # of all that the file and its buffers hold
        if not str(self.tree["asset"]["version"]).startswith("2."):
            raise UserError(f"{path} is glTF {self.tree['asset']['version']}; 2.0 is read.")
        self._check_extensions()
        self.parents = self._parents()
        self.buffers: dict[int, bytes] = {}
        self.textures: dict[tuple[int, ...], Texture | None] = {}
        self.places: dict[int, np.ndarray] = {}

    def _chunks(self, data: bytes) -> bytes:
        """The JSON of a GLB file; its binary chunk becomes `binary` (section 4.4)."""
        if len(data) < 20 or data[:4] != b"glTF":
            raise UserError(f"{self.path} is not a GLB file.")
        if (version := struct.unpack_from("<I", data, 4)[0]) != 2:
            raise UserError(f"{self.path} is version {version} of GLB; 2 is read. Export it anew.")
        (length,) = struct.unpack_from("<I", data, 12)
        if data[16:20] != b"JSON" or 20 + length > len(data):
            raise ValueError("its first chunk is not JSON, or longer than the file")
        start = 20 + length
        if len(data) >= start + 8 and data[start + 4 : start + 8] == b"BIN\0":
            (size,) = struct.unpack_from("<I", data, start)
            self.binary = data[start + 8 : start + 8 + size]
        return data[20 : 20 + length]

    def _check_extensions(self) -> None:
        missing = [name for name in self.tree.get("extensionsRequired", []) if name not in _READ | _HARMLESS]
        if missing:
            raise UserError(
                f"{self.path} needs {', '.join(missing)}, which is not read. {_next_step(missing)}"
            )

    def _item(self, kind: str, index: Any) -> dict[str, Any]:
        """One of the tree's lists, by an index that must be there."""
        items = self.tree.get(kind, [])
        if not isinstance(index, int) or not 0 <= index < len(items):
            raise ValueError(f"it has no {kind}[{index}]")
        return items[index]

    # --- numbers: sections 3.6.1 and 3.6.2 ------------------------------------------------------------------

    def _buffer(self, index: int) -> bytes:
        if index in self.buffers:
            return self.buffers[index]
        uri = self._item("buffers", index).get("uri")
        if uri is None:
            if index != 0 or self.binary is None:
                raise ValueError(f"it has no data for its buffer {index}")
            data = self.binary
        else:
            source = self._resource(uri)
            if source is None:
                raise UserError(f"{self.path} needs {uri[:80]!r} for its shape; it must lie beside it.")
            if isinstance(source, Path):
                check_size(source)
                source = source.read_bytes()
            data = source
            self.size += len(data)
            if self.size > 2 * MAX_BYTES:
                raise UserError(
                    f"{self.path} has buffers of more than {MAX_BYTES:,} bytes. Simplify it first."
                )
        self.buffers[index] = data
        return data

    def _resource(self, uri: str) -> Path | bytes | None:
        """What a URI names: bytes of its own, or a file beside this one; None for what is not there."""
        if uri.startswith("data:"):
            head, _, text = uri.partition(",")
            return base64.b64decode(text) if head.endswith(";base64") else unquote(text).encode("latin-1")
        return beside(self.path, unquote(uri))

    def _view(self, index: int) -> tuple[memoryview, int | None]:
        """The bytes of a buffer view, and its stride."""
        view = self._item("bufferViews", index)
        packed = [name for name in view.get("extensions", {}) if name in _MESHOPT]
        buffer = self._item("buffers", view["buffer"])
        # only a buffer with data of its own can stand in for the compressed one
        hollow = view["buffer"] or any(name in buffer.get("extensions", {}) for name in packed)
        if packed and hollow and "uri" not in buffer:
            raise UserError(f"{self.path} needs {packed[0]}, which is not read. {_next_step(packed)}")
        data, start = self._buffer(view["buffer"]), _count(view.get("byteOffset", 0))
        end = start + _count(view["byteLength"])
        if end > len(data):
            raise ValueError(f"its buffer view {index} ends after its buffer")
        return memoryview(data)[start:end], view.get("byteStride")

    def _elements(self, view: int, offset: Any, count: int, width: int, kind: Any) -> np.ndarray:
        """[count, width] of a buffer view, as they are stored."""
        dtype = np.dtype(_DTYPES[kind])
        data, stride = self._view(view)
        stride = dtype.itemsize * width if stride is None else _count(stride)
        offset = _count(offset)
        row = dtype.itemsize * width
        if count < 1 or stride < row:
            raise ValueError("an accessor is empty, or its elements overlap")
        if offset + stride * (count - 1) + row > len(data):
            raise UserError(f"{self.path} promises more than it holds. Is it damaged?")
        return np.ndarray((count, width), dtype, data, offset, (stride, dtype.itemsize))

    def numbers(self, index: Any, widths: tuple[int, ...], normalize: bool = False) -> np.ndarray:
        """An accessor's elements [count, width], whole numbers as such, or floats.

        Args:
            widths: those that may be.
            normalize: whole numbers stand for fractions also where the accessor does not say so.

        Raises:
            UserError: it promises more than the file holds.
        """
        item = self._item("accessors", index)
        count, width, kind = _count(item["count"]), _WIDTHS[item["type"]], item["componentType"]
        if width not in widths:
            raise ValueError(f"an accessor is of {item['type']}, which does not fit")
        if "bufferView" in item:
            values = self._elements(item["bufferView"], item.get("byteOffset", 0), count, width, kind)
        elif count > self.size:
            raise UserError(f"{self.path} promises more than it holds. Is it damaged?")
        else:
            values = np.zeros((count, width), _DTYPES[kind])
        if "sparse" in item:
            values = self._sparse(values, item["sparse"], kind)
        return _fractions(values) if normalize or item.get("normalized", False) else values

    def _sparse(self, values: np.ndarray, sparse: dict[str, Any], kind: int) -> np.ndarray:
        """Values of which some are given anew (section 3.6.2.3)."""
        count, where, what = _count(sparse["count"]), sparse["indices"], sparse["values"]
        rows = self._elements(
            where["bufferView"], where.get("byteOffset", 0), count, 1, where["componentType"]
        )
        new = self._elements(what["bufferView"], what.get("byteOffset", 0), count, values.shape[1], kind)
        values = values.copy()
        values[rows[:, 0].astype(np.int64)] = new
        return values

    # --- nodes: section 3.5 ---------------------------------------------------------------------------------

    def _parents(self) -> dict[int, int]:
        """The parent of each node that has one.

        Raises:
            UserError: a node with two parents, or nodes that are their own.
        """
        parent: dict[int, int] = {}
        for index, node in enumerate(self.tree.get("nodes", [])):
            for child in node.get("children", []):
                if child in parent:
                    raise UserError(f"{self.path} has a node with two parents. Is it damaged?")
                parent[child] = index
        above: set[int] = set()  # nodes that are known to hang from a root
        for node in parent:
            way = []
            while node in parent and node not in above:
                way.append(node)
                if len(way) > len(parent):
                    raise UserError(f"{self.path} has nodes that are their own parents. Is it damaged?")
                node = parent[node]
            above.update(way)
        return parent

    def _place(self, node: int) -> np.ndarray:
        """From a node's axes to the scene's, [4, 4]."""
        way = [node]
        while way[-1] in self.parents and way[-1] not in self.places:
            way.append(self.parents[way[-1]])
        for index in reversed(way):
            if index not in self.places:
                above = self.places[self.parents[index]] if index in self.parents else np.eye(4)
                self.places[index] = above @ _local(self._item("nodes", index))
        return self.places[node]

    def _nodes(self) -> Iterator[int]:
        """The nodes of the scene that is to be shown, hidden ones left out."""
        nodes = self.tree.get("nodes", [])
        if self.tree.get("scenes"):
            todo = list(self._item("scenes", self.tree.get("scene", 0)).get("nodes", []))
        else:
            todo = [index for index in range(len(nodes)) if index not in self.parents]
        seen: set[int] = set()
        while todo:
            index = todo.pop()
            node = self._item("nodes", index)
            if (
                index in seen
                or node.get("extensions", {}).get("KHR_node_visibility", {}).get("visible") is False
            ):
                continue
            seen.add(index)
            todo += reversed(node.get("children", []))
            yield index

    # --- meshes: section 3.7 --------------------------------------------------------------------------------

    def parts(self) -> Iterator[Part]:
        """All primitives of triangles and points, once for each place where they stand.

        Raises:
            UserError: see `limits.check_counts` and `numbers`.
        """
        triangles, vertices, cache = 0, 0, {}
        for index in self._nodes():
            node = self._item("nodes", index)
            if "mesh" not in node:
                continue
            mesh = self._item("meshes", node["mesh"])
            for number, primitive in enumerate(mesh["primitives"]):
                key = (node["mesh"], number, node.get("skin"), str(node.get("weights")))
                if key not in cache:
                    cache[key] = self._primitive(primitive, mesh, node)
                if (part := cache[key]) is None:
                    continue
                places = [np.eye(4)] if "skin" in node else self._instances(node, self._place(index))
                triangles += len(part.triangles) * len(places)
                vertices += len(part.vertices) * len(places)
                check_counts(self.path, triangles, vertices)
                for place in places:
                    yield _standing(part, place)

    def _instances(self, node: dict[str, Any], place: np.ndarray) -> list[np.ndarray]:
        """Where a node's mesh stands: once, or wherever EXT_mesh_gpu_instancing repeats it."""
        instancing = node.get("extensions", {}).get("EXT_mesh_gpu_instancing")
        if instancing is None:
            return [place]
        widths = {"TRANSLATION": (3,), "ROTATION": (4,), "SCALE": (3,)}
        given = {
            name.lower(): self.numbers(index, widths[name])
            for name, index in instancing["attributes"].items()
            if name in widths
        }
        rows = (dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True))
        return [place @ _local(row) for row in rows]

    def _primitive(self, primitive: dict, mesh: dict, node: dict) -> Part | None:
        """One primitive in its mesh's axes; None for lines, and for what has no positions."""
        mode, attributes = primitive.get("mode", _TRIANGLES), primitive["attributes"]
        if mode not in (_POINTS, _TRIANGLES, _STRIP, _FAN) or "POSITION" not in attributes:
            return None
        accessor = self._item("accessors", attributes["POSITION"])
        if _DRACO in primitive.get("extensions", {}) and "bufferView" not in accessor:
            raise UserError(f"{self.path} needs {_DRACO}, which is not read. {_next_step([_DRACO])}")
        vertices = self.numbers(attributes["POSITION"], (3,)).astype(np.float64)
        vertices = self._posed(vertices, primitive, mesh, node)
        if mode == _POINTS:
            return self._points(vertices, primitive)
        rows = self._rows(primitive, len(vertices))
        if mode == _STRIP:
            triangles = strip(rows)
        elif mode == _FAN:
            k = np.arange(max(len(rows) - 2, 0))
            triangles = rows[np.stack([k + 1, k + 2, 0 * k], axis=1)]
        else:
            triangles = rows[: len(rows) // 3 * 3].reshape(-1, 3)
        return Part(vertices, triangles, self._paint(primitive, triangles, len(vertices)))

    def _rows(self, primitive: dict, vertices: int) -> np.ndarray:
        """Which vertices a primitive is made of, in their order.

        Raises:
            UserError: some are not there.
        """
        if "indices" not in primitive:
            return np.arange(vertices)
        rows = self.numbers(primitive["indices"], (1,))[:, 0]
        if rows.dtype.kind == "f":
            raise ValueError("its indices are no whole numbers")
        rows = rows.astype(np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= vertices):
            raise UserError(f"{self.path} has faces with vertices that are not in the file. Is it damaged?")
        return rows

    def _points(self, vertices: np.ndarray, primitive: dict) -> Part:
        light = self._vertex_colors(primitive, len(vertices))
        base = self._material(primitive.get("material"))[0]
        if light is not None or base is not None:
            one = np.ones(3)
            light = (one if light is None else light) * (one if base is None else base)
            light = linear_to_srgb(np.broadcast_to(light, (len(vertices), 3)))
        if "indices" in primitive:
            rows = self._rows(primitive, len(vertices))
            vertices, light = vertices[rows], None if light is None else light[rows]
        return Part(vertices, np.empty((0, 3), np.int64), point_colors=light)

    def _posed(self, vertices: np.ndarray, primitive: dict, mesh: dict, node: dict) -> np.ndarray:
        """Vertices after morph targets (section 3.7.2.2) and the skin (3.7.3)."""
        weights = node.get("weights", mesh.get("weights", []))
        for weight, target in zip(weights, primitive.get("targets", []), strict=False):
            if weight and "POSITION" in target:
                vertices = vertices + float(weight) * self.numbers(target["POSITION"], (3,))
        attributes = primitive["attributes"]
        if "skin" not in node or "JOINTS_0" not in attributes or "WEIGHTS_0" not in attributes:
            return vertices
        skin = self._item("skins", node["skin"])
        bones = np.stack([self._place(joint) for joint in skin["joints"]])
        if "inverseBindMatrices" in skin:
            inverse = self.numbers(skin["inverseBindMatrices"], (16,)).reshape(-1, 4, 4).transpose(0, 2, 1)
            bones = bones @ inverse[: len(bones)]
        moved, whole = np.zeros_like(vertices), np.zeros((len(vertices), 1))
        for k in range(2):  # more than eight bones on one vertex are not drawn by anyone
            if f"JOINTS_{k}" not in attributes or f"WEIGHTS_{k}" not in attributes:
                break
            joints = self.numbers(attributes[f"JOINTS_{k}"], (4,)).astype(np.int64)
            shares = self.numbers(attributes[f"WEIGHTS_{k}"], (4,), normalize=True)
            for bone, share in zip(joints.T, shares.T.astype(np.float64), strict=True):
                used = np.flatnonzero(share)
                matrices, points = bones[bone[used]], vertices[used]
                turned = np.einsum("nij,nj->ni", matrices[:, :3, :3], points) + matrices[:, :3, 3]
                moved[used] += share[used, None] * turned
                whole[used, 0] += share[used]
        return np.where(whole > 0, moved / np.where(whole > 0, whole, 1.0), vertices)

    # --- colours: section 3.9 -------------------------------------------------------------------------------

    def _vertex_colors(self, primitive: dict, vertices: int) -> np.ndarray | None:
        """Amounts of light [V, 3]."""
        if "COLOR_0" not in primitive["attributes"]:
            return None
        colors = self.numbers(primitive["attributes"]["COLOR_0"], (3, 4), normalize=True)
        _check_count(colors, vertices)
        return np.clip(np.nan_to_num(colors[:, :3].astype(np.float64)), 0.0, 1.0)

    def _paint(self, primitive: dict, triangles: np.ndarray, vertices: int) -> Paint:
        light = self._vertex_colors(primitive, vertices)
        base, info = self._material(primitive.get("material"))
        texture = uv = None
        if info:
            moved = info.get("extensions", {}).get("KHR_texture_transform", {})
            name = f"TEXCOORD_{moved.get('texCoord', info.get('texCoord', 0))}"
            texture = self._texture(info["index"])
            if texture is not None and name not in primitive["attributes"]:
                announce(
                    f"{self.path} has a texture for {name}, which a part of it lacks: it is read without."
                )
                texture = None
            elif texture is not None:
                values = self.numbers(primitive["attributes"][name], (2,)).astype(np.float64)
                _check_count(values, vertices)
                uv = Corners(_moved(values, moved), triangles)
        colors = None if light is None else Corners(light, triangles)
        return Paint(base, colors, texture, uv, linear=True)

    def _material(self, index: Any) -> tuple[np.ndarray | None, dict[str, Any] | None]:
        """The base colour [3], an amount of light, and what is said of its texture; None without material."""
        if index is None:
            return None, None
        material = self._item("materials", index)
        gloss = material.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness")
        if gloss is not None:
            factor, info = gloss.get("diffuseFactor", [1.0] * 4), gloss.get("diffuseTexture")
        else:
            rough = material.get("pbrMetallicRoughness", {})
            factor, info = rough.get("baseColorFactor", [1.0] * 4), rough.get("baseColorTexture")
        return np.clip(_vector(factor, 4)[:3], 0.0, 1.0), info

    def _texture(self, index: Any) -> Texture | None:
        """A texture of the tree; None where its picture is not read, which is said once."""
        texture = self._item("textures", index)
        extensions = texture.get("extensions", {})
        newer = [extensions[name] for name in ("EXT_texture_webp", "EXT_texture_avif") if name in extensions]
        source = next((item["source"] for item in (*newer, texture) if "source" in item), None)
        if source is None:
            if index not in self.textures:
                named = ", ".join(extensions) or "nothing"
                announce(
                    f"{self.path} has a texture of {named}, which is not read: its surface is without it."
                )
            self.textures[index] = None
            return None
        sampler = self._item("samplers", texture["sampler"]) if "sampler" in texture else {}
        wrap = tuple(_WRAPS.get(sampler.get(key, 10497), "repeat") for key in ("wrapS", "wrapT"))
        if (source, wrap) not in self.textures:
            self.textures[source, wrap] = self._picture(self._item("images", source), wrap)
        return self.textures[source, wrap]

    def _picture(self, image: dict[str, Any], wrap: tuple[str, str]) -> Texture | None:
        if "bufferView" in image:
            return texture_of(self.path, bytes(self._view(image["bufferView"])[0]), wrap)
        if image["uri"].startswith("data:"):
            return texture_of(self.path, self._resource(image["uri"]), wrap)
        return find_texture(self.path, unquote(image["uri"]), wrap)


def _next_step(extensions: list[str]) -> str:
    if any("compression" in name for name in extensions):
        return "Export it without compression."
    if any("texture" in name for name in extensions):
        return "Export it with PNG or JPEG textures."
    return "Export it without."


def _count(value: Any) -> int:
    """A number of bytes or rows of the JSON's."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
        raise ValueError(f"{str(value)[:40]} where a number of at least 0 must be")
    return int(value)


def _check_count(values: np.ndarray, vertices: int) -> None:
    if len(values) < vertices:
        raise ValueError(f"{len(values)} values for {vertices} vertices")


def _vector(values: Any, n: int) -> np.ndarray:
    vector = np.asarray(values, np.float64)
    if vector.shape != (n,):
        raise ValueError(f"{n} numbers are expected, not {str(values)[:40]}")
    return vector


def _fractions(values: np.ndarray) -> np.ndarray:
    """Whole numbers that stand for fractions in [0, 1] or [-1, 1], as float64 (section 3.6.2.2)."""
    if values.dtype.kind == "f":
        return values
    return np.maximum(values / np.iinfo(values.dtype).max, -1.0)


def _local(node: dict[str, Any]) -> np.ndarray:
    """A node's transform [4, 4]: its matrix, stored by columns, or translation @ rotation @ scale."""
    if "matrix" in node:
        return _vector(node["matrix"], 16).reshape(4, 4).T
    place = np.eye(4)
    x, y, z, w = _vector(node.get("rotation", (0, 0, 0, 1)), 4)
    length = x * x + y * y + z * z + w * w
    if length > 0:
        s = 2.0 / length
        place[:3, :3] = [
            [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
            [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)],
            [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)],
        ]
    place[:3, :3] *= _vector(node.get("scale", (1, 1, 1)), 3)
    place[:3, 3] = _vector(node.get("translation", (0, 0, 0)), 3)
    return place


def _standing(part: Part, place: np.ndarray) -> Part:
    """A part in its place; a mirrored one's triangles are turned, so that they face outwards again."""
    triangles = part.triangles
    paint = part.paint
    if np.linalg.det(place[:3, :3]) < 0 and len(triangles):
        turned = [None if c is None else Corners(c.values, c.rows[:, ::-1]) for c in (paint.colors, paint.uv)]
        paint = Paint(paint.base, turned[0], paint.texture, turned[1], paint.linear)
        triangles = triangles[:, ::-1]
    return Part(part.vertices, triangles, paint, place, part.point_colors)


def _moved(uv: np.ndarray, transform: dict[str, Any]) -> np.ndarray:
    """Texture coordinates after KHR_texture_transform: scaled, turned (counter-clockwise), offset."""
    angle = float(transform.get("rotation", 0.0))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    scaled = uv * _vector(transform.get("scale", (1, 1)), 2)
    return scaled @ turn.T + _vector(transform.get("offset", (0, 0)), 2)
