"""Loading and calling a prior: the numbers that the models themselves give, one message for each mistake."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from threestudio_lucid.errors import UserError
from threestudio_lucid.guidance import folder as files
from threestudio_lucid.guidance.cards import find_card
from threestudio_lucid.guidance.prior import Prior, resolve_dtype
from threestudio_lucid.guidance.sample import sample, sampling_path
from threestudio_lucid.guidance.trajectory import x0_and_eps

CPU = torch.device("cpu")


def images(n: int = 2, size: int = 32) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def latents(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def load(folder: Path, **kwargs) -> Prior:
    return Prior.load(folder, "cpu", **({"dtype": "float32"} | kwargs))


# --- what it computes ---------------------------------------------------------------------------------------


def test_encode_is_the_posterior_times_the_scaling_factor(saved_priors):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(saved_priors["kl"] / "vae")
    posterior = vae.encode(2 * images() - 1).latent_dist
    prior = load(saved_priors["kl"])
    torch.testing.assert_close(prior.encode(images()), posterior.mean * 0.18215, rtol=1e-4, atol=1e-5)

    drawn = [prior.encode(images(), torch.Generator().manual_seed(s)) for s in range(80)]
    spread = torch.stack(drawn).std(0)
    torch.testing.assert_close(spread.mean(), (posterior.std * 0.18215).mean(), rtol=0.05, atol=0)
    assert torch.equal(drawn[0], prior.encode(images(), torch.Generator().manual_seed(0)))


def test_gradient_reaches_mean_and_spread(saved_priors):
    """d(latent)/d(image) changes with the draw, so it passes the spread, too."""
    prior = load(saved_priors["kl"])

    def gradient(seed: int | None) -> torch.Tensor:
        x = images().requires_grad_()
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        prior.encode(x, generator).sum().backward()
        return x.grad

    assert gradient(None).abs().max() > 0
    assert (gradient(0) - gradient(1)).norm() > 1e-6 * gradient(0).norm()


@pytest.mark.parametrize("name", ["kl", "tiny"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_encode_is_differentiable_and_agrees_with_finite_differences(saved_priors, name, dtype):
    prior = load(saved_priors[name], dtype=dtype)
    x = images().requires_grad_()
    z = prior.encode(x)
    assert z.dtype == torch.float32 and z.shape == (2, 4, 8, 8)
    cotangent = latents()
    (z * cotangent).sum().backward()
    exact = load(saved_priors[name])
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    h = 2e-3
    with torch.no_grad():
        difference = exact.encode(x + h * direction) - exact.encode(x - h * direction)
    expected = (difference * cotangent).sum() / (2 * h)
    found = (x.grad * direction).sum()
    # bfloat16 keeps 8 bits; the sum runs over 6144 pixels
    assert (found - expected).abs() < (0.02 if dtype == "float32" else 0.2) * x.grad.norm()


def test_tiny_autoencoder_is_deterministic(saved_priors):
    prior = load(saved_priors["tiny"])
    a, b = (prior.encode(images(), torch.Generator().manual_seed(s)) for s in (0, 1))
    assert torch.equal(a, b)


def test_other_sizes_are_resized(saved_priors):
    prior = load(saved_priors["kl"])
    for size in (16, 32, 50):
        assert prior.encode(images(size=size)).shape == (2, 4, 8, 8)
    # a constant picture stays constant under any resizing
    flat = torch.full((1, 3, 50, 50), 0.3)
    torch.testing.assert_close(prior.encode(flat), prior.encode(flat[..., :32, :32]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["kl", "tiny"])
def test_decode_undoes_scaling_and_stays_in_range(saved_priors, name):
    prior = load(saved_priors[name])
    expected = prior.vae.decode(latents() / prior.vae.config.scaling_factor).sample / 2 + 0.5
    found = prior.decode(latents())
    torch.testing.assert_close(found, expected.clamp(0, 1), rtol=1e-4, atol=1e-5)
    assert found.shape == (2, 3, 32, 32)


def test_text_is_padded_and_not_masked(saved_priors):
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = saved_priors["kl"]
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    prompts = ["a red mug, front view", ""]
    ids = tokenizer(
        prompts, padding="max_length", max_length=40, truncation=True, return_tensors="pt"
    ).input_ids
    assert ids.shape == (2, 40)
    with torch.no_grad():
        expected = encoder(input_ids=ids).last_hidden_state
    found = load(folder).encode_text(prompts)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_text_that_is_too_long_is_said_and_cut(saved_priors, caplog):
    prior = load(saved_priors["kl"])
    with caplog.at_level("INFO"):
        assert prior.encode_text(["hamburger " * 8]).shape == (1, 40, 12)
    assert "only the first 38 of 72 tokens" in caplog.text


@pytest.mark.parametrize("name", ["kl", "v"])
def test_predict_is_the_network_and_eps_converts(saved_priors, name):
    from diffusers import UNet2DConditionModel

    prior = load(saved_priors[name])
    embeddings = prior.encode_text(["a", "b"])
    unet = UNet2DConditionModel.from_pretrained(saved_priors[name] / "unet")
    with torch.no_grad():
        expected = unet(latents(), torch.tensor(300), embeddings).sample
    output = prior.predict(latents(), 300, embeddings)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    eps = prior.eps(latents(), 300, embeddings)
    if name == "kl":
        assert torch.equal(eps, output)
    else:
        ab = prior.alphas_cumprod[300]
        torch.testing.assert_close(eps, ab**0.5 * output + (1 - ab) ** 0.5 * latents())
        assert torch.equal(eps, x0_and_eps(prior.schedule, output, latents(), 300)[1])


def test_schedule_is_the_schedulers(saved_priors):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_pretrained(saved_priors["v"] / "scheduler")
    schedule = load(saved_priors["v"]).schedule
    assert schedule.alphas_cumprod == tuple(scheduler.alphas_cumprod.tolist())
    assert (schedule.prediction_type, schedule.steps_offset) == ("v_prediction", 1)
    assert schedule.final_alpha_cumprod == schedule.alphas_cumprod[0]


def test_the_card_may_say_what_is_predicted(saved_priors):
    card = dataclasses.replace(find_card(saved_priors["kl"]), prediction_type="v_prediction")
    assert Prior.load(card, "cpu").schedule.prediction_type == "v_prediction"


@pytest.mark.parametrize("name", ["kl", "v", "tiny"])
def test_samples_are_diffusers_samples(saved_priors, name):
    """The same noise through diffusers' own pipeline gives the same pictures."""
    from diffusers import DDIMScheduler

    prior, steps, scale = load(saved_priors[name]), 7, 3.0
    found = sample(prior, ["a mug", "a hat"], "bad", steps, scale, torch.Generator().manual_seed(4))

    scheduler = DDIMScheduler.from_pretrained(saved_priors[name] / "scheduler")
    scheduler.set_timesteps(steps)
    assert sampling_path(prior.schedule, steps)[:-1] == scheduler.timesteps.tolist()
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    text, uncond = prior.encode_text(["a mug", "a hat"]), prior.encode_text(["bad", "bad"])
    for tau in scheduler.timesteps:
        e_uncond, e_text = (prior.unet(x, tau, emb).sample for emb in (uncond, text))
        x = scheduler.step(e_uncond + scale * (e_text - e_uncond), tau, x).prev_sample
    torch.testing.assert_close(found, prior.decode(x), rtol=1e-3, atol=1e-3)
    one_by_one = sample(prior, ["a mug", "a hat"], "bad", steps, scale, torch.Generator().manual_seed(4), 1)
    torch.testing.assert_close(found, one_by_one, rtol=1e-3, atol=1e-3)


