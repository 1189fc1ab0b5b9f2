#!/usr/bin/env python
"""The command line: ``python launch.py --config FILE --train key.sub=value ...``; --help says more.

Where a real threestudio can be imported, its own launch.py is run; else `host/threestudio` takes its place.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.machinery
import os
import runpy
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent
HOST = ROOT / "host"
STAGES = ("train", "validate", "test", "export")

EXAMPLES = """\
examples:
  python launch.py --config configs/ism-gs.yaml --train system.prompt_processor.prompt="a hamburger"
  python launch.py --config configs/ism-gs.yaml --train system.guidance.prior=sd21 trainer.max_steps=3000
  python launch.py --config outputs/x/y@z/configs/parsed.yaml --train resume=outputs/x/y@z/ckpts/last.ckpt
  python launch.py --config outputs/x/y@z/configs/parsed.yaml --export resume=outputs/x/y@z/ckpts/last.ckpt

settings:
  key.sub=value changes what the config says. Text (prompts, paths, names) is taken as it is typed; other
  values are YAML: 3, 1e-3, true, null, [1,2], {a: 1}.
  A list is a schedule where the config allows one: [start_step, from, to, end_step].
  seed=1 tag=name exp_root_dir=folder resume=checkpoint work with every config.

Exit codes: 0 done, 1 a bug (with its traceback), 2 a mistake in what was given, 130 stopped by Ctrl+C, 143 by
SIGTERM. A training that is stopped saves its last whole step and says how to go on.
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message}. python launch.py --help shows how to call it.")


def fail(message: str, code: int = 2) -> NoReturn:
    """End with ``message`` on stderr."""
    say(f"error: {message}")
    sys.exit(code)


def say(message: str) -> None:
    """Print to stderr, if that can be written to: it may be a file on a full disk."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr)


def configs() -> list[tuple[str, str]]:
    """(path, description) of the configs at hand."""
    import yaml

    found = []
    folders = [Path("configs"), ROOT / "configs", *sorted(Path("custom").glob("*/configs"))]
    folders += sorted((ROOT / "custom").glob("*/configs"))
    paths = {path.resolve(): path for folder in reversed(folders) for path in sorted(folder.glob("*.yaml"))}
    for path in sorted(paths.values(), key=str):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            description = str(content.get("description") or "")
        except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError):
            description = "(cannot be read)"
        relative = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        found.append((str(relative), " ".join(description.split())))
    return found


def epilog() -> str:
    """Configs and examples, for --help."""
    listed = configs()
    width = max((len(path) for path, _ in listed), default=0)
    lines = [f"  {path:{width}}  {description}".rstrip() for path, description in listed]
    return "configs:\n" + "\n".join(lines or ["  (none here)"]) + "\n\n" + EXAMPLES


def _is_text(argument: str) -> bool:
    """Whether all of its bytes were of the terminal's encoding."""
    return not any("\ud800" <= character <= "\udfff" for character in argument)


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the key=value items."""
    parser = Parser(
        prog="launch.py",
        usage="python launch.py --config FILE (--train|--validate|--test|--export) [options] [key=value ...]",
        description="Make a 3D asset from text, as the config says.",
        epilog=epilog() if {"-h", "--help"} & set(argv) else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file that says what to do")
    stage = parser.add_mutually_exclusive_group()
    stage.add_argument("--train", action="store_true", help="train, then test")
    stage.add_argument("--validate", action="store_true", help="render the validation views of a checkpoint")
    stage.add_argument(
        "--test", action="store_true", help="render the test views of a checkpoint into a video"
    )
    stage.add_argument("--export", action="store_true", help="write the asset of a checkpoint")
    parser.add_argument(
        "--gpu", metavar="0,1", help="which GPUs to use (default: 0, or CUDA_VISIBLE_DEVICES)"
    )
    parser.add_argument("--verbose", action="store_true", help="show debug lines and Lightning's messages")
    parser.add_argument(
        "--typecheck", action="store_true", help="check array shapes where they are annotated (slow)"
    )
    for argument in argv:
        if not _is_text(argument):
            fail(f"{argument!a} is no text: it has bytes that are not UTF-8.")
    args, overrides = parser.parse_known_args(argv)
    if not args.config:
        listed = ", ".join(path for path, _ in configs())
        parser.error(f"--config is missing; there is {listed or 'none here'}")
    chosen = [name for name in STAGES if getattr(args, name)]
    if not chosen:
        parser.error("choose one of --train, --validate, --test, --export")
    args.stage = chosen[0]
    return args, overrides


def spin_briefly() -> None:
    """Let OpenMP threads wait for each other for microseconds at work, then asleep. Before importing torch.

    They would be at work for milliseconds, on the core that the one they wait for may need where other
    programs run: beside one busy program a step of the demo takes 0.35 s so, and took 0.52. Asleep at once,
    they would take half as long again on an idle machine.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def find_real_threestudio() -> Path | None:
    """The checkout of a threestudio that this process can import, if there is one that is not our host."""
    search = [os.getcwd(), *(entry for entry in sys.path if entry)]
    spec = importlib.machinery.PathFinder.find_spec("threestudio", search)
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).resolve().parent
    return None if package.parent == HOST else package.parent


