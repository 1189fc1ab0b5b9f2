"""Base classes of everything a config builds: a nested ``Config`` dataclass and a ``configure`` hook."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import nn

from threestudio.utils.config import parse_structured
from threestudio.utils.errors import CheckpointError
from threestudio.utils.misc import get_device, load_module_weights


class Configurable:
    """Parses ``cfg`` with the class's own ``Config`` into ``self.cfg``."""

    @dataclass
    class Config:
        pass

    def __init__(self, cfg: dict | None = None) -> None:
        super().__init__()
        self.cfg = parse_structured(type(self).Config, _required(cfg, self))


class Updateable:
    """Something that changes with the training step.

    Override `update_step` and `update_step_end`.  The ``do_`` forms are called by the system before and after
    each batch; they visit the public attributes first, then the object.  One object may be reached by several
    paths, so `update_step` must do the same thing when called twice for one step.
    """

    def do_update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        for child in _updateable_children(self):
            child.do_update_step(epoch, global_step, on_load_weights=on_load_weights)
        self.update_step(epoch, global_step, on_load_weights=on_load_weights)

    def do_update_step_end(self, epoch: int, global_step: int) -> None:
        for child in _updateable_children(self):
            child.do_update_step_end(epoch, global_step)
        self.update_step_end(epoch, global_step)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Called before each batch, and when weights were loaded from a checkpoint of that step."""

    def update_step_end(self, epoch: int, global_step: int) -> None:
        """Called after each batch, when ``global_step`` already counts it."""


@functools.cache
def _values_of_class(kind: type) -> tuple[str, ...]:
    """The public attributes of a class but for its methods: every object looks at them in every step."""
    methods = FunctionType, staticmethod, classmethod
    return tuple(
        name
        for name in dir(kind)
        if not name.startswith("_") and not isinstance(inspect.getattr_static(kind, name), methods)
    )


def _updateable_children(owner: Any) -> list[Updateable]:
    """The public attributes of ``owner`` (properties and submodules too) that are Updateable."""
    children = []
    own = (name for name in (*vars(owner), *vars(owner).get("_modules", ())) if not name.startswith("_"))
    for name in sorted({*_values_of_class(type(owner)), *own}):
        try:
            value = getattr(owner, name)
        except (
            Exception
        ):  # a property that is not ready yet (a trainer not attached, a lazy mesh) is no child
            continue
        if isinstance(value, Updateable) and value is not owner:
            children.append(value)
    return children


def update_if_possible(module: Any, epoch: int, global_step: int) -> None:
    """`Updateable.do_update_step` of ``module`` if it has one."""
    if isinstance(module, Updateable):
        module.do_update_step(epoch, global_step)


def update_end_if_possible(module: Any, epoch: int, global_step: int) -> None:
    """`Updateable.do_update_step_end` of ``module`` if it has one."""
    if isinstance(module, Updateable):
        module.do_update_step_end(epoch, global_step)


class BaseObject(Updateable):
    """A plain configurable object: guidances, prompt processors, exporters.

    Not an nn.Module, so its weights are in no checkpoint and Lightning does not move them; use
    ``self.device``. Override `configure`, never ``__init__``.
    """

    @dataclass
    class Config:
        pass

    cfg: Config

    def __init__(self, cfg: dict | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.cfg = parse_structured(type(self).Config, _required(cfg, self))
        self.device = get_device()
        self.configure(*args, **kwargs)

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Build what ``self.cfg`` asks for."""


class BaseModule(nn.Module, Updateable):
    """A configurable nn.Module.  Override `configure`, never ``__init__``."""

    @dataclass
    class Config:
        weights: str | None = None
        """Start from the weights "path/to.ckpt:module_name" (all of that module's, strictly)."""

    cfg: Config

    def __init__(self, cfg: dict | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.cfg = parse_structured(type(self).Config, _required(cfg, self))
        self.device = get_device()
        self.configure(*args, **kwargs)
        if self.cfg.weights is not None:
            self._load_weights_of_config(self.cfg.weights)
        # A buffer tells where the module lives even when it has no parameters.
        self.register_buffer("_dummy", torch.zeros(0).float(), persistent=False)

    def _load_weights_of_config(self, weights: str) -> None:
        path, separator, module_name = weights.rpartition(":")
        if not separator or not module_name:
            raise CheckpointError(f"weights: {weights!r} must read 'path/to.ckpt:module_name'.")
        state_dict, epoch, global_step = load_module_weights(
            path, module_name=module_name, map_location="cpu"
        )
        try:
            self.load_state_dict(state_dict)
        except RuntimeError as error:
            raise CheckpointError(f"weights: {weights} do not fit {type(self).__name__}. {error}") from error
        self.do_update_step(epoch, global_step, on_load_weights=True)

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Build what ``self.cfg`` asks for."""


def _required(cfg: Any, owner: Any) -> Any:
    if cfg is None:
        raise TypeError(f"{type(owner).__name__} needs a config; pass {{}} for the defaults.")
    return cfg
