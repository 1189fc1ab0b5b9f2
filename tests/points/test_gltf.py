"""glTF 2.0 as its specification says: accessors, primitives, nodes, skins, materials, extensions."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fuzzing.shapes import picture, scene
from threestudio_lucid.bodies.files import read_body
from threestudio_lucid.errors import UserError
from threestudio_lucid.points import read_file
from threestudio_lucid.points.gltf import read_gltf
from threestudio_lucid.points.meshes import read_surface

SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], "<f4")
ROWS = np.array([0, 1, 2, 0, 2, 3], "<u2")
UV = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], "<f4")
RED, BLUE = [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]
_KINDS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


def accessor(view, array, **others):
    width = 1 if array.ndim == 1 else array.shape[1]
    kind = {"componentType": _KINDS[array.dtype.str[1:]], "count": len(array), "type": _TYPES[width]}
    return {"bufferView": view} | kind | others


def mesh_file(path, attributes, rows=None, mode=None, normalized=(), strides=None, extra=(), **tree):
    """A GLB file of one primitive: attributes by name, indices, and whatever else its JSON has."""
    arrays = dict(attributes) | ({} if rows is None else {"": rows})
    accessors = [accessor(k, array) for k, array in enumerate(arrays.values())]
    for k, name in enumerate(arrays):
        if name in normalized:
            accessors[k]["normalized"] = True
    primitive = {"attributes": {name: k for k, name in enumerate(attributes)}}
    primitive |= {} if rows is None else {"indices": len(attributes)}
    primitive |= {} if mode is None else {"mode": mode}
    primitive |= {"material": 0} if "materials" in tree else {}
    tree = {"meshes": [{"primitives": [primitive]}]} | tree
    pieces = [array.tobytes() for array in arrays.values()]
    path.write_bytes(scene(*pieces, *extra, accessors=accessors, strides=strides or {}, **tree))
    return path


def cloud_of(path, n=400):
    return read_file(path, n, torch.Generator().manual_seed(0), up="+z", front="+x", fit=False)


def color_of(path):
    """The one colour of a file."""
    colors = cloud_of(path).colors
    assert (colors == colors[0]).all()
    return colors[0].tolist()


def textured(path, info=None, texture=None, sampler=None, uv=UV, image=None, names=("TEXCOORD_0",), **tree):
    """The square with a picture, whose left half is red and whose right half is blue."""
    attributes = {"POSITION": SQUARE} | dict.fromkeys(names, uv)
    image = {"bufferView": len(attributes) + 1, "mimeType": "image/png"} if image is None else image
    texture = {"source": 0} if texture is None else texture
    tree = {"images": [image], "textures": [texture]} | tree
    tree |= {} if sampler is None else {"samplers": [sampler]}
    base = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0} | (info or {})}}
    tree = {"materials": [base]} | tree
    return mesh_file(path, attributes, ROWS, extra=[picture()], **tree)


# ---- accessors and primitives ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "most"), [("i1", 127), ("u1", 255), ("i2", 32767), ("u2", 65535)])
def test_whole_numbers_stand_for_fractions_where_the_file_says_so(tmp_path, kind, most):
    whole = (SQUARE * most).astype(kind)
    places = mesh_file(tmp_path / "a.glb", {"POSITION": whole}, ROWS, normalized=["POSITION"])
    np.testing.assert_allclose(read_surface(places)[0], SQUARE, atol=1e-12)
    plain = mesh_file(tmp_path / "b.glb", {"POSITION": whole}, ROWS)
    np.testing.assert_allclose(read_surface(plain)[0], SQUARE * float(most))


def test_negative_fractions_end_at_minus_one(tmp_path):
    whole = np.where(SQUARE > 0, -128, 127).astype("i1")
    found, _ = read_surface(mesh_file(tmp_path / "a.glb", {"POSITION": whole}, ROWS, normalized=["POSITION"]))
    assert found.min() == -1.0 and found.max() == 1.0


def test_elements_may_lie_apart_and_some_may_be_given_anew(tmp_path):
    wide = np.full((4, 5), 9, "<f4")
    wide[:, :3] = SQUARE
    path = mesh_file(tmp_path / "a.glb", {"POSITION": wide[:, :3]}, ROWS)
    pieces = [
        wide.tobytes(),
        ROWS.tobytes(),
        np.array([2], "u1").tobytes(),
        np.array([5, 5, 5], "<f4").tobytes(),
    ]
    accessors = [accessor(0, SQUARE), accessor(1, ROWS)]
    sparse = {"count": 1, "indices": {"bufferView": 2, "componentType": 5121}, "values": {"bufferView": 3}}
    meshes = [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}]
    path.write_bytes(scene(*pieces, accessors=accessors, meshes=meshes, strides={0: 20}))
    np.testing.assert_array_equal(read_surface(path)[0], SQUARE)
    accessors[0]["sparse"] = sparse
    path.write_bytes(scene(*pieces, accessors=accessors, meshes=meshes, strides={0: 20}))
    np.testing.assert_array_equal(read_surface(path)[0], [SQUARE[0], SQUARE[1], [5, 5, 5], SQUARE[3]])
    del accessors[0]["bufferView"]  # zeros, but for what is given
    path.write_bytes(scene(*pieces, accessors=accessors, meshes=meshes))
    np.testing.assert_array_equal(read_surface(path)[0], [[0, 0, 0], [0, 0, 0], [5, 5, 5], [0, 0, 0]])


@pytest.mark.parametrize(
    ("mode", "rows", "triangles"),
    [
        (4, [0, 1, 2, 0, 2, 3], [[0, 1, 2], [0, 2, 3]]),
        (5, [0, 1, 3, 2], [[0, 1, 3], [1, 2, 3]]),
        (6, [0, 1, 2, 3], [[1, 2, 0], [2, 3, 0]]),
        (6, None, [[1, 2, 0], [2, 3, 0]]),
        (5, None, [[0, 1, 2], [1, 3, 2]]),
    ],
)
def test_strips_and_fans_face_one_way(tmp_path, mode, rows, triangles):
    rows = None if rows is None else np.array(rows, "<u4")
    path = mesh_file(tmp_path / "a.glb", {"POSITION": SQUARE}, rows, mode)
    assert read_surface(path)[1].tolist() == triangles


def test_points_and_lines(tmp_path):
    colors = np.tile(np.array([255, 0, 0], "u1"), (4, 1))
    attributes = {"POSITION": SQUARE, "COLOR_0": colors}
    cloud = cloud_of(mesh_file(tmp_path / "a.glb", attributes, None, 0, normalized=["COLOR_0"]))
    np.testing.assert_array_equal(cloud.points, SQUARE)
    assert cloud.colors.tolist() == [RED] * 4
    cloud = cloud_of(mesh_file(tmp_path / "a.glb", attributes, np.array([2], "u1"), 0))
    assert cloud.points.tolist() == [[1, 1, 0]]
    with pytest.raises(UserError, match="neither triangles nor points"):
        cloud_of(mesh_file(tmp_path / "b.glb", {"POSITION": SQUARE}, ROWS, 1))


# ---- nodes, skins, morph targets ---------------------------------------------------------------------------


def nodes_of(path, *nodes, **tree):
    mesh_file(path, {"POSITION": SQUARE}, ROWS, nodes=list(nodes), scenes=[{"nodes": [0]}], **tree)
    return read_surface(path)


def test_nodes_nest_as_matrices_or_as_scale_then_rotation_then_translation(tmp_path):
    half = 0.5**0.5
    turned = {"rotation": [0, 0, half, half], "scale": [2, 3, 1], "translation": [10, 0, 0]}
    vertices, _ = nodes_of(
        tmp_path / "a.glb", turned | {"children": [1]}, {"mesh": 0, "translation": [1, 0, 0]}
    )
    # (x, y) -> (x + 1, y) -> (2 x + 2, 3 y) -> (10 - 3 y, 2 x + 2)
    expected = np.stack([10 - 3 * SQUARE[:, 1], 2 * SQUARE[:, 0] + 2, 0 * SQUARE[:, 0]], axis=1)
    np.testing.assert_allclose(vertices, expected, atol=1e-6)
    matrix = [0, 2, 0, 0, -3, 0, 0, 0, 0, 0, 1, 0, 10, 2, 0, 1]  # by columns
    np.testing.assert_allclose(
        nodes_of(tmp_path / "b.glb", {"mesh": 0, "matrix": matrix})[0], expected, atol=1e-6
    )


def test_a_mirrored_mesh_still_faces_outwards(tmp_path):
    mesh_file(tmp_path / "a.glb", {"POSITION": SQUARE}, ROWS, nodes=[{"mesh": 0, "scale": [-1, 1, 1]}])
    assert (cloud_of(tmp_path / "a.glb").normals[:, 2] == 1).all()


def test_only_what_the_scene_shows_is_read(tmp_path):
    hidden = {"mesh": 0, "translation": [9, 0, 0], "extensions": {"KHR_node_visibility": {"visible": False}}}
    nodes = [{"children": [1, 2]}, {"mesh": 0}, hidden, {"mesh": 0, "translation": [5, 0, 0]}]
    assert len(nodes_of(tmp_path / "a.glb", *nodes)[0]) == 4
    mesh_file(tmp_path / "b.glb", {"POSITION": SQUARE}, ROWS, nodes=nodes, scenes=[])
    assert len(read_surface(tmp_path / "b.glb")[0]) == 8  # no scene: all roots


def test_a_skin_stands_where_its_joints_do(tmp_path):
    """Two bones: the one with an inverse bind matrix that undoes its place, the other 2 units to the left."""
    joints = np.array([[0, 1, 0, 0]] * 4, "u1")
    weights = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0]], "<f4")
    bind = np.stack([np.eye(4), np.eye(4)]).astype("<f4")
    bind[0, :3, 3] = [-7, 0, 0]
    attributes = {"POSITION": SQUARE, "JOINTS_0": joints, "WEIGHTS_0": weights}
    pieces = [*attributes.values(), ROWS, bind.transpose(0, 2, 1).reshape(2, 16)]
    path = tmp_path / "a.glb"
    path.write_bytes(
        scene(
            *(array.tobytes() for array in pieces),
            accessors=[accessor(k, array) for k, array in enumerate(pieces)],
            meshes=[{"primitives": [{"attributes": {n: k for k, n in enumerate(attributes)}, "indices": 3}]}],
            nodes=[
                {"mesh": 0, "skin": 0, "translation": [100, 0, 0]},
                {"translation": [7, 0, 0]},
                {"translation": [-2, 0, 0]},
            ],
            scenes=[{"nodes": [0, 1, 2]}],
            skins=[{"joints": [1, 2], "inverseBindMatrices": 4}],
        )
    )
    expected = SQUARE + np.array([[0, 0, 0], [-2, 0, 0], [-1, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(read_surface(path)[0], expected, atol=1e-6)


def test_morph_targets_have_the_weights_of_the_file(tmp_path):
    primitive = {"attributes": {"POSITION": 0}, "indices": 2, "targets": [{"POSITION": 1}]}
    path = mesh_file(
        tmp_path / "a.glb",
        {"POSITION": SQUARE, "TARGET": SQUARE},
        ROWS,
        meshes=[{"primitives": [primitive], "weights": [0.5]}],
    )
    np.testing.assert_allclose(read_surface(path)[0], 1.5 * SQUARE)


def test_instances(tmp_path):
    moves = np.array([[0, 0, 0], [5, 0, 0], [0, 7, 0]], "<f4")
    instancing = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": 1}}}
    path = mesh_file(
        tmp_path / "a.glb",
        {"POSITION": SQUARE, "MOVES": moves},
        ROWS,
        meshes=[{"primitives": [{"attributes": {"POSITION": 0}, "indices": 2}]}],
        nodes=[{"mesh": 0, "extensions": instancing}],
    )
    vertices, _ = read_surface(path)
    np.testing.assert_allclose(vertices.reshape(3, 4, 3), SQUARE + moves[:, None])


def test_few_bytes_cannot_ask_for_much(tmp_path):
    """Instances of instances: 4,000 nodes that repeat 4,000 squares each are told at once."""
    instancing = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": 1}}}
    path = mesh_file(
        tmp_path / "a.glb",
        {"POSITION": SQUARE, "MOVES": np.zeros((4000, 3), "<f4")},
        ROWS,
        meshes=[{"primitives": [{"attributes": {"POSITION": 0}, "indices": 2}]}],
        nodes=[{"mesh": 0, "extensions": instancing}] * 4000,
        scenes=[{"nodes": list(range(4000))}],
    )
    with pytest.raises(UserError, match=r"triangles; at most 4,000,000|vertices; at most 12,000,000"):
        read_gltf(path)


# ---- colours -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["f4", "u1", "u2"])
def test_texture_coordinates_may_be_fractions_of_whole_numbers(tmp_path, kind):
    uv = UV * [0.4, 1] + [0.55, 0]
    whole = uv.astype("<f4") if kind == "f4" else (uv * np.iinfo(kind).max).astype(kind)
    path = textured(tmp_path / "a.glb", uv=whole)
    data = path.read_bytes()
    if kind != "f4":
        text = f'"componentType": {_KINDS[kind]}, "count": 4, "type": "VEC2"'.encode()
        assert text in data
        path = mesh_file(
            tmp_path / "b.glb",
            {"POSITION": SQUARE, "TEXCOORD_0": whole},
            ROWS,
            normalized=["TEXCOORD_0"],
            extra=[picture()],
            materials=[{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
            textures=[{"source": 0}],
            images=[{"bufferView": 3, "mimeType": "image/png"}],
        )
    assert color_of(path) == BLUE


@pytest.mark.parametrize(
    ("info", "uv", "color"),
    [
        ({}, UV * 0.45, RED),
        ({}, UV * 0.45 + [0.52, 0], BLUE),
        ({}, UV * 0.45 + [7.52, -3], BLUE),  # repeated
        ({"extensions": {"KHR_texture_transform": {"offset": [0.52, 0]}}}, UV * 0.45, BLUE),
        ({"extensions": {"KHR_texture_transform": {"scale": [0.4, 1]}}}, UV * 0.9 + 0.1, RED),
        # turned by a quarter counter-clockwise, v downwards: (u, v) -> (v, -u)
        ({"extensions": {"KHR_texture_transform": {"rotation": np.pi / 2}}}, UV * [1, 0.4] + [0, 0.55], BLUE),
        # scaled, then turned, then moved: (u, v) -> (v / 2, -u / 2) -> (v / 2, 1 - u / 2)
        (
            {
                "extensions": {
                    "KHR_texture_transform": {"scale": [0.5] * 2, "rotation": np.pi / 2, "offset": [0, 1]}
                }
            },
            UV * 0.9,
            RED,
        ),
    ],
)
def test_texture_transforms(tmp_path, info, uv, color):
    assert color_of(textured(tmp_path / "a.glb", info, uv=uv.astype("<f4"))) == color


@pytest.mark.parametrize("override", [False, True])
def test_the_second_texture_coordinates(tmp_path, override):
    info = {"texCoord": 1}
    if override:
        info = {"texCoord": 0, "extensions": {"KHR_texture_transform": {"texCoord": 1, "offset": [0.0, 0.0]}}}
    attributes = {"POSITION": SQUARE, "TEXCOORD_0": 0.4 * UV, "TEXCOORD_1": 0.4 * UV + np.float32(0.55)}
    path = mesh_file(
        tmp_path / "a.glb",
        attributes,
        ROWS,
        extra=[picture()],
        materials=[{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0} | info}}],
        textures=[{"source": 0}],
        images=[{"bufferView": 4, "mimeType": "image/png"}],
    )
    assert color_of(path) == BLUE


@pytest.mark.parametrize(("wrap", "color"), [(33071, BLUE), (33648, RED), (10497, BLUE)])
def test_wrapping(tmp_path, wrap, color):
    uv = (UV * [0.4, 1] + [1.55, 0]).astype("<f4")
    sampler = {"wrapS": wrap}
    assert (
        color_of(textured(tmp_path / "a.glb", texture={"source": 0, "sampler": 0}, sampler=sampler, uv=uv))
        == color
    )


def test_texture_coordinates_that_are_not_there_are_told(tmp_path, told):
    assert color_of(textured(tmp_path / "a.glb", {"texCoord": 1})) == [1, 1, 1]
    assert "TEXCOORD_1" in told[0]


def test_v_is_0_at_the_upper_edge(tmp_path):
    image = Image.new("RGB", (2, 2), (255, 0, 0))
    image.paste((0, 0, 255), (0, 1, 2, 2))
    image.save(tmp_path / "t.png")
    path = textured(tmp_path / "a.glb", uv=(UV * [1, 0.4]).astype("<f4"), image={"uri": "t.png"})
    assert color_of(path) == RED


def test_factors_vertex_colours_and_textures_are_multiplied_as_light(tmp_path):
    light = np.full((4, 3), 0.5, "<f4")
    base = {"pbrMetallicRoughness": {"baseColorFactor": [1.0, 0.5, 0.0, 1.0]}}
    path = mesh_file(tmp_path / "a.glb", {"POSITION": SQUARE, "COLOR_0": light}, ROWS, materials=[base])
    # half of the light is shown as 0.735, a quarter as 0.537
    torch.testing.assert_close(
        torch.tensor(color_of(path)), torch.tensor([0.735, 0.537, 0.0]), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_vertex_colours_of_whole_numbers(tmp_path, kind):
    colors = np.tile(np.array([np.iinfo(kind).max, 0, 0, 0], kind), (4, 1))
    path = mesh_file(
        tmp_path / "a.glb", {"POSITION": SQUARE, "COLOR_0": colors}, ROWS, normalized=["COLOR_0"]
    )
    assert color_of(path) == RED


def test_specular_glossiness(tmp_path):
    gloss = {"extensions": {"KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [1, 0, 0, 1]}}}
    assert color_of(mesh_file(tmp_path / "a.glb", {"POSITION": SQUARE}, ROWS, materials=[gloss])) == RED
    gloss = {"extensions": {"KHR_materials_pbrSpecularGlossiness": {"diffuseTexture": {"index": 0}}}}
    uv = (UV * [0.4, 1] + [0.55, 0]).astype("<f4")
    assert color_of(textured(tmp_path / "b.glb", uv=uv, materials=[gloss])) == BLUE


def test_materials_without_anything_are_white_and_none_is_grey(tmp_path):
    assert color_of(mesh_file(tmp_path / "a.glb", {"POSITION": SQUARE}, ROWS, materials=[{}])) == [1, 1, 1]
    assert color_of(mesh_file(tmp_path / "b.glb", {"POSITION": SQUARE}, ROWS)) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_pictures_of_other_kinds(tmp_path, kind):
    (tmp_path / "t.bin").write_bytes(picture(kind, (64, 32)))
    uv = (UV * [0.2, 1] + [0.7, 0]).astype("<f4")
    texture = {"extensions": {"EXT_texture_webp": {"source": 0}}} if kind == "WEBP" else None
    path = textured(tmp_path / "a.glb", uv=uv, image={"uri": "t.bin"}, texture=texture)
    np.testing.assert_allclose(cloud_of(path).colors.mean(0), BLUE, atol=0.03)


@pytest.mark.parametrize(
    ("mode", "value", "color"),
    [
        ("L", 51, [0.2] * 3),
        ("I;16", 0x3333, [0.2] * 3),
        ("RGBA", (255, 0, 0, 128), RED),
        ("LA", (51, 255), [0.2] * 3),
        ("P", 7, RED),
        ("1", 1, [1.0] * 3),
    ],
)
def test_pictures_of_other_depths(tmp_path, mode, value, color):
    image = Image.new(mode, (3, 2), value)
    if mode == "P":
        image.putpalette([0] * 21 + [255, 0, 0])
    image.save(tmp_path / "t.png")
    path = textured(tmp_path / "a.glb", image={"uri": "t.png"})
    np.testing.assert_allclose(cloud_of(path).colors[0], color, atol=1e-6)


# ---- what is elsewhere, or not read ------------------------------------------------------------------------


def test_textures_beside_the_file_are_read_and_others_told(tmp_path, told):
    folder = tmp_path / "models"
    (folder / "My Maps").mkdir(parents=True)
    uv = (UV * [0.4, 1] + [0.55, 0]).astype("<f4")
    for place in (tmp_path / "secret.png", folder / "My Maps" / "t.png", folder / "up.png"):
        place.write_bytes(picture())
    for uri in ("My%20Maps/t.png", "./my maps/T.PNG", "../up.png", "C:\\work\\up.png"):
        assert color_of(textured(folder / "a.glb", uv=uv, image={"uri": uri})) == BLUE, uri
    assert told == []
    link = folder / "link.png"
    link.symlink_to(tmp_path / "secret.png")
    for uri in (
        "none.png",
        "../secret.png",
        "link.png",
        str(tmp_path / "secret.png"),
        "http://a.b/secret.png",
    ):
        assert color_of(textured(folder / "a.glb", uv=uv, image={"uri": uri})) == [1, 1, 1]
        assert "a.glb names the texture" in told[-1] and repr(uri) in told[-1]
    data = "data:image/png;base64," + base64.b64encode(picture()).decode()
    assert color_of(textured(folder / "a.glb", uv=uv, image={"uri": data})) == BLUE


def test_textures_in_ktx2_are_told(tmp_path, told):
    basis = {"extensions": {"KHR_texture_basisu": {"source": 0}}}
    assert color_of(textured(tmp_path / "a.glb", texture=basis)) == [1, 1, 1]
    assert "KHR_texture_basisu, which is not read" in told[-1]
    (tmp_path / "t.ktx2").write_bytes(b"\xabKTX 20\xbb\r\n\x1a\n" + bytes(60))
    assert color_of(textured(tmp_path / "a.glb", image={"uri": "t.ktx2"})) == [1, 1, 1]
    assert "in KTX2" in told[-1]
    # the plain picture beside it is taken
    uv = (UV * [0.4, 1]).astype("<f4")
    assert color_of(textured(tmp_path / "a.glb", texture=basis | {"source": 0}, uv=uv)) == RED


@pytest.mark.parametrize(
    ("name", "next_step"),
    [
        ("KHR_draco_mesh_compression", "without compression"),
        ("EXT_meshopt_compression", "without compression"),
        ("KHR_texture_basisu", "PNG or JPEG"),
        ("MSFT_texture_dds", "PNG or JPEG"),
        ("ACME_wobbly_triangles", "Export it without"),
    ],
)
def test_extensions_that_a_file_needs_and_are_not_read_are_named(tmp_path, name, next_step):
    path = mesh_file(tmp_path / "a.glb", {"POSITION": SQUARE}, ROWS, extensionsRequired=[name])
    with pytest.raises(UserError, match=f"needs {name}, which is not read.*{next_step}"):
        cloud_of(path)
    harmless = ["KHR_materials_clearcoat", "KHR_lights_punctual", "KHR_mesh_quantization"]
    assert len(
        cloud_of(mesh_file(tmp_path / "a.glb", {"POSITION": SQUARE}, ROWS, extensionsRequired=harmless))
    )


def test_compression_that_is_only_used_is_told_where_nothing_else_is_there(tmp_path):
    """Files with a fallback are read; those whose numbers are all compressed are not taken for zeros."""
    draco = {"extensions": {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {}}}}
    primitive = {"attributes": {"POSITION": 0}, "indices": 1} | draco
    path = mesh_file(tmp_path / "a.glb", {"POSITION": SQUARE}, ROWS, meshes=[{"primitives": [primitive]}])
    assert len(cloud_of(path)) == 400
    empty = [{"componentType": 5126, "count": 4, "type": "VEC3"}, accessor(0, ROWS)]
    path.write_bytes(scene(ROWS.tobytes(), accessors=empty, meshes=[{"primitives": [primitive]}]))
    with pytest.raises(UserError, match="needs KHR_draco_mesh_compression"):
        cloud_of(path)


def test_gltf_files_have_their_buffers_beside_them(tmp_path):
    tree = {
        "asset": {"version": "2.0"},
        "buffers": [{"byteLength": 48, "uri": "a%20b.bin"}],
        "bufferViews": [{"buffer": 0, "byteLength": 48}],
        "accessors": [accessor(0, SQUARE)],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "mode": 6}]}],
        "nodes": [{"mesh": 0}],
    }
    path = tmp_path / "a.gltf"
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"a\.gltf needs 'a%20b\.bin' for its shape"):
        cloud_of(path)
    (tmp_path / "a b.bin").write_bytes(SQUARE.tobytes())
    assert np.ptp(cloud_of(path).points.numpy(), axis=0) == pytest.approx([1, 1, 0], abs=0.01)
    up = read_file(path, 400, torch.Generator().manual_seed(0))  # y up, like GLB
    assert up.points[:, 2].max() == pytest.approx(0.5, abs=0.01)
    assert read_body(path, "t", 1.0).vertices[:, 2].max() > 0.4


def test_other_versions_are_told(tmp_path):
    path = mesh_file(tmp_path / "a.glb", {"POSITION": SQUARE}, ROWS, asset={"version": "1.0"})
    with pytest.raises(UserError, match=r"is glTF 1\.0; 2\.0 is read"):
        cloud_of(path)
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\x01" + data[5:])
    with pytest.raises(UserError, match="version 1 of GLB"):
        cloud_of(path)


def test_vertices_beyond_all_measure_are_told(tmp_path):
    far = SQUARE.copy()
    far[2, 0] = 3e38
    with pytest.raises(UserError, match=r"3e\+38 units away"):
        cloud_of(mesh_file(tmp_path / "a.glb", {"POSITION": far}, ROWS))
