"""The configs of NeRFs: they parse for every prior, train, repeat themselves, resume, take stock guidance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tiny import save_prior

import threestudio
import threestudio_lucid  # noqa: F401  (its resolvers and classes)
from threestudio.utils.config import load_config, parse_structured
from threestudio_lucid.errors import UserError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(ROOT.glob("configs/*-nerf.yaml"))
BY_NAME = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)

SHORT = [
    "data.height=8",
    "data.batch_size=2",
    "data.eval_height=8",
    "data.n_test_views=2",
    "system.geometry.pos_encoding_config.n_levels=2",
    "system.geometry.pos_encoding_config.log2_hashmap_size=8",
    "system.renderer.num_samples_per_ray=16",
    "system.prompt_processor.prompt=abc",
    "trainer.max_steps=2",
    "use_timestamp=false",
]


@pytest.fixture(scope="session")
def prior(tmp_path_factory):
    return save_prior(tmp_path_factory.mktemp("prior") / "tiny", vae="tiny")


def launch(config, prior, folder, *overrides, stage="train"):
    from threestudio.run import Request, run

    given = [
        *SHORT,
        f"system.guidance.prior={prior}",
        f"system.prompt_processor.cache_dir={folder}/cache",
        f"exp_root_dir={folder}",
        *overrides,
    ]
    run(Request(config=str(config), stage=stage, overrides=given, custom_folders=[ROOT / "custom"]))
    return folder / config.stem / "abc"


def weights(trial, step=2):
    return torch.load(trial / "ckpts/last.ckpt", weights_only=True)["state_dict"]


@BY_NAME
def test_two_steps_twice_are_the_same_and_leave_pictures(config, prior, tmp_path):
    trials = [launch(config, prior, tmp_path / run) for run in ("a", "b")]
    first, second = (weights(trial) for trial in trials)
    assert all(torch.equal(first[name], second[name]) for name in first)
    save = trials[0] / "save"
    for name in ("it2-0.png", "it2-test/0.png", "it2-test/1.png", "it2-test.mp4"):
        assert (save / name).stat().st_size > 0, name


@BY_NAME
def test_resumed_ends_like_uninterrupted(config, prior, tmp_path):
    longer = ["trainer.max_steps=4", "checkpoint.every_n_train_steps=1"]
    whole = launch(config, prior, tmp_path / "whole", *longer)
    checkpoint = whole / "ckpts/epoch=0-step=2.ckpt"
    resumed = launch(config, prior, tmp_path / "resumed", *longer, f"resume='{checkpoint}'")
    first, second = weights(whole), weights(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)


@BY_NAME
@pytest.mark.parametrize("name", ["sd21", "sd15", "mini"])
def test_parses_for_every_prior(config, name):
    cfg = load_config(str(config), cli_args=[f"system.guidance.prior={name}"])
    assert cfg.name == config.stem and cfg.description
    threestudio.find(cfg.data_type)(cfg.data)
    roles = ("guidance", "prompt_processor", "geometry", "material", "background", "renderer", "exporter")
    for role in roles:
        cls = threestudio.find(cfg.system[f"{role}_type"])
        parse_structured(cls.Config, cfg.system.get(role, {}))


def test_sds_and_ism_differ_in_one_value():
    ism, sds = (OmegaConf.load(ROOT / f"configs/{name}-nerf.yaml") for name in ("ism", "sds"))
    for cfg in (ism, sds):
        del cfg["name"], cfg["description"]
    assert ism.system.guidance_type != sds.system.guidance_type
    ism.system.guidance_type = sds.system.guidance_type
    assert OmegaConf.to_container(ism) == OmegaConf.to_container(sds)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("system.geometry.radios=3", "radius"),
        ("system.guidance.delta=3", "delta_t"),
        ("system.loss.lambda_sparsity=[1,2]", "Schedule"),
        ("system.renderer_type=nerf-volume-rendere", r"system\.renderer_type in .*nerf-volume-renderer"),
        ("system.material_type=lucid-ism-guidance", "registered as guidance"),
        ("system.renderer.num_samples_per_ray=many", r"system\.renderer\.num_samples_per_ray"),
    ],
)
def test_mistakes_are_told(prior, tmp_path, override, message):
    with pytest.raises(Exception, match=message) as caught:
        launch(CONFIGS[0], prior, tmp_path / "out", override)
    assert caught.value.is_user_error


def test_a_rate_of_a_million_is_undone_and_ends_the_run(prior, tmp_path):
    config = ROOT / "configs/ism-nerf.yaml"
    with pytest.raises(
        UserError, match=r"Step 4: .* is 1e\+06 large.*system.optimizer.args.lr \(now 1e\+06\)"
    ):
        launch(config, prior, tmp_path, "system.optimizer.args.lr=1e6", "trainer.max_steps=6")


def test_a_scale_beyond_all_sense_ends_the_run(prior, tmp_path):
    config = ROOT / "configs/ism-nerf.yaml"
    with pytest.raises(
        UserError, match=r"Step 10: the difference of the scores .*guidance_scale \(now 1e\+09\)"
    ):
        launch(config, prior, tmp_path, "system.guidance.guidance_scale=1e9", "trainer.max_steps=12")
