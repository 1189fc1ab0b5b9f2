"""Triangle meshes."""

from __future__ import annotations

import pytest
import torch

from threestudio.models.mesh import Mesh

TETRAHEDRON = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
FACES = torch.tensor([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])


def test_normals_of_a_tetrahedron_point_outwards():
    mesh = Mesh(TETRAHEDRON, FACES)
    torch.testing.assert_close(mesh.v_nrm, TETRAHEDRON / 3**0.5)


def test_a_vertex_without_triangles_has_a_normal():
    mesh = Mesh(torch.cat([TETRAHEDRON, torch.zeros(1, 3)]), FACES)
    assert mesh.v_nrm[4].tolist() == [0.0, 0.0, 1.0]


def test_edges_are_listed_once():
    assert Mesh(TETRAHEDRON, FACES).edges.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]


def test_regularisers():
    """Normals of neighbours meet at cosine -1/3; the mean of a corner's three neighbours is -1/3 of it."""
    mesh = Mesh(TETRAHEDRON.clone().requires_grad_(), FACES)
    assert mesh.normal_consistency().item() == pytest.approx(4 / 3)
    assert mesh.laplacian().item() == pytest.approx(3**0.5 * 4 / 3)
    (mesh.normal_consistency() + mesh.laplacian()).backward()
    assert torch.isfinite(mesh.v_pos.grad).all()


def test_small_parts_are_removed():
    far = torch.tensor([[9.0, 9, 9], [9, 9, 8], [9, 8, 9]])
    mesh = Mesh(torch.cat([TETRAHEDRON, far]), torch.cat([FACES, torch.tensor([[4, 5, 6]])]))
    assert len(mesh.remove_outlier(2).t_pos_idx) == 4
    assert len(mesh.remove_outlier(0.5).v_pos) == 4
    assert len(mesh.remove_outlier(1).t_pos_idx) == 5
    learned = Mesh(mesh.v_pos.clone().requires_grad_(), mesh.t_pos_idx)
    assert learned.requires_grad and learned.remove_outlier(2) is learned
    with pytest.raises(ValueError, match="empty"):
        Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long)).remove_outlier(1)


def test_colours_and_extras():
    mesh = Mesh(TETRAHEDRON, FACES, bbox="box")
    assert mesh.extras == {"bbox": "box"} and mesh.v_rgb is None
    mesh.set_vertex_color(torch.ones(4, 3))
    assert mesh.v_rgb.shape == (4, 3)
    with pytest.raises(ValueError, match="3 colours for 4"):
        mesh.set_vertex_color(torch.ones(3, 3))
