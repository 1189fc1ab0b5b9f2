"""The training loop: it converges, repeats itself, survives interruption, and says what is wrong."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from toy import launch, toy_config

import threestudio
from threestudio_lucid.errors import UserError
from threestudio_lucid.gaussians.ply import read_ply


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run, used by many tests."""
    folder = tmp_path_factory.mktemp("run")
    return launch(toy_config(folder), folder)


def results(trial, step=12):
    save = trial / "save"
    return (save / f"it{step}.ply").read_bytes(), (save / f"it{step}-metrics.json").read_bytes()


def test_leaves_its_files(finished):
    save = finished / "save"
    for name in ("it12-test.mp4", "it12-views.png", "it12.ply", "it12-metrics.json"):
        assert (save / name).stat().st_size > 0, name
    assert sorted(p.name for p in (save / "it12-views").iterdir()) == [
        f"{azimuth:03d}.png" for azimuth in range(0, 360, 45)
    ]
    assert (finished / "ckpts/last.ckpt").exists()
    assert (finished / "configs/parsed.yaml").exists()


def test_metrics_tell_the_run(finished):
    metrics = json.loads((finished / "save/it12-metrics.json").read_text())
    assert metrics["prompt"] == "a red ball"
    assert metrics["steps"] == 12
    assert metrics["gaussians"] == len(read_ply(finished / "save/it12.ply"))
    assert metrics["density"]["cloned"] + metrics["density"]["split"] > 0
    assert set(metrics["losses"]) == {"loss", "loss_sds", "loss_tv", "loss_scale"}


def relocating(folder):
    config = toy_config(folder)
    density = {"policy": "relocation", "start": 1, "until": 11, "every": 2, "growth": 1.5, "noise": 10.0}
    config["system"]["density"] = density
    return config


def test_relocation_fills_the_cloud_by_its_budget(tmp_path):
    trial = launch(relocating(tmp_path), tmp_path)
    metrics = json.loads((trial / "save/it12-metrics.json").read_text())
    assert metrics["gaussians"] == 150
    assert metrics["density"]["full_since"] == 10 and metrics["density"]["rounds"] == 5
    assert metrics["density"]["cloned"] - metrics["density"]["pruned"] == 150 - 60


def test_a_relocating_run_resumes_to_the_same_result(tmp_path):
    whole = results(launch(relocating(tmp_path / "a"), tmp_path / "a"))
    trial = launch(relocating(tmp_path / "b"), tmp_path / "b", "trainer.max_steps=8")
    checkpoint = trial / "ckpts/last.ckpt"
    launch(relocating(tmp_path / "b"), tmp_path / "b", f"resume={checkpoint}")
    assert results(trial) == whole


def test_every_nth_step_is_logged(tmp_path):
    trial = launch(toy_config(tmp_path), tmp_path, "trainer.log_every_n_steps=5")
    with (trial / "csv_logs/version_0/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss_sds"]]
    assert [row["step"] for row in rows] == ["4", "9"]  # counted from 0
    assert all(float(row["train/gaussians"]) > 0 and float(row["train/loss"]) > 0 for row in rows)


def test_learns(tmp_path):
    """After 60 steps the middle of every view is red, and the loss a small part of what it was."""
    config = toy_config(tmp_path)
    config["system"]["density"]["until"] = 0
    config["system"]["geometry"] |= {"lr_sh_dc": 0.05, "init_opacity": 0.5}
    trial = launch(config, tmp_path, "trainer.max_steps=60", "checkpoint.every_n_train_steps=60")
    for view in sorted((trial / "save/it60-views").iterdir()):
        middle = np.asarray(Image.open(view))[12:20, 12:20].reshape(-1, 3).mean(0) / 255
        assert np.abs(middle - [0.9, 0.1, 0.1]).max() < 0.15, view.name


def test_same_seed_same_result(finished, tmp_path):
    assert results(launch(toy_config(tmp_path), tmp_path)) == results(finished)


def test_another_seed_another_result(finished, tmp_path):
    config = toy_config(tmp_path)
    config["system"]["seed"] = 1
    assert results(launch(config, tmp_path))[0] != results(finished)[0]


