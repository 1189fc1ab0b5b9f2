"""The page that counts faces: two-step runs, a failure, going on, and what it counts."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from toybox import captions
from toybox.grade import Grader
from toybox.trials import Mistake
from toybox.truth import true_views


@pytest.fixture
def janus(load_script):
    return load_script("janus")


def test_two_steps_of_each_arm_and_again(janus, small_prior, tmp_path, capfd, monkeypatch):
    given = [
        *("--prompt", "a robot", "--arms", "plain,negative,perp-neg"),
        *("--starts", "shape:ball", "--steps", "2"),
        *("--out", str(tmp_path), f"system.guidance.prior={small_prior}"),
        f"system.prompt_processor.cache_dir={tmp_path}/cache",
        *("data.height=16", "data.batch_size=2", "data.eval_height=32"),
        *("system.geometry.num_points=50", "system.geometry.capacity=100"),
    ]
    assert janus.main(given) == 0
    text = (tmp_path / "janus.html").read_text()
    assert text.count('src="data:video/mp4;base64,') == 3
    assert not re.findall(r'(?:src|href)="(?!data:)', text)  # nothing beside the page
    assert "perp-neg, from shape:ball" in text and "true objects" in text
    parsed = tmp_path / "runs/a_robot-negative-shape_ball-seed0/configs/parsed.yaml"
    assert "negative_prompt: a robot, front view" in parsed.read_text()
    out = capfd.readouterr().out
    assert re.search(r"plain, from shape:ball +1 +\d+ % +\d+ % +\d+ % +\d+ %", out)

    started = []
    real = janus.command_of

    def noted(*arguments):
        started.append(real(*arguments))
        return [sys.executable, "-c", ""]

    (tmp_path / "runs/a_robot-perp_neg-shape_ball-seed0/finished.json").unlink()
    monkeypatch.setattr(janus, "command_of", noted)
    assert janus.main(given) == 0
    assert len(started) == 1 and "system.prompt_processor.use_perp_neg=true" in started[0]
    assert any(item.startswith("resume=") for item in started[0])
    with pytest.raises(Mistake, match=r"made with .* choose another --out"):
        janus.main([*given[:7], "3", *given[8:]])


def test_true_objects_have_one_face_and_a_janus_has_many(janus):
    """A true person from all sides, and one whose every view is its front."""
    spec, grader = captions.parse("a person with a blue shirt"), Grader.load()
    azimuths = [0.0, 60.0, 90.0, 150.0, 180.0, 210.0, 135.0]
    views = true_views(spec, azimuths, size=64)
    one = janus.count_faces(views, azimuths, spec, grader)
    assert (one.janus, one.front, one.object) == (0.0, 1.0, 1.0)
    many = janus.count_faces(np.stack([views[0]] * len(azimuths)), azimuths, spec, grader)
    assert (many.janus, many.sides, many.front) == (1.0, 1.0, 1.0)


def test_means_and_gaps(janus):
    def result(prompt, kind, janus_score, error=None):
        faces = None if error else janus.Faces(janus_score, 0.5, 1.0, 1.0)
        return janus.Result(janus.Arm(prompt, kind, "text", 0), error, faces=faces)

    results = [
        result("a robot", "plain", 1.0),
        result("a robot", "views", 0.5),
        result("a cat", "plain", 0.5),
        result("a cat", "views", 0.0, "out of memory"),
    ]
    truth = {"a robot": janus.Faces(0.25, 0.0, 1.0, 1.0)}
    _, rows = janus.summary(results, truth)
    assert rows[0] == ["plain, from text", "2", "75 %", "50 %", "100 %", "100 %"]
    assert rows[1][:3] == ["views, from text", "1 of 2", "50 %"]
    assert rows[2][:3] == ["true objects", "", "25 %"]
    _, rows = janus.by_prompt(results, truth)
    assert rows == [["a robot", "100 %", "50 %", "25 %"], ["a cat", "50 %", "–", "–"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "a zebra"], "--prompt: there is no thing of the toybox"),
        (["--prompt", "a hamburger"], "the back of 'hamburger' looks like its front.*person"),
        (["--arms", "views,perpneg"], "--arms: 'perpneg' is none of plain, negative, views, perp-neg"),
        (["--arms", "views,views"], "--arms: different ones"),
        (["--starts", ","], "--starts"),
        (["--seeds", "0"], "--seeds"),
    ],
)
def test_mistakes(janus, arguments, words, tmp_path):
    with pytest.raises(Mistake, match=words):
        janus.main([*arguments, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
