"""One run: from a config and a stage to files.  `launch.py` is its command line."""

from __future__ import annotations

import contextlib
import errno
import inspect
import logging
import os
import re
import shlex
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
from pytorch_lightning.utilities.exceptions import MisconfigurationException

import threestudio
from threestudio.extensions import find_extensions, load_extensions
from threestudio.kinds import ROLES, unknown_name
from threestudio.systems.base import BaseSystem
from threestudio.utils import folder as folders
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
    OutOfMemoryError,
    UnknownKeyError,
    UnknownNameError,
    UserError,
    did_you_mean,
    is_user_error,
)
from threestudio.utils.files import reason
from threestudio.utils.loggers import MetricsTable, TensorBoardEvents
from threestudio.utils.misc import find_last_path, get_rank, load_checkpoint
from threestudio.utils.overrides import escaped
from threestudio.utils.stopping import Stopped, Stopping

STAGES = ("train", "validate", "test", "export")
MACHINE_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO),
    *(errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE),
)
"""Of an OSError: nobody's bug, wherever it strikes."""

MEMORY_KEYS = (
    "system.accumulate",
    "data.batch_size",
    "data.height",
    "data.width",
    "data.eval_batch_size",
    "system.renderer.num_samples_per_ray",
    "system.geometry.capacity",
)
"""What memory depends on, where a config has it."""


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
    program: Sequence[str] = ("python", "launch.py")
    """How the program is called, with its options but without config, stage and overrides."""


def run(request: Request) -> None:
    """Do what ``request`` asks, and print the files it made.

    Raises:
        UserError: (or whatever has ``is_user_error``) a mistake in config, command line or files.
        Stopped: (a KeyboardInterrupt) stopped by Ctrl+C or another signal.
    """
    set_up_logging(request.verbose)
    load_extensions(request.custom_folders)
    try:
        with Stopping() as stopping:
            _run(request, stopping)
    except (MissingMandatoryValue, ConfigAttributeError, ConfigKeyError) as error:
        message = _explain_access(error)
        if message is None:
            raise
        raise ConfigValueError(message) from error


def _run(request: Request, stopping: Stopping) -> None:
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 1
    cfg = load_config(request.config, cli_args=request.overrides, n_gpus=n_gpus)
    _check_arguments("trainer", cfg.trainer, pl.Trainer.__init__)
    _check_arguments("checkpoint", cfg.checkpoint, ModelCheckpoint.__init__, Checkpoints.__init__)
    for key in ("data_type", "system_type"):
        if not cfg[key]:
            raise ConfigValueError(f"{request.config} names no {key}.")
    keys = [item.partition("=")[0] for item in request.overrides]
    place = folders.choose(cfg, request.config, keys)
    status = _read_checkpoint(cfg, request.stage)
    if request.typecheck:
        from threestudio.utils.typecheck import check_shapes

        check_shapes()

    # The rank goes into the seed, so that processes see different cameras and noise.
    seed = cfg.seed + get_rank()
    pl.seed_everything(seed, workers=True, verbose=False)
    training = request.stage == "train"
    with (
        _naming_what_is_safe(cfg),
        folders.claimed(cfg, place, training) as folder,
        _naming_the_key(cfg, request.config),
        _saying_what_saves_memory(cfg),
    ):
        datamodule = threestudio.find(cfg.data_type)(cfg.data)
        system: BaseSystem = threestudio.find(cfg.system_type)(cfg.system, resumed=cfg.resume is not None)
        callbacks: list[Any] = [_Started(folder), _SaveFolder(cfg.trial_dir), SeedEveryStep(seed)]
        if cfg.trainer.get("enable_progress_bar", True):  # Lightning refuses a bar of ours with false
            callbacks.append(CustomProgressBar())
        callbacks += _training_callbacks(request, cfg, status[1], stopping) if training else []
        trainer = _make_trainer(cfg, callbacks, _loggers(cfg, system) if training else False, request.verbose)
        if training:
            _train(request, trainer, system, datamodule, cfg)
        else:
            system.set_resume_status(*status)
            _evaluate(request.stage, trainer, system, datamodule, cfg.resume)
    if trainer.is_global_zero:
        _print_files(system, Path(cfg.trial_dir))


# ---- stages ------------------------------------------------------------------------------------------------


