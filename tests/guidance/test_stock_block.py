"""A config block of threestudio's stable-diffusion-guidance, given to ours by changing its type alone."""

from __future__ import annotations

import pytest
import torch
from test_guidance import batch, pictures

import threestudio
from threestudio_lucid.errors import UserError
from threestudio_lucid.guidance import stock
from threestudio_lucid.guidance.cards import find_card

BLOCK = {
    "guidance_scale": 100.0,
    "half_precision_weights": False,
    "weighting_strategy": "sds",
    "min_step_percent": 0.02,
    "max_step_percent": [5000, 0.98, 0.5, 5001],
    "grad_clip": [0, 2.0, 8.0, 1000],
}


@pytest.fixture
def make(saved_priors):
    def build(name="lucid-ism-guidance", **kwargs):
        block = {"pretrained_model_name_or_path": str(saved_priors["kl"])} | BLOCK | kwargs
        return threestudio.find(name)(block)

    return build


@pytest.fixture
def stock_prompt(saved_priors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return threestudio.find("stable-diffusion-prompt-processor")(
        {"pretrained_model_name_or_path": str(saved_priors["kl"]), "prompt": "a mug", "spawn": False}
    )()


def test_a_step_with_threestudios_prompt_processor(make, stock_prompt):
    rgb = pictures()
    out = make()(rgb, stock_prompt, **batch())
    out["loss_sds"].backward()
    assert rgb.grad.isfinite().all() and rgb.grad.norm() > 0


def test_what_is_left_out_is_named_once(make, monkeypatch):
    told = []
    monkeypatch.setattr(threestudio, "info", told.append)
    guidance = make(var_red=True)
    lines = [line for line in told if "stable-diffusion-guidance" in line]
    assert len(lines) == 1 and "left out: var_red" in lines[0]
    assert "grad_scale is 13.5, as its loss.lambda_sds is weighed for, with the weight 'sds'" in lines[0]
    assert guidance.prior.dtype == torch.float32
    assert "guidance_scale 100 is 7.5" in lines[0]


@pytest.mark.parametrize(
    ("name", "scale", "ours"),
    [
        ("lucid-ism-guidance", 100.0, 7.5),  # SDS's usual scale: the recipe's, which is ISM's usual one
        ("lucid-ism-guidance", 20.0, 21.0),  # text + 20 (text - uncond)
        ("lucid-sds-guidance", 100.0, 101.0),
    ],
)
def test_guidance_scale(make, name, scale, ours):
    assert make(name, guidance_scale=scale).guidance_scale == ours


@pytest.fixture
def stock_sds(saved_priors):
    """threestudio's own guidance with the block, at one timestep."""

    def build(**kwargs):
        block = {"pretrained_model_name_or_path": str(saved_priors["kl"]), "half_precision_weights": False}
        return threestudio.find("stable-diffusion-guidance")(block | kwargs)

    return build


@pytest.mark.parametrize(
    "block", [{}, {"weighting_strategy": "fantasia3d"}, {"use_sjc": True}, {"guidance_scale": 20.0}]
)
@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_sds_by_a_swap_is_as_strong_at_equal_latents(make, stock_sds, stock_prompt, block, level):
    """Same latents, prompt and timestep: the norms are alike, for the weight and the scale are the same."""
    at = {"min_step_percent": level, "max_step_percent": level}
    latents = torch.randn(3, 8, 8, 4, generator=torch.Generator().manual_seed(0))
    norms = []
    for guidance in (
        stock_sds(**at, **block),
        make("lucid-sds-guidance", **({"grad_clip": None, "noise_offset": 0.0} | at | block)),
    ):
        guidance.update_step(0, 0)
        torch.manual_seed(0)
        x = latents.clone().requires_grad_()
        guidance(x, stock_prompt, **batch(), rgb_as_latents=True)["loss_sds"].backward()
        norms.append(x.grad.norm())
    assert norms[1] / norms[0] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("level", [0.2, 0.5])
def test_ism_by_a_swap_is_as_strong_as_sds_at_equal_latents(root, tmp_path, monkeypatch, level):
    """With the bundled prior, whose text does something: one picture, one timestep."""
    monkeypatch.chdir(tmp_path)
    mini = str(root / "custom/threestudio-lucid/priors/mini")
    prompt = threestudio.find("stable-diffusion-prompt-processor")(
        {"pretrained_model_name_or_path": mini, "prompt": "a hamburger", "spawn": False}
    )()
    block = {"pretrained_model_name_or_path": mini, "half_precision_weights": False}
    block |= {"min_step_percent": level, "max_step_percent": level}
    rows, columns = torch.meshgrid(*[torch.linspace(-1, 1, 128)] * 2, indexing="ij")
    disc = 1.0 - 0.5 * (rows.square() + columns.square() < 0.4).float()
    picture = disc[None, ..., None].expand(1, 128, 128, 3)
    norms = {}
    for name in ("stable-diffusion-guidance", "lucid-ism-guidance"):
        guidance = threestudio.find(name)(dict(block))
        guidance.update_step(0, 0)
        torch.manual_seed(0)
        norms[name] = guidance(picture, prompt, **batch(1))["grad_norm"]
    assert 0.6 < norms["lucid-ism-guidance"] / norms["stable-diffusion-guidance"] < 1.5  # 0.95 by trial


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_ism_by_a_swap_keeps_the_guided_part(make, level):
    """100 (text - uncond) becomes 13.5 * 7.5 (text - uncond), with SDS's weight."""
    guidance, index = make(), round(1000 * level)
    schedule = guidance.prior.schedule
    tau = schedule.timestep(index)
    weight = guidance.grad_scale_at(index) * schedule.sigma(tau)
    assert weight * guidance.guidance_scale == pytest.approx(101.0 * (1.0 - schedule.alphas_cumprod[tau]))


def test_a_grad_scale_that_is_given_is_taken(make):
    assert make(grad_scale=2.0).strength == stock.Strength(2.0, "sds")


def test_blocks_of_ours_keep_their_weight(saved_priors):
    guidance = threestudio.find("lucid-ism-guidance")({"prior": str(saved_priors["kl"])})
    assert guidance.grad_scale_at(3) == guidance.grad_scale_at(900) == 0.1


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"lambda_ism": 1.0}, r"system\.loss\.lambda_sds=1 \(lambda_ism weighs"),
        ({"lambda_sds": 1.0}, None),
        ({}, None),
    ],
)
def test_losses_that_weigh_another_guidance(saved_priors, loss, words):
    """What threestudio's systems hand over is a node of their config, whoever the host is."""
    from omegaconf import OmegaConf

    block = {"pretrained_model_name_or_path": str(saved_priors["kl"])}
    system = OmegaConf.create({"guidance": block, "loss": loss})
    if words is None:
        threestudio.find("lucid-ism-guidance")(system.guidance)
        return
    with pytest.raises(UserError, match=words):
        threestudio.find("lucid-ism-guidance")(system.guidance)


