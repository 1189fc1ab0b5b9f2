"""Grading edits: worked examples of the numbers, and a run of each kind as it leaves its files."""

from __future__ import annotations

import math

import numpy as np
import torch
import yaml
from PIL import Image

from threestudio_lucid.gaussians.cloud import gaussians_from_points
from threestudio_lucid.gaussians.ply import write_ply
from threestudio_lucid.points.cloud import PointCloud
from toybox import captions, clouds, runs
from toybox.grade import Grader
from toybox.grade.commands import main
from toybox.grade.edit import SIZE, edited_region, grade_edit, unchanged
from toybox.truth import build, true_views

CAMERA = runs.Camera(15.0, 3.0, 40.0)


def cloud_of(prompt: str, seed: int = 0):
    points, colors = clouds.sample_surface(
        build(captions.parse(prompt), 0), 6000, np.random.default_rng(seed)
    )
    cloud = PointCloud(torch.from_numpy(points).float(), torch.from_numpy(colors).float())
    return gaussians_from_points(cloud, opacity=0.9)


def run_of(folder, source, target):
    (folder / "configs").mkdir()
    (folder / "save").mkdir()
    prompts = {"source_prompt": source, "prompt": target}
    config = {"system": {"prompt_processor": prompts}, "data": {}}
    config["data"] |= {"eval_elevation_deg": 15.0, "eval_camera_distance": 3.0, "eval_fovy_deg": 40.0}
    (folder / "configs/parsed.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_the_edit_is_where_true_objects_differ():
    blue, red = (captions.parse(f"a person with a {color} shirt") for color in ("blue", "red"))
    region = edited_region(blue, red, CAMERA)
    assert region.shape == (8, SIZE, SIZE)
    assert 0.01 < region.mean() < 0.2
    assert not region[:, :10].any()  # not the background
    assert not edited_region(blue, blue, CAMERA).any()


def test_a_true_edit_of_gaussians_is_graded_right(tmp_path, capsys):
    """A person in another shirt, the same to the bit elsewhere."""
    prompts = "a person with a blue shirt", "a person with a red shirt"
    run = run_of(tmp_path, *prompts)
    before, after = (cloud_of(prompt) for prompt in prompts)
    write_ply(run / "save/it9-before.ply", before)
    write_ply(run / "save/it9.ply", after)
    result, grades = grade_edit(Grader.load(), run)
    assert (result.right, result.views, len(grades)) == (8, 8, 8) and result.good
    assert result.psnr > 30 and result.psnr_object > 20
    assert result.iou == 1.0
    kept = int((before.sh_dc == after.sh_dc).all(dim=2).sum())
    assert result.same == (kept, 6000) and 1000 < kept < 6000
    assert unchanged(run / "save/it9.ply", run / "save/it9.ply") == (6000, 6000)

    # nothing edited: all has stayed, and the new shirt is not there
    write_ply(run / "save/it9.ply", before)
    result, _ = grade_edit(Grader.load(), run)
    assert result.right == 0 and result.psnr == math.inf and result.same == (6000, 6000)
    assert main(["edit", str(run)]) == 1
    assert "object and colour right in 0 of 8 views" in capsys.readouterr().out


def test_an_edit_of_a_picture_is_graded(tmp_path):
    run = run_of(tmp_path, "a red mug", "a blue mug")
    for name, prompt in (("before", "a red mug"), ("edited", "a blue mug")):
        view = true_views(captions.parse(prompt), [30.0], size=96)[0]
        Image.fromarray(np.uint8(view * 255 + 0.5)).save(run / f"save/it5-{name}.png")
    result, grades = grade_edit(Grader.load(), run)
    assert (result.right, result.views, result.same) == (1, 1, None)
    assert grades[0].color == "blue" and result.iou > 0.95 and result.psnr > 30


def test_mistakes(tmp_path, capsys):
    assert main(["edit", str(tmp_path)]) == 2
    assert "no run in" in capsys.readouterr().err
    run_of(tmp_path, "", "a blue mug")
    assert main(["edit", str(tmp_path)]) == 2
    assert "no finished edit" in capsys.readouterr().err
