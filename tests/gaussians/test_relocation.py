"""Relocation: sharing keeps the picture, for any number of copies; the dead move, the budget is kept."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from threestudio_lucid.gaussians.cloud import GaussianCloud
from threestudio_lucid.gaussians.relocation import (
    RelocationRules,
    budget,
    relocate,
    shared_opacity,
    shared_scale,
    wander,
)


def paper_scale(opacity: float, copies: int) -> float:
    """The factor as the paper writes it, its alternating sum in exact arithmetic but for the roots."""
    p = Fraction(1 - (1 - opacity) ** (1 / copies))
    total = Fraction(0)
    for i in range(1, copies + 1):
        for k in range(i):
            root = Fraction(math.isqrt(10**60 // (k + 1)), 10**30)
            total += math.comb(i - 1, k) * (-1) ** k * p ** (k + 1) * root
    return opacity / float(total)


@pytest.mark.parametrize("opacity", [0.02, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("copies", [1, 2, 3, 7, 40])
def test_factor_is_the_papers_sum(opacity, copies):
    found = shared_scale(torch.tensor([opacity], dtype=torch.float64), torch.tensor([copies]))
    assert found.item() == pytest.approx(paper_scale(opacity, copies), rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 0.999), st.integers(1, 5000))
def test_copies_cover_like_the_one_they_came_from(opacity, copies):
    o, c = torch.tensor([opacity], dtype=torch.float64), torch.tensor([copies])
    share, scale = shared_opacity(o, c), shared_scale(o, c)
    # at the centre exactly; over the whole width, which is what eq. 9 keeps, by integration
    assert 1 - (1 - share.item()) ** copies == pytest.approx(opacity, rel=1e-6)
    x = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    before = (opacity * torch.exp(-0.5 * x**2)).sum()
    after = (1 - (1 - share * torch.exp(-0.5 * (x / scale) ** 2)) ** copies).sum()
    assert after.item() == pytest.approx(before.item(), rel=1e-3)


def cloud_of(opacities: list[float], capacity: int) -> GaussianCloud:
    cloud = GaussianCloud(capacity)
    n = len(opacities)
    with torch.no_grad():
        cloud.means[:n] = torch.arange(n, dtype=torch.float32)[:, None]
        cloud.quats[:n, 0] = 1.0
        cloud.log_scales[:n] = math.log(0.1)
        cloud.logit_opacities[:n] = torch.logit(torch.tensor(opacities))
        cloud.n.fill_(n)
    return cloud


def round_of(cloud: GaussianCloud, moments, budget: int, growth: float = 1.05, seed: int = 0):
    rules = RelocationRules(budget, growth)
    draw = torch.Generator().manual_seed(seed)
    params = {name: p.data for name, p in cloud.params.items()}
    return relocate(params, moments, cloud.n, rules, draw, cloud.frozen)


def test_dead_rows_move_to_living_ones_and_moments_of_both_are_zero():
    cloud = cloud_of([0.8, 0.001, 0.001, 0.001], capacity=4)
    moments = {"means": [torch.ones(4, 3)]}
    report = round_of(cloud, moments, budget=4)
    assert (report.pruned, report.cloned, report.n) == (3, 3, 4)
    assert (cloud.means == 0).all()  # all are where the living one is
    assert cloud.logit_opacities.sigmoid().tolist() == pytest.approx([1 - 0.2**0.25] * 4, rel=1e-5)
    assert (moments["means"][0] == 0).all()


def test_growth_follows_the_budget_and_never_leaves_the_arena():
    cloud = cloud_of([0.5] * 40, capacity=50)
    assert round_of(cloud, {}, budget=41, growth=1.5).n == 41
    assert round_of(cloud, {}, budget=1000, growth=1.05).n == 43
    assert round_of(cloud, {}, budget=1000, growth=9.0).n == 50


def test_frozen_rows_stay_to_the_last_bit():
    cloud = cloud_of([0.001, 0.9, 0.001], capacity=6)
    cloud.frozen[:2] = True
    before = {name: p[:2].clone() for name, p in cloud.params.items()}
    report = round_of(cloud, {}, budget=6, growth=2.0)
    assert report.refused == 1 and report.n == 3  # the one that could move has no host
    for name, p in cloud.params.items():
        assert torch.equal(p[:2], before[name])


def test_only_faint_gaussians_wander_and_along_their_own_axes():
    cloud = cloud_of([0.001, 0.9], capacity=2)
    with torch.no_grad():
        cloud.log_scales[0] = torch.tensor([math.log(0.5), -20.0, -20.0])
        cloud.quats[0] = torch.tensor([math.cos(math.pi / 4), 0.0, 0.0, math.sin(math.pi / 4)])  # x to y
    before = cloud.means.detach().clone()
    params = {name: p.data for name, p in cloud.params.items()}
    wander(params, cloud.n, 1.0, torch.Generator().manual_seed(0), cloud.frozen)
    moved = (cloud.means - before).abs()
    assert moved[0, 1] > 0.01 and moved[0, [0, 2]].max() < 1e-6
    assert moved[1].max() < 1e-6


def test_budget_is_geometric():
    steps = [budget(100, 1600, k / 4) for k in range(5)]
    assert steps == [100, 200, 400, 800, 1600]
