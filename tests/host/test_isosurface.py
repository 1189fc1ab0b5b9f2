"""Surfaces cut from fields whose volume and area are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import trimesh

from threestudio.models.geometry.base import BaseImplicitGeometry
from threestudio.models.isosurface import cut, sample_grid
from threestudio.models.mesh import Mesh
from threestudio.utils.errors import ConfigValueError


class Ball(BaseImplicitGeometry):
    """A signed distance, negative inside."""

    radius = 0.6
    centre = (0.0, 0.0, 0.0)
    asked = 0

    def forward_field(self, points):
        self.asked = max(self.asked, len(points))
        return (points - torch.tensor(self.centre)).norm(dim=-1, keepdim=True) - self.radius, None

    def forward_level(self, field, threshold):
        return field - threshold


class Fog(Ball):
    """A density that falls from 2 in the middle to 0 at distance 1."""

    def forward_field(self, points):
        return 2.0 * (1.0 - points.norm(dim=-1, keepdim=True)).clamp(min=0.0), None

    def forward_level(self, field, threshold):
        return threshold - field


def as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.v_pos.numpy(), mesh.t_pos_idx.numpy(), process=False)


@pytest.mark.parametrize("coarse_to_fine", [True, False])
def test_a_ball_has_its_volume_and_area(coarse_to_fine):
    geometry = Ball({"isosurface_resolution": 40, "isosurface_coarse_to_fine": coarse_to_fine})
    mesh = as_trimesh(geometry.isosurface())
    assert mesh.is_watertight and mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.01)  # positive: it faces outwards
    assert mesh.area == pytest.approx(4 * math.pi * 0.6**2, rel=0.01)
    assert np.linalg.norm(mesh.vertices, axis=1) == pytest.approx(0.6, abs=0.003)


def test_a_surface_that_leaves_the_box_is_closed_there():
    """A ball of radius 1.3 in a cube of half side 1 loses six caps of height 0.3, which do not meet."""
    geometry = Ball({"isosurface_resolution": 30})
    geometry.radius = 1.3
    mesh = as_trimesh(geometry.isosurface())
    caps = 6 * math.pi * 0.3**2 * (3 * 1.3 - 0.3) / 3
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 1.3**3 - caps, rel=0.01)
    assert mesh.bounds.tolist() == [[-1, -1, -1], [1, 1, 1]]


def test_coarse_to_fine_spends_the_cells_where_the_surface_is():
    small = {"isosurface_resolution": 24, "isosurface_coarse_to_fine": False}
    meshes = []
    for fine in (False, True):
        geometry = Ball(small | {"isosurface_coarse_to_fine": fine})
        geometry.radius, geometry.centre = 0.2, (0.5, -0.4, 0.3)
        meshes.append(geometry.isosurface())
    assert len(meshes[1].t_pos_idx) > 4 * len(meshes[0].t_pos_idx)
    low, high = meshes[1].extras["bbox"]
    assert (low > -1).all() and (high < 1).all()
    assert (low < torch.tensor([0.3, -0.6, 0.1])).all() and (high > torch.tensor([0.7, -0.2, 0.5])).all()


def test_density_with_a_threshold_and_with_auto():
    """The density is 2 (1 - r): 1 at r = 1/2; its mean over the unit ball is 1/2, which it has at r = 3/4."""
    given = as_trimesh(Fog({"isosurface_resolution": 40, "isosurface_threshold": 1.0}).isosurface())
    assert np.linalg.norm(given.vertices, axis=1) == pytest.approx(0.5, abs=0.005)
    auto = as_trimesh(Fog({"isosurface_resolution": 40, "isosurface_threshold": "auto"}).isosurface())
    assert np.linalg.norm(auto.vertices, axis=1) == pytest.approx(0.75, abs=0.01)


def test_small_parts_go():
    class TwoBalls(Ball):
        def forward_field(self, points):
            far = (points - 0.9).norm(dim=-1, keepdim=True) - 0.05
            return torch.minimum(super().forward_field(points)[0], far), None

    cfg = {"isosurface_resolution": 50, "isosurface_outlier_n_faces_threshold": 0.1}
    assert len(as_trimesh(TwoBalls(cfg).isosurface()).split()) == 1
    both = TwoBalls(cfg | {"isosurface_remove_outliers": False}).isosurface()
    assert len(as_trimesh(both).split()) == 2


def test_chunks_bound_what_is_asked_at_once():
    whole, parts = Ball({"isosurface_resolution": 12}), Ball({"isosurface_resolution": 12})
    parts.cfg.isosurface_chunk = 100
    torch.testing.assert_close(whole.isosurface().v_pos, parts.isosurface().v_pos)
    assert (whole.asked, parts.asked) == (13**3, 100)


def test_the_grid_spans_the_box():
    box = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 4.0]])
    for axis, values in enumerate(([0.0, 0.5, 1.0], [0.0, 1.0, 2.0], [0.0, 2.0, 4.0])):
        grid = sample_grid(lambda points, axis=axis: points[:, axis], box, resolution=2)
        assert grid.movedim(axis, 0)[:, 1, 1].tolist() == values


def test_values_exactly_on_the_surface_leave_it_closed():
    level = np.abs(np.stack(np.meshgrid(*3 * [np.arange(-3, 4)], indexing="ij"))).sum(0) - 2.0
    vertices, faces = cut(level, np.array([[-3.0] * 3, [3.0] * 3]))
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * 2**3, rel=1e-3)  # an octahedron: 4/3 r^3


@pytest.mark.parametrize(
    ("geometry", "threshold", "words"),
    [
        (Ball, -0.7, "between -0.6.*threshold of -0.7.*isosurface_threshold=auto"),
        (Fog, 3.0, "threshold of 3.*auto"),
    ],
)
def test_an_empty_surface_says_what_to_try(geometry, threshold, words):
    with pytest.raises(ConfigValueError, match=words):
        geometry({"isosurface_resolution": 10, "isosurface_threshold": threshold}).isosurface()


def test_fields_without_a_surface_are_told():
    class Nothing(Fog):
        value = 0.0

        def forward_field(self, points):
            return torch.full_like(points[:, :1], self.value), None

    with pytest.raises(ConfigValueError, match="0 everywhere"):
        Nothing({"isosurface_resolution": 4, "isosurface_threshold": "auto"}).isosurface()
    broken = Nothing({"isosurface_resolution": 4})
    broken.value = math.nan
    with pytest.raises(ConfigValueError, match="not finite"):
        broken.isosurface()
    with pytest.raises(ConfigValueError, match="isosurface is false"):
        Ball({"isosurface": False}).isosurface()
