"""Every config of Gaussians that ships: it parses, trains, repeats itself, refuses what it does not know."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from tiny import save_prior

import threestudio
import threestudio_lucid  # noqa: F401  (its resolvers and classes)
from threestudio.utils.config import load_config, parse_structured

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(ROOT.glob("configs/*-gs.yaml")) + sorted(
    ROOT.glob("custom/threestudio-lucid/configs/*.yaml")
)
BY_NAME = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)

# Small and short, but every part of a run takes part: density control, relaxation, disparity.
SHORT = [
    "data.height=16",
    "data.batch_size=2",
    "data.eval_height=16",
    "data.n_test_views=3",
    "system.geometry.init=shape:ball",
    "system.geometry.num_points=50",
    "system.geometry.capacity=100",
    "system.density.start=0",
    "system.density.every=1",
    "system.density.until=3",
    "system.as_latent_ratio=0.5",
    "trainer.max_steps=2",
    "use_timestamp=false",
]


@pytest.fixture(scope="session")
def prior(tmp_path_factory):
    """A prior of random weights, with a card."""
    folder = save_prior(tmp_path_factory.mktemp("prior") / "tiny", vae="tiny")
    card = {
        "name": "tiny",
        "path": ".",
        "image_size": 32,
        "latent_size": 8,
        "render_size": 32,
        "num_points": 50,
        "guidance_scale": 3.0,
        "dtype": "float32",
    }
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    return folder


def launch(config, prior, folder, *overrides, stage="train"):
    from threestudio.run import Request, run

    given = [
        *SHORT,
        f"system.guidance.prior={prior}",
        f"exp_root_dir={folder}",
        f"system.prompt_processor.cache_dir={folder}/cache",
        "system.prompt_processor.prompt=abc",
        *overrides,
    ]
    run(Request(config=str(config), stage=stage, overrides=given, custom_folders=[ROOT / "custom"]))
    return folder / config.stem / "abc"


@BY_NAME
def test_two_steps_twice_are_the_same(config, prior, tmp_path):
    results = []
    for run in ("a", "b"):
        save = launch(config, prior, tmp_path / run) / "save"
        metrics = (save / "it2-metrics.json").read_bytes()
        results.append((metrics, (save / "it2.ply").read_bytes()))
        assert (save / "it2-test.mp4").stat().st_size > 0
        assert (save / "it2-views.png").stat().st_size > 0
    assert results[0] == results[1]
    told = json.loads(results[0][0])
    assert (told["prompt"], told["prior"], told["steps"]) == ("abc", "tiny", 2)
    assert all(torch.isfinite(torch.tensor(value)) for value in told["losses"].values())


@BY_NAME
def test_resumed_ends_like_uninterrupted(config, prior, tmp_path):
    whole = launch(
        config, prior, tmp_path / "whole", "trainer.max_steps=4", "checkpoint.every_n_train_steps=1"
    )
    checkpoint = whole / "ckpts/epoch=0-step=2.ckpt"
    resumed = launch(config, prior, tmp_path / "resumed", "trainer.max_steps=4", f"resume='{checkpoint}'")
    for name in ("it4.ply", "it4-metrics.json"):
        assert (whole / "save" / name).read_bytes() == (resumed / "save" / name).read_bytes()


@BY_NAME
@pytest.mark.parametrize("name", ["sd21", "sd15", "mini"])
def test_parses_for_every_prior(config, name):
    cfg = load_config(str(config), cli_args=[f"system.guidance.prior={name}"])
    assert cfg.name == config.stem
    assert cfg.description
    threestudio.find(cfg.data_type)(cfg.data)
    for role in ("guidance", "prompt_processor", "geometry", "renderer", "exporter"):
        cls = threestudio.find(cfg.system[f"{role}_type"])
        parse_structured(cls.Config, cfg.system.get(role, {}))


def test_published_numbers_arrive():
    """The run with Stable Diffusion 2.1 is the released one."""
    cfg = load_config(str(ROOT / "configs/ism-gs.yaml"), cli_args=["system.guidance.prior=sd21"])
    geometry, density, data = cfg.system.geometry, cfg.system.density, cfg.data
    assert cfg.trainer.max_steps == 5000
    assert (data.height, data.width, data.batch_size) == (512, 512, 4)
    assert geometry.num_points == 100_000
    assert (geometry.init, geometry.text_model, geometry.init_color) == ("text", "pointe", False)
    assert list(geometry.lr_means) == [0, 5.6e-4, 5.6e-6, 5000]
    assert geometry.lr_opacities == 0.05
    assert (density.start, density.until, density.every, density.reset_every) == (100, 3000, 100, 300)
    assert (data.relax_every, cfg.system.guidance.warmup_steps) == (500, 1500)
    assert cfg.system.loss.lambda_sds == 4


def test_length_of_the_run_carries_the_timetable():
    cfg = load_config(
        str(ROOT / "configs/ism-gs.yaml"), cli_args=["system.guidance.prior=sd21", "trainer.max_steps=1000"]
    )
    assert cfg.system.density.until == 600
    assert cfg.system.guidance.warmup_steps == 300
    assert cfg.system.geometry.lr_means[3] == 1000
    assert cfg.checkpoint.every_n_train_steps == 250


def test_sds_and_ism_differ_in_one_value():
    ism, sds = (OmegaConf.load(ROOT / f"configs/{name}-gs.yaml") for name in ("ism", "sds"))
    for cfg in (ism, sds):
        del cfg["name"], cfg["description"]
    assert ism.system.guidance_type != sds.system.guidance_type
    ism.system.guidance_type = sds.system.guidance_type
    assert OmegaConf.to_container(ism) == OmegaConf.to_container(sds)


@BY_NAME
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("system.geometry.num_point=3", "num_points"),
        ("system.guidance.delta=3", "delta_t"),
        ("system.densty.every=3", "density"),
        ("data.hight=3", "height"),
        ("trainer.max_step=3", "max_steps"),
        ("sed=3", "seed"),
        ("system.density.evry=3", "every"),
        ("system.guidance.delta_t=long", "delta_t"),
        ("system.guidance.prior=sd12", "No prior is called .sd12."),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(config, prior, tmp_path, override, message):
    with pytest.raises(Exception, match=message) as caught:
        launch(config, prior, tmp_path / "out", override)
    assert caught.value.is_user_error
    assert not (tmp_path / "out" / config.stem).exists()