def hand_over(checkout: Path) -> None:
    """Run the real threestudio's launch.py with our command line."""
    script = checkout / "launch.py"
    if not script.is_file():
        fail(f"threestudio is installed in {checkout} without its launch.py: run from a checkout.")
    print(f"Using the threestudio in {checkout}", file=sys.stderr)
    sys.path[0] = str(checkout)
    runpy.run_path(str(script), run_name="__main__")


def custom_folders() -> list[Path]:
    """Where extensions are: custom/ here, and beside this file."""
    folders = [Path("custom"), ROOT / "custom"]
    return list({folder.resolve(): folder.resolve() for folder in folders if folder.is_dir()})


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    checkout = find_real_threestudio()
    if checkout is not None:
        hand_over(checkout)
        return 0
    try:
        with exit_on_signals():
            return run_host(*parse_arguments(argv))
    except KeyboardInterrupt as error:
        if advice := getattr(error, "advice", "Stopped."):
            say(advice)
        return getattr(error, "exit_code", 130)


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Leave with the exit code that shells give; the run itself handles signals once it has begun."""

    def stop(signum: int, frame: Any) -> NoReturn:
        os.write(2, b"Stopped.\n")  # print may be what the signal interrupts
        sys.exit(128 + signum)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    for name in names:
        if before[name] == signal.SIG_DFL:  # nohup has it ignored
            signal.signal(getattr(signal, name), stop)
    try:
        yield
    finally:
        for name in names:
            signal.signal(getattr(signal, name), before[name])


def run_host(args: argparse.Namespace, overrides: list[str]) -> int:
    """Do on our host what is asked; returns the exit code."""
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        os.environ["CUDA_VISIBLE_DEVICES"] = args.gpu or "0"
    spin_briefly()
    sys.path.append(str(HOST))  # last: what is installed comes first

    from threestudio import run as launcher

    options = ["--gpu", args.gpu] if args.gpu else []
    options += [f"--{name}" for name in ("verbose", "typecheck") if getattr(args, name)]
    request = launcher.Request(
        config=args.config,
        stage=args.stage,
        overrides=overrides,
        custom_folders=custom_folders(),
        verbose=args.verbose,
        typecheck=args.typecheck,
        command=shlex.join(["python", *sys.argv]),
        program=["python", sys.argv[0], *options],
    )
    try:
        launcher.run(request)
    except BrokenPipeError:
        return 141  # as programs end whose output nobody reads any more
    except Exception as error:
        message = launcher.describe_error(error)
        if message is None or args.verbose:
            say(traceback.format_exc().rstrip())
        if message is None:
            return 1
        say(f"error: {message}")
        return 2
    return 0


def leave(code: Any) -> NoReturn:
    """End with the exit code, or with 2 where what was printed cannot be written, as on a full disk."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            if not isinstance(error, BrokenPipeError):  # a reader such as `head` has seen enough
                code = code or 2
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # for Python flushes once more
    sys.exit(code)


if __name__ == "__main__":
    try:
        exit_code = main()
    except SystemExit as end:
        exit_code = end.code
    leave(exit_code)
