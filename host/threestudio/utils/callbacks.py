"""What happens around a run: snapshots of code and config, seeds, whole checkpoints."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from threestudio.data.uncond import batches_done
from threestudio.utils.config import dump_config
from threestudio.utils.files import atomic_path, write_text
from threestudio.utils.folder import free_name
from threestudio.utils.misc import load_checkpoint
from threestudio.utils.progress import CustomProgressBar
from threestudio.utils.snapshot import save_snapshot
from threestudio.utils.stopping import Stopped, Stopping

__all__ = [
    "AtomicCheckpointIO",
    "Checkpoints",
    "CodeSnapshotCallback",
    "ConfigSnapshotCallback",
    "CustomProgressBar",
    "SeedEveryStep",
    "VersionedCallback",
]


class VersionedCallback(Callback):
    """A callback with a folder: ``save_root``, or ``save_root/version_N`` with N one more than there is.

    Args:
        save_root: the folder.
        version: N, or the name of the sub-folder.
        use_version: false writes into ``save_root`` itself.
    """

    def __init__(self, save_root: str, version: int | str | None = None, use_version: bool = True) -> None:
        super().__init__()
        self.save_root = save_root
        self._version = version
        self.use_version = use_version

    @property
    def version(self) -> int | str:
        if self._version is None:
            self._version = self._next_version()
        return self._version

    def _next_version(self) -> int:
        entries = os.listdir(self.save_root) if os.path.isdir(self.save_root) else []
        numbers = [
            int(match.group(1)) for entry in entries if (match := re.fullmatch(r"version_(\d+)", entry))
        ]
        return max(numbers, default=-1) + 1

    @property
    def savedir(self) -> str:
        if not self.use_version:
            return self.save_root
        name = self.version if isinstance(self.version, str) else f"version_{self.version}"
        return os.path.join(self.save_root, name)


class CodeSnapshotCallback(VersionedCallback):
    """Copies the source of this project and of the extensions; see `threestudio.utils.snapshot`.

    Args:
        extensions: folders and .py files.
        but_not: the folder of all runs.
    """

    def __init__(
        self,
        save_root: str,
        version: int | str | None = None,
        use_version: bool = True,
        extensions: Sequence[Path] = (),
        but_not: str = "outputs",
    ) -> None:
        super().__init__(save_root, version, use_version)
        self._extensions = extensions
        self._but_not = but_not

    @rank_zero_only
    def save_code_snapshot(self) -> None:
        """Copy it."""
        save_snapshot(self.savedir, self._extensions, self._but_not)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save_code_snapshot()


class ConfigSnapshotCallback(VersionedCallback):
    """Writes the config as given (raw.yaml) and as used (parsed.yaml).

    Args:
        config_path: the YAML file given.
        config: the config made of it.
        command: the command line, a line more of cmd.txt beside the folder; None writes none.
    """

    def __init__(
        self,
        config_path: str,
        config: Any,
        save_root: str,
        version: int | str | None = None,
        use_version: bool = True,
        command: str | None = None,
    ) -> None:
        super().__init__(save_root, version, use_version)
        # Read now: running from a saved config replaces that very file.
        self.raw = Path(config_path).read_text(encoding="utf-8")
        self.config = config
        self.command = command

    @rank_zero_only
    def save_config_snapshot(self) -> None:
        """Write them; a config that goes on from parsed.yaml leaves raw.yaml, and cmd.txt gets longer."""
        raw, parsed = (Path(self.savedir, f"{name}.yaml") for name in ("raw", "parsed"))
        goes_on = parsed.is_file() and parsed.read_text(encoding="utf-8") == self.raw
        if not (goes_on and raw.is_file()):
            write_text(raw, self.raw)
        dump_config(str(parsed), self.config)
        if self.command is not None:
            file = Path(self.savedir).parent / "cmd.txt"
            before = file.read_text(encoding="utf-8") if goes_on and file.is_file() else ""
            write_text(file, before + self.command + "\n")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not before: a run that cannot start leaves nothing behind.
        self.save_config_snapshot()


class SeedEveryStep(Callback):
    """Seeds the global generators before each batch from the run's seed and the batch's number.

    So a step draws the same numbers whether or not the run was stopped and resumed before it, and however
    often validation came in between; a test draws the same whether it follows the training or is run apart.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._seed(batches_done(trainer))

    def on_test_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._seed(batch_idx, 1)

    def _seed(self, *numbers: int) -> None:
        words = np.random.SeedSequence([self.seed, *numbers]).generate_state(3, np.uint32)
        torch.manual_seed(int(words[0]))  # CUDA's generators too
        np.random.seed(words[1])
        random.seed(int(words[2]))


