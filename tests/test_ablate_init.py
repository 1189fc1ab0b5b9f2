"""The page that compares what training starts from: two-step runs, failures, going on, and what it counts."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from toybox import captions
from toybox.trials import Mistake, Opinion


@pytest.fixture
def ablate(load_script):
    return load_script("ablate_init")


def test_two_steps_from_each_start_and_again(ablate, small_prior, tmp_path, capfd, monkeypatch):
    given = [
        *("--prompt", "a red mug", "--starts", "shape:ball,true,file:missing.npz", "--steps", "2"),
        *("--out", str(tmp_path), f"system.guidance.prior={small_prior}"),
        f"system.prompt_processor.cache_dir={tmp_path}/cache",
        *("data.height=16", "data.batch_size=2", "data.eval_height=32", "data.n_test_views=9"),
        *("system.geometry.num_points=1500", "system.geometry.capacity=1500"),
        *("system.geometry.init_opacity=0.9", "system.geometry.init_scale=0.5", "system.density.until=0"),
    ]
    assert ablate.main(given) == 1  # the third start is not there
    text = (tmp_path / "ablate_init.html").read_text()
    assert text.count('src="data:video/mp4;base64,') == 3  # two runs and the truth
    assert not re.findall(r'(?:src|href)="(?!data:)', text)  # nothing beside the page
    assert "file:missing.npz, seed 0 failed" in text and "There is no file missing.npz" in text
    out = capfd.readouterr().out
    numbers = r"Chamfer 0\.\d+ instead of 0\.\d+, -\d+ % on average, better in 1 of 1"
    assert re.search(f"true against shape:ball: {numbers}", out)
    assert "file:missing.npz against shape:ball: nothing to compare yet" in out

    # finished runs are left alone, and what a stopped one has done is not done again
    (tmp_path / "runs/a_red_mug-true-seed0/finished.json").unlink()
    started = []
    real = ablate.command_of

    def noted(*arguments):
        started.append(real(*arguments))
        return [sys.executable, "-c", ""]

    monkeypatch.setattr(ablate, "command_of", noted)
    assert ablate.main([*given[:3], "shape:ball,true", *given[4:]]) == 0
    assert len(started) == 1
    assert any(item.startswith("resume=") and "a_red_mug-true-seed0/ckpts" in item for item in started[0])
    with pytest.raises(Mistake, match=r"made with .* choose another --out"):
        ablate.main([*given[:5], "3", *given[6:]])


def test_chamfer_of_true_objects(ablate):
    """True mugs are nearer to each other than to a chair, and a shift is what it measures."""
    mug, chair = captions.parse("a red mug"), captions.parse("a chair")
    mugs, chairs = ablate.true_surfaces(mug), ablate.true_surfaces(chair)
    among = ablate.chamfer(mugs[0], mugs[1])
    assert among < 0.03 < 0.05 < ablate.chamfer(mugs[0], chairs[0])
    assert ablate.chamfer(mugs[0], mugs[0]) == 0.0
    plane = np.random.default_rng(0).uniform(-1, 1, (5000, 3)) * [1, 1, 0]
    above = plane + np.array([0, 0, 0.5])
    assert ablate.chamfer(plane, above) == pytest.approx(0.5)


def test_the_sentences_compare_pairs(ablate):
    def result(prompt, start, chamfer, sure):
        return ablate.Result(
            ablate.Arm(prompt, start, 0), chamfer=chamfer, opinion=Opinion(1.0, 1.0, 0.5, sure)
        )

    results = [
        result("a mug", "shape:ball", 0.04, 0.5),
        result("a mug", "text", 0.02, 0.9),
        result("a chair", "shape:ball", 0.02, 0.5),
        result("a chair", "text", 0.03, 0.7),
        result("a car", "shape:ball", None, 0.1),
        result("a car", "text", 0.03, 0.0),
        ablate.Result(ablate.Arm("a table", "shape:ball", 0), error="out of memory"),
        result("a table", "text", 0.9, 0.0),
    ]
    assert ablate.wins(results) == [
        "text against shape:ball: Chamfer 0.0250 instead of 0.0300, +0 % on average, better in 1 of 2; "
        "sure +17 points, better in 2 of 3."
    ]
    header, rows = ablate.by_prompt(results)
    assert header == ["prompt", "shape:ball", "text"]
    assert rows[0] == ["a mug", "0.0400, 50 %", "0.0200, 90 %"]
    assert rows[2][1] == "–, 10 %" and rows[3][1] == "–, –"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "a zebra"], "--prompt: there is no thing of the toybox in 'a zebra'"),
        (["--starts", ","], "--starts"),
        (["--starts", "text,text"], "--starts: different values"),
        (["--seeds", "0"], "--seeds"),
    ],
)
def test_mistakes(ablate, arguments, words, tmp_path):
    with pytest.raises(Mistake, match=words):
        ablate.main([*arguments, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
