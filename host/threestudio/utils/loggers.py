"""The logs of a run: Lightning's, which here name the file that cannot be written and keep what is in it."""

from __future__ import annotations

import csv
import functools
import os
import threading
from typing import Any

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from threestudio.utils.files import OutputError, atomic_path, writing

__all__ = ["MetricsTable", "TensorBoardEvents"]


class MetricsTable(CSVLogger):
    """``metrics.csv``, one row for each logged step."""

    @property
    def experiment(self) -> Any:
        with writing(self.log_dir):
            if self._experiment is None:
                os.makedirs(self.root_dir, exist_ok=True)
                self._experiment = _Table(self.log_dir)
            return super().experiment

    def save(self) -> None:
        with writing(self.log_dir):
            super().save()


class _Table(ExperimentWriter):
    """Rows are added whole or not at all, and a new column never endangers the rows that are there."""

    def save(self) -> None:
        path = self.metrics_file_path
        size = os.path.getsize(path) if os.path.exists(path) else None
        with writing(path):
            try:
                super().save()
            except OSError:
                if size is not None:
                    os.truncate(path, max(size, 0))
                elif os.path.exists(path):
                    os.unlink(path)
                raise

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        with atomic_path(self.metrics_file_path) as temporary:
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, fieldnames=fieldnames)
                table.writeheader()
                table.writerows(rows)


class TensorBoardEvents(TensorBoardLogger):
    """TensorBoard's event files.

    Lightning would expand ``~`` and ``$NAME`` in the folder's name, which holds the prompt.
    """

    @property
    def log_dir(self) -> str:
        version = self.version if isinstance(self.version, str) else f"version_{self.version}"
        return os.path.join(self.root_dir, version)

    @property
    def experiment(self) -> Any:
        _leave_errors_to_the_logger()
        with writing(self.log_dir):
            return super().experiment

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        try:
            with writing(self.log_dir):
                super().log_metrics(metrics, step)
        except ValueError as error:  # what Lightning makes of everything
            if isinstance(error.__cause__, OSError):
                raise OutputError(self.log_dir, error.__cause__) from error
            raise

    def save(self) -> None:
        with writing(self.log_dir):
            super().save()

    def finalize(self, status: str) -> None:
        with writing(self.log_dir):
            super().finalize(status)


@functools.cache
def _leave_errors_to_the_logger() -> None:
    """TensorBoard's thread passes its error on to whoever logs next, and need not print it too."""
    usual = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        of_tensorboard = type(failure.thread).__module__.startswith("tensorboard.")
        if not (of_tensorboard and isinstance(failure.exc_value, OSError)):
            usual(failure)

    threading.excepthook = hook
