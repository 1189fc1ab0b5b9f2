"""One attempt at reading a spoilt file: how it ended, how long it took, how much memory it asked for."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reader:
    """A reader of other people's files.

    make: writes small valid files into an empty folder, and returns the paths of those to spoil; whatever
        else it writes stays whole beside them.
    read: reads one of them, as a run would. A file that is refused ends in an error that says it is the
        user's (`is_user_error`, as the launcher recognises it); anything else that is raised is an escape.
    """

    name: str
    make: Callable[[Path], Sequence[Path]]
    read: Callable[[Path], object]


@dataclass(frozen=True)
class Outcome:
    """escape: the traceback of an error that is not the user's, or ""; bytes: memory at its peak, above
    before."""

    refused: bool
    escape: str
    seconds: float
    bytes: int


def attempt(reader: Reader, path: Path) -> Outcome:
    """Reads a file that may be spoilt; bugs are caught."""
    before = _forget_peak()
    start, refused, escape = time.perf_counter(), False, ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(path)
    except Exception as error:
        refused = bool(getattr(error, "is_user_error", False))
        escape = "" if refused else traceback.format_exc()
    return Outcome(refused, escape, time.perf_counter() - start, max(0, _status("VmHWM") - before))


def _forget_peak() -> int:
    """Makes Linux start its record of this process's peak anew; the memory in use now, bytes."""
    if (record := Path("/proc/self/clear_refs")).exists():
        record.write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes; 0 where there is none, as on macOS."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), 0)
