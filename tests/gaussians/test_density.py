"""Density control: counts, placement, moments, and a full arena."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from threestudio_lucid.gaussians.cloud import GaussianCloud, Gaussians, moments_of
from threestudio_lucid.gaussians.density import (
    DensityRules,
    rebuild,
    refine,
    reset_opacity,
    rotate,
    screen_gradients,
    split_children,
)

SMALL, LARGE, HUGE = 0.005, 0.05, 0.5  # clone, split, prune with the default rules


def make_cloud(scales, opacities, capacity=None, sh_degree=1, seed=0):
    """A cloud with Adam moments that carry each row's own index, so that a mix-up shows."""
    n = len(scales)
    g = torch.Generator().manual_seed(seed)
    cloud = GaussianCloud(capacity or 4 * n + 4, sh_degree)
    cloud.assign(
        Gaussians(
            means=torch.randn(n, 3, generator=g),
            quats=torch.randn(n, 4, generator=g),
            log_scales=torch.tensor(scales).log()[:, None].repeat(1, 3),
            logit_opacities=torch.logit(torch.tensor(opacities)),
            sh_dc=torch.randn(n, 1, 3, generator=g),
            sh_rest=torch.randn(n, 3, 3, generator=g),
        )
    )
    optimizer = torch.optim.Adam(cloud.parameters(), lr=0.0)
    for p in cloud.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for moment in (m for ms in moments_of(optimizer, cloud.params).values() for m in ms):
        moment[:n] = (1.0 + torch.arange(n)).reshape(-1, *[1] * (moment.ndim - 1))
    return cloud, optimizer


def run(cloud, optimizer, gradients, rules=None, seed=0):
    cloud.grad_sum[: len(gradients)] = torch.tensor(gradients)
    cloud.grad_count[: len(gradients)] = 1.0
    moments = moments_of(optimizer, cloud.params)
    generator = torch.Generator().manual_seed(seed)
    return refine(
        cloud.params, moments, cloud.n, cloud.grad_sum, cloud.grad_count, rules or DensityRules(), generator
    )


def test_clone_copies_the_row_and_gives_it_no_moments():
    cloud, optimizer = make_cloud([SMALL, SMALL], [0.5, 0.5])
    before = cloud.living.means.detach().clone()
    report = run(cloud, optimizer, [0.0, 1.0])
    assert (report.cloned, report.split, report.pruned, report.refused, report.n) == (1, 0, 0, 0, 3)
    torch.testing.assert_close(cloud.living.means, before[[0, 1, 1]], rtol=0, atol=0)
    for moment in moments_of(optimizer, cloud.params)["means"]:
        assert moment[:, 0].tolist()[:4] == [1.0, 2.0, 0.0, 0.0]


def test_split_replaces_the_parent_by_two_smaller_ones_inside_it():
    cloud, optimizer = make_cloud([SMALL, LARGE], [0.5, 0.5])
    parent = cloud.living.means[1].detach().clone()
    report = run(cloud, optimizer, [0.0, 1.0])
    assert (report.cloned, report.split, report.pruned, report.n) == (0, 1, 0, 3)
    children = cloud.living
    torch.testing.assert_close(children.log_scales[1:].exp(), torch.full((2, 3), LARGE / 1.6))
    offsets = (children.means[1:] - parent).norm(dim=1)
    assert (offsets > 0).all()
    assert (offsets < 6 * LARGE).all()


def test_children_are_distributed_like_their_parent():
    cloud = GaussianCloud(1)
    cloud.assign(
        Gaussians(
            means=torch.tensor([[1.0, 2.0, 3.0]]),
            quats=torch.tensor([[math.cos(math.pi / 4), 0.0, 0.0, math.sin(math.pi / 4)]]) * 3,  # 90° about z
            log_scales=torch.tensor([[0.3, 0.1, 0.01]]).log(),
            logit_opacities=torch.zeros(1),
            sh_dc=torch.zeros(1, 1, 3),
            sh_rest=torch.zeros(1, 0, 3),
        )
    )
    parents = torch.zeros(20_000, dtype=torch.int64)
    children = split_children(cloud.params, parents, torch.Generator().manual_seed(0))
    # 40,000 draws: the standard error of a standard deviation is 0.35 %, of a mean 0.0015
    torch.testing.assert_close(children["means"].std(0), torch.tensor([0.1, 0.3, 0.01]), rtol=0.02, atol=0)
    torch.testing.assert_close(children["means"].mean(0), torch.tensor([1.0, 2.0, 3.0]), rtol=0, atol=0.006)


def test_prune_takes_the_transparent_and_the_oversized():
    cloud, optimizer = make_cloud([SMALL, SMALL, HUGE, LARGE], [0.5, 0.001, 0.5, 0.5])
    report = run(cloud, optimizer, [0.0, 1.0, 0.0, 0.0])
    assert (report.cloned, report.split, report.pruned, report.n) == (0, 0, 2, 2)
    for name, (first, second) in moments_of(optimizer, cloud.params).items():
        column = first.flatten(1)[:, 0] if first.ndim > 1 else first
        assert column.tolist()[:3] == [1.0, 4.0, 0.0], name
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_oversized_gaussian_with_a_large_gradient_splits_instead_of_going():
    cloud, optimizer = make_cloud([HUGE, 4.0], [0.5, 0.5])
    report = run(cloud, optimizer, [1.0, 1.0])
    assert (report.split, report.pruned, report.n) == (1, 1, 2)  # 0.5 / 1.6 < 0.35 < 4 / 1.6


