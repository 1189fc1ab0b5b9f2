"""Scheduled scalars, devices and checkpoints' weights."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import ListConfig, OmegaConf
from packaging import version
from torch import nn

from threestudio.utils.errors import CheckpointError, ConfigValueError

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def parse_version(ver: str) -> version.Version:
    """A version string as something that compares."""
    return version.parse(ver)


def get_rank() -> int:
    """This process's rank as its launcher says, 0 outside of one.

    The environment is read, not ``torch.distributed``: the answer is needed before Lightning sets that up.
    """
    for variable in _RANK_VARIABLES:
        rank = os.environ.get(variable)
        if rank is not None:
            return int(rank)
    return 0


def get_device() -> torch.device:
    """The CUDA device of this rank, or the CPU where there is no CUDA."""
    if torch.cuda.is_available():
        return torch.device(f"cuda:{get_rank() % torch.cuda.device_count()}")
    return torch.device("cpu")


# ---- scheduled scalars -------------------------------------------------------------------------------------


def C(value: Any, epoch: int, global_step: int, interpolation: str = "linear") -> float:
    """The value of a scheduled scalar now.

    Args:
        value: a number, which is returned as it is, or a list:

            - ``[v0, v1, end]``: ``[0, v0, v1, end]``;
            - ``[start, v0, v1, end]``: v0 up to ``start``, then a ramp to v1 at ``end``, then v1;
            - ``[start, v0, v1, s1, v2, s2, ...]`` (even length): through (start, v0), (s1, v1), (s2, v2), ...
        epoch: the clock of a segment whose end is a float.
        global_step: the clock of a segment whose end is an int, and what chooses the segment of long lists.
        interpolation: "linear" or "exp" (geometric; all values must be > 0).

    Returns:
        The number itself, or the interpolated float.

    Raises:
        ConfigValueError: (a ValueError) something else than a number or a list of one of these forms.

    >>> C([100, 1.0, 0.0, 200], epoch=0, global_step=150)
    0.5
    """
    if isinstance(value, (int, float)):
        return value
    knots = schedule_knots(value)
    segment = 0
    while segment < len(knots) - 2 and global_step >= knots[segment + 1][0]:
        segment += 1
    (start_step, start_value), (end_step, end_value) = knots[segment], knots[segment + 1]

    current = global_step if isinstance(end_step, int) else epoch
    if end_step == start_step:
        t = float(current >= end_step)  # a jump: threestudio divides by zero here
    else:
        t = max(min(1.0, (current - start_step) / (end_step - start_step)), 0.0)
    if interpolation == "linear":
        return start_value + (end_value - start_value) * t
    if interpolation == "exp":
        if start_value <= 0 or end_value <= 0:
            raise ConfigValueError(f"Schedule {value}: 'exp' interpolation needs values > 0.")
        return math.exp(math.log(start_value) * (1.0 - t) + math.log(end_value) * t)
    raise ConfigValueError(f"Unknown interpolation {interpolation!r}: choose 'linear' or 'exp'.")


def schedule_knots(value: Any) -> list[tuple[float, float]]:
    """A schedule list as ``[(step, value), ...]``, at least two of them.

    Raises:
        ConfigValueError: not a list, a length other than 3, 4, 6, 8, ..., or an entry that is not a number.
    """
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ConfigValueError(
            f"A scheduled value is a number or a list such as [start_step, v0, v1, end_step], not {value!r} "
            f"({type(value).__name__})."
        )
    entries = [0, *value] if len(value) == 3 else list(value)
    if len(entries) < 4 or len(entries) % 2:
        raise ConfigValueError(
            f"Schedule {list(value)} has {len(value)} entries: write [v0, v1, end_step], "
            "[start_step, v0, v1, end_step], or [start_step, v0, v1, step1, v2, step2, ...]."
        )
    for entry in entries:
        if not isinstance(entry, (int, float)) or isinstance(entry, bool):
            raise ConfigValueError(f"Schedule {list(value)}: {entry!r} is not a number.")
    later = [(entries[i + 1], entries[i]) for i in range(2, len(entries), 2)]
    return [(entries[0], entries[1]), *later]


def is_schedule(value: Any) -> bool:
    """Whether ``value`` is something `C` takes."""
    if isinstance(value, bool):
        return False
    if isinstance(value, (int, float)):
        return True
    if not isinstance(value, (ListConfig, list, tuple)):
        return False
    try:
        schedule_knots(value)
    except ConfigValueError:
        return False
    return True


# ---- memory, gradients, processes --------------------------------------------------------------------------


def cleanup() -> None:
    """Give memory that nothing refers to back to the system and the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def finish_with_cleanup(func):
    """Decorator: `cleanup` after the function returns."""

    def wrapper(*args, **kwargs):
        out = func(*args, **kwargs)
        cleanup()
        return out

    return wrapper


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def barrier() -> None:
    """Wait for the other processes; nothing when there are none."""
    if _is_distributed():
        torch.distributed.barrier()


