"""Samples along rays, and sums over them."""

from __future__ import annotations

import math

import pytest
import torch

from threestudio.models.estimators import (
    ImportanceEstimator,
    OccupancyGrid,
    Samples,
    importance_samples,
)
from threestudio.models.estimators.marching import march, march_reference
from threestudio.models.estimators.samples import sum_along_rays, weights_and_visibility

BOX = torch.tensor([[-1.0] * 3, [1.0] * 3])


def rays(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """From a sphere of radius 3, towards points near the middle; one ray along an axis."""
    torch.manual_seed(seed)
    origins = torch.nn.functional.normalize(torch.randn(n, 3), dim=-1) * 3
    directions = torch.nn.functional.normalize(torch.randn(n, 3) * 0.5 - origins, dim=-1)
    origins[0], directions[0] = torch.tensor([3.0, 0.1, 0.1]), torch.tensor([-1.0, 0.0, 0.0])
    return origins, directions


def packed(*lengths_of_rays: list[float]) -> Samples:
    """Samples of the given lengths, end to end from 0 in each ray."""
    indices, starts, ends = [], [], []
    for ray, lengths in enumerate(lengths_of_rays):
        t = 0.0
        for length in lengths:
            indices.append(ray)
            starts.append(t)
            t += length
            ends.append(t)
    return Samples(torch.tensor(indices, dtype=torch.long), torch.tensor(starts), torch.tensor(ends))


# ---- marching ----------------------------------------------------------------------------------------------


def test_steps_by_hand():
    """Along x from 3: the box is met from t = 2 to 4.  Steps of 1/4 whose middle is in the cell x > 0."""
    origins, directions = rays(1)
    occupied = torch.zeros(2, 2, 2, dtype=torch.bool)
    occupied[1, 1, 1] = True
    samples = march(origins, directions, torch.zeros(1), 1e10, 0.25, occupied, BOX)
    assert samples.t_starts.tolist() == [2.0, 2.25, 2.5, 2.75]
    assert samples.t_ends.tolist() == [2.25, 2.5, 2.75, 3.0]
    near = march(origins, directions, torch.tensor([2.4]), 2.8, 0.25, occupied, BOX)
    assert near.t_starts.tolist() == pytest.approx([2.4, 2.65])


@pytest.mark.parametrize("n", [0, 1, 3, 700])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_kernel_and_twin_take_the_same_steps(n, share):
    origins, directions = rays(max(n, 1))
    origins, directions = origins[:n], directions[:n]
    near = torch.rand(n) * 0.01
    occupied = torch.rand(6, 7, 8) < share
    ours = march(origins, directions, near, 3.4, 0.013, occupied, BOX)
    twin = march_reference(origins, directions, near, 3.4, 0.013, occupied, BOX)
    for name in ("ray_indices", "t_starts", "t_ends"):
        assert torch.equal(getattr(ours, name), getattr(twin, name)), name
    assert (ours.ray_indices.diff() >= 0).all()
    if share == 1.0 and n:
        assert len(ours) > 50 * n * 0.5


def test_rays_that_miss_or_start_inside():
    origins = torch.tensor([[3.0, 2.0, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    directions = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    samples = march(origins, directions, torch.zeros(3), 1e10, 0.5, torch.ones(1, 1, 1).bool(), BOX)
    assert samples.ray_indices.tolist() == [1, 1] and samples.t_starts.tolist() == [0.0, 0.5]


# ---- sums --------------------------------------------------------------------------------------------------


def test_weights_by_hand():
    """Densities ln 2 on unit lengths halve the light each time: 1/2, 1/4, 1/8; the next ray starts anew."""
    samples = packed([1.0, 1.0, 1.0], [], [1.0])
    densities = torch.full((4,), math.log(2))
    weights, transmittance, alphas = weights_and_visibility(densities, samples, 3)
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.25, 0.125, 0.5]))
    torch.testing.assert_close(transmittance, torch.tensor([1.0, 0.5, 0.25, 1.0]))
    torch.testing.assert_close(alphas, torch.full((4,), 0.5))
    opacity = sum_along_rays(weights[:, None], samples, 3)
    torch.testing.assert_close(opacity[:, 0], torch.tensor([0.875, 0.0, 0.5]))


def test_gradients_of_the_integral_agree_with_finite_differences():
    samples = packed([0.3, 0.2], [], [0.5, 0.1, 0.4])
    samples = Samples(samples.ray_indices, samples.t_starts.double(), samples.t_ends.double())
    densities = torch.tensor([0.5, 2.0, 1.0, 0.1, 3.0], dtype=torch.float64, requires_grad=True)
    colors = torch.rand(5, 2, dtype=torch.float64, requires_grad=True)

    def picture(densities, colors):
        weights = weights_and_visibility(densities, samples, 3)[0]
        return sum_along_rays(weights[:, None] * colors, samples, 3)

    assert torch.autograd.gradcheck(picture, (densities, colors))


def test_an_infinite_density_is_a_wall_for_its_own_ray():
    samples = packed([1.0, 1.0], [1.0])
    densities = torch.tensor([float("inf"), 1.0, math.log(2)], requires_grad=True)
    weights, _, _ = weights_and_visibility(densities, samples, 2)
    assert weights.tolist() == pytest.approx([1.0, 0.0, 0.5])
    weights.sum().backward()
    assert densities.grad.isfinite().all()


def test_nothing_at_all_is_one_empty_sample():
    none = packed([])
    one = none.at_least_one()
    assert len(one) == 1 and one.lengths.item() == 0 and one.ray_indices.item() == 0
    assert weights_and_visibility(torch.ones(1), one, 4)[0].item() == 0


# ---- the occupancy grid ------------------------------------------------------------------------------------


def ball(points: torch.Tensor) -> torch.Tensor:
    return (points.norm(dim=-1, keepdim=True) < 0.5).float()


def test_occupancy_learns_where_the_ball_is():
    torch.manual_seed(0)
    grid = OccupancyGrid(BOX.flatten(), resolution=16)
    assert grid.binaries.all()  # before the first look, anything may be anywhere
    grid.update_every_n_steps(3, ball)
    assert grid.binaries.all()
    grid.update_every_n_steps(0, ball)
    before = grid.occs.clone()
    assert 0.04 < grid.binaries.float().mean() < 0.1  # a ball is 6.5 % of its box
    grid.update_every_n_steps(0, ball)
    assert torch.equal(grid.occs, before)  # once a step
    for step in range(16, 16 * 40, 16):
        grid.update_every_n_steps(step, ball)
    corner = (torch.stack(torch.meshgrid(*[torch.arange(16)] * 3, indexing="ij"), -1) - 7.5) / 8
    distance = corner.norm(dim=-1)
    assert grid.binaries[0][distance < 0.39].all() and not grid.binaries[0][distance > 0.62].any()


def test_occupancy_forgets():
    torch.manual_seed(0)
    grid = OccupancyGrid(BOX.flatten(), resolution=4)
    grid.update_every_n_steps(0, lambda points: torch.ones(len(points), 1))
    for step in range(16, 16 * 200, 16):
        grid.update_every_n_steps(step, lambda points: torch.full((len(points), 1), 1e-9))
    assert grid.occs.max() < 1e-2


def test_transparent_and_hidden_steps_are_skipped():
    """Density 20 within x < 0, nearly 0 elsewhere: of steps of 0.1, alpha 0.86, five get through 1e-4."""
    grid = OccupancyGrid(BOX.flatten(), resolution=8)
    grid.occs.fill_(1.0)
    origins, directions = rays(1)

    def density(t_starts, t_ends, ray_indices):
        return torch.where(t_starts >= 2.95, 20.0, 0.01)

    every = grid.sampling(origins, directions, None, render_step_size=0.1)
    assert len(every[0]) == 20
    indices, starts, _ = grid.sampling(origins, directions, density, render_step_size=0.1, alpha_thre=0.01)
    assert starts.tolist() == pytest.approx([3.0, 3.1, 3.2, 3.3, 3.4]) and (indices == 0).all()


def test_names_in_a_checkpoint_are_nerfaccs():
    state = OccupancyGrid(BOX.flatten()).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "resolution": (3,),
        "aabbs": (1, 6),
        "occs": (32768,),
        "binaries": (1, 32, 32, 32),
    }