@pytest.mark.parametrize("step", [4, 8])
def test_resumed_run_ends_like_an_uninterrupted_one(finished, tmp_path, step):
    checkpoint = finished / f"ckpts/epoch=0-step={step}.ckpt"
    trial = launch(toy_config(tmp_path), tmp_path, f"resume='{checkpoint}'")
    assert results(trial) == results(finished)


def test_parts_of_a_batch_make_the_same_step(tmp_path):
    """Rendered whole or in two parts, gradients add up to the same."""
    clouds = []
    for accumulate in (1, 2):
        folder = tmp_path / str(accumulate)
        config = toy_config(folder)
        config["system"] |= {"accumulate": accumulate, "as_latent_ratio": 0.0, "density": {"until": 0}}
        config["system"]["renderer"] = {"scale_noise": 0.0, "bg_aug_ratio": 0.0}
        clouds.append(read_ply(launch(config, folder, "trainer.max_steps=3") / "save/it3.ply"))
    # Adam divides by the gradient's size, so rounding of the sums shows in its third digit at worst
    torch.testing.assert_close(clouds[0].means, clouds[1].means, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("last_view_only", "views"), [(False, 2), (True, 1)])
def test_gradients_are_gathered_from_these_views(tmp_path, last_view_only, views):
    config = toy_config(tmp_path)
    config["system"]["density"] = {"last_view_only": last_view_only}
    trial = launch(config, tmp_path, "trainer.max_steps=3", "checkpoint.every_n_train_steps=3")
    state = torch.load(trial / "ckpts/last.ckpt", weights_only=True)["state_dict"]
    assert state["geometry.cloud.grad_count"].max() == 3 * views


def test_batches_whose_size_changes(tmp_path):
    """The list of sizes is no schedule of a loss's weight, and is told before the first step."""
    config = toy_config(tmp_path)
    config["data"] |= {"batch_size": [4, 2, 1], "resolution_milestones": [1, 2]}
    config["system"]["loss"]["lambda_sds"] = "${data.batch_size}"
    with pytest.raises(UserError, match=r"lambda_sds is \[4, 2, 1\].*\$\{staged:\$\{data.batch_size\}\}"):
        launch(config, tmp_path)
    config["system"]["loss"]["lambda_sds"] = "${staged:${data.batch_size}}"
    config["system"]["accumulate"] = 2
    with pytest.raises(UserError, match=r"accumulate=2 does not divide the 1 of data\.batch_size"):
        launch(config, tmp_path)
    config["system"]["accumulate"] = 1
    assert (launch(config, tmp_path, "trainer.max_steps=3") / "save/it3.ply").exists()


@pytest.mark.parametrize(("every", "told"), [(500, True), (4, True), (3, False), (0, False)])
def test_a_run_too_short_for_its_harmonics_says_so(tmp_path, monkeypatch, every, told):
    said = []
    monkeypatch.setattr(threestudio, "warn", said.append)
    config = toy_config(tmp_path)
    config["system"]["geometry"] |= {"sh_degree": 3, "sh_degree_every": every}
    launch(config, tmp_path, "trainer.max_steps=10", "data.n_test_views=2")
    assert any("sh_degree_every" in line for line in said) is told


def test_test_and_export_from_a_checkpoint(finished, tmp_path, capsys):
    config = toy_config(tmp_path)
    checkpoint = f"resume='{finished / 'ckpts/last.ckpt'}'"
    assert results(launch(config, tmp_path, checkpoint, stage="test")) == results(finished)
    trial = launch(config, tmp_path, checkpoint, stage="export")
    assert (trial / "save/it12-export/asset.ply").read_bytes() == results(finished)[0]
    assert f"export asset.ply  {trial}/save/it12-export/asset.ply" in capsys.readouterr().out
    launch(config, tmp_path, checkpoint, stage="validate")
    assert (trial / "save/it12-0.png").exists()


@pytest.mark.parametrize("broken", ["test_step", "save_img_sequence", "_save_sheet"])
def test_the_asset_is_written_before_what_is_drawn_of_it(finished, tmp_path, monkeypatch, broken):
    def fails(*args, **kwargs):
        raise RuntimeError("a bug in what is drawn")

    monkeypatch.setattr(threestudio.find("lucid-dreamer-system"), broken, fails)
    with pytest.raises(RuntimeError, match="a bug in what"):
        launch(toy_config(tmp_path), tmp_path)
    assert results(tmp_path / "toy/run") == results(finished)