def test_everything_is_frozen(saved_priors):
    prior = load(saved_priors["kl"])
    encoder = prior._text[1]
    for module in (prior.unet, prior.vae, encoder):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_half_the_bits_change_little(saved_priors):
    exact, half = load(saved_priors["kl"]), load(saved_priors["kl"], dtype="bfloat16")
    assert half.unet.conv_in.weight.dtype == torch.bfloat16
    embeddings = exact.encode_text(["a", "b"])
    assert torch.equal(embeddings, half.encode_text(["a", "b"]))  # text is encoded in float32 always
    a, b = (p.predict(latents(), 300, embeddings) for p in (exact, half))
    assert b.dtype == torch.float32
    assert (a - b).norm() < 0.03 * a.norm()


# --- how it is found and loaded -----------------------------------------------------------------------------


def test_one_prior_for_all_who_ask_and_none_when_nobody_does(saved_priors):
    a = load(saved_priors["kl"])
    assert load(saved_priors["kl"]) is a
    assert load(str(saved_priors["kl"])) is a
    assert load(saved_priors["kl"], dtype="bfloat16") is not a
    address = id(a.unet)
    del a
    gc.collect()
    fresh = load(saved_priors["kl"])
    assert "unet" not in vars(fresh) or id(fresh.unet) != address


