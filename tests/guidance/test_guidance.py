"""The registered guidances on tiny real models: results, randomness, and threestudio's interfaces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import threestudio
import threestudio_lucid.guidance.lucid_guidance as module
from threestudio_lucid.errors import UserError
from threestudio_lucid.guidance.ism import Distillation, ism_step

NAMES = ("lucid-ism-guidance", "lucid-sds-guidance")


def guidance(prior: Path, name: str = NAMES[0], **kwargs):
    return threestudio.find(name)({"prior": str(prior), "dtype": "float32"} | kwargs)


def prompts(prior: Path, tmp_path: Path, **kwargs):
    config = {"prior": str(prior), "prompt": "a mug", "cache_dir": str(tmp_path / "cache")}
    return threestudio.find("lucid-prompt-processor")(config | kwargs)()


def batch(n: int = 3) -> dict:
    """What a system passes on, with some of what guidance has no use for."""
    return {
        "elevation": torch.tensor([0.0, 30.0, -10.0])[:n],
        "azimuth": torch.tensor([10.0, 100.0, -160.0])[:n],
        "camera_distances": torch.full((n,), 3.0),
        "c2w": torch.eye(4).repeat(n, 1, 1),
        "height": 32,
        "fovy": torch.full((n,), 0.7),
    }


def pictures(n: int = 3, size: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, size, size, 3, generator=generator).requires_grad_()


def latents(n: int = 3, size: int = 8) -> torch.Tensor:
    return torch.randn(n, size, size, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()


def _no_step(z: torch.Tensor, tau: int = 2) -> Distillation:
    return Distillation(z, z, z, z, torch.zeros_like(z), 1, tau)


@pytest.fixture
def ism(saved_priors):
    return guidance(saved_priors["kl"])


@pytest.fixture
def mug(saved_priors, tmp_path):
    return prompts(saved_priors["kl"], tmp_path)


# --- the step -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["kl", "tiny", "v"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_returns_scalars_and_a_gradient(saved_priors, tmp_path, name, prior):
    g, rgb = guidance(saved_priors[prior], name), pictures()
    out = g(rgb, prompts(saved_priors[prior], tmp_path), **batch())
    assert set(out) == {"loss_sds", "grad_norm", "min_step", "max_step", "timestep", "delta_t"}
    assert all(torch.as_tensor(v).numel() == 1 for v in out.values())
    out["loss_sds"].backward()
    assert rgb.grad.isfinite().all() and rgb.grad.norm() > 0


def test_gradient_on_the_latents_is_grad_over_batch(ism, mug, monkeypatch):
    """And the loss is half the squared gradient over B, as threestudio's reparameterised loss would be."""
    steps = []
    distill = type(ism).distill
    monkeypatch.setattr(
        type(ism), "distill", lambda self, *args: steps.append(distill(self, *args)) or steps[-1]
    )
    ism.cfg.horizontal_flip = 0.0
    z = latents()
    out = ism(z, mug, **batch(), rgb_as_latents=True)
    out["loss_sds"].backward()
    grad = steps[0].grad.permute(0, 2, 3, 1)
    assert torch.equal(z.grad, grad / 3)
    torch.testing.assert_close(out["grad_norm"], grad.norm())

    as_threestudio = z.detach().requires_grad_()
    target = (as_threestudio - grad).detach()
    loss = 0.5 * F.mse_loss(as_threestudio, target, reduction="sum") / 3
    loss.backward()
    torch.testing.assert_close(out["loss_sds"], loss, rtol=1e-4, atol=0)
    torch.testing.assert_close(z.grad, as_threestudio.grad, rtol=1e-4, atol=1e-6)


