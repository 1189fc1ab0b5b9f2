"""A ControlNet beside the prior, on tiny models made here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_guidance import batch, guidance, latents, prompts

from threestudio_lucid.errors import UserError
from threestudio_lucid.guidance import control as module
from threestudio_lucid.guidance.combine import Conditioning
from threestudio_lucid.guidance.control import Control, ControlConfig, find_controlnet
from threestudio_lucid.guidance.prior import Prior
from threestudio_lucid.guidance.schedule import NoiseSchedule


def make_controlnet(prior: Path, **changes):
    """One for the tiny prior, its way out not at zero, so that it does something."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_pretrained(prior / "unet")
    settings = {"conditioning_embedding_out_channels": (4, 8, 8)} | changes
    net = ControlNetModel.from_unet(unet, **settings)
    for name, p in net.named_parameters():
        if name.startswith("controlnet_"):
            torch.nn.init.normal_(p, std=0.3)
    return net


@pytest.fixture(scope="session")
def controlnet(saved_priors, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("controlnet") / "tiny"
    make_controlnet(saved_priors["kl"]).save_pretrained(folder)
    return folder


@pytest.fixture
def mug(saved_priors, tmp_path):
    return prompts(saved_priors["kl"], tmp_path)


def pictures(n: int = 3, size: int = 32) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(5))


def gradient(prior, mug, control, condition, name="lucid-ism-guidance", **kwargs) -> torch.Tensor:
    g = guidance(prior, name, control=control, horizontal_flip=0.0, **kwargs)
    z = latents()
    g(z, mug, **batch(), rgb_as_latents=True, condition=condition)["loss_sds"].backward()
    return z.grad


@pytest.mark.parametrize("name", ["lucid-ism-guidance", "lucid-sds-guidance"])
@pytest.mark.parametrize("scores", module.SCORES)
def test_scale_zero_is_no_controlnet(saved_priors, controlnet, mug, name, scores):
    prior, block = saved_priors["kl"], {"model": str(controlnet), "scores": scores}
    without = gradient(prior, mug, None, None, name)
    assert torch.equal(gradient(prior, mug, block | {"scale": 0.0}, pictures(), name), without)
    assert not torch.allclose(gradient(prior, mug, block, pictures(), name), without, rtol=1e-2)


def test_the_picture_matters_and_the_scores_that_see_it(saved_priors, controlnet, mug):
    prior, block = saved_priors["kl"], {"model": str(controlnet)}
    conditional = gradient(prior, mug, block, pictures())
    assert torch.equal(conditional, gradient(prior, mug, block | {"scores": "conditional"}, pictures()))
    assert not torch.allclose(conditional, gradient(prior, mug, block, 1 - pictures()), rtol=1e-3)
    both = gradient(prior, mug, block | {"scores": "both"}, pictures())
    assert not torch.allclose(conditional, both, rtol=1e-2)


def test_which_rows_see_the_picture(saved_priors, controlnet):
    """Of the terms of a guided score, all but the unconditional one; with `both` all; alone, the only one."""
    prior = Prior.load(saved_priors["kl"], "cpu", "float32")
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 40, 12)
    calls = []
    for scores in module.SCORES:
        control = Control.load({"model": str(controlnet), "scores": scores}, prior)
        unguided, guided = control.networks(pictures(2))
        three = guided(x.repeat(3, 1, 1, 1), 300, text.repeat(3, 1, 1)).chunk(3)
        calls.append((unguided(x, 300, text), guided(x, 300, text), *three))
    plain = prior.predict(x, 300, text)
    (u, g, first, second, third), (u_both, g_both, *all_three) = calls
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(u, plain, **close)
    torch.testing.assert_close(first, plain, **close)
    assert (g - plain).abs().max() > 0.1
    for seen in (second, third, u_both, g_both, *all_three):
        torch.testing.assert_close(seen, g, **close)


def test_it_adds_what_diffusers_adds(saved_priors, controlnet):
    """Against the calls of diffusers' own pipeline."""
    from diffusers import ControlNetModel

    prior = Prior.load(saved_priors["kl"], "cpu", "float32")
    x, text, t = torch.randn(2, 4, 8, 8), torch.randn(2, 40, 12), torch.full((2,), 500)
    net = ControlNetModel.from_pretrained(controlnet)
    down, mid = net(x, t, text, pictures(2), conditioning_scale=0.5, return_dict=False)
    expected = prior.unet(
        x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=mid
    ).sample
    _, guided = Control.load({"model": str(controlnet), "scale": 0.5}, prior).networks(pictures(2))
    torch.testing.assert_close(guided(x, 500, text), expected)


