"""The page that compares SDS and ISM: two-step runs, a failure, and going on."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from toybox import captions


@pytest.fixture
def compare(load_script):
    return load_script("compare_sds_ism")


def options_of(prior: Path, out: Path) -> list[str]:
    return [
        *("--prompt", "a red mug", "--steps", "2", "--instances", "2", "--out", str(out)),
        f"system.guidance.prior={prior}",
        f"system.prompt_processor.cache_dir={out}/cache",
        *("data.height=16", "data.batch_size=2", "data.eval_height=32", "data.n_test_views=9"),
        *("system.geometry.init=shape:ball", "system.geometry.num_points=50", "system.geometry.capacity=100"),
    ]


def test_two_steps_of_each_and_again(compare, small_prior, tmp_path, capfd, monkeypatch):
    given = options_of(small_prior, tmp_path)
    assert compare.main([*given, "--arms", "sds:7.5,ism"]) == 0
    text = (tmp_path / "compare.html").read_text()
    assert text.count('src="data:video/mp4;base64,') == 3  # two arms and the truth
    assert not re.findall(r'(?:src|href)="(?!data:)', text)  # nothing beside the page
    assert "<th>PSNR, dB</th>" in text and len(re.findall(r"PSNR, dB \d+\.\d, IoU", text)) == 2
    assert text.count("<svg") == 2 and "SDS 7.5 gs" in text and "ISM gs" in text
    parsed = [
        yaml.safe_load((tmp_path / f"runs/{name}-seed0/configs/parsed.yaml").read_text())
        for name in ("gs-sds-7.5", "gs-ism")
    ]
    assert parsed[0]["system"]["guidance"]["guidance_scale"] == 7.5
    assert parsed[0]["data"] == parsed[1]["data"] and parsed[0]["seed"] == parsed[1]["seed"]

    # An arm that was stopped goes on from its checkpoint, a finished one is left alone.
    (tmp_path / "runs/gs-ism-seed0/finished.json").unlink()
    started = []
    real = compare.command_of

    def noted(*arguments):
        started.append(real(*arguments))
        return [sys.executable, "-c", ""]

    monkeypatch.setattr(compare, "command_of", noted)
    assert compare.main([*given, "--arms", "sds:7.5,ism"]) == 0
    assert len(started) == 1
    assert any(item.startswith("resume=") and "gs-ism-seed0/ckpts/last.ckpt" in item for item in started[0])

    with pytest.raises(compare.Mistake, match=r"made with .* choose another --out"):
        compare.main([*given[:3], "3", *given[4:]])


def test_an_arm_that_fails_shows_why_and_the_others_go_on(compare, tmp_path, capfd, monkeypatch):
    failing = "import sys; print('a\\rb\\n' * 30 + '<last> words'); sys.exit(2)"
    started = []

    def command_of(arm, options):
        started.append(arm.name)
        return [sys.executable, "-c", failing]

    monkeypatch.setattr(compare, "command_of", command_of)
    assert compare.main(["--arms", "ism,sds:100", "--out", str(tmp_path)]) == 1
    assert started == ["gs-ism-seed0", "gs-sds-100-seed0"]
    text = (tmp_path / "compare.html").read_text()
    assert "ISM gs failed" in text and "SDS 100 gs failed" in text and "&lt;last&gt; words" in text
    assert text.count("\nb\n") < 30  # the last lines alone
    assert not list(tmp_path.rglob("finished.json"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arms", "vsd"], "'vsd' is none of sds, ism"),
        (["--arms", "sds:much"], "'much'.*no guidance scale"),
        (["--representation", "mesh"], "'mesh' is none of gs, nerf"),
        (["--seeds", "0"], "--seeds"),
    ],
)
def test_mistakes(compare, arguments, words, tmp_path):
    with pytest.raises(compare.Mistake, match=words):
        compare.main([*arguments, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_the_table_averages_seeds_and_sets_detail_against_the_truth(compare):
    alike = {
        "psnr": 30.0,
        "inside": None,
        "iou": 0.99,
        "fuzz": 1.0,
        "holes": 0.0,
        "strays": 0.0,
        "scale": 1.0,
    }
    truth = compare.Truth(Path("t.mp4"), np.zeros((8, 4, 4, 3)), alike, detail=0.02, saturation=0.7)
    results = [
        compare.Result(
            compare.Arm("gs", "ism", None, seed),
            numbers={"psnr": 20.0 + 2 * seed, "iou": 0.9, "holes": 0.01 * seed, "scale": 0.9},
            detail=0.01,
            saturation=0.5 + 0.2 * seed,
            object=seed,
            color=1.0,
        )
        for seed in (0, 1)
    ]
    results.append(compare.Result(compare.Arm("gs", "sds", 100.0, 0), error="out of memory"))
    header, rows = compare.table_of(results, truth)
    assert dict(zip(header, rows[0], strict=True)) == {
        "": "ISM gs",
        "seeds": "2",
        "PSNR, dB": "21.0",
        "inside, dB": "–",
        "IoU": "0.900",
        "fuzz": "–",
        "holes": "0.5 %",
        "strays": "–",
        "scale": "0.90",
        "object": "50 %",
        "colour": "100 %",
        "direction": "–",
        "detail": "0.50",
        "saturation": "0.60",
        "s / step": "–",
    }
    assert rows[1] == ["SDS 100 gs", "0 of 1", *13 * ["–"]]
    assert rows[2][:5] == ["another true object", "", "30.0", "–", "0.990"] and len(rows[2]) == len(header)


def test_prompts_beyond_the_toybox_are_compared_without_grades(compare, capsys):
    assert compare.parse_prompt("a DSLR photo of an avocado armchair by night") is None
    assert "No grades" in capsys.readouterr().err
    assert compare.parse_prompt("a red mug") == captions.Spec("mug", "red")
