"""The folder of a run: which one it is, claimed so that no other run writes there, cleaned, and kept."""

from __future__ import annotations

import contextlib
import copy
import errno
import itertools
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import filelock
import yaml
from omegaconf import OmegaConf

import threestudio
from threestudio.utils.config import ExperimentConfig
from threestudio.utils.errors import CheckpointError, FolderError
from threestudio.utils.files import TEMPORARY, atomic_path, reason
from threestudio.utils.misc import get_rank, load_checkpoint
from threestudio.utils.overrides import escaped

RUNNING = ".running"
"""Locked while a run is at work in its folder, and removed when the run has done all it was asked for."""

FOLDER_KEYS = ("name", "tag", "exp_root_dir", "timestamp", "use_timestamp")
"""What a user says who wants another folder."""

MAX_SUFFIX = 99


@dataclass
class Place:
    """How the folder of a run was chosen."""

    named: bool
    """The user chose its very name: use_timestamp=false, or a timestamp of his own."""
    saved: bool
    """It is the folder of the run whose saved config was given."""


@dataclass
class RunFolder:
    """The folder that this run writes into."""

    path: Path
    started: bool = False
    """Whether the run got as far as its first batch."""


# ---- which -------------------------------------------------------------------------------------------------


def choose(cfg: ExperimentConfig, config_path: str, given: Iterable[str]) -> Place:
    """Decide where the run of ``cfg`` belongs; ``cfg`` is changed to say it.

    A config that a run saved belongs to the folder it lies in, wherever that was copied or moved to, unless
    one of `FOLDER_KEYS` is among the keys ``given`` on the command line.
    """
    elsewhere = sorted(set(given) & set(FOLDER_KEYS))
    home = _run_of(Path(config_path))
    if home is None or elsewhere:
        keys = elsewhere if home is not None else [*elsewhere, *_keys_of(config_path)]
        return Place(named=not cfg.use_timestamp or "timestamp" in keys, saved=False)
    if home.resolve() != Path(cfg.trial_dir).resolve():
        threestudio.info(f"The config is of a run that was in {cfg.trial_dir}; it goes on in {home}.")
        _set(cfg, exp_root_dir=home.parent.parent, name=home.parent.name or ".", exp_dir=home.parent)
        if home.name != cfg.trial_name:
            _set(cfg, tag=home.name, timestamp="", trial_name=home.name)
        _set(cfg, trial_dir=home)
    return Place(named=False, saved=True)


def _set(cfg: ExperimentConfig, **texts: str | Path) -> None:
    for key, text in texts.items():
        cfg[key] = escaped(str(text))


def _run_of(config_path: Path) -> Path | None:
    """The run's folder that a config saved by a run lies in, as RUN/configs/parsed.yaml does."""
    if config_path.absolute().parent.name != "configs":
        return None
    home = config_path.parent.parent
    if home.name in ("", ".."):  # the current folder is within the run's
        home = Path(os.path.abspath(home))
    is_run = (home / "cmd.txt").is_file() or (home / "ckpts").is_dir()
    return home if is_run and "trial_dir" in _keys_of(str(config_path)) else None


