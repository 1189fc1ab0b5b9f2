"""Timestep range, interval, noise table: the published numbers, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from threestudio_lucid.guidance.schedule import (
    NoiseSchedule,
    draw_index,
    index_range,
    interval,
    warmup_rate,
)


def stable_diffusion(**kwargs) -> NoiseSchedule:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return NoiseSchedule.from_table(torch.cumprod(1 - betas, 0), **kwargs)


def test_index_range_relaxes_from_979_to_499():
    assert index_range(1.0, 1000) == (20, 980)
    assert index_range(0.5, 1000) == (20, 740)
    assert index_range(0.0, 1000) == (20, 500)


def test_index_range_is_never_empty():
    first, end = index_range(0.0, 1000, low=0.5, high=0.5, high_end=0.5)
    assert (first, end) == (500, 501)


def test_interval_truncates_plain_and_rounds_up_for_perp_neg():
    # iteration 701 of 1500: rate .53267, 80 + 10.65 = 90.65
    rate = warmup_rate(701, 1500)
    assert interval(rate, 80, 100) == 90
    assert interval(rate, 80, 100, round_up=True) == 91
    assert interval(1.0, 25, 100) == interval(1.0, 25, 100, round_up=True) == 100
    assert interval(0.0, 25, 100) == interval(0.0, 25, 100, round_up=True) == 25


def test_interval_may_grow():
    # the annealed part is then negative: 80 - 17.5 = 62.5 is cut to 62, ceil(-17.5) = -17 gives 63
    assert interval(0.5, 80, 45) == 62
    assert interval(0.5, 80, 45, round_up=True) == 63


def test_warmup_rate_without_warmup_is_zero():
    assert warmup_rate(0, 0) == 0.0
    assert warmup_rate(0, 1500) == 1.0
    assert warmup_rate(10**6, 1500) == 0.0


@pytest.mark.parametrize(("tau", "expected"), [(61, 0.25), (500, 1.6), (980, 13.0)])
def test_weight_matches_the_published_table(tau, expected):
    # the table is given to two digits
    assert stable_diffusion().sigma(tau) == pytest.approx(expected, rel=0.04)


def test_noise_weight_at_the_first_timestep():
    schedule = stable_diffusion()
    ab = schedule.alpha_bar(schedule.timestep(0))
    assert math.sqrt(ab) == pytest.approx(0.99915, abs=1e-5)
    assert math.sqrt(1 - ab) == pytest.approx(0.0413, abs=5e-5)


def test_timestep_is_index_plus_one_and_stays_in_the_table():
    schedule = stable_diffusion()
    assert schedule.timestep(0) == 1
    assert schedule.timestep(schedule.max_index) == 999


def test_max_index_stops_where_the_signal_ends():
    assert NoiseSchedule((0.9, 0.5, 0.1, 0.0), steps_offset=1).max_index == 1


def test_draws_cover_the_range_and_repeat_with_the_seed():
    def draw() -> list[int]:
        generator = torch.Generator().manual_seed(3)
        return [draw_index(20, 24, generator) for _ in range(100)]

    assert draw() == draw()
    assert set(draw()) == {20, 21, 22, 23}


def test_unknown_prediction_type_is_named():
    with pytest.raises(ValueError, match="sample"):
        stable_diffusion(prediction_type="sample")
