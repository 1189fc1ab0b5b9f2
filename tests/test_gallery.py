"""The gallery: a finished run is graded and shown, not trained again."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toybox import cameras, sdf
from toybox.dataset import composite
from toybox.objects import OBJECTS

PROMPT = "a red mushroom"


@pytest.fixture
def gallery(load_script):
    return load_script("gallery")


@pytest.fixture
def finished(tmp_path) -> Path:
    """What a perfect run would leave: the true views of what was asked for."""
    trial = tmp_path / "ism-gs" / PROMPT.replace(" ", "_")
    views = trial / "save/it600-views"
    views.mkdir(parents=True)
    parts = OBJECTS["mushroom"].build("red", np.random.default_rng(0), decoration="spots")
    for azimuth in range(0, 360, 45):
        rgba = sdf.render(parts, cameras.orbit(azimuth, 15.0, 3.0), 40.0, 64)
        rgb = (composite(rgba, np.ones(3)) * 255).astype(np.uint8)
        Image.fromarray(rgb).save(views / f"{azimuth:03d}.png")
    (trial / "finished.json").write_text(json.dumps({"seconds": 120.4}))
    return tmp_path


def test_a_perfect_run_is_graded_so_and_not_repeated(gallery, finished, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n\n")
    assert gallery.main(["--prompts", str(prompts), "--out", str(finished)]) == 0
    assert "| a red mushroom | 8/8 |" in (finished / "gallery.md").read_text()
    assert "| 120 |" in capsys.readouterr().out
    with Image.open(finished / "gallery.png") as picture:
        assert picture.width > 4 * gallery.CELL


def test_a_prompt_that_nobody_can_grade_is_told_of_first(gallery, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a blue mug\na zebra\n")
    with pytest.raises(ValueError, match="zebra"):
        gallery.main(["--prompts", str(prompts), "--out", str(tmp_path)])
    assert not (tmp_path / "ism-gs").exists()
