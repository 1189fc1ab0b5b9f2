"""One step of ISM and SDS: the published numbers, an independent replay, and what holds for any model.

golden_ism.json holds numbers that the published code itself gave (EnVision-Research/LucidDreamer at 2ecf093,
its `train_step` and `train_step_perpneg` run unchanged in float32 by make_golden.py). `replay_step` below is
written from the description alone, in float64, one sample and one scalar coefficient at a time.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import replay
import torch
from test_schedule import stable_diffusion
from test_trajectory import gaussian_model

from threestudio_lucid.guidance.combine import Conditioning
from threestudio_lucid.guidance.ism import ism_step
from threestudio_lucid.guidance.schedule import NoiseSchedule, interval, warmup_rate
from threestudio_lucid.guidance.sds import sds_step

GOLDEN = json.loads((Path(__file__).parent / "golden_ism.json").read_text())


def schedule_of(case: dict) -> NoiseSchedule:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**replay.scheduler_config(case))
    return NoiseSchedule.from_table(scheduler.alphas_cumprod, prediction_type=case["prediction_type"])


def conditioning(perp_neg: bool) -> Conditioning:
    emb = replay.embeddings()
    negatives = (emb["negatives"], emb["weights"]) if perp_neg else ()
    return Conditioning(emb["text"], emb["uncond"], emb["inverse"], *negatives)


def our_step(case: dict):
    delta_t = interval(warmup_rate(case["iteration"], 1500), case["delta_t"], 100, round_up=case["perp_neg"])
    arguments = (
        replay.network,
        schedule_of(case),
        replay.latents(),
        replay.noise(),
        case["index"],
        conditioning(case["perp_neg"]),
    )
    scales = {"guidance_scale": case["guidance_scale"], "grad_scale": 0.1}
    if case["sds"]:
        return sds_step(*arguments, delta_t=delta_t, **scales)
    options = {name: case[name] for name in ("delta_s", "xs_inv_steps", "inversion_guidance_scale")}
    return ism_step(*arguments, delta_t=delta_t, **options, **scales)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def name_of(case: dict) -> str:
    return "-".join(f"{key}={value}" for key, value in case.items() if key not in ("delta_t", "index")) + (
        f"-{case['delta_t']}-{case['index']}"
    )


def test_golden_covers_every_case():
    assert [row["case"] for row in GOLDEN] == replay.cases()


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: name_of(row["case"]))
def test_reproduces_the_published_code(row):
    case, step = row["case"], our_step(row["case"])
    for name in ("x_s", "x_t", "grad"):
        if name in row:
            expected = torch.tensor(row[name]).reshape(replay.latents().shape)
            # float32 of both sides: measured at most 1e-6; guidance 7.5 and the weight magnify it in grad
            assert relative(getattr(step, name), expected) < 1e-5, (name, case)


# --- the replay ---------------------------------------------------------------------------------------------


def replay_step(case: dict, table: list[float]) -> dict[str, torch.Tensor]:
    """The released recipe sample by sample; timesteps are written out as index + 1."""
    emb, weights = replay.embeddings(), replay.embeddings()["weights"].double()
    warm = 1 - min(case["iteration"] / 1500, 1)
    extra = warm * (100 - case["delta_t"])
    d = case["delta_t"] + (math.ceil(extra) if case["perp_neg"] else math.floor(extra))
    i_t, i_s = case["index"], max(case["index"] - d, 0)
    stride = case["delta_s"] or d
    n = case["xs_inv_steps"] if case["xs_inv_steps"] is not None else -(-i_s // stride)
    is_v = case["prediction_type"] == "v_prediction"
    result = {"x_s": [], "x_t": [], "grad": []}

    for b in range(replay.BATCH):
        z, noise = replay.latents()[b : b + 1].double(), replay.noise()[b : b + 1].double()

        def out(x, index, text, b=b):
            return replay.network(x, index + 1, text[b : b + 1])

        def unguided(x, index, out=out):
            g, e = case["inversion_guidance_scale"], out(x, index, emb["inverse"])
            return e if g <= 1 else e * (1 - g) + g * out(x, index, emb["uncond"])

        def move(x, e, i, j):
            p, q = table[i + 1], table[j + 1]
            clean = p**0.5 * x - (1 - p) ** 0.5 * e if is_v else (x - (1 - p) ** 0.5 * e) / p**0.5
            eps = p**0.5 * e + (1 - p) ** 0.5 * x if is_v else e
            return q**0.5 * clean + (1 - q) ** 0.5 * eps

        here = max(i_s - stride * n, 0)
        x = table[here + 1] ** 0.5 * z + (1 - table[here + 1]) ** 0.5 * noise
        while here != i_s:
            there = here + stride if here + stride < i_s else i_s
            x, here = move(x, unguided(x, here), here, there), there
        x_s, target = x, unguided(x, i_s)
        x_t = move(x_s, target, i_s, i_t)

        e_neg, e_text = out(x_t, i_t, emb["uncond"]), out(x_t, i_t, emb["text"])
        direction = e_text - e_neg
        total = direction.clone()
        for k in range(2 if case["perp_neg"] else 0):
            w, d_k = float(weights[k, b]), out(x_t, i_t, emb["negatives"][k]) - e_neg
            if abs(w) > 1e-4:
                share = float((d_k * direction).sum()) / max(float((direction**2).sum()), 1e-6)
                total += w * (d_k - share * direction)
        pred = e_neg + case["guidance_scale"] * total
        weight = ((1 - table[i_t + 1]) / table[i_t + 1]) ** 0.5
        for name, value in (("x_s", x_s), ("x_t", x_t), ("grad", 0.1 * weight * (pred - target))):
            result[name].append(value)
    return {name: torch.cat(values) for name, values in result.items()}


RANDOM_CASES = [
    replay.cases()[0]
    | {
        "delta_t": 5 + 13 * k % 120,
        "delta_s": (7, 50, 200, 333)[k % 4],
        "xs_inv_steps": (5, None, 1, 30)[k // 4 % 4],
        "index": (20, 111, 222, 333, 444, 555, 666, 777, 979)[k % 9],
        "iteration": 1 + 77 * k % 1800,
        "perp_neg": bool(k % 2),
        "prediction_type": ("epsilon", "epsilon", "v_prediction")[k % 3],
    }
    for k in range(36)
]


@pytest.mark.parametrize("case", RANDOM_CASES, ids=lambda case: name_of(case))
def test_reproduces_an_independent_replay(case):
    step, expected = our_step(case), replay_step(case, list(schedule_of(case).alphas_cumprod))
    for name, value in expected.items():
        assert relative(getattr(step, name), value) < 1e-5, name


def test_replay_itself_agrees_with_the_published_code():
    for row in GOLDEN:
        if not row["case"]["sds"]:
            found = replay_step(row["case"], list(schedule_of(row["case"]).alphas_cumprod))
            for name, value in found.items():
                assert relative(value, torch.tensor(row[name]).reshape(value.shape)) < 1e-5


# --- by hand ------------------------------------------------------------------------------------------------


def tiny_schedule(**kwargs) -> NoiseSchedule:
    """Noise levels whose roots are round: ab = .64, .36 at tau 1, 2 (sqrt .8, .6; of the noise .6, .8)."""
    return NoiseSchedule((0.9, 0.64, 0.36, 0.1), **kwargs)


def constant_model(x, tau, emb):
    """Returns what the embedding holds, whatever x is."""
    return emb[:, :1, :1, None].expand_as(x)


def constants(text: float, uncond: float, inverse: float) -> Conditioning:
    return Conditioning(*(torch.full((1, 1, 1), value) for value in (text, uncond, inverse)))


def test_released_step_by_hand():
    # i_s = 0: x_s = .8 * 1 + .6 * 2 = 2.
    # e_s = .5: x0 = (2 - .3) / .8 = 2.125, x_t = .6 * 2.125 + .8 * .5 = 1.675.
    # pred = .1 + 2 (.7 - .1) = 1.3.  w = .8 / .6.  grad = .1 * 4/3 * (1.3 - .5)
    z, n = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
    step = ism_step(
        constant_model,
        tiny_schedule(),
        z,
        n,
        1,
        constants(0.7, 0.1, 0.5),
        delta_t=5,
        guidance_scale=2.0,
        grad_scale=0.1,
    )
    assert (step.tau_s, step.tau_t) == (1, 2)
    found = [v.item() for v in (step.x_s, step.x_t, step.target, step.pred, step.grad)]
    assert found == pytest.approx([2.0, 1.675, 0.5, 1.3, 0.1 * 4 / 3 * 0.8])


def test_paper_step_by_hand():
    # t = 2, s = 1: one stride from clean: x_s = .8 * 1 + .6 * .5 = 1.1.
    # e_s = .5 again: x0 = 1, x_t = .6 + .4 = 1.
    # guidance against the empty prompt: pred = .5 + 2 (.7 - .5) = .9.  grad = 4/3 * (.9 - .5)
    z = torch.ones(1, 1, 1, 1)
    step = ism_step(
        constant_model,
        tiny_schedule(),
        z,
        z,
        1,
        constants(0.7, 0.1, 0.5),
        delta_t=1,
        guidance_scale=2.0,
        recipe="paper",
    )
    assert (step.tau_s, step.tau_t) == (1, 2)
    found = [v.item() for v in (step.x_s, step.x_t, step.target, step.pred, step.grad)]
    assert found == pytest.approx([1.1, 1.0, 0.5, 0.9, 4 / 3 * 0.4])


def test_sds_step_by_hand():
    # x_t = .6 * 1 + .8 * 2 = 2.2, pred = 1.3, target = 2, grad = .1 * 4/3 * (1.3 - 2)
    z, n = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
    step = sds_step(
        constant_model,
        tiny_schedule(),
        z,
        n,
        1,
        constants(0.7, 0.1, 0.5),
        guidance_scale=2.0,
        grad_scale=0.1,
    )
    found = [v.item() for v in (step.x_t, step.target, step.pred, step.grad)]
    assert found == pytest.approx([2.2, 2.0, 1.3, 0.1 * 4 / 3 * -0.7])


# --- what must hold -----------------------------------------------------------------------------------------


def test_sds_gradient_is_the_difference_of_clean_latents():
    """w (pred - noise) = latents - predicted x_0, the meaning of the weight; for v-prediction too."""
    for prediction_type in ("epsilon", "v_prediction"):
        schedule = stable_diffusion(prediction_type=prediction_type)
        mean = replay.wave(1, 4, 2, 2, phase=0.0).double()
        z, noise = replay.latents().double(), replay.noise().double()
        cond = constants(0.0, 0.0, 0.0)
        model = gaussian_model(schedule, mean, 1e-6)  # knows one image: predicts it from anywhere
        step = sds_step(model, schedule, z, noise, 400, cond, guidance_scale=1.0)
        torch.testing.assert_close(step.grad, z - mean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("recipe", "prediction_type"),
    [("released", "epsilon"), ("paper", "epsilon"), ("paper", "v_prediction")],
)
def test_gradient_leads_from_the_image_without_text_to_the_one_with(recipe, prediction_type):
    """A model that knows one image with text, one without: grad is their difference at any t and strides.

    Not so for v-prediction as released: raw v outputs of two noise levels have no such meaning.
    """
    schedule, shape = stable_diffusion(prediction_type=prediction_type), (1, 4, 2, 2)
    with_text, without = (replay.wave(*shape, phase=phase).double() for phase in (0.0, 2.0))
    models = {1.0: gaussian_model(schedule, with_text, 1e-6), 0.0: gaussian_model(schedule, without, 1e-6)}

    def model(x, tau, emb):
        return torch.cat([models[emb[b, 0, 0].item()](x[b : b + 1], tau, None) for b in range(len(x))])

    z, noise, cond = torch.zeros(shape).double(), replay.noise()[:1].double(), constants(1.0, 0.0, 0.0)
    for index, delta_t in ((60, 25), (400, 80), (979, 100)):
        step = ism_step(
            model, schedule, z, noise, index, cond, delta_t=delta_t, guidance_scale=1.0, recipe=recipe
        )
        torch.testing.assert_close(step.grad, without - with_text, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recipe", ["released", "paper"])
def test_no_text_effect_leaves_only_the_interval_error(recipe):
    """Same score with and without text: the gradient vanishes as the interval shrinks."""
    schedule = stable_diffusion()
    model = gaussian_model(schedule, torch.zeros(1), 0.5)
    z, noise, cond = replay.latents().double(), replay.noise().double(), constants(0.0, 0.0, 0.0)
    size = [
        ism_step(model, schedule, z, noise, 400, cond, delta_t=d, recipe=recipe).grad.norm().item()
        for d in (80, 20, 5)
    ]
    assert size[0] > 3 * size[1] > 9 * size[2]


def test_s_clamps_at_the_first_timestep():
    schedule, calls = stable_diffusion(), []

    def model(x, tau, emb):
        calls.append((tau, len(x)))
        return replay.network(x, tau, emb)

    step = ism_step(model, schedule, replay.latents(), replay.noise(), 20, conditioning(False), delta_t=80)
    assert (step.tau_s, step.tau_t) == (1, 21)
    assert calls == [(1, 2), (21, 4)]  # no wasted inversion; uncond and text in one call
    calls.clear()
    step = ism_step(
        model, schedule, replay.latents(), replay.noise(), 20, conditioning(False), delta_t=80, recipe="paper"
    )
    assert (step.tau_s, step.tau_t) == (0, 21)
    assert torch.equal(step.x_s, replay.latents())
    assert calls == [(0, 2), (21, 4)]


def test_released_noise_hardly_matters_and_paper_ignores_it():
    schedule, noise = stable_diffusion(), replay.noise()
    arguments = (replay.network, schedule, replay.latents())
    rest = (400, conditioning(False))
    for recipe, bound in (("released", 0.1), ("paper", 0.0)):
        a, b = (ism_step(*arguments, n, *rest, delta_t=80, recipe=recipe).grad for n in (noise, -noise))
        assert relative(a, b) <= bound


def test_batch_does_not_mix_views():
    schedule, cond = stable_diffusion(), conditioning(True)
    z, noise = replay.latents(), replay.noise()
    whole = ism_step(replay.network, schedule, z, noise, 400, cond, delta_t=50)
    for b in range(2):
        one = slice(b, b + 1)
        single = replace(
            cond,
            text=cond.text[one],
            uncond=cond.uncond[one],
            inverse=cond.inverse[one],
            negatives=cond.negatives[:, one],
            weights=cond.weights[:, one],
        )
        alone = ism_step(replay.network, schedule, z[one], noise[one], 400, single, delta_t=50)
        torch.testing.assert_close(alone.grad, whole.grad[one])


def test_a_network_that_is_not_finite_shows():
    """Nothing makes a silent zero of it: whoever takes the step can see that it is none."""
    schedule = stable_diffusion()

    def broken(x, tau, emb):
        return torch.full_like(x, float("nan") if tau > 300 else float("inf"))

    for step in (
        ism_step(broken, schedule, replay.latents(), replay.noise(), 400, conditioning(False), delta_t=50),
        sds_step(broken, schedule, replay.latents(), replay.noise(), 400, conditioning(False)),
    ):
        assert not step.grad.isfinite().any()


def test_nothing_is_recorded_for_backward():
    z = replay.latents().requires_grad_()
    step = ism_step(
        replay.network, stable_diffusion(), z, replay.noise(), 400, conditioning(False), delta_t=50
    )
    assert not step.grad.requires_grad


def test_unknown_recipe_is_named():
    with pytest.raises(ValueError, match="arxiv"):
        ism_step(
            replay.network,
            stable_diffusion(),
            replay.latents(),
            replay.noise(),
            9,
            conditioning(False),
            delta_t=5,
            recipe="arxiv",
        )
