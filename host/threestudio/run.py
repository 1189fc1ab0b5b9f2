"""One run: from a config and a stage to files.  `launch.py` is its command line."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

import threestudio
from threestudio.extensions import load_extensions
from threestudio.kinds import ROLES, unknown_name
from threestudio.systems.base import BaseSystem
from threestudio.utils.callbacks import (
    AtomicCheckpointIO,
    Checkpoints,
    CodeSnapshotCallback,
    ConfigSnapshotCallback,
    CustomProgressBar,
    SeedEveryStep,
)
from threestudio.utils.config import ExperimentConfig, config_to_primitive, load_config
from threestudio.utils.errors import (
    CheckpointError,
    ConfigValueError,
    UnknownKeyError,
    UnknownNameError,
    UserError,
    did_you_mean,
    is_user_error,
)
from threestudio.utils.misc import find_last_path, get_rank, load_checkpoint
from threestudio.utils.overrides import escaped

STAGES = ("train", "validate", "test", "export")


@dataclass
class Request:
    """What the command line asks for."""

    config: str
    """Path of the YAML file."""
    stage: str
    """One of `STAGES`."""
    overrides: Sequence[str] = ()
    """key.sub=value items."""
    custom_folders: Sequence[Path] = ()
    """Where extensions are."""
    verbose: bool = False
    """Show debug lines and Lightning's own messages."""
    typecheck: bool = False
    """Check annotated shapes at run time."""
    command: str = ""
    """The command line, for cmd.txt."""


def run(request: Request) -> None:
    """Do what ``request`` asks, and print the files it made.

    Raises:
        UserError: (or whatever has ``is_user_error``) a mistake in config, command line or files.
        KeyboardInterrupt: stopped by the user.
    """
    set_up_logging(request.verbose)
    load_extensions(request.custom_folders)
    try:
        _run(request)
    except (MissingMandatoryValue, ConfigAttributeError, ConfigKeyError) as error:
        message = _explain_access(error)
        if message is None:
            raise
        raise ConfigValueError(message) from error


def _run(request: Request) -> None:
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 1
    cfg = load_config(request.config, cli_args=request.overrides, n_gpus=n_gpus)
    _check_arguments("trainer", cfg.trainer, pl.Trainer.__init__)
    _check_arguments("checkpoint", cfg.checkpoint, ModelCheckpoint.__init__)
    for key in ("data_type", "system_type"):
        if not cfg[key]:
            raise ConfigValueError(f"{request.config} names no {key}.")
    status = _read_checkpoint(cfg, request.stage)
    if request.typecheck:
        from threestudio.utils.typecheck import check_shapes

        check_shapes()

    # The rank goes into the seed, so that processes see different cameras and noise.
    seed = cfg.seed + get_rank()
    pl.seed_everything(seed, workers=True, verbose=False)
    with _run_folder(Path(cfg.trial_dir)) as folder, _naming_the_key(cfg, request.config):
        datamodule = threestudio.find(cfg.data_type)(cfg.data)
        system: BaseSystem = threestudio.find(cfg.system_type)(cfg.system, resumed=cfg.resume is not None)
        system.set_save_dir(os.path.join(cfg.trial_dir, "save"))
        training = request.stage == "train"
        callbacks: list[Any] = [_Started(folder)]
        if cfg.trainer.get("enable_progress_bar", True):  # Lightning refuses a bar of ours with false
            callbacks.append(CustomProgressBar())
        callbacks += _training_callbacks(request, cfg, seed) if training else []
        trainer = _make_trainer(cfg, callbacks, _loggers(cfg, system) if training else False, request.verbose)
        if training:
            _train(trainer, system, datamodule, cfg.resume)
        else:
            system.set_resume_status(*status)
            _evaluate(request.stage, trainer, system, datamodule, cfg.resume)
    if trainer.is_global_zero:
        _print_files(system, Path(cfg.trial_dir))


# ---- stages ------------------------------------------------------------------------------------------------


def _train(trainer: pl.Trainer, system: BaseSystem, datamodule: Any, resume: str | None) -> None:
    with _interruptible(trainer):
        try:
            trainer.fit(system, datamodule=datamodule, ckpt_path=resume)
        except ValueError as error:
            if "loaded state dict" not in str(error):  # what torch says of an optimizer's state
                raise
            raise CheckpointError(
                f"{resume} was made with another optimizer: its state does not fit system.optimizer; "
                f"system.weights={resume} starts a new training with its weights."
            ) from error
        trainer.test(system, datamodule=datamodule, verbose=False)


