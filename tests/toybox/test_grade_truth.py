"""Assets against the truth: a true object, one of another size, Gaussians in a run's folder, mistakes."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from threestudio_lucid.gaussians.cloud import gaussians_from_points
from threestudio_lucid.gaussians.ply import write_ply
from threestudio_lucid.points.cloud import PointCloud
from toybox import captions, clouds, truth
from toybox.grade.commands import main
from toybox.grade.drawing import AZIMUTHS
from toybox.grade.truth import SIZE, TOYBOX, grade_truth, nearest_truth

PROMPT = "a red mug"
SPEC = captions.parse(PROMPT)


def looking_at(seed: int, size: float = 1.0):
    """A true instance as an asset, in another size."""
    parts = truth.build(SPEC, seed)

    def views(camera):
        look = camera.elevation, camera.distance / size, camera.fovy
        return truth.draw(parts, AZIMUTHS, *look, 48)

    return views


def gaussians_of(seed: int = 0, points: int = 6000):
    xyz, rgb = clouds.sample_surface(truth.build(SPEC, seed), points, np.random.default_rng(0))
    cloud = PointCloud(torch.from_numpy(xyz).float(), torch.from_numpy(rgb).float())
    return gaussians_from_points(cloud, opacity=0.95, scale=0.6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a run that made a mug leaves: its config, and Gaussians of two steps, the later one good."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "configs").mkdir()
    data = {"eval_elevation_deg": 15.0, "eval_camera_distance": 3.0, "eval_fovy_deg": 40.0}
    config = {"data": data, "system": {"prompt_processor": {"prompt": PROMPT}}}
    (folder / "configs/parsed.yaml").write_text(yaml.safe_dump(config))
    g = gaussians_of()
    write_ply(folder / "save/it20.ply", replace(g, means=g.means + 0.5))
    write_ply(folder / "save/it100.ply", g)
    write_ply(folder / "save/it200-before.ply", replace(g, means=g.means + 0.5))
    return folder


def test_a_true_instance_is_found_among_others_and_is_perfect():
    truths = [looking_at(seed)(TOYBOX) for seed in range(4)]
    verdict = nearest_truth(looking_at(2), truths, TOYBOX)
    assert (verdict.instance, verdict.scale) == (2, 1.0)
    assert verdict.likeness.psnr == verdict.unscaled == math.inf
    assert (verdict.likeness.iou, verdict.likeness.fuzz) == (1.0, 1.0)
    assert (verdict.likeness.holes, verdict.likeness.strays) == (0.0, 0.0)
    assert 15 < verdict.another < 60
    assert nearest_truth(looking_at(0), truths[:1], TOYBOX).another is None


@pytest.mark.parametrize("size", [0.8, 1.1])
def test_another_size_is_found_and_undone(size):
    verdict = nearest_truth(looking_at(0, size), [looking_at(0)(TOYBOX)], TOYBOX)
    assert verdict.scale == pytest.approx(1 / size, abs=0.006)
    assert verdict.likeness.psnr > 30 > verdict.unscaled
    assert verdict.likeness.iou > 0.98


def test_gaussians_of_a_run_are_measured_and_shown(run, tmp_path, capsys):
    assert main(["truth", str(run), "--instances", "2", "--sheet"]) == 0
    text = capsys.readouterr()
    assert text.out.startswith(f"{PROMPT}\nPSNR") and str(run / "truth.png") in text.err
    with Image.open(run / "truth.png") as sheet:
        assert sheet.size == (8 * (SIZE + 2) - 2, 2 * (SIZE + 2) - 2)
        above, below = (np.asarray(sheet, float)[k : k + SIZE] / 255 for k in (0, SIZE + 2))
    assert 18 < -10 * math.log10(np.square(above - below).mean()) < 40  # alike, and not the same

    # a file of the run, an earlier step, and the numbers for programs
    assert main(["truth", str(run / "save/it20.ply"), "--instances", "2", "--json"]) == 0
    moved = json.loads(capsys.readouterr().out)
    good = grade_truth(run, instances=2).numbers()
    assert 0.9 <= good["scale"] <= 1.02 and good["psnr"] > 18 and good["iou"] > 0.9 and good["strays"] < 0.01
    assert moved["prompt"] == PROMPT and moved["psnr"] < good["psnr"] - 5 and moved["strays"] > 0.1

    # a file that belongs to no run is seen as the toybox sees its objects
    alone = write_ply(tmp_path / "mug.ply", gaussians_of())
    assert grade_truth(alone, PROMPT, instances=2).numbers() == good


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "--prompt"),
        (["nowhere", "--prompt", PROMPT], "no run"),
        (["empty", "--prompt", PROMPT], "no finished asset"),
        (["empty", "--prompt", "a zebra"], "toybox"),
    ],
)
def test_mistakes(arguments, words, tmp_path, run, capsys):
    (tmp_path / "empty/configs").mkdir(parents=True)
    (tmp_path / "empty/configs/parsed.yaml").write_text("data: {}\nsystem: {prompt_processor: {prompt: ''}}")
    assert main(["truth", str(tmp_path / arguments[0]), *arguments[1:]]) == 2
    assert words in capsys.readouterr().err


def test_no_instances_are_a_mistake(run, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["truth", str(run), "--instances", "0"])
    assert "at least 1" in capsys.readouterr().err