def _keys_of(config_path: str) -> list[str]:
    content = yaml.safe_load(Path(config_path).read_text(encoding="utf-8"))
    return list(content) if isinstance(content, dict) else []


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints of a run, last.ckpt first and then the newest first."""
    found = (folder / "ckpts").glob("*.ckpt")
    visible = [path for path in found if not path.name.startswith(".")]
    return sorted(visible, key=lambda path: (path.name == "last.ckpt", path.stat().st_mtime), reverse=True)


# ---- claimed -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def claimed(cfg: ExperimentConfig, place: Place, training: bool) -> Iterator[RunFolder]:
    """The folder of the run, which nobody else trains in until the block ends; ``cfg`` says which it became.

    A folder that is taken gets a number at its end, unless the user chose its very name.  What an earlier run
    left half-written is removed.  A run that fails before its first batch leaves a new folder no trace; what
    was there before stays.  In processes other than the first nothing happens: the first one claims for all.

    Raises:
        FolderError: the folder is in use, holds another run, or cannot be made.
    """
    if get_rank() != 0:
        yield RunFolder(Path(cfg.trial_dir))
        return
    first_new = next((p for p in reversed(Path(cfg.trial_dir).parents) if not p.exists()), None)
    claim = _claim(cfg, place, training)
    folder = RunFolder(claim.path)
    try:
        yield folder
    except BaseException:
        if claim.new and not folder.started:
            claim.remove(first_new)
        claim.release(unfinished=claim.was_unfinished or (training and folder.started))
        raise
    claim.release(unfinished=claim.was_unfinished and not training)


@dataclass
class _Claim:
    path: Path
    new: bool
    """This run made the folder."""
    lock: filelock.BaseFileLock | None
    """None where there is no lock: a look at a run that is training, or a file system without locks."""
    was_unfinished: bool = False
    """An earlier run in the folder had not done all it was asked for."""

    def remove(self, first_new: Path | None) -> None:
        """Remove the folder, which this run made, and its parents from ``first_new`` on if they are empty."""
        shutil.rmtree(self.path, ignore_errors=True)
        for parent in self.path.parents if first_new is not None else ():
            if parent == first_new.parent:
                break
            with contextlib.suppress(OSError):
                parent.rmdir()  # only if empty

    def release(self, unfinished: bool) -> None:
        """Let others in; `RUNNING` stays where something is ``unfinished``."""
        if self.lock is None:
            return
        if not unfinished:
            (self.path / RUNNING).unlink(missing_ok=True)
        self.lock.release()


def _claim(cfg: ExperimentConfig, place: Place, training: bool) -> _Claim:
    for number in range(1, MAX_SUFFIX + 1):
        path = _numbered(cfg, number)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
            claim = _Claim(path, True, _lock(path))
        except FileExistsError:
            claim = _enter(cfg, path, place, training)
        except OSError as error:
            raise FolderError(_cannot_make(path, error)) from error
        if claim is None:
            continue
        if number > 1:
            threestudio.info(f"{cfg.trial_dir} is taken: this run is in {path}.")
            _set(cfg, timestamp=f"{cfg.timestamp}-{number:02d}", trial_name=path.name, trial_dir=path)
        return claim
    raise FolderError(f"{cfg.trial_dir} and {MAX_SUFFIX - 1} numbered ones are taken: tag=... names another.")


def _numbered(cfg: ExperimentConfig, number: int) -> Path:
    return Path(cfg.trial_dir if number == 1 else f"{cfg.trial_dir}-{number:02d}")


def _enter(cfg: ExperimentConfig, path: Path, place: Place, training: bool) -> _Claim | None:
    """Claim a folder that exists; None if it is not for this run, which may have another."""
    if not path.is_dir():
        if place.named:
            raise FolderError(f"{path} is in the way of the run's folder: another tag=... names another.")
        return None
    continued = cfg.resume is not None and Path(cfg.resume).resolve().is_relative_to(path.resolve())
    if not (place.named or place.saved or continued):
        return None  # a run of the same second
    if training and not continued and (earlier := checkpoints_of(path)):
        if place.saved and cfg.resume is None:
            return None  # the same again, beside it
        raise FolderError(_holds_a_run(cfg, path, earlier[0]))
    unfinished = (path / RUNNING).exists()
    try:
        lock = _lock(path)
    except filelock.Timeout:
        if not training:
            return _Claim(path, False, None)  # what it makes has the checkpoint's step in its name
        if place.saved and not continued:
            return None
        raise FolderError(_in_use(path)) from None
    except OSError as error:
        if not training:
            return _Claim(path, False, None)  # it cannot write either, and says so where it tries
        raise FolderError(_cannot_make(path, error)) from error
    _clean(path)
    return _Claim(path, False, lock, unfinished)


def _lock(path: Path) -> filelock.BaseFileLock | None:
    """The lock of a folder; it dies with this process.

    Raises:
        filelock.Timeout: another process has it.
    """
    lock = filelock.FileLock(path / RUNNING, timeout=0)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        threestudio.warn(f"{path} cannot be locked here: start no other run in it. ({error.strerror})")
        return None
    now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    owner = {"process": os.getpid(), "host": socket.gethostname(), "since": now}
    with contextlib.suppress(OSError):  # only for the message
        (path / RUNNING).write_text(json.dumps(owner))
    return lock


def _clean(path: Path) -> None:
    """Remove what a run that was killed had half-written."""
    for left in path.rglob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def is_unfinished(path: Path) -> bool:
    """Whether a run in ``path`` was stopped before it had done all it was asked for."""
    return (path / RUNNING).exists()


# ---- kept --------------------------------------------------------------------------------------------------


def to_save(cfg: ExperimentConfig) -> ExperimentConfig:
    """The config for parsed.yaml, without what it resumed from: the next run resumes from something else."""
    saved = copy.deepcopy(cfg)
    saved.resume = None
    return saved


def keep_earlier(cfg: ExperimentConfig, step: int) -> bool:
    """Keep what a resumed run is about to replace in its folder, if that is of another config or step.

    parsed.yaml becomes parsed-before-step-N.yaml and last.ckpt epoch=E-step=N.ckpt.

    Args:
        step: the step that the run resumes from.

    Returns:
        Whether the config differs, so that other checkpoints will differ too.
    """
    parsed, last = Path(cfg.trial_dir, "configs", "parsed.yaml"), Path(cfg.trial_dir, "ckpts", "last.ckpt")
    if cfg.resume is None or get_rank() != 0:
        return False
    differs = parsed.is_file() and parsed.read_text(encoding="utf-8") != OmegaConf.to_yaml(to_save(cfg))
    if differs:
        with atomic_path(free_name(parsed, f"-before-step-{step}")) as temporary:
            shutil.copyfile(parsed, temporary)
    if last.is_file():
        with contextlib.suppress(CheckpointError):  # a damaged one is no loss
            checkpoint = load_checkpoint(last, map_location="cpu")
            kept = last.with_name(
                f"epoch={checkpoint.get('epoch')}-step={checkpoint.get('global_step')}.ckpt"
            )
            if (differs or checkpoint.get("global_step") != step) and not kept.exists():
                with atomic_path(kept, durable=True) as temporary:
                    shutil.copyfile(last, temporary)
    return differs


def free_name(path: Path, ending: str) -> Path:
    """``path`` with ``ending`` after its stem, and a number if there is such a file."""
    names = (f"{path.stem}{ending}{number or ''}{path.suffix}" for number in itertools.count())
    return next(free for name in names if not (free := path.with_name(name)).exists())


# ---- messages ----------------------------------------------------------------------------------------------


def _in_use(path: Path) -> str:
    try:
        owner = json.loads((path / RUNNING).read_text())
        who = f" (process {owner['process']} on {owner['host']}, since {owner['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        who = ""
    return (
        f"{path} is in use by another run{who}. Wait for its end, or give this one a folder of its own: "
        "another tag=..., or use_timestamp=true."
    )


def _holds_a_run(cfg: ExperimentConfig, path: Path, newest: Path) -> str:
    if cfg.resume is not None:
        return (
            f"{path} holds a run with checkpoints of its own, and resume={cfg.resume} is not one of them. "
            "tag=... says where the resumed run goes."
        )
    return (
        f"{path} holds the checkpoints of an earlier run, which this one would replace. resume={newest} goes "
        "on with it; another tag=... (or use_timestamp=true) makes a new one beside it."
    )


def _cannot_make(path: Path, error: OSError) -> str:
    return f"{path}, the run's folder, cannot be made: {reason(error)}. exp_root_dir=... names another place."
