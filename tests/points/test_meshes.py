"""Points on meshes: even by area, in the colours that a viewer shows; meshes that are damaged."""

import json
import struct

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from trimesh.visual.material import PBRMaterial, SimpleMaterial

from threestudio_lucid.errors import UserError
from threestudio_lucid.gaussians.surface import ColoredMesh, write_mesh
from threestudio_lucid.points import limits, read_file, textures
from threestudio_lucid.points.meshes import areas, draw_by_area


def read(path, n=2000, **options):
    return read_file(path, n, torch.Generator().manual_seed(0), **options)


def square(visual=None):
    """In the plane z = 0, from (0, 0) to (1, 1), with uv = xy."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    return trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False)


def painted(material):
    uv = [[0, 0], [1, 0], [1, 1], [0, 1]]
    return square(trimesh.visual.TextureVisuals(uv=uv, material=material))


def halves():
    """A picture whose left half is red and whose right half is blue."""
    pixels = np.zeros((8, 64, 3), np.uint8)
    pixels[:, :32, 0] = pixels[:, 32:, 2] = 255
    return Image.fromarray(pixels)


def test_points_are_even_by_area():
    corners = np.array([[[0, 0, 0], [3, 0, 0], [0, 2, 0]], [[5, 0, 0], [6, 0, 0], [5, 2, 0]]], float)
    assert areas(corners).tolist() == [3.0, 1.0]
    draw = draw_by_area(corners, 20_000, torch.Generator().manual_seed(0))
    assert (draw.triangle == 0).mean() == pytest.approx(0.75, abs=0.01)
    assert draw.weights.min() >= 0 and np.allclose(draw.weights.sum(axis=1), 1)
    # uniform in a triangle: the mean is the centroid, every weight has the variance 1/18
    np.testing.assert_allclose(draw.weights.mean(axis=0), 1 / 3, atol=0.01)
    np.testing.assert_allclose(draw.weights.var(axis=0), 1 / 18, rtol=0.05)
    with pytest.raises(ValueError, match="no area"):
        draw_by_area(np.zeros((2, 3, 3)), 5, torch.Generator())


@pytest.mark.parametrize("suffix", ["obj", "glb", "ply"])
def test_our_own_meshes_come_back(tmp_path, suffix):
    """Axes and colours: what `lucid-mesh-exporter` writes is read where it was, as it looked."""
    box = trimesh.creation.box(extents=(1, 2, 4))
    box.apply_translation([3, 0, 0])
    colors = np.tile([0.8, 0.2, 0.4], (8, 1))
    path = write_mesh(tmp_path / f"a.{suffix}", ColoredMesh(box.vertices, box.faces, colors))
    cloud = read(path, fit=False)
    low, high = cloud.points.aminmax(dim=0)
    torch.testing.assert_close(low, torch.tensor([2.5, -1.0, -2.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(high, torch.tensor([3.5, 1.0, 2.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(cloud.colors.mean(0), torch.tensor([0.8, 0.2, 0.4]), atol=0.02, rtol=0)
    outwards = ((cloud.points - torch.tensor([3.0, 0, 0])) * cloud.normals).sum(1)
    assert (outwards > 0).all()
    assert read(path, radius=0.6).points.abs().max() == pytest.approx(0.6, abs=1e-3)


def test_another_up_and_front(tmp_path):
    trimesh.creation.box(extents=(1, 2, 4)).export(tmp_path / "a.obj")
    clouds = [read(tmp_path / "a.obj", fit=False, up=up) for up in ("", "+y", "-x")]
    sides = [np.ptp(cloud.points.numpy(), axis=0) for cloud in clouds]
    np.testing.assert_allclose(sides, [[1, 2, 4], [4, 1, 2], [4, 2, 1]], atol=1e-4)


@pytest.mark.parametrize("suffix", ["obj", "glb"])
def test_textures(tmp_path, suffix):
    if suffix == "obj":
        material = SimpleMaterial(image=halves(), diffuse=[0, 0, 0, 255])
    else:
        material = PBRMaterial(baseColorTexture=halves())
    painted(material).export(tmp_path / f"a.{suffix}")
    cloud = read(tmp_path / f"a.{suffix}", up="+z", front="+x", fit=False)
    left = cloud.points[:, 0] < 0.45
    torch.testing.assert_close(cloud.colors[left], torch.tensor([[1.0, 0, 0]]).expand(int(left.sum()), 3))
    right = cloud.points[:, 0] > 0.55
    torch.testing.assert_close(cloud.colors[right], torch.tensor([[0, 0, 1.0]]).expand(int(right.sum()), 3))


def test_the_colour_of_a_material(tmp_path):
    painted(SimpleMaterial(diffuse=[204, 51, 0, 255])).export(tmp_path / "a.obj")
    torch.testing.assert_close(read(tmp_path / "a.obj").colors[0], torch.tensor([0.8, 0.2, 0.0]))
    # glTF's factors are amounts of light: half of it is shown as 0.735
    painted(PBRMaterial(baseColorFactor=[0.5, 0.0, 1.0, 1.0])).export(tmp_path / "a.glb")
    torch.testing.assert_close(
        read(tmp_path / "a.glb").colors[0], torch.tensor([0.735, 0.0, 1.0]), atol=0.005, rtol=0
    )


def test_parts_of_a_scene_stand_where_it_puts_them(tmp_path):
    red, blue = square(), square()
    red.visual.face_colors, blue.visual.vertex_colors = [255, 0, 0, 255], [0, 0, 255, 255]
    scene = trimesh.Scene()
    scene.add_geometry(red)
    scene.add_geometry(blue, transform=trimesh.transformations.translation_matrix([10, 0, 0]))
    scene.export(tmp_path / "a.glb")
    cloud = read(tmp_path / "a.glb", up="+z", front="+x", fit=False)
    far = cloud.points[:, 0] > 5
    assert far.float().mean() == pytest.approx(0.5, abs=0.05)
    assert (cloud.colors[far, 2] == 1).all() and (cloud.colors[~far, 0] == 1).all()


def test_points_without_faces_are_taken_as_they_are(tmp_path):
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    assert len(read(tmp_path / "a.obj")) == 3
    trimesh.Scene(trimesh.PointCloud(np.eye(3), colors=[[255, 0, 0, 255]] * 3)).export(tmp_path / "a.glb")
    assert read(tmp_path / "a.glb").colors.tolist() == [[1, 0, 0]] * 3


def test_limits(tmp_path, monkeypatch):
    square().export(tmp_path / "a.glb")
    monkeypatch.setattr(limits, "MAX_TRIANGLES", 1)
    with pytest.raises(UserError, match="has 2 triangles; at most 1 are read"):
        read(tmp_path / "a.glb")
    monkeypatch.setattr(limits, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="at most 10 are read"):
        read(tmp_path / "a.glb")
    monkeypatch.undo()
    painted(PBRMaterial(baseColorTexture=halves())).export(tmp_path / "b.glb")
    monkeypatch.setattr(textures, "MAX_PIXELS", 100)
    with pytest.raises(UserError, match="texture of 64 x 8 pixels"):
        read(tmp_path / "b.glb")


# ---- damaged files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read|neither triangles"),
        ("f 1 2 3\n", "cannot be read|neither triangles"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "cannot be read|not in the file"),
        ("v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "not finite"),
        ("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "no surface"),
        ("v 0 0\nf 1 2 3\n", "cannot be read"),
        ("<html>404</html>", "neither triangles|cannot be read"),
    ],
)
def test_bad_obj_files_are_told(tmp_path, text, message):
    (tmp_path / "a.obj").write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.obj")


def edited(path, change):
    """A GLB file whose JSON was changed."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    tree = json.loads(data[20 : 20 + length])
    change(tree)
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    head = data[:8] + struct.pack("<II", 20 + len(text) + len(rest), len(text)) + b"JSON"
    path.write_bytes(head + text + rest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["nodes"][0].update(children=[0]), "own parents"),
        (lambda t: t["nodes"].extend([{"children": [2]}, {"children": [1]}]), "own parents"),
        (lambda t: t["nodes"].append({"children": [0, 0]}), "two parents"),
        (lambda t: t["accessors"][0].update(count=10**12), "promises more than it holds"),
        (lambda t: [t["accessors"][0].pop("bufferView"), t["accessors"][0].update(count=10**8)], "promises"),
        (
            lambda t: t.update(extensionsRequired=["KHR_draco_mesh_compression"]),
            "Export it without compression",
        ),
        (lambda t: t["accessors"][0].update(componentType=5126), "indices are no whole numbers"),
        (lambda t: t.pop("meshes"), "cannot be read|neither"),
        (lambda t: t.update(nodes="x"), "cannot be read"),
    ],
)
def test_bad_glb_files_are_told(tmp_path, change, message):
    square().export(tmp_path / "a.glb")
    edited(tmp_path / "a.glb", change)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.glb")
