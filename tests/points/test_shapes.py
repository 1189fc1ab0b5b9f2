"""Point clouds to start from."""

import pytest
import torch
from scipy.stats import kstest

from threestudio_lucid.points import (
    SHAPES,
    PointCloud,
    ball,
    box,
    mean_squared_neighbour_distance,
    sphere,
    torus,
)


def draw(shape, n=4000, radius=2.0, seed=0):
    return shape(n, radius, torch.Generator().manual_seed(seed))


def test_ball_is_uniform():
    points = draw(ball).points
    radii = points.norm(dim=1)
    assert radii.max() <= 2.0
    # of a uniform ball, (r/R)^3 and every direction's cosine are uniform
    assert kstest(((radii / 2) ** 3).numpy(), "uniform").pvalue > 0.01
    for axis in range(3):
        assert kstest(((points[:, axis] / radii + 1) / 2).numpy(), "uniform").pvalue > 0.01


def test_box_is_uniform():
    points = draw(box).points
    for axis in range(3):
        assert kstest(((points[:, axis] + 2) / 4).numpy(), "uniform").pvalue > 0.01


def test_torus_is_uniform():
    points = draw(torus, n=20_000).points
    across = points[:, :2].norm(dim=1)
    outward, z = across - 4 / 3, points[:, 2]
    assert across.max() <= 2.0 and (outward.square() + z.square()).max() <= (2 / 3) ** 2 * (1 + 1e-5)
    # Pappus: as much of the volume lies outside of the middle circle as the centroid of half a disc says
    share = 0.5 + (2 / 3) * 4 / (3 * torch.pi) / (4 / 3) / 2
    assert (outward > 0).float().mean() == pytest.approx(share, abs=0.012)  # 3 sigma
    assert kstest(((outward.square() + z.square()) / (2 / 3) ** 2).numpy(), "uniform").pvalue > 0.01
    turns = torch.atan2(points[:, 1], points[:, 0]) / (2 * torch.pi) + 0.5
    assert kstest(turns.numpy(), "uniform").pvalue > 0.01


def test_sphere_is_lucid_dreamers():
    points = draw(sphere).points
    radii = points.norm(dim=1)
    assert kstest((radii / 2).numpy(), "uniform").pvalue > 0.01
    assert kstest((torch.acos(points[:, 2] / radii) / torch.pi).numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_same_generator_same_points(shape):
    assert torch.equal(draw(shape).points, draw(shape).points)
    assert not torch.equal(draw(shape).points, draw(shape, seed=1).points)


def test_neighbour_distances_agree_with_the_definition():
    points = draw(ball, n=60).points
    squared = torch.cdist(points.double(), points.double()).square()
    nearest = squared.sort(dim=1).values[:, 1:4].mean(1).float()
    torch.testing.assert_close(mean_squared_neighbour_distance(points), nearest)


def test_neighbour_distances_of_few_or_coincident_points():
    assert mean_squared_neighbour_distance(torch.zeros(1, 3)).item() == pytest.approx(0.01)
    assert mean_squared_neighbour_distance(torch.zeros(5, 3)).tolist() == pytest.approx([1e-7] * 5)


def test_sample_uses_every_point_before_repeating():
    cloud = PointCloud(torch.arange(12.0).reshape(4, 3), torch.zeros(4, 3))
    rows = cloud.sample(6, torch.Generator().manual_seed(0)).points[:, 0]
    assert sorted(rows.unique().tolist()) == [0.0, 3.0, 6.0, 9.0]
    assert len(cloud.sample(3, torch.Generator()).points.unique(dim=0)) == 3


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="colors has shape"):
        PointCloud(torch.zeros(3, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least one"):
        PointCloud(torch.zeros(0, 3), torch.zeros(0, 3))
