"""Runs among other runs: whose folder it is, what is kept, how a run stops, and how it goes on."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from test_launch import CONFIG, TINY, launch, trial, weight  # noqa: F401  (launch is a fixture)

from threestudio.utils import config as configs
from threestudio.utils.folder import RUNNING

TRAIN = ("--config", "tiny.yaml", "--train")
NAMED = ("use_timestamp=false",)
FOLDER = Path("outputs/tiny/a")

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def contents(folder):
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


@pytest.fixture
def taken():
    """`FOLDER` with a file of another process, which is at work in it; a call ends that one by SIGKILL."""
    FOLDER.mkdir(parents=True)
    (FOLDER / "theirs.txt").write_text("theirs")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(FOLDER / RUNNING)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"locked\n"

    def kill():
        process.kill()
        process.communicate()

    yield kill
    kill()


# ---- whose folder ------------------------------------------------------------------------------------------


def test_a_run_does_not_enter_a_folder_in_use(launch, taken, capfd):  # noqa: F811
    before = contents(FOLDER)
    assert launch(*TRAIN, *NAMED) == 2
    said = capfd.readouterr().err
    assert said.count("error: ") == 1 and f"{FOLDER} is in use by another run" in said and "tag=" in said
    assert contents(FOLDER) == before
    taken()  # what is left of a lock whose process is dead holds nobody up
    assert launch(*TRAIN, *NAMED) == 0
    assert (FOLDER / "theirs.txt").exists() and not (FOLDER / RUNNING).exists()


def test_a_run_that_fails_before_it_starts_deletes_only_what_it_made(launch):  # noqa: F811
    FOLDER.mkdir(parents=True)
    (FOLDER / "theirs.txt").write_text("theirs")
    assert launch(*TRAIN, *NAMED, "system.fail_before=true") == 2
    assert (FOLDER / "theirs.txt").read_text() == "theirs" and not (FOLDER / RUNNING).exists()
    assert launch(*TRAIN, "tag=b", *NAMED, "system.fail_before=true") == 2
    assert sorted(os.listdir("outputs/tiny")) == ["a"]


def test_runs_of_one_second_have_folders_of_their_own(launch, monkeypatch):  # noqa: F811
    class Noon(configs.datetime):
        @classmethod
        def now(cls):
            return cls(2030, 1, 1, 12)

    monkeypatch.setattr(configs, "datetime", Noon)
    for seed in range(3):
        assert launch(*TRAIN, f"seed={seed}") == 0
    folders = [Path(f"outputs/tiny/a@20300101-120000{end}") for end in ("", "-02", "-03")]
    assert sorted(Path("outputs/tiny").iterdir()) == folders
    weights = [json.loads((folder / "save/weight.json").read_text()) for folder in folders]
    assert weights[0] != weights[1] != weights[2] != weights[0]
    # the second one's saved config says where it is
    config, last = f"{folders[1]}/configs/parsed.yaml", f"{folders[1]}/ckpts/last.ckpt"
    assert launch("--config", config, "--export", f"resume={last}") == 0
    assert (folders[1] / "save/it6-export/weight.json").exists()
    # and the same again, from there, goes beside it
    assert launch("--config", config, "--train") == 0
    assert weights[1] == json.loads(Path("outputs/tiny/a@20300101-120000-02-02/save/weight.json").read_text())


def test_a_new_run_does_not_replace_the_checkpoints_of_another(launch, capfd):  # noqa: F811
    assert launch(*TRAIN, *NAMED) == 0
    before = contents(FOLDER)
    capfd.readouterr()
    assert launch(*TRAIN, *NAMED, "seed=1") == 2
    said = capfd.readouterr().err
    assert f"resume={FOLDER}/ckpts/last.ckpt" in said and "tag=" in said
    assert launch(*TRAIN, *NAMED, "tag=b") == 0
    assert launch(*TRAIN, *NAMED, "trainer.max_steps=8", "resume=outputs/tiny/b/ckpts/last.ckpt") == 2
    assert "not one of them" in capfd.readouterr().err
    assert contents(FOLDER) == before


def test_a_copied_run_goes_on_where_it_is(launch, capfd):  # noqa: F811
    assert launch(*TRAIN, *NAMED, "exp_root_dir=res") == 0
    home, before = Path("moved to/base ü"), contents("res")
    shutil.copytree("res/tiny/a", home)
    given = ("--config", f"{home}/configs/parsed.yaml", "--train", "trainer.max_steps=8")
    assert launch(*given, f"resume={home}/ckpts/last.ckpt") == 0
    assert str(home) in capfd.readouterr().out
    assert contents("res") == before
    assert step_of(home / "ckpts/last.ckpt") == 8 and (home / "save/it8-test.mp4").exists()
    # its config and the checkpoint of another: which of the two is not guessed
    assert launch(*given, "resume=res/tiny/a/ckpts/last.ckpt") == 2
    assert "tag=" in capfd.readouterr().err
    # a name of its own still counts
    assert launch(*given, f"resume={home}/ckpts/epoch=0-step=4.ckpt", "tag=c", "exp_root_dir=other") == 0
    assert step_of("other/moved to/c/ckpts/last.ckpt") == 8
    assert contents("res") == before


@pytest.mark.parametrize(
    "item, instead",
    [
        ("name=../../x", "exp_root_dir"),
        ("name=/tmp/x", "exp_root_dir"),
        ("name=a/../../../x", "exp_root_dir"),
        ("timestamp=/../../x", "exp_root_dir"),
        ("timestamp=a/b", "exp_root_dir"),
        ("trial_dir=x", "exp_root_dir/name/tag"),
        ("exp_dir=x", "exp_root_dir/name"),
        ("trial_name=x", "tag"),
        ("n_gpus=2", "--gpu"),
    ],
)
def test_results_stay_in_the_output_folder(launch, capfd, item, instead):  # noqa: F811
    assert launch(*TRAIN, item) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"error: {item.partition('=')[0]} ") and instead in said
    assert not Path("outputs").exists()


def test_names_and_timestamps_that_are_meant(launch):  # noqa: F811
    assert launch(*TRAIN, "name=group/of", "timestamp=@mine", "tag=../x") == 0
    assert step_of("outputs/group/of/.._x@mine/ckpts/last.ckpt") == 6


# ---- going on ----------------------------------------------------------------------------------------------


def test_a_finished_run_says_which_key_to_raise(launch, capfd):  # noqa: F811
    assert launch(*TRAIN, *NAMED) == 0
    before = contents(FOLDER)
    given = ("--config", f"{FOLDER}/configs/parsed.yaml", "--train", f"resume={FOLDER}/ckpts/last.ckpt")
    assert launch(*given) == 2
    said = capfd.readouterr().err
    assert "nothing is left" in said and "trainer.max_steps=" in said
    assert contents(FOLDER) == before


def test_more_steps_keep_what_was(launch):  # noqa: F811
    assert launch(*TRAIN, *NAMED, "trainer.max_steps=5") == 0
    before = contents(FOLDER / "ckpts") | contents(FOLDER / "configs")
    config = f"{FOLDER}/configs/parsed.yaml"
    given = ("--config", config, "--train", f"resume={FOLDER}/ckpts/last.ckpt")
    assert launch(*given, "trainer.max_steps=6") == 0
    after = contents(FOLDER / "ckpts") | contents(FOLDER / "configs")
    earlier = Path(f"{FOLDER}/configs/parsed-before-step-5.yaml")
    assert earlier.read_bytes() == before.pop(config)
    assert after[f"{FOLDER}/ckpts/epoch=0-step=5.ckpt"] == before.pop(f"{FOLDER}/ckpts/last.ckpt")
    assert before.items() <= after.items()
    now = yaml.safe_load(Path(config).read_text())
    assert now["trainer"]["max_steps"] == 6 and now["resume"] is None
    assert len((FOLDER / "cmd.txt").read_text().splitlines()) == 2
    # another way on from step 2: the steps that it saves anew do not replace those of the first
    assert (
        launch(*given[:3], f"resume={FOLDER}/ckpts/epoch=0-step=2.ckpt", "system.optimizer.args.lr=0.5") == 0
    )
    then = contents(FOLDER / "ckpts")
    assert then[f"{FOLDER}/ckpts/epoch=0-step=4-earlier.ckpt"] == after[f"{FOLDER}/ckpts/epoch=0-step=4.ckpt"]
    assert then[f"{FOLDER}/ckpts/epoch=0-step=4.ckpt"] != after[f"{FOLDER}/ckpts/epoch=0-step=4.ckpt"]


# ---- stopping ----------------------------------------------------------------------------------------------

STOPS = """
import os, signal