def _train(
    request: Request, trainer: pl.Trainer, system: BaseSystem, datamodule: Any, cfg: ExperimentConfig
) -> None:
    try:
        with _interruptible(trainer):
            trainer.fit(system, datamodule=datamodule, ckpt_path=cfg.resume)
            trainer.test(system, datamodule=datamodule, verbose=False)
    except ValueError as error:
        if "loaded state dict" not in str(error):  # what torch says of an optimizer's state
            raise
        raise CheckpointError(
            f"{cfg.resume} was made with another optimizer: its state does not fit system.optimizer; "
            f"system.weights={cfg.resume} starts a new training with its weights."
        ) from error
    except Stopped as stopped:
        # One process speaks for all.
        stopped.advice = _how_to_go_on(request, cfg, trainer) if trainer.is_global_zero else ""
        raise


def _how_to_go_on(request: Request, cfg: ExperimentConfig, trainer: pl.Trainer) -> str:
    """What a stopped training says: which step is saved, and the command that goes on from it."""
    saved = trainer.checkpoint_callback.newest
    if saved is None and cfg.resume is None:
        return "Stopped before the first step was done: there is nothing to go on from."
    if saved is None:
        return f"Stopped before a further step was done. Go on with\n  {request.command}"
    path, step = saved
    config = os.path.join(cfg.trial_dir, "configs", "parsed.yaml")
    command = shlex.join([*request.program, "--config", config, "--train", f"resume={path}"])
    return f"Stopped; step {step} of {trainer.max_steps} is saved. Go on with\n  {command}"


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
    """What stopped the run: Lightning makes a SystemExit of it."""
    try:
        yield
    except SystemExit as error:
        if not trainer.interrupted:
            raise
        raise error.__context__ if isinstance(error.__context__, Stopped) else Stopped() from error


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
    epoch, step = checkpoint.get("epoch"), checkpoint.get("global_step")
    if not isinstance(epoch, int) or not isinstance(step, int):
        raise CheckpointError(f"{cfg.resume} is not a training checkpoint: it does not say its step.")
    if stage == "train":
        _check_that_something_is_left(cfg, step)
    return epoch, step


def _check_that_something_is_left(cfg: ExperimentConfig, step: int) -> None:
    """Raise a CheckpointError if the checkpoint is of a run that has been trained and tested to its end."""
    max_steps = cfg.trainer.get("max_steps", -1)
    if not isinstance(max_steps, int) or not 0 < max_steps <= step:
        return
    if folders.is_unfinished(Path(cfg.trial_dir)) and Path(cfg.resume).resolve().is_relative_to(
        Path(cfg.trial_dir).resolve()
    ):
        threestudio.info(f"{cfg.resume} is at the last step: what is left is the test.")
        return
    raise CheckpointError(
        f"{cfg.resume} is at step {step} and trainer.max_steps is {max_steps}: nothing is left to train. "
        f"trainer.max_steps={2 * step}, say, goes on; --test, --validate and --export make files of it."
    )


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


