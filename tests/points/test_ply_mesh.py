"""Surfaces of PLY files: colours of faces, textures of scanners, strips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plyfile import PlyData

from tests.fuzzing.shapes import picture
from threestudio_lucid.points import read_file
from threestudio_lucid.points.ply_mesh import read_ply_mesh

XYZ = ["0 0 0", "1 0 0", "1 1 0", "0 1 0"]
RED, BLUE = [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]


def write(folder, vertices, faces, comments=(), binary=False, element="face"):
    """A PLY of properties and rows: ({property line: ...}, [row, ...])."""
    lines = ["ply", "format ascii 1.0", *(f"comment {c}" for c in comments)]
    for name, (properties, rows) in (("vertex", vertices), (element, faces)):
        lines += [f"element {name} {len(rows)}", *(f"property {p}" for p in properties)]
    lines += ["end_header", *vertices[1], *faces[1]]
    path = folder / "a.ply"
    path.write_text("\n".join(lines) + "\n")
    if binary:
        ply = PlyData.read(str(path))
        ply.text = False
        ply.write(str(path))
    return path


def vertices_with(properties=(), values=""):
    return [*(f"float {axis}" for axis in "xyz"), *properties], [f"{row} {values}" for row in XYZ]


INDICES = "list uchar int vertex_indices"


def colors_of(path):
    return read_file(path, 200, torch.Generator().manual_seed(0)).colors.unique(dim=0).tolist()


@pytest.mark.parametrize("binary", [False, True])
def test_colours_of_faces(tmp_path, binary):
    faces = ([INDICES, "uchar red", "uchar green", "uchar blue"], ["3 0 1 2 255 0 0", "3 0 2 3 0 0 255"])
    assert colors_of(write(tmp_path, vertices_with(), faces, binary=binary)) == [BLUE, RED]
    own = vertices_with([f"uchar {name}" for name in ("red", "green", "blue")], "0 255 0")
    assert colors_of(write(tmp_path, own, faces, binary=binary)) == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("sizes", ["triangles", "mixed"])
def test_texture_coordinates_of_faces(tmp_path, binary, sizes):
    (tmp_path / "t.png").write_bytes(picture())
    properties = [INDICES, "list uchar float texcoord"]
    rows = ["3 0 1 2 6 0.8 0 0.9 0 0.9 1", "3 0 2 3 6 0.6 0 0.9 1 0.6 1"]
    if sizes == "mixed":
        rows = ["4 0 1 2 3 8 0.8 0 0.9 0 0.9 1 0.8 1", "3 0 1 2 6 0.8 0 0.9 0 0.9 1"]
    path = write(tmp_path, vertices_with(), (properties, rows), ["TextureFile t.png"], binary)
    assert colors_of(path) == [BLUE]


def test_several_textures_and_faces_without(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "b c.png").write_bytes(picture())
    properties = [
        INDICES,
        "list uchar float texcoord",
        "int texnumber",
        "uchar red",
        "uchar green",
        "uchar blue",
    ]
    uv = {"left": "6 0.1 0 0.2 0 0.2 1", "right": "6 0.8 0 0.9 0 0.9 1", "none": "0"}
    rows = [
        f"3 0 1 2 {uv['left']} 1 0 0 0",
        f"3 0 2 3 {uv['right']} 0 0 0 0",
        f"3 0 1 2 {uv['none']} -1 0 255 0",
    ]
    comments = ["TextureFile a.png", "TextureFile b c.png"]
    path = write(tmp_path, vertices_with(), (properties, rows), comments)
    assert colors_of(path) == [BLUE, [0.0, 1.0, 0.0], RED]


@pytest.mark.parametrize("names", [("s", "t"), ("u", "v"), ("texture_u", "texture_v")])
@pytest.mark.parametrize("element", ["face", "tristrips"])
def test_texture_coordinates_of_vertices(tmp_path, names, element):
    (tmp_path / "t.png").write_bytes(picture())
    faces = ([INDICES if element == "face" else "list int int vertex_indices"], ["4 0 1 2 3"])
    vertices = vertices_with([f"float {name}" for name in names], "0.8 0.9")
    assert colors_of(write(tmp_path, vertices, faces, ["TextureFile t.png"], element=element)) == [BLUE]


def test_v_is_0_at_the_lower_edge(tmp_path):
    from PIL import Image

    image = Image.new("RGB", (2, 2), (255, 0, 0))
    image.paste((0, 0, 255), (0, 1, 2, 2))
    image.save(tmp_path / "t.png")
    vertices = vertices_with(["float s", "float t"], "0.5 0.1")
    assert colors_of(write(tmp_path, vertices, ([INDICES], ["4 0 1 2 3"]), ["TextureFile t.png"])) == [BLUE]


def test_a_texture_that_is_not_there_is_told(tmp_path, told):
    vertices = vertices_with(["float s", "float t"], "0.5 0.5")
    assert colors_of(write(tmp_path, vertices, ([INDICES], ["4 0 1 2 3"]), ["TextureFile t.png"])) == [
        [0.5] * 3
    ]
    assert "names the texture 't.png'" in told[0]


def test_strips_end_at_minus_one_and_face_one_way(tmp_path):
    rows = ["9 0 1 3 2 -1 1 2 0 3"]
    faces = (["list int int vertex_indices"], rows)
    for binary in (False, True):
        (part,) = read_ply_mesh(write(tmp_path, vertices_with(), faces, binary=binary, element="tristrips"))
        assert part.triangles.tolist() == [[0, 1, 3], [1, 2, 3], [1, 2, 0], [2, 3, 0]]
        corners = np.asarray(part.vertices)[part.triangles]
        up = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2]
        assert (up[:3] > 0).all()