def test_the_step_is_ism_of_what_it_drew(ism, mug, saved_priors):
    """Put together by hand from the same draws, embeddings and settings."""
    ism.update_step(0, 2000)
    ism.cfg.horizontal_flip = 0.0
    z = latents()
    out = ism(z, mug, **batch(), rgb_as_latents=True)
    out["loss_sds"].backward()

    draws = module.generator(0, "guidance", 0, 2000, 0)
    torch.rand((), generator=draws)
    index = int(torch.randint(20, 500, (1,), generator=draws))
    tensors = module.generator(0, "guidance-noise", 0, 2000, 0)
    noise = torch.randn((3, 4, 8, 8), generator=tensors)
    noise = noise + 0.1 * torch.randn((1, 4, 1, 1), generator=tensors)
    cond = mug.embeddings_for(batch()["elevation"], batch()["azimuth"])
    step = ism_step(
        ism.prior.predict,
        ism.prior.schedule,
        z.detach().permute(0, 3, 1, 2),
        noise,
        index,
        cond,
        delta_t=80,
        delta_s=200,
        xs_inv_steps=5,
        guidance_scale=7.5,
        grad_scale=0.1,
    )
    assert out["timestep"] == index + 1 and out["delta_t"] == 80
    torch.testing.assert_close(z.grad, step.grad.permute(0, 2, 3, 1) / 3)


@pytest.mark.parametrize(("perp_neg", "factor"), [(False, 2), (True, 4)])
def test_network_calls(saved_priors, tmp_path, monkeypatch, perp_neg, factor):
    """A few inversion calls of B samples and one call for everything at x_t."""
    g, calls = guidance(saved_priors["kl"]), []
    predict = type(g.prior).predict
    monkeypatch.setattr(
        type(g.prior),
        "predict",
        lambda self, x, tau, e: calls.append((len(x), tau)) or predict(self, x, tau, e),
    )
    g.update_step(0, 2000)
    out = g(pictures(), prompts(saved_priors["kl"], tmp_path, use_perp_neg=perp_neg), **batch())
    tau_s = max(out["timestep"] - 80, 1)
    path = [*range(1, tau_s, 200), tau_s]
    assert calls == [*((3, tau) for tau in path), (factor * 3, out["timestep"])]


def test_schedule_of_a_run(saved_priors, tmp_path):
    g = guidance(saved_priors["kl"])
    mug = {flag: prompts(saved_priors["kl"], tmp_path, use_perp_neg=flag) for flag in (False, True)}
    for step, highest, plain, perp_neg in (
        (0, 978, 99, 100),
        (749, 739, 90, 90),
        (700, 754, 90, 91),
        (1499, 499, 80, 80),
    ):
        g.update_step(0, step)
        assert (g.min_step, g.max_step) == (20, highest)
        assert g(pictures(), mug[False], **batch())["delta_t"] == plain
        assert g(pictures(), mug[True], **batch())["delta_t"] == perp_neg


def test_timesteps_stay_in_range(ism, mug, monkeypatch):
    drawn = set()
    monkeypatch.setattr(
        type(ism),
        "distill",
        lambda self, z, n, index, *args: _no_step(z, self.prior.schedule.timestep(index)),
    )
    for step in range(5000, 5200):
        ism.update_step(0, step)
        drawn.add(ism(latents(), mug, **batch(), rgb_as_latents=True)["timestep"])
    assert min(drawn) >= 21 and max(drawn) <= 500 and len(drawn) > 100


def test_flip_mirrors_the_whole_batch(saved_priors, mug):
    plain = guidance(saved_priors["kl"], horizontal_flip=0.0)
    flipped = guidance(saved_priors["kl"], horizontal_flip=1.0)
    a, b = latents(), latents().detach().flip(2).requires_grad_()
    for g, z in ((plain, a), (flipped, b)):
        g(z, mug, **batch(), rgb_as_latents=True)["loss_sds"].backward()
    torch.testing.assert_close(a.grad, b.grad.flip(2))


def test_latents_of_another_size_are_resized(ism, mug):
    z = latents(size=20)
    ism(z, mug, **batch(), rgb_as_latents=True)["loss_sds"].backward()
    assert z.grad.shape == z.shape and z.grad.norm() > 0


def test_grad_scale_scales_and_paper_differs(saved_priors, mug):
    grads = {}
    for key, config in {
        "one": {"grad_scale": 1.0},
        "tenth": {},
        "paper": {"recipe": "paper", "delta_t": 80, "max_step_percent": 0.98, "max_step_percent_end": 0.5},
    }.items():
        z = latents()
        guidance(saved_priors["kl"], **config)(z, mug, **batch(), rgb_as_latents=True)["loss_sds"].backward()
        grads[key] = z.grad
    torch.testing.assert_close(grads["one"], 10 * grads["tenth"])
    assert (grads["paper"] - grads["tenth"]).norm() > 0


