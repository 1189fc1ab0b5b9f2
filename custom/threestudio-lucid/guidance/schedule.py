"""Noise levels, and how timestep range and interval change during a run.

Notation, kept in every file of this folder:

    i       index of a noise level, 0 .. N-1, ascending (0 = least noise); what is drawn at random
    tau     its timestep: what the network is given and what `alphas_cumprod` is looked up with.
            tau = i + steps_offset. Stable Diffusion's schedules have steps_offset 1, so **tau = i + 1**, and
            alphas_cumprod[0] belongs to no index.
    ab      alpha-bar: x_tau = sqrt(ab) x_0 + sqrt(1 - ab) noise
    s < t   the two ends of the interval; as indices i_s, i_t, as timesteps tau_s, tau_t
    rate    warm-up rate, 1 at the first step, 0 from `warmup_steps` on

Indices and timesteps are python ints and noise levels python floats throughout: one index serves the whole
batch, and no step waits for the GPU to tell the CPU a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class NoiseSchedule:
    """The discrete noise schedule of a diffusion model.

    alphas_cumprod: ab of every timestep, [N] in (0, 1], decreasing. Pass the scheduler's own float32 table:
        at tau = 1 the noise weight sqrt(1 - ab) feels float32 rounding of ab at 1e-5 relative.
    prediction_type: what the network returns, "epsilon" or "v_prediction" (v = sqrt(ab) noise - sqrt(1 - ab)
        x_0).
    steps_offset: tau = i + steps_offset.
    final_alpha_cumprod: ab "before" timestep 0, where sampling ends (Stable Diffusion: alphas_cumprod[0];
        else 1).
    """

    alphas_cumprod: tuple[float, ...]
    prediction_type: str = "epsilon"
    steps_offset: int = 1
    final_alpha_cumprod: float = 1.0

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type {self.prediction_type!r}: expected one of {PREDICTION_TYPES}")

    @classmethod
    def from_table(cls, alphas_cumprod: torch.Tensor | Sequence[float], **kwargs) -> NoiseSchedule:
        """From a tensor or sequence [N]; other fields by keyword."""
        return cls(tuple(float(ab) for ab in alphas_cumprod), **kwargs)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def timestep(self, index: int) -> int:
        """tau of an index."""
        return index + self.steps_offset

    @property
    def max_index(self) -> int:
        """The largest index whose timestep exists and still has signal (ab > 0)."""
        tau = len(self) - 1
        while self.alphas_cumprod[tau] <= 0.0:
            tau -= 1
        return tau - self.steps_offset

    def alpha_bar(self, tau: int) -> float:
        """ab at a timestep; below 0 the value at which sampling ends."""
        return self.alphas_cumprod[tau] if tau >= 0 else self.final_alpha_cumprod

    def sigma(self, tau: int) -> float:
        """sqrt((1 - ab) / ab) at a timestep: noise level relative to the signal.

        As the weight of a score difference it turns the difference of noise predictions into the difference
        of the predicted clean latents, w (e_1 - e_2) = x0_2 - x0_1. For Stable Diffusion it is 0.25, 1.6 and
        13 at tau = 61, 500 and 980.
        """
        ab = self.alpha_bar(tau)
        return math.sqrt((1.0 - ab) / ab)


def warmup_rate(step: int, warmup_steps: int) -> float:
    """1 - step / warmup_steps, not below 0: the released `warm_up_rate`. 0 when there is no warm-up."""
    return 1.0 - min(step / warmup_steps, 1.0) if warmup_steps > 0 else 0.0


def index_range(
    rate: float, n: int, low: float = 0.02, high: float = 0.98, high_end: float = 0.5
) -> tuple[int, int]:
    """Range [first, last + 1) that timestep indices are drawn from.

    The upper end starts at `high` and has come down to `high_end` when the warm-up is over; both, like `low`,
    are fractions of the `n` training steps. With the defaults and n = 1000: 20..979 at the first step,
    20..499 after it.
    """
    first, end = int(n * low), int(n * high_end)
    return first, max(end + int(int(n * (high - high_end)) * rate), first + 1)


def interval(rate: float, delta_t: int, delta_t_start: int, *, round_up: bool = False) -> int:
    """Length of the interval s -> t, annealed from `delta_t_start` to `delta_t` during warm-up.

    The released plain step truncates the annealed part and the released Perp-Neg step rounds it up
    (`round_up`).
    """
    extra = rate * (delta_t_start - delta_t)
    return int(delta_t + (math.ceil(extra) if round_up else extra))


def draw_index(first: int, end: int, generator: torch.Generator) -> int:
    """One index from {first, ..., end - 1} for the whole batch. `generator` lives on the CPU."""
    return int(torch.randint(first, end, (1,), generator=generator))
