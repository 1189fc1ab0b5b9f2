"""Progress of long work: a bar with the time left on a terminal, a line every 20 seconds in a log."""

from __future__ import annotations

import sys
import time
from typing import Self

from tqdm import tqdm

LINE_EVERY = 20.0  # seconds between lines when the output is not a terminal


class Progress:
    """Shows how far a known amount of work is. Use as a context manager.

    Args:
        name: what is being done.
        total: amount of work, in whatever unit `update` counts (steps, seconds of a budget, shards).
        hidden: show nothing.
    """

    def __init__(self, name: str, total: float, hidden: bool = False):
        self.name, self.total, self.hidden = name, total, hidden
        self._bar = tqdm(total=total, desc=name, disable=hidden or not sys.stderr.isatty(), bar_format=_BAR)
        self._start = self._last = time.monotonic()
        self._first: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc) -> None:
        self._bar.close()

    def update(self, done: float, **values: float | str) -> None:
        """Report that `done` of `total` is done, with current `values` to show."""
        if self.hidden:
            return
        text = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        if self._first is None:
            self._first = done
        if not self._bar.disable:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last >= LINE_EVERY or done >= self.total:
            self._last = now
            elapsed = now - self._start
            gained = done - self._first
            left = f"  left {elapsed * (self.total - done) / gained / 60:.1f} min" if gained > 0 else ""
            print(f"{self.name} {100 * done / self.total:5.1f}%  {text}{left}", flush=True)


_BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed} < {remaining}  {postfix}"
