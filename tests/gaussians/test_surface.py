"""Meshes of Gaussian clouds: on shapes whose volume, holes and colours are known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import trimesh

import threestudio
import threestudio_lucid  # noqa: F401 - registers
from threestudio_lucid.errors import UserError
from threestudio_lucid.gaussians.cloud import GaussianCloud, Gaussians, gaussians_from_points
from threestudio_lucid.gaussians.surface import mesh_of, mesh_report, write_mesh
from threestudio_lucid.gaussians.volume import Volume, depth_inside, fill
from threestudio_lucid.points import PointCloud


def on_sphere(n: int, radius: float, opacity: float = 0.9) -> Gaussians:
    """Round Gaussians evenly on a sphere (a golden spiral): red above the equator, blue below."""
    k = torch.arange(n) + 0.5
    z, turn = 1 - 2 * k / n, math.pi * (1 + 5**0.5) * k
    r = (1 - z * z).sqrt()
    points = radius * torch.stack([r * turn.cos(), r * turn.sin(), z], dim=1)
    colors = torch.where(z[:, None] > 0, torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0, 1]))
    return gaussians_from_points(PointCloud(points, colors), opacity=opacity)


def one_gaussian(opacity: float, sigma: tuple[float, float, float], quat=(1.0, 0, 0, 0)) -> Gaussians:
    return Gaussians(
        means=torch.zeros(1, 3),
        quats=torch.tensor([quat]),
        log_scales=torch.tensor([sigma]).log(),
        logit_opacities=torch.logit(torch.tensor([opacity])),
        sh_dc=torch.zeros(1, 1, 3),
        sh_rest=torch.zeros(1, 0, 3),
    )


def as_trimesh(mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.triangles, process=False)


# ---- the volume --------------------------------------------------------------------------------------------


def test_a_ray_through_a_gaussian_loses_what_its_opacity_says():
    """Through the middle, along the thin axis, which is turned from z to x by 90 degrees about y."""
    half = math.sqrt(0.5)
    flat = one_gaussian(0.7, (0.3, 0.3, 0.1), quat=(half, 0.0, half, 0.0))
    bounds = np.array([[-1.0, -1, -1], [1, 1, 1]])
    volume = fill(flat, bounds, resolution=80)
    assert volume.density.shape == (81, 81, 81)
    along_x = volume.density[:, 40, 40].sum() * volume.cell
    assert 1 - math.exp(-along_x) == pytest.approx(0.7, abs=0.005)
    along_z = volume.density[40, 40, :].sum() * volume.cell
    assert along_z / along_x == pytest.approx(3, rel=0.01)  # three times as thick that way


def test_gaussians_thinner_than_a_cell_are_not_lost():
    """Wherever the sheet lies between the corners, its light is gone behind it."""
    for offset in (0.0, 0.03, 0.05):
        sheet = one_gaussian(0.7, (0.5, 0.5, 0.001))
        sheet.means[0, 2] = offset
        volume = fill(sheet, np.array([[-1.0, -1, -1], [1, 1, 1]]), resolution=20)
        gone = 1 - math.exp(-volume.density[10, 10].sum() * volume.cell)
        assert gone == pytest.approx(0.7, abs=0.02)


def test_depth_counts_from_the_most_open_side():
    """A cube of density 2, five corners wide, cells of 0.5: half a cell of ramp, then whole cells of 1."""
    density = np.zeros((9, 9, 9))
    density[2:7, 2:7, 2:7] = 2.0
    depth = depth_inside(Volume(density, np.zeros((9, 9, 9, 3)), np.zeros(3), cell=0.5))
    assert depth[1, 4, 4] == 0.0
    np.testing.assert_allclose(depth[2:7, 4, 4], [0.5, 1.5, 2.5, 1.5, 0.5])


def test_a_closed_shell_is_deep_inside():
    density = np.zeros((9, 9, 9))
    density[2:7, 2:7, 2:7] = 4.0
    density[3:6, 3:6, 3:6] = 0.0
    depth = depth_inside(Volume(density, np.zeros((9, 9, 9, 3)), np.zeros(3), cell=1.0))
    assert depth[4, 4, 4] == pytest.approx(4.0)  # a ramp up and a ramp down: 2 + 2, straight through a face
    assert depth[0, 4, 4] == 0.0


# ---- the surface -------------------------------------------------------------------------------------------


def test_a_hollow_sphere_becomes_a_solid_ball():
    """1500 Gaussians of sigma 0.0454 on a sphere of radius 0.5 overlap 2 pi sigma^2 1500 / pi = 6.2 times.

    Opacity 0.9 is an optical depth of 2.3, so the shell has 14.2; of that ln 2, half of the light, or 4.9 %
    lies beyond 1.66 sigma: the surface has the radius 0.5 + 1.66 x 0.0454 = 0.575.
    """
    mesh = mesh_of(on_sphere(1500, 0.5), resolution=64)
    solid = as_trimesh(mesh)
    assert solid.is_watertight and solid.body_count == 1 and solid.euler_number == 2
    radius = np.linalg.norm(solid.vertices, axis=1)
    assert radius.mean() == pytest.approx(0.575, abs=0.006)
    assert radius.std() < 0.003
    assert solid.volume == pytest.approx(4 / 3 * math.pi * radius.mean() ** 3, rel=0.02)
    above, below = mesh.vertices[:, 2] > 0.1, mesh.vertices[:, 2] < -0.1
    np.testing.assert_allclose(mesh.colors[above].mean(axis=0), [1, 0, 0], atol=0.02)
    np.testing.assert_allclose(mesh.colors[below].mean(axis=0), [0, 0, 1], atol=0.02)


def test_a_ring_keeps_its_hole():
    angle = torch.linspace(0, 2 * math.pi, 201)[:-1]
    ring = torch.stack([0.5 * angle.cos(), 0.5 * angle.sin(), torch.zeros(200)], dim=1)
    tube = ring + 0.1 * torch.randn(8, 200, 3, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    cloud = PointCloud(tube.reshape(-1, 3), torch.ones(1600, 3))
    solid = as_trimesh(mesh_of(gaussians_from_points(cloud, opacity=0.95), resolution=48, smooth=1.0))
    assert solid.is_watertight and solid.body_count == 1
    assert solid.euler_number == 0  # a torus; a ball has 2


def test_specks_are_dropped_and_the_object_fills_the_grid():
    ball, speck = on_sphere(800, 0.3), on_sphere(4, 0.005, opacity=0.6)
    both = Gaussians(
        **{
            name: torch.cat([getattr(ball, name), getattr(speck, name)])
            for name in ("means", "quats", "log_scales", "logit_opacities", "sh_dc", "sh_rest")
        }
    )
    both.means[800:] += 2.0
    alone, cleaned = mesh_of(ball, resolution=40), mesh_of(both, resolution=40)
    assert as_trimesh(cleaned).body_count == 1
    assert len(cleaned.triangles) == pytest.approx(len(alone.triangles), rel=0.3)


def test_a_lower_threshold_is_fatter():
    volumes = [as_trimesh(mesh_of(on_sphere(500, 0.5), 40, threshold=t)).volume for t in (0.2, 0.5, 0.8)]
    assert volumes[0] > volumes[1] > volumes[2]


def test_clouds_without_a_surface_are_told():
    with pytest.raises(UserError, match=r"of the light is gone anywhere.*threshold"):
        mesh_of(one_gaussian(0.3, (0.1, 0.1, 0.1)), resolution=16)
    with pytest.raises(UserError, match="transparent"):
        mesh_of(one_gaussian(0.01, (0.1, 0.1, 0.1)), resolution=16)


# ---- files -------------------------------------------------------------------------------------------------


def test_files_open_in_trimesh_upright_and_in_their_colours(tmp_path):
    mesh = mesh_of(on_sphere(600, 0.5), resolution=32)
    for suffix, up in (("glb", 1), ("obj", 2), ("ply", 2)):
        read = trimesh.load(write_mesh(tmp_path / f"a.{suffix}", mesh), force="mesh", process=False)
        assert read.is_watertight and read.volume == pytest.approx(mesh_report(mesh)["volume"], rel=1e-4)
        colors = read.visual.vertex_colors[:, :3]
        assert (colors[read.vertices[:, up] > 0.2] == [255, 0, 0]).mean() > 0.99


def test_gray_in_glb_is_light(tmp_path):
    """A colour shown as 0.5 is 21.4 % of the light, 54.6 of 255."""
    mesh = mesh_of(one_gaussian(0.95, (0.2, 0.2, 0.2)), resolution=16)  # sh_dc 0: gray
    for suffix, value in (("glb", 55), ("ply", 128)):
        read = trimesh.load(write_mesh(tmp_path / f"a.{suffix}", mesh), force="mesh", process=False)
        assert set(read.visual.vertex_colors[:, 0]) == {value}


class Splats:
    def __init__(self, gaussians):
        self.cloud = GaussianCloud(len(gaussians))
        self.cloud.assign(gaussians)

    @property
    def gaussians(self):
        return self.cloud.living


def exporter(geometry, **config):
    return threestudio.find("lucid-mesh-exporter")(config, geometry=geometry, material=None, background=None)


def test_exporter_writes_each_format_and_a_report():
    made = exporter(Splats(on_sphere(300, 0.5)), resolution=24, fmt=["glb", "ply"], save_name="ball")
    outputs = made()
    assert [(output.save_name, output.save_type) for output in outputs] == [
        ("ball.glb", "file"),
        ("ball.ply", "file"),
        ("ball.json", "json"),
    ]
    report = outputs[-1].params["payload"]
    assert json.loads(json.dumps(report)) == report and report["watertight"] is True
    for output in outputs[:2]:
        assert len(trimesh.load(output.params["src_path"], force="mesh").faces) == report["triangles"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"fmt": "stl"}, "fmt is 'stl'.*glb, obj, ply"),
        ({"fmt": ["glb", 3]}, "fmt is 3"),
        ({"resolution": 2}, "resolution"),
        ({"threshold": 1.0}, "threshold"),
        ({"smooth": -1.0}, "smooth"),
    ],
)
def test_mistakes(config, words):
    with pytest.raises(UserError, match=words):
        exporter(Splats(on_sphere(10, 0.5)), **config)


def test_geometries_without_gaussians_are_told():
    with pytest.raises(UserError, match="mesh-exporter"):
        exporter(object())()