def test_no_size_limit_keeps_the_oversized():
    cloud, optimizer = make_cloud([HUGE], [0.5])
    assert run(cloud, optimizer, [0.0], DensityRules(prune_scale=None)).n == 1


def test_statistics_are_cleared_and_dead_rows_are_zero():
    cloud, optimizer = make_cloud([SMALL, LARGE, HUGE], [0.5, 0.5, 0.5])
    report = run(cloud, optimizer, [1.0, 1.0, 0.0])
    assert not cloud.grad_sum.any()
    assert not cloud.grad_count.any()
    for name, p in cloud.params.items():
        assert not p[report.n :].any(), name


def test_unseen_gaussians_stay():
    cloud, _ = make_cloud([SMALL], [0.5])
    report = refine(
        cloud.params, {}, cloud.n, cloud.grad_sum, cloud.grad_count, DensityRules(), torch.Generator()
    )
    assert report.n == 1  # 0 / 0 is no gradient


def test_full_arena_prefers_the_largest_gradients_and_says_so():
    cloud, optimizer = make_cloud([SMALL] * 3 + [LARGE], [0.5] * 4, capacity=6)
    sh = cloud.living.sh_dc[:, 0, 0].detach().clone()
    report = run(cloud, optimizer, [0.1, 0.4, 0.2, 0.3])
    assert (report.cloned, report.split, report.refused, report.n) == (1, 1, 2, 6)
    torch.testing.assert_close(cloud.living.sh_dc[:, 0, 0], sh[[0, 1, 2, 1, 3, 3]], rtol=0, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([SMALL, LARGE, HUGE, 4.0]), st.sampled_from([0.001, 0.5]), st.floats(0.0, 1e-2)
        ),
        min_size=1,
        max_size=24,
    ),
    st.integers(0, 12),
)
def test_any_round_accounts_for_every_row(rows, spare):
    scales, opacities, gradients = map(list, zip(*rows, strict=True))
    capacity = len(rows) + spare
    cloud, optimizer = make_cloud(scales, opacities, capacity)
    report = run(cloud, optimizer, gradients)
    assert report.n == len(cloud) <= capacity
    # a split keeps its parent's place in the sum unless the parent had to go anyway, which then is no pruning
    assert report.n == len(rows) + report.cloned + report.split - report.pruned
    living = cloud.living
    assert (living.logit_opacities.sigmoid() >= 0.005).all()
    assert (living.log_scales.exp() <= 0.35).all()
    moment = moments_of(optimizer, cloud.params)["logit_opacities"][0]
    assert (moment[report.n - report.cloned - 2 * report.split :] == 0).all()
    assert (moment[: report.n - report.cloned - 2 * report.split] > 0).all()


def test_same_seed_same_children():
    results = []
    for seed in (3, 3, 4):
        cloud, optimizer = make_cloud([LARGE] * 5, [0.5] * 5)
        run(cloud, optimizer, [1.0] * 5, seed=seed)
        results.append(cloud.means.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_rebuild_refuses_more_than_fits():
    cloud, _ = make_cloud([SMALL] * 2, [0.5] * 2, capacity=2)
    born = {name: p[:1].detach() for name, p in cloud.params.items()}
    with pytest.raises(ValueError, match="3 Gaussians do not fit a capacity of 2"):
        rebuild(cloud.params, {}, cloud.n, torch.arange(2), born)


def test_reset_opacity_caps_and_forgets():
    cloud, optimizer = make_cloud([SMALL] * 2, [0.5, 0.006])
    moments = moments_of(optimizer, cloud.params)
    reset_opacity(cloud.params, moments, cloud.n)
    torch.testing.assert_close(cloud.living.logit_opacities.sigmoid(), torch.tensor([0.01, 0.006]))
    assert not cloud.logit_opacities[2:].any()
    assert not any(m.any() for m in moments["logit_opacities"])
    assert all(m.any() for m in moments["means"])


def test_screen_gradients_count_the_views_that_see():
    grad = torch.tensor([[[3.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [9.0, 9.0]]])  # 2 views, 2 Gaussians
    total, count = screen_gradients(grad, torch.tensor([[1, 1], [5, 0]]), width=4, height=10)
    assert total.tolist() == [3.0 * 2 + 2.0 * 5, 1.0 * 2]  # pixels to a picture of 2 x 2: times 4/2 and 10/2
    assert count.tolist() == [2.0, 1.0]


def test_rotate_agrees_with_the_textbook():
    quarter = torch.tensor([[math.cos(math.pi / 4), 0.0, 0.0, math.sin(math.pi / 4)]])
    torch.testing.assert_close(
        rotate(2 * quarter, torch.tensor([[1.0, 0.0, 0.0]])), torch.tensor([[0.0, 1.0, 0.0]])
    )
