"""Ellipses on the image against Monte Carlo and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from splat_scenes import intrinsics, look_at_origin, random_scene

from threestudio_lucid.rasterizer.projection import compute_radii, project, quats_to_rotations


def _projected(scene, **options):
    return project(
        scene.means, scene.quats, scene.scales, scene.viewmats, scene.Ks, scene.width, scene.height, **options
    )


def _covariances(conics):
    a, b, c = conics.unbind(-1)
    return torch.stack([c, -b, -b, a], dim=-1).unflatten(-1, (2, 2)) / (a * c - b * b)[..., None, None]


def test_quaternions_turn_as_they_should():
    """90 degrees about z: (cos 45, 0, 0, sin 45) takes x to y; 120 degrees about (1, 1, 1) takes x to y to z
    to x."""
    quats = torch.tensor([[math.sqrt(0.5), 0, 0, math.sqrt(0.5)], [0.5, 0.5, 0.5, 0.5], [-4.0, 0, 0, 0]])
    rotations = quats_to_rotations(quats)
    x, y, z = torch.eye(3)
    torch.testing.assert_close(rotations[0] @ x, y)
    torch.testing.assert_close(rotations[1] @ x, y)
    torch.testing.assert_close(rotations[1] @ y, z)
    torch.testing.assert_close(rotations[2], torch.eye(3))


def test_rotations_are_orthonormal_and_right_handed():
    rotations = quats_to_rotations(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double())
    identity = torch.eye(3).double().expand(50, 3, 3)
    torch.testing.assert_close(rotations @ rotations.mT, identity)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(50).double())


def test_ellipse_is_the_covariance_of_projected_samples():
    """Small Gaussians, so that perspective is linear across them: sample, project, take mean and
    covariance."""
    scene = random_scene(5, scale=(0.005, 0.02)).to(torch.float64)
    means2d, depths, conics = _projected(scene, eps2d=0.0)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(5, 40_000, 3, generator=generator, dtype=torch.float64) * scene.scales[:, None]
    points = scene.means[:, None] + noise @ quats_to_rotations(scene.quats).mT
    for v, viewmat in enumerate(scene.viewmats):
        camera = points @ viewmat[:3, :3].T + viewmat[:3, 3]
        pixels = (camera @ scene.Ks[v].T)[..., :2] / camera[..., 2:]
        deviation = _covariances(conics[v]).diagonal(dim1=-2, dim2=-1).sqrt()
        # the mean of 40,000 samples is off by 1/200 of the deviation; 5 of those, and a hair for the
        # curvature
        assert ((pixels.mean(dim=1) - means2d[v]).abs() < 0.03 * deviation).all()
        sampled = torch.stack([torch.cov(p.T) for p in pixels])
        size = _covariances(conics[v]).flatten(1).norm(dim=1)
        assert ((sampled - _covariances(conics[v])).flatten(1).norm(dim=1) < 0.05 * size).all()
        torch.testing.assert_close(depths[v], (scene.means @ viewmat[:3, :3].T + viewmat[:3, 3])[:, 2])


def test_dilation_is_added_to_the_variances():
    scene = random_scene(20).to(torch.float64)
    without, dilated = _projected(scene, eps2d=0.0).conics, _projected(scene, eps2d=0.3).conics
    identity = 0.3 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(_covariances(dilated), _covariances(without) + identity)


def test_near_gaussians_are_culled_with_finite_gradients():
    scene = random_scene(50, distance=0.3).to(torch.float64)
    scene.means[0] = -torch.linalg.inv(scene.viewmats[0])[:3, 3] * -1  # in the camera's centre
    tensors = [t.requires_grad_() for t in (scene.means, scene.quats, scene.scales)]
    projection = _projected(scene, near=0.05)
    culled = projection.depths < 0.05
    assert culled.any() and not culled.all()
    assert (projection.conics[culled] == 0).all() and (projection.conics[~culled][:, 0] > 0).all()
    (projection.means2d.sum() + projection.conics.sum()).backward()
    assert all(torch.isfinite(t.grad).all() for t in tensors)


def test_far_beside_the_image_the_ellipse_stays_bounded():
    """At 89 degrees from the axis the unclamped Jacobian would be 57 times larger than at 45."""
    viewmats = torch.eye(4)[None]
    Ks = intrinsics(64, 64, fovy=60)[None]
    means = torch.tensor([[math.tan(math.radians(angle)), 0, 1] for angle in (45.0, 80.0, 89.0)])
    quats, scales = torch.tensor([[1.0, 0, 0, 0]]).expand(3, 4), torch.full((3, 3), 0.01)
    covariances = _covariances(project(means, quats, scales, viewmats, Ks, 64, 64, eps2d=0.0).conics)[0]
    torch.testing.assert_close(covariances[1], covariances[0])
    torch.testing.assert_close(covariances[2], covariances[0])


@pytest.mark.parametrize(
    ("opacity", "radius"),
    [(1.0, math.sqrt(2 * math.log(255))), (0.1, math.sqrt(2 * math.log(25.5))), (1 / 256, 0.0)],
)
def test_radius_reaches_to_alpha_1_255(opacity, radius):
    means2d, conics = torch.tensor([[[32.0, 32.0]]]), torch.tensor([[[1 / 16, 0, 1.0]]])  # deviations 4 and 1
    radii = compute_radii(means2d, conics, torch.tensor([opacity]), 64, 64)
    assert radii.tolist() == [[math.ceil(4 * radius)]]


def test_radius_is_zero_beside_the_image():
    conics = torch.tensor([1.0, 0, 1.0]).expand(1, 4, 3)
    means2d = torch.tensor([[[-2.0, 5.0], [-4.0, 5.0], [5.0, 12.5], [5.0, 14.0]]])
    radii = compute_radii(means2d, conics, torch.ones(4), 10, 10)  # ellipses reach 3.33 pixels
    assert (radii[0] > 0).tolist() == [True, False, True, False]


def test_cameras_look_where_they_should():
    """The tests' own cameras: the origin is in the middle, world z up is image up."""
    viewmat = look_at_origin(30, 20, 3)
    torch.testing.assert_close(viewmat[:3, 3], torch.tensor([0.0, 0.0, 3.0]), atol=1e-6, rtol=0)
    assert viewmat[1, 2] < 0  # y points down
