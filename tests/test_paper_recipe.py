"""`system.guidance.recipe: paper` is Algorithm 1 in every shipped config of ISM, whatever the prior says."""

import itertools
from pathlib import Path

import pytest
import torch

import threestudio
import threestudio_lucid  # noqa: F401  (its resolvers and classes)
from threestudio.utils.config import load_config

ROOT = Path(__file__).parents[1]
ISM = ("lucid-ism-guidance", "lucid-edit-guidance")
CONFIGS = [
    path
    for path in sorted(ROOT.glob("configs/*.yaml"))
    if any(f"guidance_type: {name}" in path.read_text() for name in ISM)
]
BY_NAME = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)


def read(config: Path, prior: object, *overrides: str):
    """A shipped config for any prior, as a run would read it."""
    given = [f"system.guidance.prior={prior}", *overrides]
    if config.stem == "lora":
        given += ["system.guidance.lora=null", "system.guidance.embeddings=null"]
    if config.stem == "edit-2d":
        given.append("data.picture=none.png")
    return load_config(str(config), cli_args=given)


def guidance_of(config: Path, prior: object, *overrides: str):
    """The guidance as a run would make it."""
    cfg = read(config, prior, "system.guidance.control=null", *overrides)
    return threestudio.find(cfg.system.guidance_type)(cfg.system.guidance), cfg


def test_all_are_here():
    assert {path.stem for path in CONFIGS} == {"ism-gs", "ism-nerf", "lora", "avatar", "edit-2d", "edit-3d"}


@BY_NAME
def test_numbers_of_algorithm_1(config, small_prior):
    guidance, cfg = guidance_of(config, small_prior, "system.guidance.recipe=paper")
    assert guidance.settings == {
        "delta_t": 50,
        "delta_t_start": 50,
        "delta_s": 200,
        "xs_inv_steps": 5,
        "min_step_percent": 0.0,
        "max_step_percent": 1.0,
        "max_step_percent_end": 1.0,
        "warmup_steps": 0,
    }
    for step in (0, cfg.trainer.max_steps // 2, cfg.trainer.max_steps - 1):
        guidance.update_step(0, step)
        taus = [guidance.prior.schedule.timestep(i) for i in (guidance.min_step, guidance.max_step)]
        assert taus == [1, 999]


@BY_NAME
@pytest.mark.parametrize("prior", ["mini", "sd21"])
def test_numbers_in_the_config(config, prior):
    """What parsed.yaml says, too, for the priors that have recipes of their own."""
    told = read(config, prior, "system.guidance.recipe=paper").system.guidance
    assert (told.delta_t, told.delta_t_start, told.delta_s) == (50, 50, 200)
    assert (told.max_step_percent_end, told.warmup_steps) == (1.0, 0)


def test_what_the_user_says_wins(small_prior):
    paper = "system.guidance.recipe=paper"
    config = ROOT / "configs/ism-gs.yaml"
    guidance, _ = guidance_of(config, small_prior, paper, "system.guidance.delta_t=80")
    assert (guidance.settings["delta_t"], guidance.settings["delta_t_start"]) == (80, 80)
    guidance, _ = guidance_of(config, small_prior, paper, "system.guidance.max_step_percent=0.7")
    assert guidance.settings["max_step_percent_end"] == 0.7
    given = ["warmup_steps=100", "delta_t_start=90", "delta_s=100", "min_step_percent=0.02"]
    guidance, _ = guidance_of(config, small_prior, paper, *(f"system.guidance.{item}" for item in given))
    told = [guidance.settings[item.partition("=")[0]] for item in given]
    assert told == [100, 90, 100, 0.02]


def test_the_released_recipe_stays(small_prior):
    guidance, _ = guidance_of(ROOT / "configs/ism-gs.yaml", small_prior)
    assert guidance.settings["warmup_steps"] == 1500
    assert (guidance.settings["delta_t"], guidance.settings["delta_t_start"]) == (50, 100)
    assert guidance.settings["max_step_percent_end"] == 0.5


def test_a_step_of_it(small_prior, tmp_path, monkeypatch):
    """Through the shipped config: from the clean latents, without text, in equal strides, against no text."""
    config = ROOT / "configs/ism-gs.yaml"
    guidance, _ = guidance_of(config, small_prior, "system.guidance.recipe=paper")
    told = {"prior": str(small_prior), "prompt": "a mug", "negative_prompt": "ugly"}
    prompts = threestudio.find("lucid-prompt-processor")(told | {"cache_dir": str(tmp_path)})()
    calls, predict = [], type(guidance.prior).predict

    def note(self, x, tau, embeddings):
        calls.append((x, tau, embeddings))
        return predict(self, x, tau, embeddings)

    monkeypatch.setattr(type(guidance.prior), "predict", note)
    guidance.cfg.horizontal_flip = 0.0
    z = torch.randn(2, 8, 8, 4, generator=torch.Generator().manual_seed(0))
    views = {"elevation": torch.zeros(2), "azimuth": torch.zeros(2), "camera_distances": torch.ones(2)}
    out = guidance(z, prompts, **views, rgb_as_latents=True)

    *inversion, at_s, at_t = calls
    empty = guidance.prior.encode_text([""])
    assert torch.equal((inversion or [at_s])[0][0], z.permute(0, 3, 1, 2))  # no noise is added
    taus = [tau for _, tau, _ in calls]
    assert taus[0] == 0 and taus[-1] == out["timestep"] and taus[-2] == taus[-1] - 50
    strides = [b - a for a, b in itertools.pairwise(taus[:-1])]
    assert max(strides) <= 200 and max(strides) - min(strides) <= 1
    for _, _, embeddings in (*inversion, at_s):
        torch.testing.assert_close(embeddings, empty.expand(2, -1, -1))
    torch.testing.assert_close(at_t[2][:2], empty.expand(2, -1, -1))
