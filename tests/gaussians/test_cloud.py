"""The arena: how it starts, and that only the living prefix takes part."""

import pytest
import torch

from threestudio_lucid.gaussians.cloud import (
    GaussianCloud,
    base_colors,
    gaussians_from_points,
    moments_of,
    opacities,
    scales,
    sh_coefficients,
)
from threestudio_lucid.gaussians.density import DensityRules, refine
from threestudio_lucid.points import PointCloud, ball


@pytest.fixture
def gaussians():
    return gaussians_from_points(ball(50, 0.5, torch.Generator().manual_seed(0)), sh_degree=2)


def test_starts_as_3dgs_does():
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 2]])
    colors = torch.tensor([[0.2, 0.4, 0.6]]).repeat(4, 1)
    g = gaussians_from_points(PointCloud(corners, colors), opacity=0.1)
    # squared distances from the first corner: 1, 4, 4
    torch.testing.assert_close(scales(g)[0], torch.full((3,), 3.0**0.5))
    torch.testing.assert_close(opacities(g), torch.full((4,), 0.1))
    torch.testing.assert_close(base_colors(g), colors)
    assert g.quats.tolist() == [[1.0, 0.0, 0.0, 0.0]] * 4


def test_gradients_stay_in_the_living_prefix(gaussians):
    cloud = GaussianCloud(64, 2)
    cloud.assign(gaussians)
    living = cloud.living
    (living.means.sum() + sh_coefficients(living).sum()).backward()
    assert (cloud.means.grad[:50] == 1).all()
    assert not cloud.means.grad[50:].any()
    assert sh_coefficients(living).shape == (50, 9, 3)


def test_adam_leaves_dead_rows_alone(gaussians):
    cloud = GaussianCloud(64, 2)
    cloud.assign(gaussians)
    optimizer = torch.optim.Adam(cloud.parameters(), lr=0.1, eps=1e-15)
    for _ in range(3):
        optimizer.zero_grad()
        cloud.living.means.square().sum().backward()
        optimizer.step()
    assert not cloud.means[50:].any()


def test_state_survives_a_checkpoint(gaussians, tmp_path):
    cloud, other = GaussianCloud(64, 2), GaussianCloud(64, 2)
    cloud.assign(gaussians)
    cloud.grad_sum.fill_(2.0)
    torch.save(cloud.state_dict(), tmp_path / "c.pt")
    other.load_state_dict(torch.load(tmp_path / "c.pt", weights_only=True))
    assert len(other) == 50
    assert torch.equal(other.sh_rest, cloud.sh_rest)
    assert torch.equal(other.grad_sum, cloud.grad_sum)


def test_assign_fits_degrees_and_refuses_too_many(gaussians):
    cloud = GaussianCloud(64, 0)
    cloud.assign(gaussians)
    assert cloud.living.sh_rest.shape == (50, 0, 3)
    with pytest.raises(ValueError, match="50 Gaussians do not fit a capacity of 49"):
        GaussianCloud(49).assign(gaussians)


def test_another_capacity_keeps_the_living(gaussians):
    cloud = GaussianCloud(64)
    cloud.assign(gaussians)
    n, params = len(cloud), dict(cloud.params)
    cloud.frozen[1] = True
    for capacity in (90, n):
        cloud.resize(capacity)
        assert (cloud.capacity, len(cloud)) == (capacity, n)
        assert all(cloud.params[name] is p and len(p) == capacity for name, p in params.items())
        assert torch.equal(cloud.living.means, gaussians.means) and cloud.frozen.nonzero().tolist() == [[1]]
        assert len(cloud.grad_sum) == capacity and (cloud.means[n:] == 0).all()
    with pytest.raises(ValueError, match="do not fit"):
        cloud.resize(n - 1)


@pytest.mark.parametrize("capacity", [1, 50, 80])
def test_a_state_of_another_capacity_is_taken(gaussians, capacity):
    """Its living rows are; the own capacity stays, unless they need more."""
    one, other = GaussianCloud(64), GaussianCloud(capacity)
    one.assign(gaussians)
    other.load_state_dict(one.state_dict())
    assert other.capacity == max(capacity, len(one)) and len(other) == len(one)
    assert torch.equal(other.living.means, one.living.means)


@pytest.mark.parametrize(("capacity", "degree"), [(0, 0), (10, 4), (10, -1)])
def test_impossible_sizes(capacity, degree):
    with pytest.raises(ValueError, match="expected"):
        GaussianCloud(capacity, degree)


def test_counts_what_lives_whoever_changed_it(gaussians):
    cloud = GaussianCloud(64, 2)
    counts = [len(cloud)]
    cloud.assign(gaussians)
    counts += [len(cloud), len(cloud)]
    cloud.n.fill_(7)  # as density control does
    counts.append(len(cloud))
    other = GaussianCloud(64, 2)
    other.load_state_dict(cloud.state_dict())
    counts.append(len(other))
    cloud.n = torch.tensor(3)  # as moving to another device does
    counts.append(len(cloud))
    with torch.inference_mode():
        cloud.n.fill_(5)
        counts.append(len(cloud))
    assert counts == [0, 50, 50, 7, 7, 3, 5]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_density_control_finds_the_moments_of_a_fused_adam(gaussians):
    """Trained on both devices, with a round of clone and split in between."""

    def train(device: str) -> list[torch.Tensor]:
        cloud = GaussianCloud(200, 2).to(device)
        cloud.assign(gaussians)
        groups = [{"params": [p], "lr": 1e-2} for p in cloud.params.values()]
        adam = torch.optim.Adam(groups, eps=1e-15, fused=True)
        for step in range(6):
            adam.zero_grad(set_to_none=True)
            weights = torch.linspace(-1, 1, 50, device=device)  # of the first 50, clones are left alone
            sum(
                (p[:50].flatten(1).sum(1) * weights).sum() for p in cloud.params.values() if p.ndim > 1
            ).backward()
            adam.step()
            if step == 2:
                moments = moments_of(adam, cloud.params)
                assert all(len(kept) == 2 for name, kept in moments.items() if name != "logit_opacities")
                cloud.grad_sum[:50], cloud.grad_count[:50] = 1.0, 1.0
                rules = DensityRules(clone_scale=0.03)
                draw = torch.Generator().manual_seed(0)
                refine(cloud.params, moments, cloud.n, cloud.grad_sum, cloud.grad_count, rules, draw)
        return [p.detach().cpu() for p in cloud.params.values()]

    for mine, plain in zip(train("cuda"), train("cpu"), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)
