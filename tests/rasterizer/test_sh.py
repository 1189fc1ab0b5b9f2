"""Spherical harmonics: orthonormal, and with the signs of the 3DGS files."""

from __future__ import annotations

import math

import pytest
import torch

from threestudio_lucid.rasterizer.sh import num_bases, sh_basis, sh_to_colors, view_directions


def _directions(count):
    directions = torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.nn.functional.normalize(directions, dim=-1)


def test_basis_is_orthonormal():
    """4 pi mean(Y_i Y_j) is the identity; with 400,000 samples each entry is off by about 4 pi / 4 pi / 632 =
    0.002."""
    basis = sh_basis(3, _directions(400_000))
    gram = 4 * math.pi * basis.T @ basis / len(basis)
    assert (gram - torch.eye(16, dtype=torch.float64)).abs().max() < 0.012


def test_each_degree_begins_with_the_lower_ones():
    directions = _directions(10)
    for degree in range(4):
        basis = sh_basis(degree, directions)
        assert basis.shape == (10, num_bases(degree))
        assert torch.equal(basis, sh_basis(3, directions)[:, : num_bases(degree)])


def test_degree_alternates_under_a_flip_of_direction():
    directions = _directions(10)
    signs = torch.cat([torch.full((2 * degree + 1,), (-1.0) ** degree) for degree in range(4)]).double()
    torch.testing.assert_close(sh_basis(3, -directions), signs * sh_basis(3, directions))


def test_signs_and_order_of_the_files():
    """Along +z only the m = 0 terms: sqrt((2 l + 1) / 4 pi). Along +x, +y the degree-1 terms are negative."""
    x, y, z = torch.eye(3, dtype=torch.float64)
    along_z = torch.zeros(16, dtype=torch.float64)
    along_z[[0, 2, 6, 12]] = torch.tensor([math.sqrt((2 * d + 1) / (4 * math.pi)) for d in range(4)]).double()
    torch.testing.assert_close(sh_basis(3, z), along_z, atol=1e-7, rtol=1e-6)
    one = math.sqrt(3 / (4 * math.pi))
    torch.testing.assert_close(sh_basis(1, x)[1:], torch.tensor([0, 0, -one]).double(), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(sh_basis(1, y)[1:], torch.tensor([-one, 0, 0]).double(), atol=1e-7, rtol=1e-6)
    diagonal = (x + y) / math.sqrt(2)  # xy > 0: Y(2,-2) positive; y (3 xx - yy) > 0: Y(3,-3) negative
    assert sh_basis(3, diagonal)[4] > 0 and sh_basis(3, diagonal)[9] < 0


def test_colors_are_half_plus_the_sum_and_never_negative():
    sh = torch.tensor([[[1.0, 0.0, -2.0]]])
    colors = sh_to_colors(0, torch.tensor([[0.0, 0.0, 5.0]]), sh)
    assert colors[0].tolist() == pytest.approx([0.5 + 0.28209479, 0.5, 0.0])


def test_directions_start_at_the_camera():
    viewmats = torch.eye(4)[None].clone()
    viewmats[0, :3, 3] = torch.tensor([0.0, 0.0, 2.0])  # camera at (0, 0, -2)
    assert view_directions(torch.tensor([[1.0, 0.0, 0.0]]), viewmats).tolist() == [[[1.0, 0.0, 2.0]]]


def test_unknown_degree_is_named():
    with pytest.raises(ValueError, match="degree must be 0 to 3, got 4"):
        sh_basis(4, torch.eye(3))