def _stop(when, step):
    for item in os.environ.get("TINY_STOP", "").split():
        name, at, where = item.split("@")
        if (where, int(at)) == (when, step):
            os.kill(os.getpid(), getattr(signal, name))
"""
HOOKS = {
    "before": '        self.save_json("too-early.json"',
    "step": "        target = batch[",
    "validation": '        self.save_rgb_image(f"it{self.true_global_step}-{batch',
    "test": '        self.save_rgb_image(f"it{self.true_global_step}-test/{batch',
}


@pytest.fixture
def stops(launch, monkeypatch):  # noqa: F811
    """Runs tiny.yaml; SIGNAL@STEP@WHERE items send the signals in the midst of it. The exit code."""
    text = TINY
    for where, line in HOOKS.items():
        assert text.count(line) == 1
        text = text.replace(line, f"        _stop({where!r}, self.true_global_step)\n{line}")
    Path("custom/tiny/__init__.py").write_text(text.replace("@threestudio", STOPS + "\n@threestudio", 1))
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started with
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

    def run(arguments, stop=""):
        monkeypatch.setenv("TINY_STOP", stop)
        return launch(*arguments)

    yield run
    for name, handler in before.items():
        signal.signal(name, handler)


def command_in(said):
    """The arguments of the command that a stopped run says."""
    assert "Traceback" not in said and "Go on with" in said
    return shlex.split(said.partition("Go on with\n")[2].splitlines()[0])[2:]


@pytest.mark.parametrize(
    "stop, code, step, manual",
    [
        ("SIGINT@2@step", 130, 3, False),
        ("SIGINT@2@step", 130, 3, True),
        ("SIGTERM@0@step", 143, 1, True),
        ("SIGTERM@4@step", 143, 5, False),
        ("SIGHUP@2@step", 129, 3, False),
        ("SIGINT@3@validation", 130, 3, False),
        ("SIGTERM@3@validation", 143, 3, True),
        ("SIGTERM@6@validation", 143, 6, False),
        ("SIGTERM@6@test", 143, 6, False),
    ],
)
def test_a_stopped_run_saves_and_goes_on_as_if_it_had_not(stops, capfd, stop, code, step, manual):
    train = (*TRAIN, *NAMED, f"system.manual={manual}")
    assert stops((*train, "tag=whole")) == 0
    assert stops(train, stop) == code
    said = capfd.readouterr().err
    assert f"step {step} of 6 is saved" in said
    assert step_of(FOLDER / "ckpts/last.ckpt") == step
    assert stops(command_in(said)) == 0
    for name in ("save/weight.json", "save/it6-test/1.png"):
        assert (FOLDER / name).read_bytes() == Path("outputs/tiny/whole", name).read_bytes()
    saved = [
        torch.load(f / "ckpts/last.ckpt", weights_only=True) for f in (FOLDER, Path("outputs/tiny/whole"))
    ]
    assert saved[0]["optimizer_states"][0]["state"].keys() == saved[1]["optimizer_states"][0]["state"].keys()
    for one, other in zip(*(s["optimizer_states"][0]["state"][0].values() for s in saved), strict=True):
        assert torch.equal(one, other)
    assert not (FOLDER / RUNNING).exists()


def test_a_run_that_is_stopped_before_its_first_step_leaves_nothing(stops, capfd):
    assert stops((*TRAIN, *NAMED), "SIGTERM@0@before") == 143
    assert "nothing to go on from" in capfd.readouterr().err
    assert not Path("outputs").exists()


def test_a_second_signal_stops_at_once(stops, capfd):
    assert stops((*TRAIN, *NAMED), "SIGINT@3@step SIGINT@3@step") == 130
    said = capfd.readouterr().err
    assert step_of(FOLDER / "ckpts/last.ckpt") == 2 and "step 2 of 6 is saved" in said
    assert stops(command_in(said)) == 0


def test_a_signal_that_was_to_be_ignored_is(stops):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert stops((*TRAIN, *NAMED), "SIGHUP@2@step") == 0


def test_an_export_that_is_stopped_leaves_the_run_as_it_is(stops, capfd):
    assert stops((*TRAIN, *NAMED)) == 0
    before = contents(FOLDER)
    given = ("--config", f"{FOLDER}/configs/parsed.yaml", "--test", f"resume={FOLDER}/ckpts/last.ckpt")
    capfd.readouterr()
    assert stops(given, "SIGTERM@6@test") == 143
    assert capfd.readouterr().err.endswith("Stopped.\n")
    assert contents(FOLDER) == before


def test_checkpoints_every_so_many_minutes(launch):  # noqa: F811
    rare = ("checkpoint.every_n_train_steps=100", "system.fail_at=3")
    assert launch(*TRAIN, *NAMED, *rare, "checkpoint.every_n_minutes=1e-9") == 1
    assert step_of(FOLDER / "ckpts/last.ckpt") == 3
    assert launch(*TRAIN, *NAMED, *rare, "tag=b", "checkpoint.every_n_minutes=0") == 1
    assert not Path("outputs/tiny/b/ckpts").exists()


def test_what_was_half_written_is_removed(launch):  # noqa: F811
    assert launch(*TRAIN, *NAMED, "system.fail_at=3") == 1
    for name in ("ckpts/.tmp-abc.ckpt", "save/it2-test/.tmp-x.png"):
        (FOLDER / name).parent.mkdir(exist_ok=True)
        (FOLDER / name).write_bytes(b"half")
    assert launch(*TRAIN, *NAMED, f"resume={FOLDER}/ckpts/last.ckpt") == 0
    assert not [name for name in contents(FOLDER) if ".tmp-" in name]


def test_killed_and_resumed_to_the_bit(tmp_path, root):
    """Real processes, SIGKILL in the midst of steps and of checkpoints: the script at its smallest."""
    (tmp_path / "custom/tiny").mkdir(parents=True)
    (tmp_path / "custom/tiny/__init__.py").write_text(TINY)
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    command = [sys.executable, str(root / "benchmarks/kill_and_resume.py"), "--config", "tiny.yaml"]
    counts = ["--moments", "3", "--writes", "4", "--stops", "1"]
    done = subprocess.run([*command, *counts], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 of 8 ended" in done.stdout


# ---- damaged checkpoints -----------------------------------------------------------------------------------


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 64]) + data[middle + 64 :]


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "cut at the end": lambda data: data[:-10],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "half zeros": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "flipped": flip,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_names_a_whole_one(tmp_path, damage):
    from threestudio.utils.errors import CheckpointError
    from threestudio.utils.misc import load_checkpoint

    state = {"state_dict": {"weight": torch.randn(64, 64)}, "epoch": 0}
    last, older = tmp_path / "last.ckpt", tmp_path / "epoch=0-step=4.ckpt"
    for step in (2, 4, 10):
        torch.save(state | {"global_step": step}, tmp_path / f"epoch=0-step={step}.ckpt")
    torch.save(state | {"global_step": 12}, last)
    last.write_bytes(damage(last.read_bytes()))
    newest = tmp_path / "epoch=0-step=10.ckpt"
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(last)
    assert f"{older} in its place" in str(caught.value) and "step 4" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    older.unlink()
    (tmp_path / "epoch=0-step=2.ckpt").unlink()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(last)
    assert "in its place" not in str(caught.value)


def test_a_damaged_checkpoint_on_the_command_line(launch, capfd):  # noqa: F811
    assert launch(*TRAIN, *NAMED, "trainer.max_steps=5") == 0
    last = FOLDER / "ckpts/last.ckpt"
    last.write_bytes(flip(last.read_bytes()))
    for stage in ("--train", "--export"):
        capfd.readouterr()
        assert launch("--config", f"{FOLDER}/configs/parsed.yaml", stage, f"resume={last}") == 2
        said = capfd.readouterr().err
        assert said.count("error:") == 1 and f"{FOLDER}/ckpts/epoch=0-step=4.ckpt" in said
        assert "weights_only" not in said


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_are_a_message(tmp_path, seed):
    import random

    from threestudio.utils.errors import CheckpointError
    from threestudio.utils.misc import load_checkpoint

    draw = random.Random(seed)
    torch.save({"state_dict": {"weight": torch.zeros(4)}, "global_step": 1}, tmp_path / "a.ckpt")
    data = bytearray((tmp_path / "a.ckpt").read_bytes())
    for _ in range(draw.choice([1, 3, 30])):
        data[draw.randrange(len(data))] = draw.randrange(256)
    (tmp_path / "a.ckpt").write_bytes(data)
    try:
        loaded = load_checkpoint(tmp_path / "a.ckpt")
    except CheckpointError:
        return
    assert torch.equal(loaded["state_dict"]["weight"], torch.zeros(4))  # the bytes were padding