def broadcast(tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
    """``tensor`` of process ``src`` in every process; the tensor itself when there is only one."""
    if _is_distributed():
        torch.distributed.broadcast(tensor, src=src)
    return tensor


def enable_gradient(model: nn.Module, enabled: bool = True) -> None:
    """Set ``requires_grad`` of all parameters of ``model``."""
    for param in model.parameters():
        param.requires_grad_(enabled)


# ---- files -------------------------------------------------------------------------------------------------


def find_last_path(path: str) -> str:
    """``path`` with ``LAST`` in a part replaced, so that it is the last entry, sorted, that matches.

    ``outputs/x/a_bird@LAST/ckpts/last.ckpt`` is the newest trial of "a bird"; spaces become ``_``.

    Raises:
        CheckpointError: no entry matches.
    """
    if "LAST" not in path:
        return path
    parts = Path(path).parts
    found = Path()
    for part in parts:
        if "LAST" not in part:
            found = found / part
            continue
        prefix, _, suffix = part.replace(" ", "_").partition("LAST")
        folder = found if found.parts else Path(".")
        entries = os.listdir(folder) if folder.is_dir() else []
        matches = sorted(e for e in entries if e.startswith(prefix) and e.endswith(suffix))
        if not matches:
            raise CheckpointError(f"{path}: nothing in {folder} matches {prefix}*{suffix}.")
        found = found / matches[-1]
    return str(found)


def load_checkpoint(path: str | os.PathLike, map_location: Any = None) -> dict[str, Any]:
    """A Lightning checkpoint, without unpickling anything but tensors and plain containers.

    Raises:
        CheckpointError: the file is missing, damaged, or not a checkpoint; names a whole one beside it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(_missing_checkpoint_message(path))
    try:
        return _load_undamaged(path, map_location)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_whole_one_beside(path)}") from error


def _load_undamaged(path: Path, map_location: Any = None) -> dict[str, Any]:
    try:
        if zipfile.is_zipfile(path):
            _check_archive(path)
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # what damaged bytes make of the unpickler's programs can be anything
        # torch's own words are about unpickling the file nevertheless, which is the worst that one can do
        reason = f" ({error.strerror})" if isinstance(error, PermissionError) else ""
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint; it is damaged, incomplete, or something else.{reason}"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"{path} is not a training checkpoint: it holds no 'state_dict'.")
    return checkpoint


def _check_archive(path: Path) -> None:
    """Raise a CheckpointError if a part of the zip archive differs from its checksum, which torch ignores."""
    with zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:  # torch packs nothing
            raise CheckpointError(f"{path} is damaged: its parts would be larger than the whole.")
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: {damaged!r} in it is not what was written.")


def _whole_one_beside(path: Path) -> str:
    """A sentence about the newest checkpoint in the same folder that is whole; "" if there is none."""
    others = [other for other in path.parent.glob("*.ckpt") if other.is_file() and not other.samefile(path)]
    for other in sorted(others, key=_age):
        with contextlib.suppress(CheckpointError, OSError):
            step = _load_undamaged(other, "cpu").get("global_step")
            return f" Give {other} in its place, which is whole and of step {step}."
    return ""


def _age(path: Path) -> tuple[float, float]:
    """Smaller for newer checkpoints: by the step in the name, then by time."""
    step = re.search(r"step=(\d+)", path.name)
    return (-int(step[1]) if step else math.inf, -path.stat().st_mtime)


def _missing_checkpoint_message(path: Path) -> str:
    message = f"No checkpoint at {path}."
    folder = path
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    beside = sorted(str(found) for found in folder.glob("**/*.ckpt")) if str(folder) not in (".", "/") else []
    if beside:
        message += " There is: " + ", ".join(beside[:5]) + (", ..." if len(beside) > 5 else "") + "."
    return message


def load_module_weights(
    path: str,
    module_name: str | None = None,
    ignore_modules: Sequence[str] | None = None,
    map_location: Any = None,
) -> tuple[dict[str, torch.Tensor], int, int]:
    """The weights of a checkpoint, with its epoch and global step.

    Args:
        path: a Lightning checkpoint.
        module_name: keep only ``<module_name>.*`` and strip that prefix.
        ignore_modules: drop ``<name>.*`` for each name.
        map_location: as in ``torch.load``; None is the CPU.

    Raises:
        ValueError: both ``module_name`` and ``ignore_modules`` given.
        CheckpointError: no such file, a damaged file, or no weights of that name in it.
    """
    if module_name is not None and ignore_modules is not None:
        raise ValueError("Give module_name or ignore_modules, not both.")
    checkpoint = load_checkpoint(path, map_location="cpu" if map_location is None else map_location)
    weights = checkpoint["state_dict"]
    if ignore_modules is not None:
        dropped = tuple(f"{name}." for name in ignore_modules)
        weights = {key: value for key, value in weights.items() if not key.startswith(dropped)}
    if module_name is not None:
        prefix = f"{module_name}."
        inside = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
        if not inside:
            names = sorted({key.split(".")[0] for key in weights})
            raise CheckpointError(
                f"{path} has no weights of {module_name!r}; it has: {', '.join(names) or 'none'}."
            )
        weights = inside
    return weights, int(checkpoint.get("epoch", 0)), int(checkpoint.get("global_step", 0))
