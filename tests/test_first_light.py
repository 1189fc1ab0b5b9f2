"""From the command line to a graded asset, with the bundled prior: what `make demo` does, only shorter."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROMPT, COLOR, OBJECT = "a red mushroom", "red", "mushroom"
STEPS = 300  # half of a full run: the shape and the colour are there, the detail is not

pytestmark = pytest.mark.graded


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The finished command, and the folder of its run."""
    folder = tmp_path_factory.mktemp("first-light")
    command = [
        *(sys.executable, "launch.py", "--config", "configs/ism-gs.yaml", "--train"),
        f"system.prompt_processor.prompt={PROMPT}",
        f"trainer.max_steps={STEPS}",
        f"exp_root_dir={folder}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-4000:]
    (trial,) = (folder / "ism-gs").iterdir()
    return done, trial


def test_the_grader_sees_what_was_asked_for(finished):
    from toybox.grade import Grader, grade_asset

    _, trial = finished
    _, rows = grade_asset(Grader.load(), trial, PROMPT)
    seen = [f"{path.stem}: {grade.color} {grade.object}" for path, grade in rows]
    right = sum(grade.object == OBJECT and grade.color == COLOR for _, grade in rows)
    assert len(rows) == 8
    assert right >= 7, seen


def test_it_ends_by_naming_files_that_are_there(finished):
    done, trial = finished
    named = re.findall(rf"({re.escape(str(trial))}/\S+)", done.stdout)
    assert {Path(name).suffix for name in named} >= {".mp4", ".png", ".ply", ".json", ".ckpt"}
    for name in named:
        assert Path(name).stat().st_size > 0, name
    parsed = yaml.safe_load((trial / "configs/parsed.yaml").read_text())
    assert parsed["trainer"]["max_steps"] == STEPS
    (metrics,) = (trial / "save").glob("*metrics.json")
    assert json.loads(metrics.read_text())["prior"] == "mini"


def test_it_fits_a_laptop(finished):
    """The largest of the processes that have been waited for so far, this run among them, in KiB."""
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 3 * 1024**2
