"""Calling renderers and guidances with a batch: what they need and the datamodule does not give."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from threestudio.utils.errors import BatchError


def needed(function: Callable[..., Any]) -> list[str]:
    """Parameters of ``function`` that have no default.

    >>> needed(lambda rgb, elevation, scale=1, **rest: None)
    ['rgb', 'elevation']
    """
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in named and p.default is inspect.Parameter.empty]


def check_batch(function: Callable[..., Any], batch: Mapping[str, Any], who: str, given: int = 0) -> None:
    """``batch`` has all that ``function`` needs after its first ``given`` arguments.

    Args:
        who: the name of what is called, for the message, e.g. "system.guidance_type".

    Raises:
        BatchError: it does not; the message names what is missing, and what there is.
    """
    missing = [name for name in needed(function)[given:] if name not in batch]
    if missing:
        raise BatchError(
            f"{who} needs {', '.join(map(repr, missing))} of each batch, and the datamodule (data_type) "
            f"gives only: {', '.join(sorted(batch))}. random-camera-datamodule gives what threestudio's do."
        )
