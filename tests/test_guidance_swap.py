"""One changed value back: threestudio's own guidance on configs of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_nerf_configs import SHORT as NERF
from tiny import make_vae, save_prior

import threestudio
from threestudio.utils.config import load_config
from threestudio_lucid.errors import UserError
from threestudio_lucid.guidance.swap import fit_autoencoder, translate, weigh

ROOT = Path(__file__).parents[1]
GAUSSIANS = [
    "data.height=16",
    "data.batch_size=2",
    "data.eval_height=16",
    "data.n_test_views=3",
    "system.geometry.init=shape:ball",
    "system.geometry.num_points=50",
    "system.geometry.capacity=100",
    "system.prompt_processor.prompt=abc",
    "trainer.max_steps=2",
    "use_timestamp=false",
]
STOCK = "stable-diffusion-guidance"


@pytest.fixture(scope="session")
def prior(tmp_path_factory):
    return save_prior(tmp_path_factory.mktemp("prior") / "tiny", vae="tiny")


@pytest.mark.parametrize("name", ["ism-gs", "sds-gs", "ism-nerf", "sds-nerf"])
def test_two_steps_with_threestudios_guidance(name, prior, tmp_path, monkeypatch):
    from threestudio.run import Request, run

    told = []
    monkeypatch.setattr(threestudio, "info", told.append)
    given = [
        *(NERF if name.endswith("nerf") else GAUSSIANS),
        f"system.guidance.prior={prior}",
        f"system.guidance_type={STOCK}",
        f"system.prompt_processor.cache_dir={tmp_path}/cache",
        f"exp_root_dir={tmp_path}",
    ]
    run(Request(str(ROOT / f"configs/{name}.yaml"), "train", given, [ROOT / "custom"]))
    weights = torch.load(tmp_path / name / "abc/ckpts/last.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in weights.values() if value.is_floating_point())
    lines = [line for line in told if "a block of ours" in line]
    assert len(lines) == 1
    assert "guidance_scale is 6.5" in lines[0] and "left out: delta_t, delta_t_start, delta_s" in lines[0]


@pytest.mark.parametrize("name", ["ism-gs", "ism-nerf"])
def test_the_block_means_the_same(name, prior):
    cfg = load_config(str(ROOT / f"configs/{name}.yaml"), cli_args=[f"system.guidance.prior={prior}"])
    theirs = set(threestudio.find(STOCK).Config.__dataclass_fields__)
    own = set(threestudio.find("lucid-ism-guidance").Config.__dataclass_fields__)
    block, left_out = translate(dict(cfg.system.guidance), own, theirs)
    assert set(block) <= theirs and block["pretrained_model_name_or_path"] == str(prior)
    assert block["guidance_scale"] == 6.5
    assert block["max_step_percent"] == [0, 0.98, 0.5, cfg.system.guidance.warmup_steps]
    assert {"delta_t", "delta_s"} <= set(left_out)


def test_what_both_know_stays_and_what_neither_knows_is_left_to_the_class():
    own, theirs = (
        {"prior", "delta_t", "min_step_percent", "dtype"},
        {"min_step_percent", "half_precision_weights"},
    )
    block = {"min_step_percent": 0.1, "delta_t": None, "delta": 3, "dtype": "float32"}
    assert translate(block, own, theirs) == (
        {"min_step_percent": 0.1, "delta": 3, "half_precision_weights": False},
        [],
    )


def test_null_leaves_theirs_its_default():
    assert translate({"min_step_percent": None}, {"min_step_percent"}, {"min_step_percent"}) == ({}, [])


@pytest.mark.parametrize("key", ["lora", "embeddings", "control"])
def test_what_theirs_cannot_do_is_refused(key):
    with pytest.raises(UserError, match=rf"system\.guidance\.{key} is not loaded"):
        translate({key: {"model": "mini"}}, {key}, {"min_step_percent"})


@pytest.mark.parametrize("kind", ["tiny", "kl"])
def test_a_vae_as_threestudios_own_guidance_reads_it(kind):
    """It brings pictures to 512 pixels and takes `encode(x).latent_dist.sample()`."""
    vae = make_vae(kind).eval()
    picture = torch.rand(1, 3, 32, 32)
    encoded = vae.encode(picture)
    plain = encoded.latents if kind == "tiny" else encoded.latent_dist.mode()
    fit_autoencoder(vae, 8)
    torch.testing.assert_close(vae.encode(picture).latent_dist.mode(), plain)
    assert vae.encode(torch.rand(1, 3, 512, 512)).latent_dist.sample().shape == (1, 4, 8, 8)
    halves = torch.rand(1, 3, 64, 64, dtype=torch.float16)
    assert vae.half().encode(halves).latent_dist.sample().dtype == torch.float16
    with torch.no_grad():
        assert vae.float().decode(plain).sample.shape == picture.shape


def test_weights_of_losses():
    assert weigh(4, 0.1) == pytest.approx(0.4)
    assert weigh([100, 1.0, 2.0, 200, 3.0, 300], 2) == [100, 2.0, 4.0, 200, 6.0, 300]


@pytest.mark.parametrize("name", ["ism-gs", "ism-nerf"])
def test_a_key_that_nobody_knows_is_told(name, prior, tmp_path):
    from threestudio.run import Request, run

    given = [
        *(NERF if name.endswith("nerf") else GAUSSIANS),
        f"system.guidance.prior={prior}",
        f"system.guidance_type={STOCK}",
        "system.guidance.guidance_scal=3",
        f"exp_root_dir={tmp_path / 'out'}",
    ]
    with pytest.raises(Exception, match=r"guidance_scal.*system\.guidance.*Did you mean") as caught:
        run(Request(str(ROOT / f"configs/{name}.yaml"), "train", given, [ROOT / "custom"]))
    assert caught.value.is_user_error and not (tmp_path / "out").exists()
