"""The ceiling of a run: structural similarity by hand, and a short run that is shown the truth."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from threestudio_lucid.gaussians.cloud import gaussians_from_points
from threestudio_lucid.gaussians.ply import read_ply, write_ply
from threestudio_lucid.points import PointCloud
from toybox import captions
from toybox.ceiling import train_ceiling
from toybox.ceiling.ssim import C1, C2, ssim
from toybox.clouds import sample_surface
from toybox.grade.commands import main
from toybox.truth import build

PROMPT = "a red mushroom"


def test_ssim_of_constant_pictures_is_about_their_light():
    a, b = torch.full((2, 3, 16, 16), 0.2), torch.full((2, 3, 16, 16), 0.6)
    assert ssim(a, a).item() == pytest.approx(1.0)
    expected = (2 * 0.2 * 0.6 + C1) / (0.2**2 + 0.6**2 + C1)
    assert ssim(a, b).item() == pytest.approx(expected, rel=1e-3)  # float32 variances of 0


def test_ssim_of_one_window_by_the_definition():
    """11 x 11 pixels are one window: weighted moments, all in float64."""
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 11, 11))
    line = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5**2))
    w = np.outer(line, line) / line.sum() ** 2
    ma, mb = (w * a).sum(), (w * b).sum()
    va, vb, cov = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
    expected = (2 * ma * mb + C1) * (2 * cov + C2) / ((ma**2 + mb**2 + C1) * (va + vb + C2))
    pictures = (torch.from_numpy(x)[None, None].double() for x in (a, b))
    assert ssim(*pictures).item() == pytest.approx(expected, rel=1e-9)


@pytest.fixture
def run(tmp_path, root):
    """A run of the command line that left what it began with: the right shape, in grey."""
    folder = tmp_path / "outputs/ism-gs/mushroom"
    points, _ = sample_surface(build(captions.parse(PROMPT), 0), 1500, np.random.default_rng(0))
    cloud = PointCloud(torch.from_numpy(points).float(), torch.full((1500, 3), 0.5))
    grey = write_ply(folder / "save/it40.ply", gaussians_from_points(cloud, opacity=0.5, scale=0.6))
    config = yaml.safe_load((root / "configs/ism-gs.yaml").read_text())
    config["data"] |= {"height": 64, "width": 64, "eval_height": 32, "eval_width": 32}
    for key, value in (("elevation_deg", 15.0), ("camera_distance", 3.0), ("fovy_deg", 40.0)):
        config["data"][f"eval_{key}"] = value
    system = config["system"]
    system["guidance"]["prior"] = "mini"
    system["prompt_processor"]["prompt"] = PROMPT
    system["geometry"] |= {"init": f"file:{grey}", "num_points": 1500, "capacity": 1600}
    system["geometry"]["lr_sh_dc"] = 0.1  # forty steps are few for colours
    config["trainer"] |= {"max_steps": 40, "enable_progress_bar": False}
    (folder / "configs").mkdir(parents=True)
    (folder / "configs/parsed.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_ceiling_is_trained_on_the_truth_and_stands_beside_the_asset(run, capsys):
    assert main(["truth", str(run), "--instances", "1", "--ceiling", "--json", "--sheet"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["ceiling"]["psnr"] > numbers["psnr"] + 4
    assert numbers["ceiling"]["fuzz"] < numbers["fuzz"]
    with Image.open(run / "truth.png") as sheet:
        assert sheet.size == (8 * 130 - 2, 3 * 130 - 2)

    # it lies beside the run, and is trained once
    made = run.with_name("mushroom-ceiling-0") / "save/it40.ply"
    assert 1500 <= len(read_ply(made)) <= 1600
    written = made.stat().st_mtime_ns
    assert main(["truth", str(run), "--instances", "1", "--ceiling"]) == 0
    assert made.stat().st_mtime_ns == written
    header, first, *_ = capsys.readouterr().out.splitlines()[1:]
    assert header.split() == ["asset", "ceiling"] and first.startswith("PSNR")


def test_mistakes(run, capsys):
    assert main(["truth", str(run), "--instances", "1", "--ceiling", "--prompt", PROMPT]) == 2
    assert "--prompt" in capsys.readouterr().err
    with pytest.raises(ValueError, match="made by dreamfusion-system"):
        config = yaml.safe_load((run / "configs/parsed.yaml").read_text())
        config["system_type"] = "dreamfusion-system:lucid-guidance-swap"
        (run / "configs/parsed.yaml").write_text(yaml.safe_dump(config))
        train_ceiling(run, 0)
