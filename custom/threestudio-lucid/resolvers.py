"""Resolvers of configs, in every omegaconf that threestudio runs with."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any


def register_resolver(name: str, resolver: Callable[..., Any]) -> None:
    """Makes `${name:...}` work in OmegaConf configs; replaces a resolver of that name.

    Args:
        resolver: returns a scalar, a list or a dict.
    """
    from omegaconf import OmegaConf

    @functools.wraps(resolver)  # omegaconf reads its signature
    def node_of(*args: Any, **kwargs: Any) -> Any:
        value = resolver(*args, **kwargs)
        # a plain list can be read in omegaconf 2.3, but OmegaConf.resolve refuses it
        return OmegaConf.create(value) if isinstance(value, list | dict) else value

    with warnings.catch_warnings():
        # omegaconf 2.3, which threestudio pins, knows only this function; 2.4 has it under the name
        # register_resolver, which in 2.3 is another function
        warnings.filterwarnings("ignore", message=r"register_new_resolver\(\) is deprecated")
        OmegaConf.register_new_resolver(name, node_of, replace=True)