def test_a_block_of_another_guidance_is_refused_whoever_the_host_is(monkeypatch):
    """threestudio's own parse_structured raises a bare TypeError."""
    monkeypatch.setattr("threestudio.utils.base.parse_structured", lambda fields, cfg: fields(**cfg))
    block = {"pretrained_model_name_or_path": "x", "enable_sdi": True, "inversion_n_steps": 10}
    with pytest.raises(
        UserError, match=r"keys 'enable_sdi', 'inversion_n_steps' in system\.guidance.*lucid-ism"
    ):
        threestudio.find("lucid-ism-guidance")(block)


@pytest.mark.parametrize(("name", "ours"), [("lucid-ism-guidance", 7.5), ("lucid-sds-guidance", 101.0)])
def test_no_scale_is_threestudios_default(saved_priors, name, ours):
    block = {"pretrained_model_name_or_path": str(saved_priors["kl"])}
    assert threestudio.find(name)(block).guidance_scale == ours


def test_the_bundled_priors_scale_is_that_of_its_recipe(root):
    """Its card's, which is for sampling, is another."""
    mini = find_card(str(root / "custom/threestudio-lucid/priors/mini"))
    block = stock.StockKeys(pretrained_model_name_or_path=mini.path)
    block.guidance_scale = 100.0
    assert stock.scale_of(block, mini, keeps_sds_scale=False) == 7.5 != mini.guidance_scale


def test_our_own_block_keeps_its_scale(saved_priors):
    guidance = threestudio.find("lucid-ism-guidance")(
        {"prior": str(saved_priors["kl"]), "guidance_scale": 100.0}
    )
    assert guidance.guidance_scale == 100.0


def test_schedules_of_timesteps_and_bound(make):
    guidance = make(min_step_percent=[0, 0.4, 0.2, 200])
    guidance.update_step(0, 100)
    assert (guidance.min_step, guidance.max_step, guidance._bound) == (300, 979, 2.6)
    guidance.update_step(0, 5001)
    assert (guidance.min_step, guidance.max_step) == (200, 499)


def test_the_bound_holds(make, stock_prompt, monkeypatch):
    guidance = make(grad_clip=1e-3)
    found = {}
    monkeypatch.setattr(
        "threestudio_lucid.guidance.lucid_guidance._GivenGradient.apply",
        lambda latents, grad: found.update(grad=grad) or grad.sum(),
    )
    guidance(pictures(), stock_prompt, **batch())
    assert found["grad"].abs().max() == pytest.approx(1e-3)


def test_a_low_ceiling_lowers_where_the_warm_up_ends(make):
    guidance = make(max_step_percent=0.3)
    guidance.update_step(0, 10_000)
    assert guidance.max_step == 299


def test_a_high_floor_raises_where_the_warm_up_ends(make):
    guidance = make(min_step_percent=0.7, max_step_percent=0.9)
    guidance.update_step(0, 10_000)
    assert (guidance.min_step, guidance.max_step) == (700, 700)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weighting_strategi": "sds"}, "weighting_strategi"),
        ({"weighting_strategy": "sdss"}, r"weighting_strategy is 'sdss'; it must be one of: sds"),
        ({"grad_clip": [1, 2]}, r"system\.guidance\.grad_clip"),
        ({"max_step_percent": [0, 0.5, 1.5, 100]}, "max_step_percent"),
        ({"prior": "mini"}, "mean the same"),
    ],
)
def test_mistakes(make, change, words):
    with pytest.raises((UserError, TypeError), match=words):
        make(**change)


def test_repositories_that_moved(monkeypatch):
    monkeypatch.setattr(stock, "_is_cached", lambda repository: False)

    class Block:
        prior = "auto"
        pretrained_model_name_or_path = "stabilityai/stable-diffusion-2-1-base"

    assert stock.prior_of(Block) == "sd21"
    monkeypatch.setattr(stock, "_is_cached", lambda repository: True)
    assert stock.prior_of(Block) == "stabilityai/stable-diffusion-2-1-base"


def test_unknown_words_of_a_closed_vocabulary(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mini = str(root / "custom/threestudio-lucid/priors/mini")
    prompt = threestudio.find("stable-diffusion-prompt-processor")(
        {"pretrained_model_name_or_path": mini, "prompt": "a zeppelin", "spawn": False}
    )()
    guidance = threestudio.find("lucid-ism-guidance")({"pretrained_model_name_or_path": mini})
    with pytest.raises(UserError, match="does not know 'zeppelin'"):
        guidance(pictures(), prompt, **batch())
