"""configs/lora.yaml from the command line: it trains, any config takes a LoRA, mistakes are exit code 2."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from test_guidance_swap import GAUSSIANS

import threestudio
import threestudio_lucid  # noqa: F401  (its resolvers and classes)
from threestudio.utils.config import load_config

ROOT = Path(__file__).parents[1]
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_LAYER = "text_model.encoder.layers.0.self_attn.q_proj"


def save_lora(folder: Path, width: int = 16) -> Path:
    """A LoRA of the tiny prior's two models, and a word beside it."""
    folder.mkdir(parents=True)
    draws = torch.Generator().manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=draws)

    state = {
        f"unet.{LAYER}.lora_A.weight": random(2, width),
        f"unet.{LAYER}.lora_B.weight": random(width, 2),
        f"text_encoder.{TEXT_LAYER}.lora_A.weight": random(2, 12),
        f"text_encoder.{TEXT_LAYER}.lora_B.weight": random(12, 2),
    }
    save_file(state, folder / "pytorch_lora_weights.safetensors")
    save_file({"sks": random(2, 12)}, folder / "learned_embeds.safetensors")
    return folder


@pytest.fixture
def prior(small_prior, tmp_path) -> Path:
    """The tiny prior with a LoRA called stripes, as the config names it."""
    folder = Path(shutil.copytree(small_prior, tmp_path / "prior"))
    save_lora(folder / "lora" / "stripes")
    return folder


def arguments(prior: Path, folder: Path, *overrides: str) -> list[str]:
    return [
        *(value for value in GAUSSIANS if "prompt=" not in value),
        f"system.guidance.prior={prior}",
        f"system.prompt_processor.cache_dir={folder}/cache",
        f"exp_root_dir={folder / 'out'}",
        *overrides,
    ]


@pytest.fixture
def launch(monkeypatch):
    """The command line in this process, for a config and overrides; returns its exit code."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", "0"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("launch", ROOT / "launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    logger = threestudio.logger
    state = (logger.handlers, logger.propagate, logger.level)
    yield lambda name, given: module.main(["--config", str(ROOT / f"configs/{name}.yaml"), "--train", *given])
    logger.handlers, logger.propagate, logger.level = state


def test_two_steps_twice_are_the_same_and_the_lora_matters(prior, tmp_path, launch, monkeypatch):
    told = []
    monkeypatch.setattr(threestudio, "info", told.append)
    results = {}
    runs = {"a": [], "b": [], "weak": ["system.guidance.lora={path: stripes, weight: 0.1}"]}
    for name, overrides in runs.items():
        assert launch("lora", arguments(prior, tmp_path / name, *overrides)) == 0
        results[name] = (tmp_path / name / "out/lora/a_sks_mug/save/it2.ply").read_bytes()
    assert results["a"] == results["b"] != results["weak"]
    assert any("with LoRA stripes (1), word 'sks'" in line for line in told)


def test_it_is_ism_gs_but_for_the_prior_and_what_is_added():
    plain, lora = (
        OmegaConf.to_container(OmegaConf.load(ROOT / f"configs/{n}.yaml")) for n in ("ism-gs", "lora")
    )
    for cfg in (plain, lora):
        for key in ("name", "description"):
            del cfg[key]
        for key in ("prior", "lora", "embeddings"):
            del cfg["system"]["guidance"][key]
        del cfg["system"]["prompt_processor"]["prompt"]
    assert plain == lora


@pytest.mark.parametrize(
    "name", ["ism-gs", "sds-gs", "ism-nerf", "sds-nerf", "edit-2d", "edit-3d", "avatar", "lora"]
)
def test_every_config_takes_a_lora_by_one_key(name, prior):
    given = "[{path: stripes, weight: 0.5}]"
    overrides = [f"system.guidance.prior={prior}", f"system.guidance.lora={given}"]
    overrides += ["system.guidance.embeddings=stripes"]
    system = load_config(str(ROOT / f"configs/{name}.yaml"), cli_args=overrides).system
    for key in ("lora", "embeddings"):
        assert system.prompt_processor[key] == system.guidance[key] != None  # noqa: E711


def test_points_are_drawn_of_the_prompt_without_the_words(prior):
    def init_prompt(*overrides: str) -> str:
        given = [
            f"system.guidance.prior={prior}",
            "system.prompt_processor.prompt=a sks mug of plaid",
            *overrides,
        ]
        return load_config(str(ROOT / "configs/lora.yaml"), cli_args=given).system.geometry.init_prompt

    assert init_prompt() == "a mug of plaid"
    assert init_prompt("system.guidance.lora={path: stripes, trigger: of plaid}") == "a mug"
    assert init_prompt("system.guidance.embeddings=null") == "a sks mug of plaid"


MISTAKES = {
    "of another base model": (["system.guidance.lora={other}"], "made for another base model"),
    "word of another width": (["system.guidance.embeddings={wide}"], "takes 12: it was made for another"),
    "missing": (["system.guidance.lora=gone.safetensors"], "there is no gone.safetensors"),
    "no LoRA": (["system.guidance.lora={wide}"], "is no LoRA"),
    "prompt without it": (["system.prompt_processor.lora=null"], "system.prompt_processor.lora to ${{system"),
    "another guidance": (
        ["system.guidance_type=stable-diffusion-guidance"],
        "use lucid-ism-guidance or, for SDS",
    ),
    "misspelt": (["system.guidance.lora={{path: stripes, wight: 1}}"], "Did you mean 'weight'?"),
}


@pytest.mark.parametrize(("overrides", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_with_one_message_and_code_2(prior, tmp_path, launch, capsys, overrides, message):
    wide = tmp_path / "wide.safetensors"
    save_file({"sks": torch.zeros(768)}, wide)
    other = save_lora(tmp_path / "other", width=32)
    overrides = [override.format(other=other, wide=wide) for override in overrides]
    assert launch("lora", arguments(prior, tmp_path, *overrides)) == 2
    told = capsys.readouterr()
    assert message.format().lower() in " ".join((told.out + told.err).split()).lower()
    assert "Traceback" not in told.out + told.err
    assert not (tmp_path / "out").exists()


def test_an_unknown_trigger_is_told(prior, tmp_path, launch, capsys):
    """The bundled prior with a LoRA, and a word that neither brings."""
    given = [
        *arguments(prior, tmp_path),
        "system.guidance.prior=mini",
        "system.prompt_processor.prompt=a zwx mug",
    ]
    given += ["system.guidance.lora=null", "system.guidance.embeddings=null"]
    assert launch("lora", given) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "does not know 'zwx'" in told and "system.guidance.embeddings=FILE" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.graded
def test_the_bundled_lora_in_three_dimensions(tmp_path):
    """A shorter run than the config's: the stripes are on all sides of the mug."""
    from toybox import pattern

    command = [sys.executable, "launch.py", "--config", "configs/lora.yaml", "--train"]
    given = ["trainer.max_steps=300", "use_timestamp=false", f"exp_root_dir={tmp_path}"]
    done = subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-4000:]
    found = [value for _, value in pattern.grade_views(tmp_path / "lora/a_sks_mug")]
    assert len(found) == 8
    assert sum(value > pattern.THRESHOLD for value in found) >= 7, found