def test_an_export_comes_before_its_film(finished, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("a bug in the film")

    monkeypatch.setattr(threestudio.find("lucid-dreamer-system"), "save_img_sequence", fails)
    config = toy_config(tmp_path)
    config["system"]["exporter"] = {"save_video": True}
    with pytest.raises(RuntimeError, match="a bug in the film"):
        launch(config, tmp_path, f"resume={finished / 'ckpts/last.ckpt'}", stage="export")
    assert (tmp_path / "toy/run/save/it12-export/asset.ply").read_bytes() == results(finished)[0]


def test_a_prompt_of_two_lines(tmp_path):
    config = toy_config(tmp_path)
    config["system"]["prompt_processor"]["prompt"] = "a red\nball\n"
    config["trainer"]["max_steps"] = 1
    trial = launch(config, tmp_path)
    assert (trial / "save/it1-views.png").exists() and (trial / "save/it1.ply").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": {"lambda_sds": 1.0, "lambda_tv": 0.1}}, "system.loss.lambda_scale is missing"),
        ({"accumulate": 3}, "accumulate=3 does not divide data.batch_size=2"),
        ({"density": {"grad_treshold": 1}}, "grad_threshold"),
        ({"density": {"reset_opacity": 0.001}}, "must be above density.prune_opacity"),
        ({"optimizer": {"name": "Adam"}}, "system.optimizer is not read"),
        ({"geometry": {"init": "shape:cube"}}, "There is no shape 'cube'"),
        ({"geometry": {"init": "file:none.ply"}}, "There is no file none.ply"),
        ({"geometry": {"num_points": 10, "capacity": 5}}, "num_points is 10"),
        ({"geometry": {"lr_mean": 1}}, "lr_means"),
        ({"geometry": {"lr_means": -1}}, "lr_means is -1; it must be at least 0"),
        ({"geometry": {"lr_means": "fast"}}, "lr_means is 'fast'"),
        ({"geometry": {"lr_quats": [0, 0.1, 0.0, 9]}}, r"lr_quats is \[0, 0.1, 0.0, 9\].*above 0"),
        ({"geometry": {"lr_scales": [0.1, 0.2]}}, r"lr_scales is \[0.1, 0.2\]"),
        ({"adam_betas": 3}, "adam_betas is 3; it must be two numbers"),
        ({"adam_betas": [2, 3]}, r"adam_betas is \[2, 3\]; it must be two numbers"),
        ({"accumulate": "two"}, "accumulate is 'two'; it must be a number"),
        ({"renderer": {"backend": "cuda"}}, "backend is 'cuda'"),
        (
            {"density": {"prune_opacity": 0.2, "start": 0, "every": 1, "reset_every": 0}},
            "No Gaussian is left",
        ),
    ],
)
def test_mistakes_are_told(tmp_path, change, message):
    config = toy_config(tmp_path)
    config["system"] |= change
    with pytest.raises(Exception, match=message) as caught:
        launch(config, tmp_path)
    assert caught.value.is_user_error


def test_checkpoint_of_another_size_is_told(finished, tmp_path):
    config = toy_config(tmp_path)
    config["system"]["geometry"]["capacity"] = 80
    with pytest.raises(UserError, match=r"room for 150 Gaussians, this config for 80.*capacity=150"):
        launch(config, tmp_path, f"resume='{finished / 'ckpts/last.ckpt'}'", "trainer.max_steps=13")


def test_starts_from_a_splat(finished, tmp_path):
    config = toy_config(tmp_path)
    config["system"]["geometry"] |= {"init": f"file:{finished / 'save/it12.ply'}", "capacity": 200}
    config["system"]["density"]["until"] = 0
    trial = launch(config, tmp_path, "trainer.max_steps=1", "checkpoint.every_n_train_steps=1")
    assert len(read_ply(trial / "save/it1.ply")) == len(read_ply(finished / "save/it12.ply"))
