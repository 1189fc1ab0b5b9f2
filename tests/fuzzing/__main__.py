"""Spoils files for minutes, and reports what a reader should never do.

    python -m tests.fuzzing --minutes 10
    python -m tests.fuzzing --minutes 2 --readers glb,obj --seed 7 --keep found

Counts escapes (errors that are no message to the user), hangs (over 10 s), crashes of the process, and reads
that take more than 300 MB. Each file that did so is kept, with its traceback. Exits with 1 if there are any.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

import torch

from .readers import READERS
from .spoil import spoil
from .trial import Outcome, attempt

LONGEST = 10.0  # seconds
LARGEST = 300e6  # bytes


class Worker:
    """A process that reads spoilt files, so that one which hangs or dies ends nothing else."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")  # what is imported stays so
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(self.name, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def attempt(self, path: Path) -> Outcome | str:
        """The outcome, or "hang" or "crash"."""
        self.pipe.send(path)
        try:
            if self.pipe.poll(LONGEST):
                return self.pipe.recv()
            kind = "hang"
        except EOFError:
            kind = "crash"
        self.stop()
        self._start()
        return kind

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def _serve(name: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        pipe.send(attempt(READERS[name], pipe.recv()))


def fuzz(name: str, seconds: float, seed: int, keep: Path) -> Counter[str]:
    """Spoils the files of one reader until the time is over; counts what came of it."""
    counts: Counter[str] = Counter()
    end, random = time.monotonic() + seconds, Random(f"{seed} {name}")
    with tempfile.TemporaryDirectory() as folder:
        whole = {path: path.read_bytes() for path in READERS[name].make(Path(folder))}
        for path in whole:  # what a first read imports is not counted as any file's
            READERS[name].read(path)
        worker = Worker(name, Path(folder))
        while time.monotonic() < end:
            path = random.choice(list(whole))
            data = spoil(random, whole[path])
            path.write_bytes(data)
            outcome = worker.attempt(path)
            path.write_bytes(whole[path])
            counts["files"] += 1
            if isinstance(outcome, Outcome):
                counts["refused"] += outcome.refused
                largest = max(counts["largest, MB"], round(outcome.bytes / 1e6))
                counts["largest, MB"] = largest
                counts["longest, ms"] = max(counts["longest, ms"], round(outcome.seconds * 1e3))
            if kind := fault(outcome):
                counts[kind] += 1
                _keep(keep, f"{name}-{kind}-{counts[kind]}-{path.name}", data, outcome)
        worker.stop()
    return counts


def fault(outcome: Outcome | str) -> str:
    """ "escape", "hang", "crash" or "memory"; "" for what is as it should be."""
    if isinstance(outcome, str):
        return outcome
    if outcome.escape:
        return "escape"
    return "memory" if outcome.bytes > LARGEST else ""


def _keep(folder: Path, name: str, data: bytes, outcome: Outcome | str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    if isinstance(outcome, Outcome) and outcome.escape:
        (folder / f"{name}.txt").write_text(outcome.escape)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="of all readers together")
    parser.add_argument("--readers", default=",".join(READERS), help="of " + ", ".join(READERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, default=Path("outputs/fuzzing"), help="folder for what was found"
    )
    options = parser.parse_args()
    names = options.readers.split(",")
    if unknown := [name for name in names if name not in READERS]:
        parser.error(f"no such reader: {', '.join(unknown)}")
    found = 0
    for name in names:
        counts = fuzz(name, 60.0 * options.minutes / len(names), options.seed, options.keep)
        found += sum(counts[kind] for kind in ("escape", "hang", "crash", "memory"))
        print(f"{name}: " + ", ".join(f"{count} {what}" for what, count in counts.items()), flush=True)
    print(f"{found} faults" + (f", kept in {options.keep}" if found else ""))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