def test_text_encoder_is_loaded_only_for_text(saved_priors):
    prior = load(saved_priors["v"])
    prior.predict(latents(), 300, torch.zeros(2, 40, 12))
    assert "_text" not in vars(prior)
    first = prior.encode_text(["a"])
    prior.release_text_encoder()
    assert "_text" not in vars(prior)
    assert torch.equal(prior.encode_text(["a"]), first)


def test_single_file_is_the_same_prior(saved_priors, tmp_path):
    file = tiny.save_single_file(saved_priors["kl"], tmp_path / "one.safetensors")
    card = dataclasses.replace(
        find_card(saved_priors["kl"]), name="one", path=str(file), config=str(saved_priors["kl"])
    )
    one, whole = Prior.load(card, "cpu", "float32"), load(saved_priors["kl"])
    embeddings = whole.encode_text(["a mug", "a hat"])
    assert torch.equal(one.encode_text(["a mug", "a hat"]), embeddings)
    for call in (
        lambda p: p.predict(latents(), 300, embeddings),
        lambda p: p.encode(images()),
        lambda p: p.decode(latents()),
    ):
        torch.testing.assert_close(call(one), call(whole))


def test_text_encoder_of_older_transformers(own_prior):
    """The published checkpoints' names start with text_model."""
    file = own_prior / "text_encoder" / "model.safetensors"
    expected = load(own_prior).encode_text(["a mug"])
    weights = {f"text_model.{key.removeprefix('text_model.')}": v for key, v in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    assert torch.equal(load(own_prior).encode_text(["a mug"]), expected)


def test_weights_in_several_files(own_prior):
    unet = own_prior / "unet"
    whole = unet / "diffusion_pytorch_model.safetensors"
    weights = load_file(whole)
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    parts = [dict(list(weights.items())[i::2]) for i in (0, 1)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, unet / name, metadata={"format": "pt"})
    where = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (unet / f"{whole.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    whole.unlink()
    assert load(own_prior).predict(latents(), 1, torch.zeros(2, 40, 12)).isfinite().all()
    (unet / names[1]).unlink()
    with pytest.raises(UserError, match="00002-of-00002"):
        files.check_folder(own_prior)


def test_loading_is_silent(own_prior, capfd):
    prior = load(own_prior)
    prior.encode_text(["a"])
    prior.predict(latents(), 1, torch.zeros(2, 40, 12))
    prior.encode(images())
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")


def test_importing_is_light():
    code = (
        "import sys, types;"
        "package = types.ModuleType('threestudio_lucid');"
        "package.__path__ = ['custom/threestudio-lucid'];"
        "sys.modules['threestudio_lucid'] = package;"
        "import threestudio_lucid.guidance.prior, threestudio_lucid.guidance.sample;"
        "heavy = {'diffusers', 'transformers', 'huggingface_hub', 'threestudio'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_dtype_is_chosen_for_the_device(monkeypatch):
    from threestudio_lucid.guidance import prior as module

    assert resolve_dtype("auto", torch.device("cuda")) == torch.float16
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(module, "has_amx", lambda has=has: has)
        assert resolve_dtype("auto", CPU) == expected
    assert resolve_dtype(torch.bfloat16, CPU) == torch.bfloat16
    with pytest.raises(UserError, match="needs CUDA"):
        resolve_dtype("float16", CPU)
    with pytest.raises(UserError, match="float64"):
        resolve_dtype("float64", CPU)


def test_fingerprint_follows_the_contents(own_prior, saved_priors):
    assert load(own_prior).text_fingerprint() == load(saved_priors["kl"]).text_fingerprint()
    file = own_prior / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, file, metadata={"format": "pt"})
    assert load(own_prior).text_fingerprint() != load(saved_priors["kl"]).text_fingerprint()


def test_fingerprint_of_a_large_file(tmp_path):
    """Above 8 MB blocks are hashed; the last and the first byte are in one."""
    file = tmp_path / "large"
    content = bytearray(9 << 20)
    seen = set()
    for position in (None, 0, -1, (9 << 20) // 2):
        if position is not None:
            content[position] += 1
        file.write_bytes(content)
        seen.add(files.fingerprint_file(file))
    assert len(seen) >= 3


# --- mistakes -----------------------------------------------------------------------------------------------


def message(folder: Path, warm: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        prior = load(folder)
        if warm:
            _ = prior.unet, prior.vae, prior._text
    return str(caught.value)


def test_missing_folder(tmp_path):
    text = message(tmp_path / "nowhere")
    assert "nowhere" in text and "does not exist" in text and "system.guidance.prior" in text


@pytest.mark.parametrize(
    "file",
    [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
    ],
)
def test_missing_file(own_prior, file):
    (own_prior / file).unlink()
    text = message(own_prior)
    assert str(own_prior / file) in text and "does not exist" in text and "again" in text


@pytest.mark.parametrize("keep", [0, 5, 1000, -100])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_truncated_weights(own_prior, part, keep):
    (file,) = (own_prior / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:keep])
    text = message(own_prior)
    assert str(file) in text and "damaged or incomplete" in text


def test_damaged_config(own_prior):
    (own_prior / "unet" / "config.json").write_text("{ not json")
    text = message(own_prior)
    assert "config.json is damaged" in text


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_of_another_architecture(own_prior, part):
    (file,) = (own_prior / part).glob("*.safetensors")
    weights = load_file(file)
    key = next(k for k, v in weights.items() if v.ndim >= 2)
    weights[key] = torch.zeros(3, *weights[key].shape[1:])
    save_file(weights, file, metadata={"format": "pt"})
    text = message(own_prior, warm=True)
    assert part in text and "fit" in text


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_missing_weights_are_not_made_up(own_prior, part):
    (file,) = (own_prior / part).glob("*.safetensors")
    weights = load_file(file)
    weights.pop(next(iter(weights)))
    save_file(weights, file, metadata={"format": "pt"})
    text = message(own_prior, warm=True)
    assert part in text and "missing" in text


def test_pickled_weights_are_refused(own_prior):
    file = own_prior / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    assert "pickled weights are not loaded" in message(own_prior)


def test_parts_of_two_models(own_prior):
    tiny.make_text_encoder(width=16).save_pretrained(own_prior / "text_encoder")
    assert "width 12, its text encoder writes 16" in message(own_prior)


def test_latents_that_do_not_match(own_prior):
    tiny.make_unet(channels=8).save_pretrained(own_prior / "unet")
    assert "reads 8 latent channels, its VAE writes 4" in message(own_prior)


def test_card_that_does_not_match(own_prior):
    (own_prior / "card.yaml").write_text("name: odd\npath: .\nimage_size: 64\nlatent_size: 8\n")
    assert "latent_size 8, but its VAE makes 16" in message(own_prior)


def test_unknown_vae(own_prior):
    file = own_prior / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "VQModel"}))
    assert "VQModel" in message(own_prior, warm=True)