# ---- importance --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("n_rays", [1, 3])
def test_importance_looks_where_the_density_is(stratified, n_rays):
    torch.manual_seed(0)

    def density(t_starts, t_ends, ray_indices):
        middle = (t_starts + t_ends) / 2
        return 50.0 * ((middle > 2.0) & (middle < 2.5))

    samples = importance_samples(n_rays, 1.0, 4.0, 12, 24, density, stratified, torch.device("cpu"))
    assert len(samples) == n_rays * 36 and (samples.lengths >= 0).all()
    for ray in range(n_rays):
        one = samples[samples.ray_indices == ray]
        assert one.t_starts[0] == 1.0 and one.t_ends[-1] == 4.0
        assert torch.equal(one.t_starts[1:], one.t_ends[:-1])
        assert ((one.t_starts > 1.9) & (one.t_starts < 2.6)).sum() > 20


@pytest.mark.parametrize("sampling_type", ["uniform", "lindisp"])
@pytest.mark.parametrize("passes", [[12], [8, 16]])
def test_the_estimator_that_extensions_import(passes, sampling_type):
    """threestudio.models.estimators.ImportanceEstimator, as nerfacc's proposal estimator is called."""

    def density(t_starts, t_ends):
        assert t_starts.shape == t_ends.shape and len(t_starts) == 3
        middle = (t_starts + t_ends) / 2
        return 50.0 * ((middle > 2.0) & (middle < 2.5))

    starts, ends = ImportanceEstimator().sampling(
        [density] * len(passes),
        passes,
        24,
        3,
        1.0,
        4.0,
        sampling_type=sampling_type,
    )
    assert starts.shape == ends.shape == (3, passes[-1] + 24)
    torch.testing.assert_close(starts[:, 0], torch.ones(3))
    torch.testing.assert_close(ends[:, -1], torch.full((3,), 4.0))
    assert torch.equal(starts[:, 1:], ends[:, :-1]) and (ends >= starts).all()
    assert (((starts > 1.7) & (starts < 2.7)).sum(dim=1) > 20).all()


def test_its_one_pass_is_the_renderers():
    def density(t_starts, t_ends, ray_indices=None):
        return (t_starts + t_ends).square()

    starts, ends = ImportanceEstimator().sampling([density], [12], 24, 2, 1.0, 4.0)
    samples = importance_samples(2, 1.0, 4.0, 12, 24, density, False, torch.device("cpu"))
    torch.testing.assert_close(starts.flatten(), samples.t_starts)
    torch.testing.assert_close(ends.flatten(), samples.t_ends)


def test_another_spacing_is_refused():
    with pytest.raises(ValueError, match="uniform or lindisp"):
        ImportanceEstimator().sampling([], [], 4, 1, 1.0, 2.0, sampling_type="log")