def _evaluate(
    stage: str, trainer: pl.Trainer, system: BaseSystem, datamodule: Any, resume: str | None
) -> None:
    if resume is None:
        threestudio.warn(
            f"--{stage} without resume=path/to/last.ckpt: this is the system as the config makes it."
        )
    with _interruptible(trainer):
        if stage == "export":
            trainer.predict(system, datamodule=datamodule, ckpt_path=resume, return_predictions=False)
        else:
            loop = trainer.validate if stage == "validate" else trainer.test
            loop(system, datamodule=datamodule, ckpt_path=resume, verbose=False)


@contextlib.contextmanager
def _interruptible(trainer: pl.Trainer) -> Iterator[None]:
    """Ctrl+C as KeyboardInterrupt: Lightning makes a SystemExit of it."""
    try:
        yield
    except SystemExit as error:
        if not trainer.interrupted:
            raise
        checkpoint = getattr(trainer.checkpoint_callback, "last_model_path", "")
        if trainer.is_global_zero and checkpoint:
            print(f"Continue with --train resume={checkpoint}", file=sys.stderr)
        raise KeyboardInterrupt from error


def _read_checkpoint(cfg: ExperimentConfig, stage: str) -> tuple[int, int]:
    """Check the checkpoint to resume from; its (epoch, global step), (0, 0) without one."""
    if cfg.resume is None:
        return 0, 0
    cfg.resume = escaped(find_last_path(cfg.resume))
    checkpoint = load_checkpoint(cfg.resume, map_location="cpu")
    if stage == "train" and "optimizer_states" not in checkpoint:
        raise CheckpointError(
            f"{cfg.resume} holds weights alone, without the optimizer, so training cannot resume from it; "
            f"system.weights={cfg.resume} starts a new training with them."
        )
    if "epoch" not in checkpoint or "global_step" not in checkpoint:
        raise CheckpointError(f"{cfg.resume} is not a training checkpoint: it does not say its step.")
    return int(checkpoint["epoch"]), int(checkpoint["global_step"])


# ---- trainer -----------------------------------------------------------------------------------------------


def _make_trainer(cfg: ExperimentConfig, callbacks: list[Any], loggers: Any, verbose: bool) -> pl.Trainer:
    on_gpu = torch.cuda.is_available()
    arguments = {
        "callbacks": callbacks,
        "logger": loggers,
        "inference_mode": False,
        "accelerator": "gpu" if on_gpu else "cpu",
        "devices": -1 if on_gpu else 1,
        "plugins": [AtomicCheckpointIO()],
        "deterministic": "warn",
        "enable_model_summary": verbose,
        **config_to_primitive(cfg.trainer),
    }
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, and only hides reads of garbage
    try:
        return pl.Trainer(**arguments)
    except (MisconfigurationException, TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in config_to_primitive(cfg.trainer).items())
        raise ConfigValueError(f"trainer: {error}\nIt was given {given}.") from error


