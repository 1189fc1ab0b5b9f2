"""A progress bar with the time left."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LINES_PER_RUN = 20  # without a terminal: about one line for each 5 %


class CustomProgressBar(ProgressBar):
    """Steps done, time passed, time left, and what the system logs with ``prog_bar=True``.

    On a terminal it is a bar; into a file or pipe it is a line now and then.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._display: _Bar | _Lines | None = None

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def _begin(self, description: str, total: float | None, completed: int = 0) -> None:
        self._finish()
        if self._enabled and self.trainer.is_global_zero:
            display = _Bar if sys.stderr.isatty() else _Lines
            self._display = display(
                description, None if total is None or total == float("inf") else int(total), completed
            )

    def _advance(self, completed: int, postfix: str = "") -> None:
        if self._display is not None:
            self._display.advance(completed, postfix)

    def _finish(self) -> None:
        if self._display is not None:
            self._display.finish()
            self._display = None

    def _postfix(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
        metrics = self.get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return "  ".join(f"{name.removeprefix('train/')} {_short(value)}" for name, value in metrics.items())

    # ---- training ----

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        total = trainer.max_steps if trainer.max_steps > 0 else self.total_train_batches
        self._begin("Training", total, trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._display is not None:
            done = trainer.global_step if trainer.max_steps > 0 else batch_idx + 1
            # Reading metrics copies them from the GPU, so only when they are shown.
            self._advance(done, self._postfix(trainer, pl_module) if self._display.due() else "")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish()

    # ---- testing and exporting ----

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin("Testing", _total(trainer.num_test_batches))

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._advance(_batch_idx(args) + 1)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin("Exporting", _total(trainer.num_predict_batches))

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._advance(_batch_idx(args) + 1)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._finish()


def _total(batches: list[int | float]) -> float:
    return sum(batches)


def _batch_idx(args: tuple[Any, ...]) -> int:
    """Of (outputs, batch, batch_idx, dataloader_idx)."""
    return args[2]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class _Bar:
    """A live line at the bottom of a terminal."""

    def __init__(self, description: str, total: int | None, completed: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[postfix]}"),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        self._task = self._progress.add_task(description, total=total, completed=completed, postfix="")
        self._last = 0.0
        self._progress.start()

    def due(self) -> bool:
        return time.monotonic() - self._last > 0.5

    def advance(self, completed: int, postfix: str) -> None:
        if postfix:
            self._last = time.monotonic()
            self._progress.update(self._task, completed=completed, postfix=postfix)
        else:
            self._progress.update(self._task, completed=completed)

    def finish(self) -> None:
        self._progress.stop()


class _Lines:
    """A line for every twentieth of the work, on stderr."""

    def __init__(self, description: str, total: int | None, completed: int) -> None:
        self._description, self._total, self._first = description, total, completed
        self._start = time.monotonic()
        self._every = max(1, (total or 1000) // _LINES_PER_RUN)
        self._completed = self._shown = completed
        self._last = float("-inf")

    def due(self) -> bool:
        upcoming = self._completed + 1
        at_step = upcoming // self._every > self._shown // self._every and time.monotonic() - self._last > 1.0
        return at_step or upcoming == self._total

    def advance(self, completed: int, postfix: str) -> None:
        self._completed = completed - 1
        if completed != self._shown and self.due():
            self._shown, self._last = completed, time.monotonic()
            self._print(completed, postfix)
        self._completed = completed

    def _print(self, completed: int, postfix: str) -> None:
        passed = time.monotonic() - self._start
        line = f"{self._description} {completed}"
        if self._total:
            left = passed / max(completed - self._first, 1) * (self._total - completed)
            line += f"/{self._total}  {_clock(passed)} passed, {_clock(left)} left"
        print(f"{line}  {postfix}".rstrip(), file=sys.stderr, flush=True)

    def finish(self) -> None:
        pass


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
