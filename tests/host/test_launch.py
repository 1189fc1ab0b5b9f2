"""The command line: what it writes, what it says, how it ends, and that a resumed run is the same run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import threestudio
from launch import spin_briefly

TINY = '''
"""A system of four numbers."""
from dataclasses import dataclass

import torch
import threestudio
from threestudio.models.exporters.base import Exporter, ExporterOutput
from threestudio.systems.base import BaseSystem


@threestudio.register("tiny-system")
class Tiny(BaseSystem):
    @dataclass
    class Config(BaseSystem.Config):
        size: int = 4
        fail_at: int = -1
        fail_before: bool = False
        manual: bool = False

    def configure(self):
        self.weight = torch.nn.Parameter(torch.zeros(self.cfg.size))
        self.automatic_optimization = not self.cfg.manual

    def on_fit_start(self):
        self.save_json("too-early.json", {})
        if self.cfg.fail_before:
            raise UnknownWord("no such word")

    def training_step(self, batch, batch_idx):
        if self.true_global_step == self.cfg.fail_at:
            raise RuntimeError("a bug")
        target = batch["camera_positions"].mean() + torch.randn(self.cfg.size)
        loss = ((self.weight - target) ** 2).mean() * self.C(self.cfg.loss.lambda_all)
        self.log("train/loss", loss, prog_bar=True)
        if self.cfg.manual:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            return
        return loss

    def validation_step(self, batch, batch_idx):
        self.save_rgb_image(f"it{self.true_global_step}-{batch['index'][0]}.png", torch.rand(8, 8, 3))

    def on_validation_epoch_end(self):
        pass

    def test_step(self, batch, batch_idx):
        self.save_rgb_image(f"it{self.true_global_step}-test/{batch['index'][0]}.png", torch.rand(8, 8, 3))

    def on_test_epoch_end(self):
        folder = f"it{self.true_global_step}-test"
        self.save_img_sequence(folder, folder, r"(\\d+)\\.png")
        self.save_json("weight.json", self.weight.tolist())

    def predict_step(self, batch, batch_idx):
        pass

    def on_predict_epoch_end(self):
        self.save_json(f"it{self.true_global_step}-export/weight.json", self.weight.tolist())


class UnknownWord(ValueError):
    is_user_error = True
'''

CONFIG = """
name: tiny
description: four numbers
tag: a
data_type: random-camera-datamodule
data: {height: 4, width: 4, batch_size: 3, eval_height: 8, eval_width: 8, n_test_views: 3, n_val_views: 1}
system_type: tiny-system
system:
  optimizer: {name: Adam, args: {lr: 0.1}}
  loss: {lambda_all: [0, 1.0, 0.5, 6]}
