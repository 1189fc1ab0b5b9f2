"""DDIM steps and inversion: identities, an analytic diffusion model, and the paths they walk."""

from __future__ import annotations

import math

import pytest
import torch
from test_schedule import stable_diffusion

from threestudio_lucid.guidance.trajectory import (
    add_noise,
    ddim_step,
    equal_path,
    inversion_start,
    invert,
    stride_path,
    x0_and_eps,
)


def gaussian_model(schedule, mean: torch.Tensor, std: float):
    """The exact network for data ~ N(mean, std^2): x_tau ~ N(sqrt(ab) mean, ab std^2 + 1 - ab)."""

    def model(x, tau, cond):
        ab = schedule.alpha_bar(tau)
        eps = math.sqrt(1 - ab) * (x - math.sqrt(ab) * mean) / (ab * std**2 + 1 - ab)
        if schedule.prediction_type == "epsilon":
            return eps
        x_0 = (x - math.sqrt(1 - ab) * eps) / math.sqrt(ab)
        return math.sqrt(ab) * eps - math.sqrt(1 - ab) * x_0

    return model


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_released_path_has_full_strides_and_a_shorter_last_one():
    assert stride_path(0, 450, 200) == [0, 200, 400, 450]
    assert stride_path(0, 400, 200) == [0, 200, 400]
    assert stride_path(0, 1, 200) == [0, 1]
    assert stride_path(0, 0, 200) == [0]


def test_paper_path_has_equal_strides():
    assert equal_path(450, 200) == [0, 150, 300, 450]
    assert equal_path(400, 200) == [0, 200, 400]
    assert equal_path(449, 200) == [0, 150, 299, 449]
    assert equal_path(0, 200) == [0]


def test_inversion_start_clamps_at_zero():
    assert inversion_start(929, 200, 5) == 0
    assert inversion_start(400, 50, 5) == 150
    assert inversion_start(100, 50, 5) == 0
    assert inversion_start(400, 50, None) == 0
    assert inversion_start(400, 50, 0) == 400


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_true_output_gives_back_sample_and_noise(prediction_type):
    schedule = stable_diffusion(prediction_type=prediction_type)
    x_0, noise, tau = randn(2, 4, 3, 3), randn(2, 4, 3, 3, seed=1), 300
    ab = schedule.alpha_bar(tau)
    output = noise if prediction_type == "epsilon" else math.sqrt(ab) * noise - math.sqrt(1 - ab) * x_0
    found = x0_and_eps(schedule, output, add_noise(schedule, x_0, noise, tau), tau)
    torch.testing.assert_close(found, (x_0, noise))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("tau", "u"), [(1, 201), (401, 451), (500, 100), (300, 300)])
def test_step_keeps_the_line_between_sample_and_noise(prediction_type, tau, u):
    """With the true output a step of any length and direction is exact."""
    schedule = stable_diffusion(prediction_type=prediction_type)
    x_0, noise = randn(2, 4, 3, 3), randn(2, 4, 3, 3, seed=1)
    ab = schedule.alpha_bar(tau)
    output = noise if prediction_type == "epsilon" else math.sqrt(ab) * noise - math.sqrt(1 - ab) * x_0
    x_u = ddim_step(schedule, output, add_noise(schedule, x_0, noise, tau), tau, u)
    torch.testing.assert_close(x_u, add_noise(schedule, x_0, noise, u))


def test_step_agrees_with_diffusers_scheduler():
    from diffusers import DDIMScheduler

    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    for prediction_type in ("epsilon", "v_prediction"):
        theirs = DDIMScheduler(
            **config, prediction_type=prediction_type, clip_sample=False, set_alpha_to_one=False
        )
        theirs.set_timesteps(50)
        ours = stable_diffusion(
            prediction_type=prediction_type, final_alpha_cumprod=float(theirs.final_alpha_cumprod)
        )
        x, output = randn(2, 4, 3, 3).float(), randn(2, 4, 3, 3, seed=1).float()
        for tau in theirs.timesteps.tolist():
            expected = theirs.step(output, tau, x).prev_sample
            torch.testing.assert_close(
                ddim_step(ours, output, x, tau, tau - 20), expected, rtol=1e-5, atol=1e-5
            )


def test_what_the_network_says_that_is_no_number_stays_none():
    schedule = stable_diffusion()
    output = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0]).reshape(1, 4, 1, 1)
    step = ddim_step(schedule, output, torch.zeros(1, 4, 1, 1), 1, 201)
    assert step.isfinite().flatten().tolist() == [False, False, False, True]