def test_unknown_prediction_type(own_prior):
    file = own_prior / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(UserError, match="'sample'"):
        _ = load(own_prior).schedule


def test_hub_out_of_reach(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        Prior.load("nobody/no-such-model", "cpu")
    text = str(caught.value)
    assert "nobody/no-such-model" in text and "cannot be fetched" in text and "prior=mini" in text


def test_single_file_needs_configs(saved_priors, tmp_path):
    file = tiny.save_single_file(saved_priors["kl"], tmp_path / "one.safetensors")
    card = dataclasses.replace(find_card(saved_priors["kl"]), path=str(file))
    with pytest.raises(UserError, match="config:"):
        Prior.load(card, "cpu")
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(UserError, match="damaged or incomplete"):
        Prior.load(dataclasses.replace(card, config=str(saved_priors["kl"])), "cpu")
    file.unlink()
    with pytest.raises(UserError, match="is not at"):
        Prior.load(dataclasses.replace(card, config=str(saved_priors["kl"])), "cpu")


def test_networks_are_compiled_once(saved_priors, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append((self, options)))
    prior = load(saved_priors["kl"])
    expected = prior.predict(latents(), 500, torch.zeros(2, 7, prior.unet.config.cross_attention_dim))
    prior.speed_up(compiled=True)
    prior.speed_up(compiled=True)
    assert [module for module, _ in compiled] == [prior.unet, prior.vae.encoder]
    assert all(options == {"dynamic": False} for _, options in compiled)
    actual = prior.predict(latents(), 500, torch.zeros(2, 7, prior.unet.config.cross_attention_dim))
    assert torch.equal(actual, expected)


# --- another autoencoder ------------------------------------------------------------------------------------


def with_vae(saved_priors: dict[str, Path], vae: Path | str) -> Prior:
    card = dataclasses.replace(find_card(saved_priors["kl"]), vae=str(vae))
    return Prior.load(card, "cpu", "float32")


def test_another_autoencoder_takes_the_place_of_its_own(saved_priors, tmp_path):
    alone = tmp_path / "taesd"
    shutil.copytree(saved_priors["tiny"] / "vae", alone)
    expected = load(saved_priors["tiny"]).encode(images())
    for folder in (alone, saved_priors["tiny"]):  # by itself, or as part of a prior
        assert torch.equal(with_vae(saved_priors, folder).encode(images()), expected)
    own, other = load(saved_priors["kl"]), with_vae(saved_priors, alone)
    text = torch.zeros(2, 7, own.unet.config.cross_attention_dim)
    assert torch.equal(own.predict(latents(), 9, text), other.predict(latents(), 9, text))


def test_an_autoencoder_of_other_latents_is_refused(saved_priors, tmp_path):
    vae = tiny.make_vae("tiny").from_config({**tiny.make_vae("tiny").config, "latent_channels": 7})
    vae.save_pretrained(tmp_path / "seven")
    with pytest.raises(UserError, match=r"reads 4 latent channels.*writes 7"):
        with_vae(saved_priors, tmp_path / "seven")


@pytest.mark.parametrize("spoil", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_an_autoencoder_without_a_file_is_refused(saved_priors, tmp_path, spoil):
    shutil.copytree(saved_priors["tiny"] / "vae", tmp_path / "vae")
    (tmp_path / "vae" / spoil).unlink()
    with pytest.raises(UserError, match=spoil):
        with_vae(saved_priors, tmp_path / "vae")


def test_an_autoencoder_that_is_nowhere_is_refused(saved_priors):
    with pytest.raises(UserError, match=r"system\.guidance\.vae is 'nobody/taesd'.*give a folder"):
        with_vae(saved_priors, "nobody/taesd")


def test_the_trainers_precision_stays_outside(saved_priors):
    """Lightning's 16-mixed and bf16-mixed put a training step under autocast."""
    prior = load(saved_priors["kl"])
    text = torch.zeros(2, 7, prior.unet.config.cross_attention_dim)

    def values() -> list[torch.Tensor]:
        return [prior.encode(images()), prior.decode(latents()), prior.predict(latents(), 500, text)]

    expected = values()
    with torch.autocast("cpu", torch.bfloat16):
        actual = values()
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