def _training_callbacks(request: Request, cfg: ExperimentConfig, step: int, stopping: Stopping) -> list[Any]:
    try:
        checkpoints = Checkpoints(
            stopping=stopping,
            **{"dirpath": os.path.join(cfg.trial_dir, "ckpts"), **config_to_primitive(cfg.checkpoint)},
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ConfigValueError(f"checkpoint: {error}") from error
    return [
        _KeepEarlier(cfg, step, checkpoints),
        checkpoints,
        LearningRateMonitor(logging_interval="step"),
        CodeSnapshotCallback(
            os.path.join(cfg.trial_dir, "code"),
            use_version=False,
            extensions=find_extensions(request.custom_folders),
            but_not=str(cfg.exp_root_dir),
        ),
        ConfigSnapshotCallback(
            request.config,
            folders.to_save(cfg),
            os.path.join(cfg.trial_dir, "configs"),
            use_version=False,
            command=request.command,
        ),
    ]


class _KeepEarlier(pl.Callback):
    """Keeps what a resumed run would replace, before it does; see `threestudio.utils.folder.keep_earlier`."""

    def __init__(self, cfg: ExperimentConfig, step: int, checkpoints: Checkpoints) -> None:
        super().__init__()
        self._cfg, self._step, self._checkpoints = cfg, step, checkpoints

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._checkpoints.keep_earlier = folders.keep_earlier(self._cfg, self._step)


def _loggers(cfg: ExperimentConfig, system: BaseSystem) -> list[Any]:
    loggers: list[Any] = [MetricsTable(cfg.trial_dir, name="csv_logs"), *system.get_loggers()]
    try:
        loggers.insert(0, TensorBoardEvents(cfg.trial_dir, name="tb_logs"))
    except ModuleNotFoundError:
        threestudio.warn("No TensorBoard logs: pip install tensorboard.")
    return loggers


def _check_arguments(section: str, given: Any, *functions: Any) -> None:
    parameters = [name for function in functions for name in inspect.signature(function).parameters]
    known = sorted(set(parameters) - {"self", "kwargs", "stopping"})
    for key in given:
        if key not in known:
            raise UnknownKeyError(
                f"Unknown key {key!r} in {section}.{did_you_mean(key, known)}\nIts keys: {', '.join(known)}."
            )


# ---- the folder of the run ---------------------------------------------------------------------------------


class _Started(pl.Callback):
    """Marks a run that did start, whose files are therefore worth keeping."""

    def __init__(self, folder: folders.RunFolder) -> None:
        super().__init__()
        self._folder = folder

    def _mark(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if not trainer.sanity_checking:
            self._folder.started = True

    on_train_batch_start = on_validation_batch_start = on_test_batch_start = on_predict_batch_start = _mark


class _SaveFolder(pl.Callback):
    """Tells the system where to save: in the folder that the first process has claimed."""

    def __init__(self, trial_dir: str) -> None:
        super().__init__()
        self._trial_dir = trial_dir

    def setup(self, trainer: pl.Trainer, pl_module: BaseSystem, stage: str) -> None:
        pl_module.set_save_dir(os.path.join(trainer.strategy.broadcast(self._trial_dir), "save"))


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
def _naming_what_is_safe(cfg: ExperimentConfig) -> Iterator[None]:
    """A run that ends because a file cannot be written says what helps, and from where it can go on."""
    try:
        yield
    except Exception as error:
        failure = _failure_of_the_machine(error)
        checkpoint = Path(cfg.trial_dir, "ckpts", "last.ckpt")
        if failure is not None and Path(failure.filename or "").is_relative_to(cfg.trial_dir):
            error.add_note("exp_root_dir=FOLDER writes elsewhere.")
        if failure is not None and checkpoint.is_file():
            error.add_note(f"What was written before is whole: resume={checkpoint} goes on from there.")
        raise


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


@contextlib.contextmanager
def _saying_what_saves_memory(cfg: ExperimentConfig) -> Iterator[None]:
    """Memory that does not suffice is told with the settings of this run that need less of it."""
    try:
        yield
    except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
        where = _where_memory_ran_out(error)
        if where is None:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        given = [
            f"{key} (now {now})" for key in MEMORY_KEYS if (now := OmegaConf.select(cfg, key)) is not None
        ]
        guidance = threestudio.__modules__.get(cfg.system.get("guidance_type"))
        known = getattr(getattr(guidance, "Config", None), "__dataclass_fields__", {})
        given += [
            f"system.guidance.{key}" for key in ("vae", "dtype", "half_precision_weights") if key in known
        ]
        raise OutOfMemoryError(
            f"{where} has not enough memory ({reason}). What needs less, best first: {', '.join(given)}."
        ) from error


def _where_memory_ran_out(error: BaseException) -> str | None:
    """What has too little memory; None where the error is another."""
    if isinstance(error, torch.cuda.OutOfMemoryError) or "CUDA out of memory" in str(error):
        return "The GPU"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # what torch says of a CPU
        return "This machine"
    return None


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
    """The one message of a user's mistake, or of a disk's that is full, say; None for everything else."""
    failure = error if is_user_error(error) else _failure_of_the_machine(error)
    if failure is None:
        return None
    if is_user_error(failure):
        message = str(failure)
    else:
        name = failure.filename2 or failure.filename or "a log, or what is printed"
        message = f"{name}: {reason(failure)}."
    return " ".join([message, *getattr(error, "__notes__", ())])


def _failure_of_the_machine(error: BaseException | None) -> Any:
    """The OSError behind an exception that a full disk, missing rights and the like are; None without."""
    while error is not None:
        told = is_user_error(error) and getattr(error, "errno", None) is not None
        if isinstance(error, OSError) and (told or error.errno in MACHINE_ERRORS):
            return error
        error = error.__cause__
    return None


__all__ = ["STAGES", "Request", "UserError", "describe_error", "run"]