def test_scale_of_the_card_unless_given(own_prior):
    (own_prior / "card.yaml").write_text(
        "name: own\npath: .\nimage_size: 32\nlatent_size: 8\nguidance_scale: 3\n"
    )
    assert guidance(own_prior).guidance_scale == 3.0
    assert guidance(own_prior, guidance_scale=5.0).guidance_scale == 5.0


def test_recipes_fill_what_is_left_open(saved_priors):
    released = guidance(saved_priors["kl"]).settings
    assert (released["delta_t"], released["delta_t_start"], released["warmup_steps"]) == (80, 100, 1500)
    paper = guidance(saved_priors["kl"], recipe="paper")
    assert (paper.settings["delta_t"], paper.settings["delta_t_start"]) == (50, 50)
    assert (paper.min_step, paper.max_step) == (0, 998)  # tau 1 .. 999
    mixed = guidance(saved_priors["kl"], recipe="paper", delta_t=30, min_step_percent=0.1)
    assert (mixed.settings["delta_t"], mixed.settings["delta_t_start"], mixed.min_step) == (30, 30, 100)


def test_bfloat16_points_the_same_way(saved_priors, mug):
    grads = []
    for dtype in ("float32", "bfloat16"):
        rgb = pictures()
        g = guidance(saved_priors["kl"], dtype=dtype, guidance_scale=1.0)
        g(rgb, mug, **batch())["loss_sds"].backward()
        grads.append(rgb.grad.flatten())
    assert F.cosine_similarity(*grads, dim=0) > 0.95


# --- randomness ---------------------------------------------------------------------------------------------


def gradient(g, mug) -> torch.Tensor:
    rgb = pictures()
    g(rgb, mug, **batch())["loss_sds"].backward()
    return rgb.grad


def test_draws_are_a_function_of_seed_and_step(saved_priors, mug):
    """A run that was interrupted continues with the draws it would have had."""
    through = guidance(saved_priors["kl"])
    expected = []
    for step in range(4):
        through.update_step(0, step)
        expected.append(gradient(through, mug))
    resumed = guidance(saved_priors["kl"])
    for step in (2, 3):
        resumed.update_step(0, step)
        resumed.update_step(0, step)  # visited twice, as threestudio may
        assert torch.equal(gradient(resumed, mug), expected[step])
    assert len({grad.norm().item() for grad in expected}) == 4
    other = guidance(saved_priors["kl"], seed=1)
    assert not torch.equal(gradient(other, mug), expected[0])


def test_the_global_generator_is_left_alone(ism, mug):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a = gradient(ism, mug)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    ism.update_step(0, 1)
    ism.update_step(0, 0)
    assert torch.equal(gradient(ism, mug), a)


def test_parts_of_an_accumulated_step_differ(saved_priors, mug):
    g = guidance(saved_priors["kl"])
    parts = [gradient(g, mug) for _ in range(3)]
    assert len({part.norm().item() for part in parts}) == 3
    g = guidance(saved_priors["kl"])
    g.update_step(0, 0)
    assert all(torch.equal(gradient(g, mug), part) for part in parts)


def test_ranks_differ(saved_priors, mug, monkeypatch):
    first = gradient(guidance(saved_priors["kl"]), mug)
    monkeypatch.setenv("RANK", "1")
    assert not torch.equal(gradient(guidance(saved_priors["kl"]), mug), first)


def test_ism_and_sds_meet_the_same_timesteps(saved_priors, mug):
    taus = [guidance(saved_priors["kl"], name)(pictures(), mug, **batch())["timestep"] for name in NAMES]
    assert taus[0] == taus[1]


# --- threestudio's own prompts and pictures -----------------------------------------------------------------


class OnlyThreestudios:
    """Our prompts through threestudio's two methods alone."""

    def __init__(self, prompts):
        self.use_perp_neg = prompts.use_perp_neg
        self.get_text_embeddings = prompts.get_text_embeddings
        self.get_text_embeddings_perp_neg = prompts.get_text_embeddings_perp_neg


