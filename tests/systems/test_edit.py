"""Editing Gaussians: what may not move does not move, by any of the ways to say so, and mistakes are told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from threestudio_lucid.gaussians.cloud import GaussianCloud, gaussians_from_points
from threestudio_lucid.gaussians.ply import read_ply, write_ply
from threestudio_lucid.points.cloud import PointCloud

ROOT = Path(__file__).parents[2]
SHORT = [
    "data.height=16",
    "data.batch_size=2",
    "data.eval_height=16",
    "data.n_test_views=3",
    "system.geometry.capacity=100",
    "system.density.start=0",
    "system.density.every=1",
    "system.density.until=5",
    "system.density.reset_every=2",
    "system.density.grad_threshold=1e-12",
    "system.sheet_views=2",
    "use_timestamp=false",
]


@pytest.fixture(scope="module")
def asset(tmp_path_factory) -> Path:
    """Forty Gaussians in a ball, some of which density control would prune."""
    draws = torch.Generator().manual_seed(0)
    points = 0.5 * torch.randn(40, 3, generator=draws)
    g = gaussians_from_points(PointCloud(points, torch.rand(40, 3, generator=draws)), opacity=0.7)
    g.logit_opacities[::5] = -6.0
    return write_ply(tmp_path_factory.mktemp("asset") / "ball.ply", g)


def edit(asset, prior, folder, *overrides, steps=4, stage="train"):
    from threestudio.run import Request, run

    given = [
        *SHORT,
        f"system.geometry.init=file:{asset}",
        f"system.guidance.prior={prior}",
        f"system.prompt_processor.cache_dir={folder}/cache",
        "system.prompt_processor.source_prompt=ball",
        "system.prompt_processor.prompt=abc",
        f"exp_root_dir={folder}/out",
        "tag=abc",
        f"trainer.max_steps={steps}",
        *overrides,
    ]
    run(Request(str(ROOT / "configs/edit-3d.yaml"), stage, given, [ROOT / "custom"]))
    return folder / "out/edit-3d/abc"


def told(asset, prior, folder, *overrides) -> str:
    with pytest.raises(Exception) as caught:
        edit(asset, prior, folder, *overrides)
    assert getattr(caught.value, "is_user_error", False), repr(caught.value)
    assert not (folder / "out").exists()
    return str(caught.value)


FIELDS = ("means", "quats", "log_scales", "logit_opacities", "sh_dc")


def test_keep_changes_colours_alone_and_repeats_itself(asset, small_prior, tmp_path):
    trial = edit(asset, small_prior, tmp_path / "a")
    before, after = read_ply(asset), read_ply(trial / "save/it4.ply")
    for name in FIELDS[:-1]:
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    assert not torch.equal(before.sh_dc, after.sh_dc)
    kept = read_ply(trial / "save/it4-before.ply")
    assert all(torch.equal(getattr(before, name), getattr(kept, name)) for name in FIELDS)
    assert (trial / "save/it4-edit.png").stat().st_size > 0
    metrics = json.loads((trial / "save/it4-metrics.json").read_text())
    assert (metrics["source_prompt"], metrics["prompt"], metrics["shape"]) == ("ball", "abc", "keep")

    again = edit(asset, small_prior, tmp_path / "b")
    assert (again / "save/it4.ply").read_bytes() == (trial / "save/it4.ply").read_bytes()


@pytest.mark.parametrize("shape", ["keep", "anchor", "free"])
def test_what_is_masked_out_stays_to_the_bit(asset, small_prior, tmp_path, shape):
    given = ["system.mask={box: [[-9, -9, -9], [0, 9, 9]]}", f"system.shape={shape}"]
    trial = edit(asset, small_prior, tmp_path, *given)
    before, after = read_ply(asset), read_ply(trial / "save/it4.ply")
    held = before.means[:, 0] > 0
    assert 5 < held.sum() < 35

    checkpoint = torch.load(trial / "ckpts/last.ckpt", weights_only=True)
    state = checkpoint["state_dict"]
    frozen = state["geometry.cloud.frozen"]
    assert int(frozen.sum()) == int(held.sum())
    for name in FIELDS:
        assert torch.equal(state[f"geometry.cloud.{name}"][frozen], getattr(before, name)[held]), name
    n = len(after)
    if shape == "free":
        assert n != len(before)  # the rest is cloned, split and pruned
    else:
        assert n == len(before)
        assert torch.equal(after.means[held], before.means[held])
    moving = ~frozen[:n]
    assert not torch.equal(after.sh_dc[moving], before.sh_dc[~held])
    for group in checkpoint["optimizer_states"][0]["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            assert (group[name][frozen] == 0).all()


def test_anchor_draws_back(asset, small_prior, tmp_path):
    def moved(weight):
        given = ["system.shape=anchor", f"system.loss.lambda_anchor={weight}"]
        trial = edit(asset, small_prior, tmp_path / str(weight), *given, steps=8)
        return float((read_ply(trial / "save/it8.ply").means - read_ply(asset).means).norm())

    assert 0.0 < moved(1e6) < 0.5 * moved(0)


def test_an_edit_to_itself_changes_little(asset, small_prior, tmp_path):
    quiet = ["system.loss.lambda_tv=0", "system.guidance.reference=delta", "system.adam_eps=1.0"]
    same = edit(asset, small_prior, tmp_path / "a", "system.prompt_processor.source_prompt=abc", *quiet)
    other = edit(asset, small_prior, tmp_path / "b", *quiet)
    before = read_ply(asset).sh_dc
    small, large = ((read_ply(t / "save/it4.ply").sh_dc - before).abs().mean() for t in (same, other))
    assert small < 0.02 * large


def test_resumed_ends_like_uninterrupted_and_needs_no_file(asset, small_prior, tmp_path):
    given = ["system.shape=free", "system.mask={sphere: [0, 0, 0, 0.5]}", "checkpoint.every_n_train_steps=1"]
    copy = tmp_path / "copy.ply"
    copy.write_bytes(asset.read_bytes())
    whole = edit(copy, small_prior, tmp_path / "whole", *given)
    copy.unlink()
    checkpoint = whole / "ckpts/epoch=0-step=2.ckpt"
    resumed = edit(copy, small_prior, tmp_path / "resumed", *given, f"resume='{checkpoint}'")
    for name in ("it4.ply", "it4-before.ply", "it4-metrics.json"):
        assert (whole / "save" / name).read_bytes() == (resumed / "save" / name).read_bytes()


def test_a_checkpoint_can_be_edited(asset, small_prior, tmp_path):
    cloud = GaussianCloud(100)
    cloud.assign(read_ply(asset))
    state = {f"geometry.cloud.{name}": value for name, value in cloud.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 0, "global_step": 7}, tmp_path / "last.ckpt")
    weights = f"system.weights={tmp_path}/last.ckpt"
    trial = edit(asset, small_prior, tmp_path, "system.geometry.init=shape:ball", weights)
    assert torch.equal(read_ply(trial / "save/it4.ply").means, read_ply(asset).means)


def test_a_file_may_hold_more_than_the_capacity(asset, small_prior, tmp_path):
    """Then the cloud has room for what is in the file; resuming knows it without the file."""
    small = [
        "system.geometry.num_points=10",
        "system.geometry.capacity=20",
        "checkpoint.every_n_train_steps=1",
    ]
    copy = tmp_path / "copy.ply"
    copy.write_bytes(asset.read_bytes())
    whole = edit(copy, small_prior, tmp_path / "whole", *small, "system.shape=free")
    assert json.loads((whole / "save/it4-metrics.json").read_text())["capacity"] == 40
    assert len(read_ply(whole / "save/it4-before.ply")) == 40
    copy.unlink()
    given = [*small, "system.shape=free", f"resume={whole / 'ckpts/epoch=0-step=2.ckpt'}"]
    resumed = edit(copy, small_prior, tmp_path / "resumed", *given)
    for name in ("it4.ply", "it4-before.ply", "it4-metrics.json"):
        assert (whole / "save" / name).read_bytes() == (resumed / "save" / name).read_bytes()


@pytest.mark.parametrize("capacity", [20, 60])
def test_weights_fit_any_capacity(asset, small_prior, tmp_path, capacity):
    cloud = GaussianCloud(100)
    cloud.assign(read_ply(asset))
    state = {f"geometry.cloud.{name}": value for name, value in cloud.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 0, "global_step": 7}, tmp_path / "last.ckpt")
    given = [f"system.weights={tmp_path}/last.ckpt", f"system.geometry.capacity={capacity}"]
    given += ["system.geometry.init=shape:ball", "system.geometry.num_points=10"]
    trial = edit(asset, small_prior, tmp_path, *given)
    assert torch.equal(read_ply(trial / "save/it4.ply").means, read_ply(asset).means)
    assert json.loads((trial / "save/it4-metrics.json").read_text())["capacity"] == max(capacity, 40)


MISTAKES = {
    "system.shape=kept": "shape is 'kept'; it must be one of: keep, anchor, free",
    "system.mask={box: [[1, 0, 0], [0, 1, 1]]}": "the low one first",
    "system.mask={box: [[8, 8, 8], [9, 9, 9]]}": "none of 40 Gaussians",
    "system.mask={indices: nowhere.txt}": "no file nowhere.txt",
    "system.mask={sphre: [0, 0, 0, 1]}": "'sphere'",
    "system.geometry.init=shape:ball": "nothing to edit",
    "system.geometry.init=file:nowhere.ply": "no file nowhere.ply",
    "system.guidance.reference=delat": "delta",
    "system.prompt_processor.prompt=''": "no prompt",
    "system.loss.lambda_ancor=1": "lambda_anchor",
    "system.geometry.capacity=30": "at most 30",
}


@pytest.mark.parametrize(("override", "words"), MISTAKES.items(), ids=MISTAKES)
def test_mistakes_are_told_before_training(asset, small_prior, tmp_path, override, words):
    assert words in told(asset, small_prior, tmp_path, override)


def test_points_are_no_gaussians(small_prior, tmp_path):
    import trimesh

    file = tmp_path / "points.ply"
    trimesh.PointCloud(np.random.default_rng(0).random((20, 3))).export(file)
    assert "no file of Gaussians" in told(file, small_prior, tmp_path)
    file.write_text(
        "ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nproperty float y\nproperty float z\n"
        + "".join(f"property float {p}\n" for p in ("f_dc_0", "f_dc_1", "f_dc_2", "opacity"))
        + "".join(f"property float {p}\n" for p in ("scale_0", "scale_1", "scale_2", "rot_0", "rot_1"))
        + "property float rot_2\nproperty float rot_3\nend_header\n"
    )
    assert "holds no points" in told(file, small_prior, tmp_path)


@pytest.mark.parametrize("prior", ["sd21", "sd15", "mini"])
@pytest.mark.parametrize("name", ["edit-3d", "edit-2d"])
def test_configs_parse_for_every_prior(name, prior):
    import threestudio
    from threestudio.utils.config import load_config, parse_structured

    cfg = load_config(str(ROOT / f"configs/{name}.yaml"), cli_args=[f"system.guidance.prior={prior}"])
    assert cfg.name == name and cfg.description
    parse_structured(threestudio.find(cfg.system_type).Config, cfg.system)
    for role in ("guidance", "prompt_processor", "geometry", "renderer", "exporter"):
        if f"{role}_type" in cfg.system:
            cls = threestudio.find(cfg.system[f"{role}_type"])
            parse_structured(cls.Config, cfg.system.get(role, {}))
