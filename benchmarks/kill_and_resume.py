"""Kill a training at random moments, resume it, and compare the result with an undisturbed run's, to the bit.

    python -m benchmarks.kill_and_resume                 # 20 moments with the bundled prior: minutes
    python -m benchmarks.kill_and_resume --moments 2 --config FILE key.sub=value ...

``--moments`` kills (SIGKILL) come whenever they come, ``--writes`` more of them in the midst of a
checkpoint's write, and ``--stops`` of SIGTERM and SIGINT, which save before they end.  Exits with 1 if any
result differs.  Needs `os.fork`.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "ism-gs.yaml"
SMALL = [  # for `CONFIG`
    *("system.geometry.init=shape:ball", "system.geometry.num_points=200", "system.guidance.prior=mini"),
    *("data.batch_size=1", "data.n_test_views=2", "data.eval_height=32"),
    *("trainer.max_steps=8", "trainer.val_check_interval=2", "checkpoint.every_n_train_steps=3"),
]


class Trainer:
    """Runs the command line in forked processes, so that everything is imported once."""

    def __init__(self, out: Path, config: Path, overrides: Sequence[str]) -> None:
        sys.path[:0] = [str(ROOT), str(ROOT / "host")]
        import launch
        from threestudio.extensions import load_extensions

        load_extensions([ROOT / "custom"])
        self._main = launch.main
        self._out = out
        self._given = ["--config", str(config), "--train", *(SMALL if config == CONFIG else []), *overrides]
        self._given += [f"exp_root_dir={out}", "name=runs", "use_timestamp=false"]

    def folder(self, tag: str) -> Path:
        return self._out / "runs" / tag

    def start(self, tag: str, before: Callable[[], None] = lambda: None) -> int:
        """The process of a run, which resumes if there is a checkpoint; ``before`` is called in it first."""
        from threestudio.utils.folder import checkpoints_of

        resume = [f"resume={path}" for path in checkpoints_of(self.folder(tag))[:1]]
        given = [*self._given, f"tag={tag}", *resume]
        sys.stdout.flush()  # else both processes print what is left in the buffer
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            log = os.open(self._out / f"{tag}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            before()
            code = self._main(given)
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def wait(process: int) -> int:
    """The exit code; of a process that a signal killed, the signal's number below zero."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_in_write(number: int) -> Callable[[], None]:
    """Have this process killed when half of its ``number``-th checkpoint is written."""

    def prepare() -> None:
        import torch

        save, left = torch.save, iter(range(number, 0, -1))

        def half_saved(value: object, path: str) -> None:
            save(value, path)
            if next(left) == 1:
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half_saved

    return prepare


def result(folder: Path) -> dict[str, object]:
    """What a run came to: its weights and Adam's moments, and what it saved of the last step.

    Without views of validation: one that was due when the run was killed is not made up for.
    """
    import torch

    checkpoint = torch.load(folder / "ckpts" / "last.ckpt", weights_only=True)
    found: dict[str, object] = {f"weights {key}": value for key, value in checkpoint["state_dict"].items()}
    for number, state in checkpoint["optimizer_states"][0]["state"].items():
        found |= {f"optimizer {number} {key}": value for key, value in state.items()}
    for path in sorted((folder / "save").rglob("*")):
        of_last_step = any(part.startswith(f"it{checkpoint['global_step']}-") for part in path.parts)
        if path.is_file() and of_last_step and not re.fullmatch(r"it\d+-\d+\.png", path.name):
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """The names of what differs, or is in one of the two alone."""
    import torch

    def same(name: str) -> bool:
        a, b = one.get(name), other.get(name)
        return torch.equal(a, b) if torch.is_tensor(a) and torch.is_tensor(b) else a == b

    return [name for name in sorted({*one, *other}) if not same(name)]


def left_over(folder: Path) -> list[str]:
    """What no finished run has: half-written files, and the sign that it is at work."""
    from threestudio.utils.files import TEMPORARY
    from threestudio.utils.folder import RUNNING

    return [f"left {path.name}" for path in folder.rglob(".*") if path.name.startswith((RUNNING, TEMPORARY))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=20, help="how many random kills")
    parser.add_argument("--writes", type=int, default=4, help="how many kills in the midst of a checkpoint")
    parser.add_argument("--stops", type=int, default=4, help="how many times SIGTERM or SIGINT")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--config", type=Path, default=CONFIG)
    args, overrides = parser.parse_known_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as out:
        trainer = Trainer(Path(out), args.config, overrides)
        start = time.monotonic()
        if code := wait(trainer.start("whole")):
            print((Path(out) / "whole.log").read_text())
            return code
        seconds = time.monotonic() - start
        wanted = result(trainer.folder("whole"))
        print(f"undisturbed: {seconds:.1f} s, {len(wanted)} tensors and files")
        plans = [(signal.SIGKILL, draw.uniform(0, seconds)) for _ in range(args.moments)]
        plans += [(signal.SIGKILL, -1 - number) for number in range(args.writes)]
        plans += [
            ((signal.SIGTERM, signal.SIGINT)[k % 2], draw.uniform(0, seconds)) for k in range(args.stops)
        ]
        wrong = 0
        for number, (signum, moment) in enumerate(plans):
            tag = f"run{number}"
            if moment < 0:
                process = trainer.start(tag, kill_in_write(-moment))
                said = f"{signum.name} in the write of checkpoint {-moment}"
            else:
                process = trainer.start(tag)
                time.sleep(moment)
                os.kill(process, signum)
                said = f"{signum.name} after {moment:.1f} s"
            codes = [wait(process)]
            if codes[0]:
                codes.append(wait(trainer.start(tag)))
            else:
                said += ", too late"
            expected = [{signal.SIGKILL: -9}.get(signum, 128 + signum), 0] if codes[0] else [0]
            folder = trainer.folder(tag)
            found = differences(wanted, result(folder)) + left_over(folder) if codes[-1] == 0 else []
            good = codes == expected and not found
            wrong += not good
            print(
                f"{'same' if good else 'WRONG'}: {said}; exit codes {codes} {', '.join(found)[:200]}",
                flush=True,
            )
            if not good:
                print((Path(out) / f"{tag}.log").read_text()[-2000:])
        print(f"{len(plans) - wrong} of {len(plans)} ended as the undisturbed run did")
        return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
