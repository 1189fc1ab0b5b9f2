"""Inputs shared by the test of the ISM step and by the script that made its golden values.

Everything is a closed formula, so that both sides see the same numbers to the last bit without storing them.
"""

from __future__ import annotations

import itertools

import torch

BATCH, CHANNELS, SIZE, TOKENS, WIDTH = 2, 4, 2, 3, 5


def wave(*shape: int, phase: float) -> torch.Tensor:
    """Float32 values within +-1.5 without pattern: sin of irregular multiples."""
    n = int(torch.Size(shape).numel())
    return (1.5 * torch.sin(torch.arange(n, dtype=torch.float64) * 2.399 + phase)).reshape(shape).float()


def latents() -> torch.Tensor:
    return wave(BATCH, CHANNELS, SIZE, SIZE, phase=0.3)


def noise() -> torch.Tensor:
    return wave(BATCH, CHANNELS, SIZE, SIZE, phase=1.7)


def embeddings() -> dict[str, torch.Tensor]:
    """Per view [B, T, D]: text, uncond, inverse; negatives [2, B, T, D]; weights [2, B], one negligible."""
    shape = (TOKENS, WIDTH)
    return {
        "text": wave(BATCH, *shape, phase=0.1),
        "uncond": wave(*shape, phase=0.9).expand(BATCH, *shape),
        "inverse": wave(*shape, phase=2.2).expand(BATCH, *shape),
        "negatives": wave(2, BATCH, *shape, phase=3.1),
        "weights": torch.tensor([[-0.7, -1.3], [-5e-5, -2.0]]),
    }


def network(x: torch.Tensor, tau: torch.Tensor | int, emb: torch.Tensor) -> torch.Tensor:
    """A nonlinear stand-in for a UNet: mixes channels and pixels, depends on timestep and text."""
    tau = torch.as_tensor(tau, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    context = emb.to(x.dtype).mean(1)[:, :CHANNELS].reshape(-1, CHANNELS, 1, 1)
    mixed = 0.8 * x + 0.3 * x.roll(1, dims=1) - 0.2 * x.flip(-1)
    return (
        torch.tanh(mixed + 0.7 * context * torch.cos(tau / 300.0))
        + 0.2 * context
        + 0.1 * torch.sin(tau / 90.0)
    )


def cases() -> list[dict]:
    """Interval, stride, warm-up, index, Perp-Neg, prediction type, noise table: corners and a spread."""
    table = []
    for delta_t, index, perp in itertools.product((25, 50, 80), (20, 81, 499), (False, True)):
        table.append({"delta_t": delta_t, "index": index, "perp_neg": perp})
    table += [
        {"delta_t": 50, "index": 979, "iteration": 1, "perp_neg": False},
        {"delta_t": 50, "index": 979, "iteration": 1, "perp_neg": True},
        {"delta_t": 80, "index": 611, "iteration": 701, "perp_neg": False},
        {"delta_t": 80, "index": 611, "iteration": 701, "perp_neg": True},
        {"delta_t": 80, "index": 450, "delta_s": 50, "perp_neg": False},
        {"delta_t": 80, "index": 450, "delta_s": 50, "perp_neg": True},
        {"delta_t": 60, "index": 333, "delta_s": None, "perp_neg": False},
        {"delta_t": 60, "index": 333, "delta_s": None, "xs_inv_steps": None, "perp_neg": True},
        {"delta_t": 60, "index": 333, "delta_s": 100, "xs_inv_steps": None, "perp_neg": False},
        {"delta_t": 60, "index": 40, "xs_inv_steps": None, "perp_neg": False},
        {"delta_t": 60, "index": 400, "inversion_guidance_scale": 2.0, "perp_neg": False},
        {"delta_t": 60, "index": 400, "prediction_type": "v_prediction", "perp_neg": False},
        {"delta_t": 60, "index": 400, "prediction_type": "v_prediction", "perp_neg": True},
        {"delta_t": 60, "index": 400, "beta_schedule": "linear", "perp_neg": False},
        {"delta_t": 60, "index": 400, "beta_schedule": "squaredcos_cap_v2", "perp_neg": True},
        {"delta_t": 60, "index": 400, "guidance_scale": 1.0, "perp_neg": False},
        {"delta_t": 60, "index": 400, "sds": True, "perp_neg": False},
        {"delta_t": 60, "index": 400, "sds": True, "perp_neg": True},
    ]
    defaults = {
        "iteration": 2000,
        "delta_s": 200,
        "xs_inv_steps": 5,
        "guidance_scale": 7.5,
        "inversion_guidance_scale": 1.0,
        "prediction_type": "epsilon",
        "beta_schedule": "scaled_linear",
        "sds": False,
    }
    return [defaults | case for case in table]


def scheduler_config(case: dict) -> dict:
    """Arguments of diffusers' DDIMScheduler for a case."""
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": case["beta_schedule"],
        "prediction_type": case["prediction_type"],
        "steps_offset": 1,
        "clip_sample": False,
        "set_alpha_to_one": False,
    }
