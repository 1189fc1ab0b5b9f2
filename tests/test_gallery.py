"""The gallery: a finished run is graded and shown, not trained again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from threestudio_lucid.gaussians.cloud import gaussians_from_points
from threestudio_lucid.gaussians.ply import read_ply, write_ply
from threestudio_lucid.points import PointCloud
from toybox import cameras, clouds, sdf
from toybox.dataset import composite
from toybox.objects import OBJECTS

PROMPT = "a red mushroom with spots"


@pytest.fixture
def gallery(load_script):
    return load_script("gallery")


@pytest.fixture
def finished(tmp_path) -> Path:
    """What a good run would leave: Gaussians on the surface of what was asked for, and their views."""
    trial = tmp_path / "ism-gs" / PROMPT.replace(" ", "_")
    views = trial / "save/it600-views"
    views.mkdir(parents=True)
    (trial / "configs").mkdir()
    data = {"eval_elevation_deg": 15.0, "eval_camera_distance": 3.0, "eval_fovy_deg": 40.0}
    (trial / "configs/parsed.yaml").write_text(yaml.safe_dump({"data": data}))
    parts = OBJECTS["mushroom"].build("red", np.random.default_rng(0), decoration="spots")
    points, colors = clouds.sample_surface(parts, 8000, np.random.default_rng(0))
    cloud = PointCloud(torch.from_numpy(points).float(), torch.from_numpy(colors).float())
    write_ply(trial / "save/it600.ply", gaussians_from_points(cloud, opacity=0.95, scale=0.6))
    for azimuth in range(0, 360, 45):
        rgba = sdf.render(parts, cameras.orbit(azimuth, 15.0, 3.0), 40.0, 64)
        rgb = (composite(rgba, np.ones(3)) * 255).astype(np.uint8)
        Image.fromarray(rgb).save(views / f"{azimuth:03d}.png")
    (trial / "finished.json").write_text(json.dumps({"seconds": 120.4}))
    return tmp_path


def test_a_good_run_is_measured_so_and_not_repeated(gallery, finished, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n\n")
    assert gallery.main(["--prompts", str(prompts), "--out", str(finished), "--instances", "2"]) == 0
    header, _, row, mean = (finished / "gallery.md").read_text().splitlines()
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert cells["| prompt"] == f"| {PROMPT}" and cells["object and colour"] == "8/8"
    assert float(cells["PSNR, dB"]) > 21 and float(cells["IoU"]) > 0.9
    assert mean.split(" | ")[1:-2] == row.split(" | ")[1:-2]  # there is one alone
    (number,) = json.loads((finished / "gallery.json").read_text())
    assert cells["PSNR, dB"] == f"{number['numbers']['psnr']:.1f}"
    assert "| 120 |" in capsys.readouterr().out
    with Image.open(finished / "gallery.png") as picture:
        assert picture.width > 4 * gallery.CELL


def test_a_run_that_is_far_from_the_truth_fails(gallery, finished, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n")
    asset = finished / "ism-gs" / PROMPT.replace(" ", "_") / "save/it600.ply"
    gaussians = read_ply(asset)
    write_ply(asset, replace(gaussians, sh_dc=-gaussians.sh_dc))  # cyan instead of red
    assert gallery.main(["--prompts", str(prompts), "--out", str(finished), "--instances", "1"]) == 1


def test_a_prompt_that_nobody_can_grade_is_told_of_first(gallery, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a blue mug\na zebra\n")
    with pytest.raises(ValueError, match="zebra"):
        gallery.main(["--prompts", str(prompts), "--out", str(tmp_path)])
    assert not (tmp_path / "ism-gs").exists()