trainer: {max_steps: 6, val_check_interval: 3, log_every_n_steps: 1, num_sanity_val_steps: 0}
checkpoint: {save_last: true, save_top_k: -1, every_n_train_steps: 2}
"""


@pytest.fixture
def launch(tmp_path, monkeypatch, root):
    """launch.main in this process, in a folder with tiny.yaml and custom/tiny; returns the exit code."""
    (tmp_path / "custom" / "tiny").mkdir(parents=True)
    (tmp_path / "custom" / "tiny" / "__init__.py").write_text(TINY)
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(threestudio, "__modules__", dict(threestudio.__modules__))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", "0"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("launch", root / "launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "custom_folders", lambda: [tmp_path / "custom"])
    logger = threestudio.logger
    state = (logger.handlers, logger.propagate, logger.level)

    def run(*arguments):
        threestudio.__modules__.pop("tiny-system", None)
        try:
            return module.main(list(arguments))
        except SystemExit as error:
            return error.code

    yield run
    logger.handlers, logger.propagate, logger.level = state
    sys.modules.pop("tiny", None)


def trial(tag="a"):
    (folder,) = Path("outputs/tiny").glob(f"{tag}@*")
    return folder


def weight(tag="a"):
    return json.loads((trial(tag) / "save" / "weight.json").read_text())


def test_a_run_and_what_it_leaves(launch, capsys):
    assert launch("--config", "tiny.yaml", "--train") == 0
    folder = trial()
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    expected = [
        "ckpts/epoch=0-step=2.ckpt",
        "ckpts/epoch=0-step=4.ckpt",
        "ckpts/epoch=0-step=6.ckpt",
        "ckpts/last.ckpt",
        "cmd.txt",
        "configs/parsed.yaml",
        "configs/raw.yaml",
        "csv_logs/version_0/metrics.csv",
        "save/it3-0.png",
        "save/it6-0.png",
        "save/it6-test.mp4",
        "save/it6-test/0.png",
        "save/it6-test/1.png",
        "save/it6-test/2.png",
        "save/too-early.json",
        "save/weight.json",
    ]
    assert [name for name in files if not name.startswith(("tb_logs/", "code/"))] == expected
    assert any(name.startswith("tb_logs/version_0/events") for name in files)
    assert (folder / "configs" / "raw.yaml").read_text() == CONFIG
    assert "train/loss" in (folder / "csv_logs" / "version_0" / "metrics.csv").read_text()
    printed = capsys.readouterr()
    assert f"{folder}/save/it6-test.mp4" in printed.out and "last.ckpt" in printed.out
    assert "Training 6/6" in printed.err and "left" in printed.err
    assert "GPU available" not in printed.err

    # the other stages continue in the same folder when run from the saved config
    config, resume = f"{folder}/configs/parsed.yaml", f"resume={folder}/ckpts/last.ckpt"
    for stage, name in (
        ("validate", "it6-0.png"),
        ("test", "it6-test.mp4"),
        ("export", "it6-export/weight.json"),
    ):
        (folder / "save" / name).unlink(missing_ok=True)
        assert launch("--config", config, f"--{stage}", resume) == 0
        assert (folder / "save" / name).exists()
    assert trial() == folder
    assert json.loads((folder / "save/it6-export/weight.json").read_text()) == weight()


@pytest.mark.parametrize("stage", ["train", "test", "export"])
def test_without_progress_bar(launch, capfd, stage):
    for shown in (True, False):
        option = f"trainer.enable_progress_bar={str(shown).lower()}"
        assert launch("--config", "tiny.yaml", f"--{stage}", f"tag={shown}", option) == 0
        said = capfd.readouterr()
        words = {"train": "Training 6/6", "test": "Testing 3/3", "export": "Exporting"}
        assert (words[stage] in said.err) == shown
        assert "it/s" not in said.out + said.err  # nor Lightning's own
    assert trial("False").is_dir()


@pytest.mark.parametrize("manual", [False, True])
def test_same_seed_same_result_and_resumed_is_the_same(launch, manual):
    options = (f"system.manual={manual}",)
    assert launch("--config", "tiny.yaml", "--train", *options) == 0
    assert launch("--config", "tiny.yaml", "--train", "tag=again", *options) == 0
    assert weight("again") == weight()
    for step in (2, 4):
        resume = f"resume={trial()}/ckpts/epoch=0-step={step}.ckpt"
        # validation in between draws random numbers too, and must not matter
        assert launch("--config", "tiny.yaml", "--train", f"tag=from{step}", resume, *options) == 0
        assert weight(f"from{step}") == weight()
    assert launch("--config", "tiny.yaml", "--train", "tag=other", "seed=1", *options) == 0
    assert weight("other") != weight()


def test_last_checkpoint_is_of_the_last_step(launch):
    """Also when the run's length is no multiple of every_n_train_steps, and after resuming in its folder."""
    assert launch("--config", "tiny.yaml", "--train", "trainer.max_steps=5") == 0
    folder = trial()

    def saved():
        names = {path.name for path in (folder / "ckpts").iterdir()}
        return names, torch.load(folder / "ckpts" / "last.ckpt", weights_only=True)["global_step"]

    kept = {"epoch=0-step=2.ckpt", "epoch=0-step=4.ckpt", "last.ckpt"}
    assert saved() == (kept, 5)
    config = ("--config", f"{folder}/configs/parsed.yaml", "--train")
    assert launch(*config, f"resume={folder}/ckpts/last.ckpt", "trainer.max_steps=7") == 0
    kept |= {"epoch=0-step=5.ckpt", "epoch=0-step=6.ckpt"}  # step 5 was last.ckpt
    assert saved() == (kept, 7)
    resumed = json.loads((folder / "save" / "weight.json").read_text())
    assert launch("--config", "tiny.yaml", "--train", "tag=whole", "trainer.max_steps=7") == 0
    assert weight("whole") == resumed
    # from an older one, which does not know of the last.ckpt that is there
    assert launch(*config, f"resume={folder}/ckpts/epoch=0-step=2.ckpt", "trainer.max_steps=3") == 0
    assert saved() == (kept | {"epoch=0-step=7.ckpt"}, 3)


