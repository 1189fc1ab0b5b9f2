"""Ctrl+C and its relatives: a run is stopped at once, or, while it trains, between two steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, and has.

    Args:
        signum: by which signal.
    """

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum
        self.advice = "Stopped."
        """What to tell the user."""


class Stopping:
    """A context in which the signals that end a program raise `Stopped`.

    While `deferred`, the first one only sets `requested`, and a second one raises.  A signal that this
    process was started to ignore, as ``nohup`` does with SIGHUP, stays ignored.
    """

    def __init__(self) -> None:
        self.deferred = False
        self.requested: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        self._before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
        self.install()
        return self

    def __exit__(self, *error: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._before.items():
                signal.signal(signum, handler if handler is not None else signal.SIG_DFL)

    def install(self) -> None:
        """Handle the signals, also if something else has taken them over."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python handles signals in the main thread alone
        for signum, before in self._before.items():
            if before != signal.SIG_IGN:
                signal.signal(signum, self._handle)

    def raise_if_requested(self) -> None:
        """Stop here, if that was asked for."""
        if self.requested is not None:
            raise Stopped(self.requested)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first = self.requested is None
        self.requested = signum
        if not (self.deferred and first):
            raise Stopped(signum)
        # Not print: the signal may have come in the midst of one.
        os.write(2, b"\nStopping when this step is done and saved. Once more stops at once.\n")