def _training_callbacks(request: Request, cfg: ExperimentConfig, seed: int) -> list[Any]:
    try:
        checkpoints = Checkpoints(
            **{"dirpath": os.path.join(cfg.trial_dir, "ckpts"), **config_to_primitive(cfg.checkpoint)}
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ConfigValueError(f"checkpoint: {error}") from error
    return [
        SeedEveryStep(seed),
        checkpoints,
        LearningRateMonitor(logging_interval="step"),
        CodeSnapshotCallback(os.path.join(cfg.trial_dir, "code"), use_version=False),
        ConfigSnapshotCallback(
            request.config,
            cfg,
            os.path.join(cfg.trial_dir, "configs"),
            use_version=False,
            command=request.command,
        ),
    ]


def _loggers(cfg: ExperimentConfig, system: BaseSystem) -> list[Any]:
    loggers: list[Any] = [CSVLogger(cfg.trial_dir, name="csv_logs"), *system.get_loggers()]
    try:
        loggers.insert(0, TensorBoardLogger(cfg.trial_dir, name="tb_logs"))
    except ModuleNotFoundError:
        threestudio.warn("No TensorBoard logs: pip install tensorboard.")
    return loggers


def _check_arguments(section: str, given: Any, function: Any) -> None:
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    for key in given:
        if key not in known:
            raise UnknownKeyError(
                f"Unknown key {key!r} in {section}.{did_you_mean(key, known)}\n"
                f"Its keys: {', '.join(sorted(known))}."
            )


# ---- the folder of the run ---------------------------------------------------------------------------------


@dataclass
class _Folder:
    started: bool = False
    """Whether the run got as far as its first batch."""


class _Started(pl.Callback):
    """Marks a run that did start, whose files are therefore worth keeping."""

    def __init__(self, folder: _Folder) -> None:
        super().__init__()
        self._folder = folder

    def _mark(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if not trainer.sanity_checking:
            self._folder.started = True

    on_train_batch_start = on_validation_batch_start = on_test_batch_start = on_predict_batch_start = _mark


@contextlib.contextmanager
def _run_folder(path: Path) -> Iterator[_Folder]:
    """Leave no trace in ``path`` of a run that fails before it starts, unless the folder was there before."""
    new = next((p for p in [*reversed(path.parents), path] if not p.exists()), None)
    folder = _Folder()
    try:
        yield folder
    except BaseException:
        if new is not None and path.is_dir() and not folder.started and get_rank() == 0:
            shutil.rmtree(path, ignore_errors=True)
            for parent in path.parents:
                if parent == new.parent:
                    break
                with contextlib.suppress(OSError):
                    parent.rmdir()  # only if empty
        raise


def _print_files(system: BaseSystem, trial_dir: Path) -> None:
    """Name the files of the run on stdout: the system's own list, or all of the save folder."""
    listed = system.summary_files() if hasattr(system, "summary_files") else None
    if not listed:  # nothing, or nothing at this stage
        lines = describe_files(trial_dir / "save")
    elif isinstance(listed, dict):
        width = max((len(what) for what in listed), default=0)
        lines = [f"{what:{width}}  {path}" for what, path in listed.items()]
    else:
        lines = [str(path) for path in listed]
    print(f"\nThe files of this run are in {trial_dir}")
    for line in lines:
        print(f"  {line}")
    if (trial_dir / "ckpts" / "last.ckpt").exists():
        print(f"  resume or export with  resume={trial_dir / 'ckpts' / 'last.ckpt'}")


def describe_files(folder: Path, many: int = 8) -> list[str]:
    """The files below ``folder``, one a line; sub-folders with more than ``many`` of a kind are counted."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            groups.setdefault((path.parent, path.suffix), []).append(path)
    lines = []
    for (parent, suffix), paths in groups.items():
        if len(paths) > many:
            lines.append(f"{parent}/  ({len(paths)} {suffix.lstrip('.') or 'plain'} files)")
        else:
            lines += [str(path) for path in paths]
    return lines


# ---- messages ----------------------------------------------------------------------------------------------


class _StderrHandler(logging.StreamHandler):
    """Writes to what sys.stderr is now: a progress bar puts itself in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


def set_up_logging(verbose: bool) -> None:
    """Our own lines on stderr; Lightning's remarks, and warnings about its insides, only with ``verbose``."""
    logger = threestudio.logger
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
    if not verbose:
        handler.addFilter(
            lambda record: record.levelno >= logging.WARNING or not _from_lightning(record.pathname)
        )
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    fabric = logging.getLogger("lightning_fabric")
    fabric.handlers, fabric.propagate = [handler], False
    if verbose:
        return
    warnings.filterwarnings(
        "ignore", module=r"(pytorch_lightning|lightning_fabric|lightning_utilities|torch)(\.|$)"
    )
    warnings.filterwarnings("ignore", message=r"register_new_resolver\(\) is deprecated")
    # torch says this of each operation without a deterministic form; "warn" asks for those that have one.
    warnings.filterwarnings("ignore", message=r".*does not have a deterministic implementation")


def _from_lightning(pathname: str) -> bool:
    return any(f"{os.sep}{name}{os.sep}" in pathname for name in ("pytorch_lightning", "lightning_fabric"))


@contextlib.contextmanager
def _naming_the_key(cfg: ExperimentConfig, file: str) -> Iterator[None]:
    """An unknown registered name is told with the key that holds it, and with what would fit there."""
    try:
        yield
    except UnknownNameError as error:
        key = _key_of(cfg, error.name)
        if key is None:
            raise
        mixed_in = str(OmegaConf.select(cfg, key)).partition(":")[2].split(",")
        kind = None if error.name in mixed_in else ROLES.get(key.rpartition(".")[2])
        message = unknown_name(str(error.name), threestudio.__modules__, kind)
        raise UnknownNameError(f"{key} in {file}: {message}", name=error.name) from error


def _key_of(cfg: ExperimentConfig, name: str | None) -> str | None:
    """The key of the config, full, that holds a registered name (or one of "main:a,b")."""
    sections = {"": cfg, "system.": cfg.system}
    for prefix, section in sections.items():
        for key in section:
            value = section[key]
            if key.endswith("_type") and isinstance(value, str) and name in re.split("[:,]", value):
                return f"{prefix}{key}"
    return None


def _explain_access(error: Any) -> str | None:
    """The message for reading a config key that is not there; None when it is the code that is wrong."""
    key = error.full_key or str(error.key)
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is needed here: add {key}=..."
    if error.object_type is dict:  # a free-form section such as loss; other sections are dataclasses
        return f"The config has no {key}, which is needed here: add {key}=..."
    return None


def describe_error(error: BaseException) -> str | None:
    """The one message of a user's mistake; None for everything else."""
    return str(error) if is_user_error(error) else None


__all__ = ["STAGES", "Request", "UserError", "describe_error", "run"]
