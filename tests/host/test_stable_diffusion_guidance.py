"""Score Distillation Sampling against its formulas, with a diffusion model of random weights."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from tiny import save_prior

import threestudio
from threestudio.models.guidance.noise import guided
from threestudio.utils.errors import ConfigValueError, ModelError, UserError

VIEWS = {
    "elevation": torch.tensor([10.0, 0.0]),
    "azimuth": torch.tensor([0.0, 120.0]),
    "camera_distances": torch.ones(2),
}


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr("threestudio.models.guidance.pictures.STEPS", 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_prior(tmp_path_factory.mktemp("model") / "tiny", vae="tiny")


@pytest.fixture(scope="module")
def make(model):
    def build(**cfg):
        return threestudio.find("stable-diffusion-guidance")(
            {"pretrained_model_name_or_path": str(model), **cfg}
        )

    return build


def prompt(perp_neg=False):
    """Embeddings of random numbers, of the shapes that prompt processors give."""
    draws = torch.Generator().manual_seed(3)
    rows = torch.randn(8 if perp_neg else 4, 40, 12, generator=draws)
    weights = torch.tensor([[-1.0, -0.5], [0.0, -2.0]])
    return SimpleNamespace(
        use_perp_neg=perp_neg,
        get_text_embeddings=lambda *views: rows,
        get_text_embeddings_perp_neg=lambda *views: (rows, weights),
    )


def step(guidance, latents, seed=5, **kwargs):
    """One call on latents, and the timesteps and noise it drew."""
    torch.manual_seed(seed)
    t = torch.randint(guidance.min_step, guidance.max_step + 1, [len(latents)])
    noise = torch.randn_like(latents)
    torch.manual_seed(seed)
    rgb = latents.permute(0, 2, 3, 1).clone().requires_grad_()
    out = guidance(rgb, prompt(kwargs.pop("perp_neg", False)), **VIEWS, rgb_as_latents=True, **kwargs)
    out["loss_sds"].backward()
    return out, rgb.grad.permute(0, 3, 1, 2), t, noise


@pytest.fixture
def latents():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def predictions(guidance, noisy, t, embeddings):
    """One network call a row, as one would write it first."""
    with torch.no_grad():
        rows = [
            guidance.unet(noisy[i % 2, None], t[i % 2], encoder_hidden_states=row[None]).sample
            for i, row in enumerate(embeddings)
        ]
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("strategy", "w"),
    [("sds", lambda a: 1 - a), ("uniform", torch.ones_like), ("fantasia3d", lambda a: a**0.5 * (1 - a))],
)
def test_gradient_is_the_formula(make, latents, strategy, w):
    guidance = make(guidance_scale=7.0, weighting_strategy=strategy)
    out, grad, t, noise = step(guidance, latents)
    a = guidance.alphas[t].view(-1, 1, 1, 1)
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    text, uncond = predictions(guidance, noisy, t, prompt().get_text_embeddings()).chunk(2)
    expected = w(a) * (text + 7.0 * (text - uncond) - noise)
    torch.testing.assert_close(grad, expected / 2, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(out["grad_norm"], expected.norm(), rtol=1e-3, atol=0)
    torch.testing.assert_close(out["loss_sds"], (expected**2).sum() / 4, rtol=1e-3, atol=0)
    assert (out["min_step"], out["max_step"]) == (20, 980)


def test_perp_neg_is_the_formula():
    draws = torch.Generator().manual_seed(1)
    text, uncond, near, far = torch.randn(4, 1, 3, generator=draws)
    weights = torch.tensor([[-1.0, -0.5]])
    pred = guided(torch.cat([text, uncond, near, far]), 4.0, weights)
    d = text - uncond
    across = [e - uncond - ((e - uncond) @ d.T) / (d @ d.T) * d for e in (near, far)]
    torch.testing.assert_close(pred, uncond + 4.0 * (d - across[0] - 0.5 * across[1]))


def test_perp_neg_takes_each_items_own_negatives(make, latents):
    guidance = make(guidance_scale=7.0, weighting_strategy="uniform")
    _, grad, t, noise = step(guidance, latents, perp_neg=True)
    a = guidance.alphas[t].view(-1, 1, 1, 1)
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    rows, weights = prompt(True).get_text_embeddings_perp_neg()
    for i in range(2):
        mine = rows[[i, 2 + i, 4 + 2 * i, 5 + 2 * i]]
        pair = noisy[[i, i]], t[[i, i]]
        expected = guided(predictions(guidance, *pair, mine), 7.0, weights[i, None]) - noise[i, None]
        torch.testing.assert_close(grad[i, None], expected / 2, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("var_red", [True, False])
def test_sjc_is_the_formula(make, latents, var_red):
    guidance = make(guidance_scale=2.0, use_sjc=True, var_red=var_red)
    _, grad, t, noise = step(guidance, latents)
    a = guidance.alphas[t].view(-1, 1, 1, 1)
    sigma = ((1 - a) / a).sqrt()
    moved = latents + sigma * noise
    rows = prompt().get_text_embeddings()
    text, uncond = predictions(guidance, moved * a.sqrt(), t, rows).chunk(2)
    pred = text + 2.0 * (text - uncond)
    expected = pred - noise if var_red else pred
    torch.testing.assert_close(grad, expected / 2, rtol=1e-3, atol=1e-3)


def test_a_network_that_predicts_v_gives_a_noise(tmp_path, latents):
    folder = save_prior(tmp_path / "v", vae="tiny", prediction_type="v_prediction")
    guidance = threestudio.find("stable-diffusion-guidance")(
        {
            "pretrained_model_name_or_path": str(folder),
            "guidance_scale": 0.0,
            "weighting_strategy": "uniform",
        }
    )
    _, grad, t, noise = step(guidance, latents)
    a = guidance.alphas[t].view(-1, 1, 1, 1)
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    v = predictions(guidance, noisy, t, prompt().get_text_embeddings()[:2])
    torch.testing.assert_close(
        grad, (a.sqrt() * v + (1 - a).sqrt() * noisy - noise) / 2, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("vae", ["tiny", "kl"])
def test_pictures_of_any_size_get_a_gradient(tmp_path, vae):
    folder = save_prior(tmp_path / "m", vae=vae)
    cfg = {"pretrained_model_name_or_path": str(folder), "use_img_loss": True}
    guidance = threestudio.find("stable-diffusion-guidance")(cfg)
    assert (guidance.model.image_size, guidance.model.latent_size) == (32, 8)
    rgb = torch.rand(2, 12, 20, 3, requires_grad=True)
    out = guidance(rgb, prompt(), **VIEWS, mvp_mtx=None, guidance_eval=True)
    (out["loss_sds"] + out["loss_sds_img"]).backward()
    assert rgb.grad.isfinite().all() and rgb.grad.abs().sum() > 0
    pictures = out["eval"]
    assert pictures["bs"] == 2 and len(pictures["texts"]) == 2
    for name in ("imgs_noisy", "imgs_1step", "imgs_1orig", "imgs_final"):
        assert pictures[name].shape == (2, 32, 32, 3) and pictures[name].min() >= 0


def test_eval_pictures_with_perp_neg_and_sjc(make):
    guidance = make(use_sjc=True, max_items_eval=1)
    out = guidance(torch.rand(2, 8, 8, 3), prompt(True), **VIEWS, guidance_eval=True)
    assert out["eval"]["bs"] == 1 and out["eval"]["imgs_final"].shape == (1, 32, 32, 3)


def test_schedules(make, latents):
    ramps = {"min_step_percent": [0, 0.4, 0.2, 200], "max_step_percent": [100, 0.9, 0.5, 101]}
    guidance = make(**ramps, grad_clip=0.01)
    guidance.update_step(0, 100)
    assert (guidance.min_step, guidance.max_step, guidance.grad_clip_val) == (300, 900, 0.01)
    guidance.update_step(0, 101)
    assert guidance.max_step == 500
    _, grad, _, _ = step(guidance, latents)
    assert grad.abs().max() <= 0.01 / 2 + 1e-6


def test_sqrt_anneal_draws_one_timestep(make):
    guidance = make(sqrt_anneal=True, trainer_max_steps=100, min_step_percent=0.1, max_step_percent=0.9)
    found = []
    for at in (0, 25, 100, 200):
        guidance.update_step(0, at)
        assert guidance.min_step == guidance.max_step
        found.append(guidance.min_step)
    assert found == [900, 500, 100, 100]


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"min_step_percent": [1, 2]}, "min_step_percent: Schedule"),
        ({"max_step_percent": "high"}, "max_step_percent: A scheduled value"),
        ({"max_step_percent": 98}, "max_step_percent is 98"),
        ({"weighting_strategy": "sdf"}, "sds, uniform, fantasia3d"),
        ({"guidence_scale": 3}, "'guidance_scale'"),
        ({"guidance_scale": "much"}, "guidance_scale of stable-diffusion-guidance takes float"),
        ({"token_merging": True}, "tomesd"),
    ],
)
def test_mistakes(make, cfg, words):
    with pytest.raises(UserError, match=words):
        make(**cfg)


def test_prompts_of_another_model(make):
    other = SimpleNamespace(use_perp_neg=False, get_text_embeddings=lambda *views: torch.zeros(4, 77, 768))
    with pytest.raises(ConfigValueError, match="768 wide"):
        make()(torch.rand(2, 8, 8, 3), other, **VIEWS)


# ---- models that are not there ----


def load(path):
    return threestudio.find("stable-diffusion-guidance")({"pretrained_model_name_or_path": str(path)})


def test_no_such_folder(tmp_path):
    with pytest.raises(ModelError, match=r"pretrained_model_name_or_path is .*does not exist"):
        load(tmp_path / "nowhere")


def test_hub_out_of_reach(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"cannot be fetched[\s\S]*hf download nobody/no-such-model"):
        load("nobody/no-such-model")


def cut(file):
    file.write_bytes(file.read_bytes()[:1000])


DAMAGE = {
    "no vae": (lambda m: shutil.rmtree(m / "vae"), "vae/config.json is missing"),
    "no weights": (lambda m: (m / "unet/diffusion_pytorch_model.safetensors").unlink(), r"unet/\*\.safetens"),
    "half a file": (lambda m: cut(m / "unet/diffusion_pytorch_model.safetensors"), "cannot be loaded"),
    "no JSON": (lambda m: (m / "vae/config.json").write_text("{"), "vae cannot be loaded"),
    "another size": (
        lambda m: (m / "unet/config.json").write_text(
            json.dumps(json.loads((m / "unet/config.json").read_text()) | {"block_out_channels": [8, 24]})
        ),
        "unet cannot be loaded",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_models(model, tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    break_it, words = DAMAGE[damage]
    break_it(folder)
    with pytest.raises(ModelError, match=words):
        load(folder)


def test_the_bundled_prior(root):
    """128 pixels, 16 latents of 16 channels, an AutoencoderTiny."""
    guidance = load(root / "custom/threestudio-lucid/priors/mini")
    assert (guidance.model.image_size, guidance.model.latent_size) == (128, 16)
    assert guidance.weights_dtype == (torch.float16 if torch.cuda.is_available() else torch.float32)


def test_a_network_that_is_not_finite_shows_and_is_explained(make, latents, monkeypatch):
    guidance = make()
    _, grad, _, _ = step(guidance, latents)
    assert grad.isfinite().all() and guidance.explain_fault() is None
    predict = type(guidance.model).predict

    def spoilt(self, *args):
        out = predict(self, *args)
        out[0, 0, 0, 0] = float("nan")
        return out

    monkeypatch.setattr(type(guidance.model), "predict", spoilt)
    _, grad, t, _ = step(guidance, latents)
    assert not grad.isfinite().all()
    told = guidance.explain_fault()
    assert told.startswith("the score is not finite (1 of 512 numbers, at timestep ")
    assert str(int(t[0])) in told and "float32" in told


def test_a_scale_beyond_all_sense_is_no_gradient(make, latents):
    guidance = make(guidance_scale=1e9)
    _, grad, _, _ = step(guidance, latents)
    assert not grad.isfinite().any()
    assert "where it should be about 1" in guidance.explain_fault()


def test_weights_that_are_not_finite_are_refused(model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(model, tmp_path / "m")
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.weight"][0, 0, 0, 0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"conv_in.weight of .*unet hold 1 numbers"):
        threestudio.find("stable-diffusion-guidance")({"pretrained_model_name_or_path": str(folder)})