def test_files_are_named_when_the_system_lists_none_at_this_stage(launch, capsys):
    file = Path("custom/tiny/__init__.py")
    file.write_text(
        TINY.replace(
            "    def predict_step", "    def summary_files(self):\n        return {}\n\n    def predict_step"
        )
    )
    assert launch("--config", "tiny.yaml", "--export") == 0
    assert "it0-export/weight.json" in capsys.readouterr().out


TRAIN = ("--config", "tiny.yaml", "--train")

MISTAKES = {
    "no config": ([], ["--config"]),
    "no stage": (["--config", "tiny.yaml"], ["--train, --validate, --test, --export"]),
    "two stages": ([*TRAIN, "--test"], ["not allowed with"]),
    "missing file": (["--config", "tny.yaml", "--train"], ["tny.yaml does not exist", "tiny.yaml"]),
    "bad YAML": (["--config", "bad.yaml", "--train"], ["bad.yaml, line 2"]),
    "no equals sign": ([*TRAIN, "a", "hamburger"], ["'a'", "quote"]),
    "unknown option": ([*TRAIN, "--speed"], ["'--speed'"]),
    "unknown top-level key": ([*TRAIN, "sytem.size=1"], ["'sytem'", "'system'"]),
    "unknown key": (
        [*TRAIN, "system.sise=1"],
        ["'sise' in system (tiny-system)", "'size'"],
    ),
    "wrong type": ([*TRAIN, "system.size=big"], ["system.size", "'big'", "int"]),
    "wrong value": ([*TRAIN, "data.height=0"], ["data", "height"]),
    "unknown trainer key": ([*TRAIN, "trainer.max_step=1"], ["'max_steps'"]),
    "bad trainer value": ([*TRAIN, "trainer.precision=17"], ["trainer", "17"]),
    "unknown checkpoint key": (
        [*TRAIN, "checkpoint.save_lst=1"],
        ["'save_last'"],
    ),
    "unknown system": ([*TRAIN, "system_type=tny-system"], ["'tiny-system'"]),
    "no system": ([*TRAIN, "system_type=''"], ["system_type"]),
    "bytes that are no text": ([*TRAIN, "tag=t\udce9"], ["tag=t", "UTF-8"]),
    "a path that is no text": (["--config", "t\udce9.yaml", "--train"], ["t\\udce9.yaml", "UTF-8"]),
    "missing checkpoint": (["--config", "tiny.yaml", "--test", "resume=no.ckpt"], ["no.ckpt"]),
    "damaged checkpoint": (["--config", "tiny.yaml", "--test", "resume=tiny.yaml"], ["tiny.yaml", "damaged"]),
    "unknown optimizer": ([*TRAIN, "system.optimizer.name=Adma"], ["'Adam'"]),
    "missing loss weight": (["--config", "noloss.yaml", "--train"], ["lambda_all"]),
    "late, in the extension": (
        [*TRAIN, "system.fail_before=true"],
        ["no such word"],
    ),
}