def test_fresh_noise_has_the_capped_variance():
    """eta scales the variance, capped at (1 - ab_u) / 2; the generator makes it repeatable."""
    schedule, tau, u = stable_diffusion(), 400, 500
    x, output = torch.zeros(1, 4, 64, 64, dtype=torch.float64), torch.zeros(1, 4, 64, 64, dtype=torch.float64)
    ab_tau, ab_u = schedule.alpha_bar(tau), schedule.alpha_bar(u)
    full = abs((1 - ab_u) / (1 - ab_tau) * (1 - ab_tau / ab_u))
    for eta, expected in ((0.1, 0.1 * full), (100.0, (1 - ab_u) / 2)):
        steps = [
            ddim_step(schedule, output, x, tau, u, eta=eta, generator=torch.Generator().manual_seed(0))
            for _ in range(2)
        ]
        assert torch.equal(*steps)
        assert steps[0].var().item() == pytest.approx(expected, rel=0.05)  # 16384 samples: 1 sigma is 1.1 %


def test_fresh_noise_keeps_the_noise_level():
    """With the true output x_u is sqrt(ab_u) x_0 plus noise of variance 1 - ab_u, old and fresh."""
    schedule, tau, u = stable_diffusion(), 400, 500
    x_0, noise = randn(1, 4, 64, 64), randn(1, 4, 64, 64, seed=1)
    generator = torch.Generator().manual_seed(0)
    x_u = ddim_step(
        schedule, noise, add_noise(schedule, x_0, noise, tau), tau, u, eta=1.0, generator=generator
    )
    ab = schedule.alpha_bar(u)
    added = x_u - math.sqrt(ab) * x_0
    assert added.var().item() == pytest.approx(1 - ab, rel=0.05)  # 16384 samples: 1 sigma is 1.1 %


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_inversion_follows_the_probability_flow(prediction_type):
    """For Gaussian data the flow keeps (x - sqrt(ab) mean) / std(x_tau); DDIM in unit strides follows."""
    schedule = stable_diffusion(prediction_type=prediction_type)
    mean, std = randn(1, 4, 3, 3), 0.6
    model = gaussian_model(schedule, mean, std)
    x_1 = math.sqrt(schedule.alpha_bar(1)) * (mean + 0.9 * std * randn(2, 4, 3, 3, seed=1))
    x_s = invert(schedule, model, x_1, list(range(1, 601)), None)

    def standardised(x, tau):
        ab = schedule.alpha_bar(tau)
        return (x - math.sqrt(ab) * mean) / math.sqrt(ab * std**2 + 1 - ab)

    # the error of the Euler steps shrinks with the stride, here 1; at 599 steps it is below a percent
    torch.testing.assert_close(standardised(x_s, 600), standardised(x_1, 1), rtol=0.01, atol=0.005)


def test_inversion_then_denoising_returns():
    schedule = stable_diffusion()
    model = gaussian_model(schedule, randn(1, 4, 3, 3), 0.6)
    x = randn(2, 4, 3, 3, seed=1)
    errors = []
    for stride in (100, 10, 1):
        path = stride_path(1, 601, stride)
        back = invert(schedule, model, invert(schedule, model, x, path, None), path[::-1], None)
        errors.append((back - x).abs().max().item())
    assert errors[0] > 5 * errors[1] > 25 * errors[2]  # first order in the stride
    assert errors[2] < 0.02  # of values up to 2.5


def test_inversion_calls_the_network_once_per_stride():
    schedule, calls = stable_diffusion(), []

    def model(x, tau, cond):
        calls.append((tau, cond))
        return torch.zeros_like(x)

    x = randn(1, 4, 2, 2)
    invert(schedule, model, x, [1, 201, 401, 451], "cond")
    assert calls == [(1, "cond"), (201, "cond"), (401, "cond")]
    assert invert(schedule, model, x, [1], "cond") is x
    assert len(calls) == 3


def test_clean_start_is_exact():
    """Latents without noise (ab = 1) stay the predicted clean sample, whatever the network says."""
    schedule, x, output = stable_diffusion(), randn(1, 4, 2, 2), randn(1, 4, 2, 2, seed=1)
    x_200 = ddim_step(schedule, output, x, 0, 200, ab=1.0)
    torch.testing.assert_close(x_200, add_noise(schedule, x, output, 200))