class Checkpoints(ModelCheckpoint):
    """Lightning's, which also saves last.ckpt now and then, at the last step, and when the run is stopped.

    Lightning saves every n-th step only, so that last.ckpt may be older than the result of the run.  Files of
    the same name are replaced: with a second last-v1.ckpt nobody would know which one is the last.

    Args:
        every_n_minutes: save last.ckpt after the first step that ends so long after the last save; 0 never.
        stopping: asked between steps whether to stop.
    """

    def __init__(
        self,
        every_n_minutes: float = 5.0,
        enable_version_counter: bool = False,
        stopping: Stopping | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(enable_version_counter=enable_version_counter, **kwargs)
        if not isinstance(every_n_minutes, (int, float)) or not every_n_minutes >= 0:
            raise ValueError(f"every_n_minutes is {every_n_minutes!r}; it must be a number of at least 0.")
        self.every_n_minutes = every_n_minutes
        self.newest: tuple[str, int] | None = None
        """The checkpoint that was saved last, and its step."""
        self.keep_earlier = False
        """Keep, under another name, what an earlier run with another config saved as these steps."""
        self._stopping = stopping or Stopping()
        self._saved_at = 0.0
        self._loops: dict[str, Any] | None = None  # Lightning's counters after the last whole step
        self._between_steps = False
        self._made: set[str] = set()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._saved_at = time.monotonic()
        self._stopping.install()  # Lightning has put its own in the place of some
        self._stopping.deferred = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        at_end = trainer.global_step == trainer.max_steps and self._every_n_train_steps > 0
        if at_end and self.save_last and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        self._save_or_stop(trainer)
        self._loops = trainer.fit_loop.state_dict()

    def _save_or_stop(self, trainer: pl.Trainer) -> None:
        """Save if it is time, and stop if that was asked for; all processes do the same."""
        stop = self._stopping.requested
        wish = 1 + stop if stop is not None else int(self._is_time())
        if trainer.world_size > 1:
            wish = torch.tensor(wish, device=trainer.strategy.root_device)
            wish = int(trainer.strategy.reduce(wish, reduce_op="max"))
        if wish:
            self._save_last(trainer)
        if wish > 1:
            raise Stopped(wish - 1)

    def _is_time(self) -> bool:
        return 0 < 60 * self.every_n_minutes <= time.monotonic() - self._saved_at

    def _save_last(self, trainer: pl.Trainer) -> None:
        """Save last.ckpt, from which the run can go on, unless this step has such a checkpoint."""
        is_saved = self.newest is not None and self.newest[1] == trainer.global_step
        if trainer.fast_dev_run or (is_saved and not self.save_weights_only):
            return
        path = os.path.join(str(self.dirpath), self.CHECKPOINT_NAME_LAST + self.FILE_EXTENSION)
        self.last_model_path = path
        trainer.save_checkpoint(path, weights_only=False)
        self._note(path, trainer)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        is_earlier = self.keep_earlier and filepath not in self._made and os.path.exists(filepath)
        if is_earlier and trainer.is_global_zero and Path(filepath).stem != self.CHECKPOINT_NAME_LAST:
            os.rename(filepath, free_name(Path(filepath), "-earlier"))
        super()._save_checkpoint(trainer, filepath)
        self._made.add(filepath)
        self._note(filepath, trainer)

    def _note(self, path: str, trainer: pl.Trainer) -> None:
        self.newest = (path, trainer.global_step)
        self._saved_at = time.monotonic()

    # ---- stopping between steps: in validation, or before a step that then does not begin -----------------

    def _stop_between_steps(self, trainer: pl.Trainer, *args: Any) -> None:
        if self._stopping.requested is None or not self._stopping.deferred or trainer.world_size > 1:
            return  # several processes agree at the end of the next step
        if self._loops is not None:
            self._between_steps = True
            self._save_last(trainer)
        self._stopping.raise_if_requested()

    on_train_batch_start = on_validation_batch_start = on_validation_batch_end = _stop_between_steps

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._between_steps:  # Lightning counts what has begun; a run resumes after what was done
            checkpoint["loops"]["fit_loop"] = self._loops

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._stopping.deferred = False
        self._stopping.raise_if_requested()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._stopping.deferred = False
        super().on_exception(trainer, pl_module, exception)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that appear whole, and are read without unpickling anything but tensors.

    Lightning's pass through a temporary folder, perhaps on another disk, and older ones are unpickled.
    """

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_checkpoint(path, map_location)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        with atomic_path(path, durable=True) as temporary:
            torch.save(checkpoint, temporary)