@pytest.mark.parametrize("arguments, words", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_message_and_leave_nothing(launch, capfd, arguments, words):
    Path("bad.yaml").write_text("system: [1, 2\nname: a\n")
    Path("noloss.yaml").write_text(CONFIG.replace("loss: {lambda_all: [0, 1.0, 0.5, 6]}", ""))
    before = sorted(Path.cwd().rglob("*"))
    assert launch(*arguments) == 2
    printed = capfd.readouterr()
    assert printed.err.count("error: ") == 1 and "Traceback" not in printed.err
    assert all(word in printed.err for word in words), printed.err
    if "missing loss weight" not in os.environ["PYTEST_CURRENT_TEST"]:  # that one is found by the first step
        after = sorted(path for path in Path.cwd().rglob("*") if "__pycache__" not in path.parts)
        assert after == before


def test_checkpoint_of_another_system_and_of_weights_alone(launch, capfd):
    import torch

    assert launch("--config", "tiny.yaml", "--train") == 0
    resume = f"{trial()}/ckpts/epoch=0-step=4.ckpt"
    for stage in ("train", "test"):
        assert (
            launch("--config", "tiny.yaml", f"--{stage}", "tag=b", "system.size=5", f"resume={resume}") == 2
        )
        assert "do not fit Tiny" in capfd.readouterr().err
    checkpoint = torch.load(resume, weights_only=True)
    torch.save({"state_dict": checkpoint["state_dict"]}, "weights.ckpt")
    assert launch("--config", "tiny.yaml", "--train", "tag=b", "resume=weights.ckpt") == 2
    assert "system.weights=weights.ckpt" in capfd.readouterr().err
    assert not list(Path("outputs/tiny").glob("b@*"))


def test_paths_are_taken_as_they_are_typed(launch):
    tag = "a #1: [mug], ${x} = {b} 'c' \\"
    assert launch("--config", "tiny.yaml", "--train", f"tag={tag}", "trainer.max_steps=2") == 0
    folder = trial(tag.replace("[", "[[]").replace("\\", "_"))
    resume = f"resume={folder}/ckpts/last.ckpt"
    assert launch("--config", f"{folder}/configs/parsed.yaml", "--train", resume, "trainer.max_steps=3") == 0
    assert (folder / "save" / "it3-test.mp4").exists()


def test_bugs_keep_their_traceback(launch, capfd):
    assert launch("--config", "tiny.yaml", "--train", "system.fail_at=3") == 1
    printed = capfd.readouterr().err
    assert "Traceback" in printed and "RuntimeError: a bug" in printed
    assert (trial() / "ckpts" / "last.ckpt").exists()  # it had started: what it made stays


def test_a_broken_extension_ends_the_run_with_its_cause(launch, capfd):
    Path("custom/broken.py").write_text("import no_such_package_anywhere")
    Path("custom/off_disabled").mkdir()
    Path("custom/off_disabled/__init__.py").write_text("raise SystemError")
    assert launch("--config", "tiny.yaml", "--validate") == 2
    printed = capfd.readouterr().err
    assert "custom/broken.py cannot be imported" in printed and "No module named 'no_such_package" in printed
    assert "broken.py, line 1" in printed and "broken_disabled.py" in printed
    assert "Traceback" not in printed
    assert launch("--config", "tiny.yaml", "--validate", "--verbose") == 2
    assert "Traceback" in capfd.readouterr().err
    Path("custom/broken.py").rename("custom/broken_disabled.py")
    assert launch("--config", "tiny.yaml", "--validate") == 0


def test_an_unknown_name_is_told_with_its_key_and_what_would_fit(launch, capfd):
    assert launch("--config", "tiny.yaml", "--train", "system_type=tiny-sistem") == 2
    printed = capfd.readouterr().err
    assert "system_type in tiny.yaml" in printed and "Did you mean 'tiny-system'" in printed
    assert "Registered as system: " in printed and "dreamfusion-system" in printed
    assert "random-camera-datamodule" not in printed


def test_help_lists_configs_and_needs_no_torch(tmp_path, root):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mug.yaml").write_text("description: makes a mug\n")
    command = [sys.executable, "-X", "importtime", str(root / "launch.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert re.search(r"configs/mug\.yaml +makes a mug", done.stdout) and "key.sub=value" in done.stdout
    assert "torch" not in done.stderr


def test_a_real_threestudio_is_handed_the_command(tmp_path, root):
    (tmp_path / "threestudio").mkdir()
    (tmp_path / "threestudio" / "__init__.py").write_text("name = 'the real one'")
    (tmp_path / "launch.py").write_text("import sys, threestudio\nprint(threestudio.name, sys.argv[1:])")
    command = [sys.executable, str(root / "launch.py"), "--config", "x.yaml", "--gradio"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "the real one ['--config', 'x.yaml', '--gradio']\n", done.stderr


def test_another_optimizer_cannot_take_over(launch, capfd):
    assert launch("--config", "tiny.yaml", "--train") == 0
    other = ("system.optimizer.params.weight.lr=0.1", "system.optimizer.params.note={}")
    resume = f"resume={trial()}/ckpts/epoch=0-step=2.ckpt"
    Path("custom/tiny/__init__.py").write_text(
        TINY.replace("self.weight =", "self.note = 'text'\n        self.weight =")
    )
    assert launch("--config", "tiny.yaml", "--train", "tag=b", resume, *other) == 2
    assert "another optimizer" in capfd.readouterr().err
    assert not list(Path("outputs/tiny").glob("b@*"))


def test_threads_wait_briefly_unless_told_otherwise(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    spin_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    spin_briefly()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # so that it is taken back after the test
    del os.environ["GOMP_SPINCOUNT"]
    spin_briefly()
    assert int(os.environ["GOMP_SPINCOUNT"]) > 0
