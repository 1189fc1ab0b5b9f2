"""What happens around a run: snapshots of code and config, seeds, whole checkpoints."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_only

import threestudio
from threestudio.data.uncond import batches_done
from threestudio.utils.config import dump_config
from threestudio.utils.files import atomic_path, write_text
from threestudio.utils.misc import load_checkpoint
from threestudio.utils.progress import CustomProgressBar

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
    """Copies the source files of the git work tree: those not ignored by git, not big, not in load/.

    Outside of git, or in a tree too large to be this project's, it does nothing.
    """

    MAX_FILES = 3000
    MAX_BYTES = 2**20

    def files(self) -> list[str]:
        """The files, relative to the current folder.

        Raises:
            OSError, subprocess.SubprocessError: git is missing, slow, or this is not a work tree.
        """
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = (
            subprocess.run(command, check=True, capture_output=True, timeout=20).stdout.decode().split("\0")
        )
        inside = [name for name in listed if name and not name.startswith("load/")]
        return [name for name in inside if os.path.isfile(name) and os.path.getsize(name) <= self.MAX_BYTES]

    @rank_zero_only
    def save_code_snapshot(self) -> None:
        """Copy them."""
        try:
            files = self.files()
        except (OSError, subprocess.SubprocessError, UnicodeDecodeError) as error:
            threestudio.debug(f"No code snapshot: {error}")
            return
        if len(files) > self.MAX_FILES:
            threestudio.debug(f"No code snapshot: {len(files)} files are more than {self.MAX_FILES}.")
            return
        for name in files:
            target = Path(self.savedir) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, target)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save_code_snapshot()


class ConfigSnapshotCallback(VersionedCallback):
    """Writes the config as given (raw.yaml) and as used (parsed.yaml).

    Args:
        config_path: the YAML file given.
        config: the config made of it.
        command: the command line, for cmd.txt beside the folder; None writes none.
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
        """Write them."""
        write_text(os.path.join(self.savedir, "raw.yaml"), self.raw)
        dump_config(os.path.join(self.savedir, "parsed.yaml"), self.config)
        if self.command is not None:
            write_text(os.path.join(os.path.dirname(self.savedir), "cmd.txt"), self.command + "\n")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not before: a run that cannot start leaves nothing behind.
        self.save_config_snapshot()


class SeedEveryStep(Callback):
    """Seeds the global generators before each training batch from the run's seed and the batch's number.

    So a step draws the same numbers whether or not the run was stopped and resumed before it, and however
    often validation came in between.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        words = np.random.SeedSequence([self.seed, batches_done(trainer)]).generate_state(3, np.uint32)
        torch.manual_seed(int(words[0]))  # CUDA's generators too
        np.random.seed(words[1])
        random.seed(int(words[2]))


class Checkpoints(ModelCheckpoint):
    """Lightning's, and with ``save_last`` the last step is always saved.

    Lightning saves every n-th step only, so that last.ckpt may be older than the result of the run.  Files of
    the same name are replaced: with a second last-v1.ckpt nobody would know which one is the last.
    """

    def __init__(self, enable_version_counter: bool = False, **kwargs: Any) -> None:
        super().__init__(enable_version_counter=enable_version_counter, **kwargs)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        at_end = trainer.global_step == trainer.max_steps and self._every_n_train_steps > 0
        if at_end and self.save_last and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


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
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)
