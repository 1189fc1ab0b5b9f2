"""Optimizers and learning-rate schedules from their configs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

import threestudio
from threestudio.utils.config import config_to_primitive
from threestudio.utils.errors import (
    ConfigValueError,
    UnknownKeyError,
    UnknownNameError,
    UnknownPartError,
    closest,
    did_you_mean,
    is_user_error,
)

_OPTIMIZER_KEYS = ("name", "args", "params")
_SCHEDULER_KEYS = ("name", "interval", "args", "milestones", "schedulers")


def get_scheduler(name: str) -> type:
    """The class of ``torch.optim.lr_scheduler`` called ``name``.

    Raises:
        UnknownNameError: there is none.
    """
    return _named(lr_scheduler, name, lr_scheduler.LRScheduler, "scheduler")


def _named(module: Any, name: str, base: type, what: str) -> type:
    cls = getattr(module, str(name), None)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        names = [
            key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)
        ]
        names = [key for key in names if not key.startswith("_") and key != base.__name__]
        raise UnknownNameError(
            f"system.{what}.name: there is no {name!r} in {module.__name__}.{did_you_mean(str(name), names)}"
            f"\nThere is: {', '.join(sorted(names))}."
        )
    return cls


def _check_keys(config: Any, known: Iterable[str], what: str) -> None:
    """A key that looks like a known one is a mistake; others are for references from elsewhere to them.

    Raises:
        UnknownKeyError: there is such a key.
    """
    for key in config:
        if key not in known and closest(str(key), known):
            raise UnknownKeyError(
                f"Unknown key {key!r} in system.{what}.{did_you_mean(str(key), known)} "
                f"Its keys: {', '.join(known)}."
            )


def _check_arguments(cls: type, arguments: Mapping[str, Any], what: str) -> None:
    """Raises:
    UnknownKeyError: ``cls`` has no argument of that name.
    """
    parameters = inspect.signature(cls).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.name not in ("params", "optimizer")]
    for key in arguments:
        if key not in known:
            raise UnknownKeyError(
                f"Unknown key {key!r} in system.{what} of {cls.__name__}.{did_you_mean(key, known)} "
                f"Its keys: {', '.join(known)}."
            )


def getattr_recursive(owner: Any, attr: str) -> Any:
    """``getattr`` along dots: ``"geometry.encoding"``.

    Raises:
        UnknownPartError: (an AttributeError) a part that does not exist; the message names it and its owner.
    """
    for part in attr.split("."):
        if not hasattr(owner, part):
            parts = list(getattr(owner, "_modules", {})) + list(getattr(owner, "_parameters", {}))
            listed = f" It has: {', '.join(sorted(parts))}." if parts else ""
            raise UnknownPartError(
                f"{attr!r}: {type(owner).__name__} has no {part!r}.{did_you_mean(part, parts)}{listed}"
            )
        owner = getattr(owner, part)
    return owner


def get_parameters(model: Any, name: str) -> list[nn.Parameter]:
    """The parameters of the (dotted) attribute ``name``: all of a Module, a Parameter itself, else none."""
    module = getattr_recursive(model, name)
    if isinstance(module, nn.Module):
        return list(module.parameters())
    if isinstance(module, nn.Parameter):
        return [module]
    return []


def parse_optimizer(config: Any, model: nn.Module) -> Optimizer:
    """The optimizer of ``{name, args, params: {attribute: {group overrides}}}``.

    Without ``params``, all of ``model``'s parameters; with it, those only, one named group each.

    Raises:
        UnknownNameError: no such optimizer.
        UnknownPartError: (an AttributeError) ``params`` names something that ``model`` does not have.
        UnknownKeyError: (a TypeError) an argument that the optimizer does not have.
        ConfigValueError: (a ValueError) arguments that the optimizer refuses, or overlapping groups.
    """
    _check_keys(config, _OPTIMIZER_KEYS, "optimizer")
    groups: Any = model.parameters()
    if hasattr(config, "params") and config.params is not None:
        try:
            groups = [
                {"params": get_parameters(model, name), "name": name, **(args or {})}
                for name, args in config_to_primitive(config.params).items()
            ]
        except UnknownPartError as error:
            raise UnknownPartError(f"system.optimizer.params: {error}") from error
        threestudio.debug(f"Optimized: {', '.join(group['name'] for group in groups)}")
    name = config.name
    arguments = config_to_primitive(config.args)
    if name == "Adan":
        from threestudio.systems.optimizers import Adan

        optimizer_class: type = Adan
    elif name == "FusedAdam":
        try:
            from apex.optimizers import FusedAdam as optimizer_class
        except ImportError as error:
            raise ConfigValueError(
                "optimizer.name: FusedAdam needs NVIDIA apex; take 'Adam' or install it."
            ) from error
    else:
        optimizer_class = _named(torch.optim, name, Optimizer, "optimizer")
    _check_arguments(optimizer_class, arguments, "optimizer.args")
    try:
        return optimizer_class(groups, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigValueError(f"system.optimizer ({name}): {error}") from error


def parse_scheduler_to_instance(config: Any, optimizer: Optimizer) -> Any:
    """The bare scheduler of ``config``: ``ChainedScheduler``, ``Sequential``, or one of torch's by name.

    Raises:
        UnknownNameError: no such scheduler.
        UnknownKeyError: (a TypeError) an argument that it does not have.
        ConfigValueError: (a ValueError) arguments that it refuses.
    """
    _check_keys(config, _SCHEDULER_KEYS, "scheduler")
    try:
        return _scheduler(config, optimizer)
    except (TypeError, ValueError) as error:
        if is_user_error(error):
            raise
        raise ConfigValueError(f"system.scheduler ({config.name}): {error}") from error


def _scheduler(config: Any, optimizer: Optimizer) -> Any:
    if config.name == "ChainedScheduler":
        return lr_scheduler.ChainedScheduler(
            [parse_scheduler_to_instance(c, optimizer) for c in config.schedulers]
        )
    if config.name in ("Sequential", "SequentialLR"):
        schedulers = [parse_scheduler_to_instance(c, optimizer) for c in config.schedulers]
        return lr_scheduler.SequentialLR(optimizer, schedulers, milestones=list(config.milestones))
    arguments = config_to_primitive(config.args)
    cls = get_scheduler(config.name)
    _check_arguments(cls, arguments, "scheduler.args")
    return cls(optimizer, **arguments)


def parse_scheduler(config: Any, optimizer: Optimizer) -> dict[str, Any]:
    """What Lightning takes as ``lr_scheduler``: ``{"scheduler": ..., "interval": "epoch" | "step"}``.

    Raises:
        ConfigValueError: another interval.
        UnknownNameError: no such scheduler.
    """
    interval = config.get("interval", "epoch")
    if interval not in ("epoch", "step"):
        raise ConfigValueError(f"scheduler.interval is 'epoch' or 'step', not {interval!r}.")
    return {"scheduler": parse_scheduler_to_instance(config, optimizer), "interval": interval}
