"""Textures, mesh files and what is told of them."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import threestudio
from threestudio.models.geometry.base import BaseImplicitGeometry
from threestudio.models.mesh import Mesh
from threestudio.utils.bake import rasterize_uv
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.glb import srgb_to_linear
from threestudio.utils.mesh_report import describe_mesh, mesh_report, open_edges
from threestudio.utils.saving import SaverMixin

QUAD = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
TWO_TRIANGLES = np.array([[0, 1, 2], [0, 2, 3]])
CUBE = trimesh.creation.box((1, 1, 1))


class Ball(BaseImplicitGeometry):
    """A ball of radius 0.6 whose colour is a function of the place: position / 2 + 0.5."""

    colored = True

    def forward_field(self, points):
        return points.norm(dim=-1, keepdim=True) - 0.6, None

    def forward_level(self, field, threshold):
        return field - threshold

    def export(self, points, **kwargs):
        return {"features": points} if self.colored else {}


class Paint:
    def export(self, points, features, **kwargs):
        return {"albedo": features / 2 + 0.5, "roughness": features[:, :1] / 2 + 0.5}


def export(folder, geometry=None, **config):
    """Runs mesh-exporter as systems do; the paths written."""
    geometry = geometry or Ball({"isosurface_resolution": 24})
    exporter = threestudio.find("mesh-exporter")(
        {"texture_size": 128, **config}, geometry=geometry, material=Paint(), background=None
    )
    saver = SaverMixin()
    saver.set_save_dir(str(folder))
    for output in exporter():
        getattr(saver, f"save_{output.save_type}")(output.save_name, **output.params)


def colors_of(points: np.ndarray) -> np.ndarray:
    return points / 2 + 0.5


def sample_texture(picture: Image.Image, uv: np.ndarray) -> np.ndarray:
    """The texels at texture coordinates [N, 2], v up, in [0, 1]."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    height, width = pixels.shape[:2]
    column = np.clip((uv[:, 0] * width).astype(int), 0, width - 1)
    row = np.clip(((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
    return pixels[row, column]


def points_in_faces(mesh: trimesh.Trimesh) -> tuple[np.ndarray, np.ndarray]:
    """Middle points of the triangles, and their texture coordinates."""
    return mesh.vertices[mesh.faces].mean(axis=1), mesh.visual.uv[mesh.faces].mean(axis=1)


# ---- baking ------------------------------------------------------------------------------------------------


def test_texels_of_a_square():
    """Four texels, centres at 1/4 and 3/4, row 0 at v = 3/4: the colour is the place itself."""
    texels = rasterize_uv(QUAD, TWO_TRIANGLES, 2)
    assert texels.index.tolist() == [0, 1, 2, 3]
    places = texels.interpolate(QUAD, TWO_TRIANGLES)
    np.testing.assert_allclose(places, [[0.25, 0.75], [0.75, 0.75], [0.25, 0.25], [0.75, 0.25]], atol=1e-6)
    np.testing.assert_allclose(texels.picture(places)[0, 1], [0.75, 0.75], atol=1e-6)


def test_every_texel_of_a_square_is_found_whatever_the_triangles():
    rng = np.random.default_rng(0)
    inner = rng.uniform(0.05, 0.95, (60, 2))
    from scipy.spatial import Delaunay

    points = np.concatenate([QUAD, inner])
    texels = rasterize_uv(points, Delaunay(points).simplices, 37)
    assert len(texels.index) == 37 * 37
    places = texels.interpolate(points, Delaunay(points).simplices)
    row, column = np.divmod(texels.index, 37)
    np.testing.assert_allclose(places[:, 0], (column + 0.5) / 37, atol=1e-5)
    np.testing.assert_allclose(places[:, 1], 1 - (row + 0.5) / 37, atol=1e-5)


def test_groups_of_pairs_do_not_change_the_texels(monkeypatch):
    whole = rasterize_uv(QUAD, TWO_TRIANGLES, 9)
    monkeypatch.setattr("threestudio.utils.bake.PAIRS_AT_ONCE", 10)
    parts = rasterize_uv(QUAD, TWO_TRIANGLES, 9)
    np.testing.assert_array_equal(whole.index, parts.index)
    np.testing.assert_array_equal(whole.triangle, parts.triangle)


def test_texels_beside_the_surface_take_the_nearest_colour():
    texels = rasterize_uv(QUAD * 0.5, TWO_TRIANGLES, 4)  # the lower left quarter
    assert texels.index.tolist() == [8, 9, 12, 13]
    picture = texels.picture(np.array([[1.0], [2.0], [3.0], [4.0]]))[..., 0]
    assert picture.tolist() == [[1, 2, 2, 2], [1, 2, 2, 2], [1, 2, 2, 2], [3, 4, 4, 4]]


def test_triangles_without_area_show_nowhere():
    flat = np.array([[0.1, 0.1], [0.5, 0.5], [0.9, 0.9]])
    texels = rasterize_uv(flat, np.array([[0, 1, 2]]), 8)
    assert len(texels.index) == 0 and texels.picture(np.zeros((0, 3))).shape == (8, 8, 3)


# ---- texture coordinates -----------------------------------------------------------------------------------


def test_unwrapped_charts_do_not_overlap_and_tangents_follow_u():
    mesh = Mesh(torch.tensor(CUBE.vertices).float(), torch.tensor(CUBE.faces).long())
    assert mesh.v_tex.min() >= 0 and mesh.v_tex.max() <= 1
    uv = mesh.v_tex.double()[mesh.t_tex_idx]
    side, other = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    area = 0.5 * (side[:, 0] * other[:, 1] - side[:, 1] * other[:, 0]).abs()
    texels = rasterize_uv(mesh.v_tex.numpy(), mesh.t_tex_idx.numpy(), 256)
    assert len(texels.index) / 256**2 == pytest.approx(area.sum().item(), rel=0.02)
    assert mesh.v_tng.norm(dim=-1) == pytest.approx(1, abs=1e-5)
    assert (mesh.v_tng * mesh.v_nrm).sum(dim=-1) == pytest.approx(0, abs=1e-5)


def test_tangents_of_a_square_on_the_floor():
    """u along x, and the same with u turned to y."""
    floor = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    for turned, tangent in ((False, [1.0, 0, 0]), (True, [0.0, 1, 0])):
        mesh = Mesh(floor, torch.tensor(TWO_TRIANGLES))
        uv = torch.tensor(QUAD).float()
        mesh._v_tex, mesh._t_tex_idx = uv.flip(1) if turned else uv, torch.tensor(TWO_TRIANGLES)
        torch.testing.assert_close(mesh.v_tng, torch.tensor([tangent]).expand(4, 3))


def test_unknown_options_of_xatlas_are_told():
    mesh = Mesh(torch.tensor(CUBE.vertices).float(), torch.tensor(CUBE.faces).long())
    with pytest.raises(ConfigValueError, match=r"xatlas_pack_options has no 'paddin'.*padding"):
        mesh.unwrap_uv(xatlas_pack_options={"paddin": 2})


# ---- reports -----------------------------------------------------------------------------------------------


def test_report_of_a_cube_and_of_a_cube_without_lids():
    report = mesh_report(CUBE.vertices, CUBE.faces)
    assert (report["watertight"], report["holes"], report["parts"]) == (True, 0, 1)
    assert report["area"] == pytest.approx(6) and report["volume"] == pytest.approx(1)
    assert report["bounds"] == [[-0.5] * 3, [0.5] * 3]
    assert describe_mesh(report) == "12 triangles, watertight"

    without_lids = CUBE.faces[np.abs(CUBE.face_normals[:, 2]) < 0.5]
    report = mesh_report(CUBE.vertices, without_lids)
    assert (report["watertight"], report["holes"], report["volume"]) == (False, 2, None)
    assert len(open_edges(without_lids)) == 8
    assert describe_mesh(report) == "8 triangles, 2 holes"


# ---- files -------------------------------------------------------------------------------------------------


def test_obj_with_texture(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger=threestudio.logger.name):
        export(tmp_path, save_normal=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.obj", "model.mtl", "texture_kd.jpg", "texture_pr.jpg", "model.json"}
    report = json.loads((tmp_path / "model.json").read_text())
    assert report["watertight"] and report["volume"] == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.02)
    mesh = trimesh.load(tmp_path / "model.obj", process=False)
    assert len(mesh.faces) == report["triangles"]
    places, uv = points_in_faces(mesh)
    seen = sample_texture(mesh.visual.material.image, uv)
    assert np.abs(seen - colors_of(places)).mean() < 0.01


def test_glb_with_texture(tmp_path):
    export(tmp_path, fmt="glb", save_normal=True)
    assert {path.name for path in tmp_path.iterdir()} == {"model.glb", "model.json"}
    mesh = trimesh.load(tmp_path / "model.glb", force="mesh", process=False)
    places, uv = points_in_faces(mesh)
    places = places[:, [2, 0, 1]]  # glTF's z is our x, its x our y, its y our z
    seen = sample_texture(mesh.visual.material.baseColorTexture, uv)
    assert np.abs(seen - colors_of(places)).max() < 0.05
    assert mesh.visual.material.roughnessFactor == 1.0
    outwards = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
    assert (mesh.vertex_normals * outwards).sum(axis=1).min() > 0.95
    merged = trimesh.Trimesh(mesh.vertices, mesh.faces)  # seams of the texture closed again
    assert merged.is_watertight and merged.volume > 0


@pytest.mark.parametrize("fmt", ["obj", "glb", "obj-mtl"])
def test_vertex_colours(tmp_path, fmt):
    export(tmp_path, fmt=fmt, save_texture=False, save_uv=False)
    suffix = fmt.split("-")[0]
    mesh = trimesh.load(tmp_path / f"model.{suffix}", force="mesh", process=False)
    assert mesh.is_watertight
    places = mesh.vertices if suffix == "obj" else mesh.vertices[:, [2, 0, 1]]
    expected = colors_of(places) if suffix == "obj" else srgb_to_linear(colors_of(places))
    seen = mesh.visual.vertex_colors[:, :3] / 255 if fmt != "obj-mtl" else expected
    np.testing.assert_allclose(seen, expected, atol=0.01)


def test_a_geometry_without_colours_is_exported_plain(tmp_path):
    geometry = Ball({"isosurface_resolution": 12})
    geometry.colored = False
    export(tmp_path, geometry, fmt="glb", save_texture=False)
    assert trimesh.load(tmp_path / "model.glb", force="mesh").is_watertight
    export(tmp_path, geometry)
    assert not (tmp_path / "texture_kd.jpg").exists()


def test_light_of_colours():
    np.testing.assert_allclose(srgb_to_linear(np.array([0.0, 0.5, 1.0])), [0.0, 0.21404, 1.0], atol=1e-5)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"fmt": "stl"}, "fmt is 'stl'.*glb"),
        ({"texture_format": "webp"}, "texture_format.*png"),
        ({"texture_size": 0}, "texture_size"),
    ],
)
def test_mistakes(tmp_path, config, words):
    with pytest.raises(ConfigValueError, match=words):
        export(tmp_path, **config)


def test_geometries_without_a_surface_are_told_of_other_exporters(tmp_path):
    class Points:
        pass

    with pytest.raises(ConfigValueError, match=r"Points is none.*dummy-exporter"):
        export(tmp_path, Points())