def test_part_of_denoising(saved_priors, controlnet):
    """start and end as in diffusers: 0 is pure noise."""
    prior = Prior.load(saved_priors["kl"], "cpu", "float32")
    early = Control.load({"model": str(controlnet), "end": 0.5}, prior)
    late = Control.load({"model": str(controlnet), "start": 0.5}, prior)
    assert isinstance(prior.schedule, NoiseSchedule) and len(prior.schedule) == 1000
    assert [early.active(tau) for tau in (999, 501, 499, 1)] == [True, True, False, False]
    assert [late.active(tau) for tau in (999, 501, 499, 1)] == [False, False, True, True]
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 40, 12)
    _, guided = early.networks(pictures(2))
    assert torch.equal(guided(x, 100, text), prior.predict(x, 100, text))
    assert not torch.equal(guided(x, 900, text), prior.predict(x, 900, text))


def test_scale_follows_its_schedule(saved_priors, controlnet):
    g = guidance(saved_priors["kl"], control={"model": str(controlnet), "scale": [0, 1.0, 0.5, 100]})
    scales = []
    for step in (0, 50, 100, 500):
        g.update_step(0, step)
        scales.append(g.control.scale)
    assert scales == pytest.approx([1.0, 0.75, 0.5, 0.5])


def test_flip_mirrors_the_picture_too(saved_priors, controlnet, mug):
    seen = []
    control = {"model": str(controlnet)}
    for flip in (0.0, 1.0):
        g = guidance(saved_priors["kl"], control=control, horizontal_flip=flip)
        networks = g.control.networks
        g.control.networks = lambda picture, networks=networks: seen.append(picture) or networks(picture)
        z = latents()
        g(z, mug, **batch(), rgb_as_latents=True, condition=pictures())
    assert torch.equal(seen[0], pictures()) and torch.equal(seen[1], pictures().flip(-1))


def test_pictures_of_another_size_keep_their_colours(saved_priors, controlnet):
    prior = Prior.load(saved_priors["kl"], "cpu", "float32")
    control = Control.load({"model": str(controlnet)}, prior)
    small = (pictures(1, 8) > 0.5).float()
    sized = control._sized(small)
    assert sized.shape == (1, 3, 32, 32) and set(sized.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(sized[..., ::4, ::4], small)
    with pytest.raises(ValueError, match="H, W"):
        control._sized(torch.rand(1, 1, 8, 8))


def test_pictures_for_people_see_it_too(saved_priors, controlnet, mug):
    g = guidance(
        saved_priors["kl"], control={"model": str(controlnet)}, horizontal_flip=0.0, max_items_eval=2
    )
    finals = []
    for condition in (pictures(), 1 - pictures()):
        g.update_step(0, 7)
        g._calls = 0
        out = g(latents(), mug, **batch(), rgb_as_latents=True, condition=condition, guidance_eval=True)
        finals.append(out["eval"]["imgs_final"])
    assert finals[0].shape == (2, 32, 32, 3) and not torch.allclose(*finals, atol=1e-3)


def test_conditioning_carries_it():
    z = torch.zeros(3, 40, 12)
    assert Conditioning(z, z, z).picture is None


# --- mistakes -----------------------------------------------------------------------------------------------


def test_a_system_that_gives_no_picture(saved_priors, controlnet, mug):
    g = guidance(saved_priors["kl"], control={"model": str(controlnet)})
    with pytest.raises(UserError, match="lucid-avatar-system"):
        g(latents(), mug, **batch(), rgb_as_latents=True)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("mini", ("mapping", "{model: mini}")),
        ({"modle": "mini"}, ("'modle'", "'model'")),
        ({"scale": 1.0}, ("control.model", "hub id")),
        ({"model": "mini", "scores": "all"}, ("control.scores", "conditional, both")),
        ({"model": "mini", "scale": -1.0}, ("control.scale", "at least 0")),
        ({"model": "mini", "scale": "strong"}, ("control.scale", "a number")),
        ({"model": "mini", "start": 0.5, "end": 0.5}, ("control.start", "control.end")),
        ({"model": "mini", "end": 1.5}, ("control.end", "at most 1")),
    ],
)
def test_mistakes_in_the_block(block, words):
    with pytest.raises(UserError) as caught:
        ControlConfig.parse(block)
    assert all(word in str(caught.value) for word in words)