@pytest.mark.parametrize("perp_neg", [False, True])
def test_threestudios_methods_give_the_same_step(saved_priors, tmp_path, perp_neg):
    mug = prompts(saved_priors["kl"], tmp_path, use_perp_neg=perp_neg, negative_prompt="bad")
    direct = gradient(guidance(saved_priors["kl"]), mug)
    torch.testing.assert_close(gradient(guidance(saved_priors["kl"]), OnlyThreestudios(mug)), direct)


@pytest.mark.parametrize("perp_neg", [False, True])
def test_threestudios_prompt_processor_works(saved_priors, monkeypatch, tmp_path, perp_neg):
    monkeypatch.chdir(tmp_path)
    config = {
        "pretrained_model_name_or_path": str(saved_priors["kl"]),
        "prompt": "a mug",
        "spawn": False,
        "use_perp_neg": perp_neg,
    }
    stock = threestudio.find("stable-diffusion-prompt-processor")(config)()
    assert gradient(guidance(saved_priors["kl"]), stock).norm() > 0


def test_view_words_can_be_off(saved_priors, mug, monkeypatch):
    seen = []
    g = guidance(saved_priors["kl"], view_dependent_prompting=False)
    monkeypatch.setattr(type(g), "distill", lambda self, z, n, i, cond, *a: seen.append(cond) or _no_step(z))
    g(pictures(), mug, **batch())
    assert torch.equal(seen[0].text, mug.plain.expand(3, -1, -1))


@pytest.mark.parametrize("name", NAMES)
def test_pictures_for_people(own_prior, tmp_path, name):
    (own_prior / "card.yaml").write_text("name: own\npath: .\nimage_size: 32\nlatent_size: 8\nnum_steps: 5\n")
    g = guidance(own_prior, name, max_items_eval=2)
    found = g(pictures(), prompts(own_prior, tmp_path), **batch(), guidance_eval=True)["eval"]
    assert found["bs"] == 2 and len(found["noise_levels"]) == len(found["texts"]) == 2
    for key in ("imgs_noisy", "imgs_1step", "imgs_1orig", "imgs_final"):
        assert found[key].shape == (2, 32, 32, 3)
        assert found[key].min() >= 0 and found[key].max() <= 1
    assert found["texts"][1].split("\n")[1:] == ["e30.0", "a100.0", "c3.00"]


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"recipe": "arxiv"}, "system.guidance.recipe is 'arxiv'; it must be one of: released, paper"),
        ({"horizontal_flip": 1.5}, "horizontal_flip is 1.5"),
        ({"delta_t": 0}, "system.guidance.delta_t is 0; it must be at least 1"),
        ({"max_step_percent": 0.3, "max_step_percent_end": 0.5}, "they are 0.02, 0.5 and 0.3"),
        ({"grad_scale": 0.0}, "grad_scale is 0.0; it must be above 0"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"dtype": "half"}, "dtype is 'half'"),
    ],
)
def test_mistakes_in_the_config(saved_priors, config, expected):
    with pytest.raises(UserError) as caught:
        guidance(saved_priors["kl"], **config)
    assert expected in str(caught.value)


def test_unknown_key(saved_priors):
    with pytest.raises(
        UserError, match=r"'gudance_scale' in system\.guidance\. Did you mean 'guidance_scale'"
    ):
        guidance(saved_priors["kl"], gudance_scale=3.0)


def test_prompts_of_another_prior(saved_priors, tmp_path):
    with pytest.raises(UserError, match=r"system\.prompt_processor\.prior"):
        gradient(guidance(saved_priors["kl"]), prompts(saved_priors["tiny"], tmp_path))


def test_embeddings_of_another_width(saved_priors):
    class Wide:
        use_perp_neg = False

        def get_text_embeddings(self, elevation, *args):
            return torch.zeros(2 * len(elevation), 77, 768)

    with pytest.raises(UserError, match="768 wide"):
        gradient(guidance(saved_priors["kl"]), Wide())


def test_damaged_weights_show_before_training(own_prior):
    file = own_prior / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match="damaged or incomplete"):
        guidance(own_prior)


def test_pictures_with_a_wrong_number_of_channels(ism, mug):
    with pytest.raises(ValueError, match="4 channels; expected 3"):
        ism(latents(), mug, **batch())
