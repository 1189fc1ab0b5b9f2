"""Optimizers and learning-rate schedules from their configs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

import threestudio
from threestudio.utils.config import config_to_primitive
from threestudio.utils.errors import ConfigValueError, UnknownNameError, did_you_mean


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
            f"Unknown {what} {name!r}.{did_you_mean(str(name), names)}\nThere is: {', '.join(sorted(names))}."
        )
    return cls


def getattr_recursive(owner: Any, attr: str) -> Any:
    """``getattr`` along dots: ``"geometry.encoding"``.

    Raises:
        AttributeError: a part that does not exist; the message names it and its owner.
    """
    for part in attr.split("."):
        if not hasattr(owner, part):
            raise AttributeError(f"{attr!r}: {type(owner).__name__} has no {part!r}.")
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
        AttributeError: ``params`` names something that ``model`` does not have.
        ConfigValueError: (a ValueError) arguments that the optimizer refuses, or overlapping groups.
    """
    groups: Any = model.parameters()
    if hasattr(config, "params") and config.params is not None:
        groups = [
            {"params": get_parameters(model, name), "name": name, **(args or {})}
            for name, args in config_to_primitive(config.params).items()
        ]
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
    try:
        return optimizer_class(groups, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigValueError(f"optimizer {name}: {error}") from error


def parse_scheduler_to_instance(config: Any, optimizer: Optimizer) -> Any:
    """The bare scheduler of ``config``: ``ChainedScheduler``, ``Sequential``, or one of torch's by name."""
    if config.name == "ChainedScheduler":
        return lr_scheduler.ChainedScheduler(
            [parse_scheduler_to_instance(c, optimizer) for c in config.schedulers]
        )
    if config.name in ("Sequential", "SequentialLR"):
        schedulers = [parse_scheduler_to_instance(c, optimizer) for c in config.schedulers]
        return lr_scheduler.SequentialLR(optimizer, schedulers, milestones=list(config.milestones))
    arguments = config_to_primitive(config.args)
    try:
        return get_scheduler(config.name)(optimizer, **arguments)
    except TypeError as error:
        raise ConfigValueError(f"scheduler {config.name}: {error}") from error


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