def told(folder: Path, prior: Path) -> str:
    with pytest.raises(UserError) as caught:
        Control.load({"model": str(folder)}, Prior.load(prior, "cpu", "float32"))
    return str(caught.value)


def test_for_another_base_model(saved_priors, tmp_path):
    from diffusers import ControlNetModel

    shape = {"block_out_channels": (8, 16), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    shape |= {"layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 2}
    wide = ControlNetModel(**shape, cross_attention_dim=16, conditioning_embedding_out_channels=(4, 8, 8))
    wide.save_pretrained(tmp_path / "wide")
    message = told(tmp_path / "wide", saved_priors["kl"])
    assert "another base model" in message and "cross_attention_dim is 16" in message and "12" in message


def test_for_pictures_of_another_size_or_kind(saved_priors, tmp_path):
    make_controlnet(saved_priors["kl"], conditioning_embedding_out_channels=(4, 8, 8, 8)).save_pretrained(
        tmp_path / "large"
    )
    message = told(tmp_path / "large", saved_priors["kl"])
    assert "64 pixels" in message and "have 32" in message
    make_controlnet(saved_priors["kl"], conditioning_channels=1).save_pretrained(tmp_path / "grey")
    assert "1 channels" in told(tmp_path / "grey", saved_priors["kl"])


def test_files(saved_priors, controlnet, tmp_path):
    with pytest.raises(UserError, match="no such folder, and no hub id"):
        find_controlnet("./nowhere")
    with pytest.raises(UserError, match="cannot be fetched"):
        find_controlnet("nobody/no-controlnet-of-this-name")
    (tmp_path / "empty").mkdir()
    assert "config.json is missing" in told(tmp_path / "empty", saved_priors["kl"])
    own = Path(shutil.copytree(controlnet, tmp_path / "own"))
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DConditionModel"}))
    assert "UNet2DConditionModel, no ControlNetModel" in told(own, saved_priors["kl"])
    (own / "config.json").write_text(json.dumps(config))
    weights = own / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert "damaged or incomplete" in told(own, saved_priors["kl"])
    weights.unlink()
    assert "has no diffusion_pytorch_model.safetensors" in told(own, saved_priors["kl"])


def test_weights_of_another_shape(saved_priors, controlnet, tmp_path):
    own = Path(shutil.copytree(controlnet, tmp_path / "own"))
    config = json.loads((own / "config.json").read_text())
    config["conditioning_embedding_out_channels"] = [4, 8, 16]
    (own / "config.json").write_text(json.dumps(config))
    assert "does not fit" in told(own, saved_priors["kl"]) or "do not fit" in told(own, saved_priors["kl"])


def test_a_folder_within_and_plain_pickles_of_weights(saved_priors, controlnet, tmp_path):
    """As published: organisation/model/controlnet/diffusion_pytorch_model.bin, read without running code."""
    from safetensors.torch import load_file

    inner = tmp_path / "model" / "controlnet"
    shutil.copytree(controlnet, inner)
    assert find_controlnet(str(tmp_path / "model")) == inner
    torch.save(
        load_file(inner / "diffusion_pytorch_model.safetensors"), inner / "diffusion_pytorch_model.bin"
    )
    (inner / "diffusion_pytorch_model.safetensors").unlink()
    prior = Prior.load(saved_priors["kl"], "cpu", "float32")
    nets = [Control.load({"model": str(f)}, prior).net for f in (tmp_path / "model", controlnet)]
    assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in nets), strict=True))


def test_pickles_run_no_code(saved_priors, controlnet, tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    own = Path(shutil.copytree(controlnet, tmp_path / "own"))
    (own / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"x": Harm()}, own / "diffusion_pytorch_model.bin")
    assert str(own) in told(own, saved_priors["kl"])
    assert not (tmp_path / "harm").exists()
