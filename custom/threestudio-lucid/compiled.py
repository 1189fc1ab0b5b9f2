"""Numba's compiler with its cache on disk, where there is a place for one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from numba import njit


def cached(*signature: str, **options: Any) -> Callable[[Callable], Any]:
    """`numba.njit` with a cache; without one where neither this folder nor the user's can be written to.

    Args:
        signature: compile now, for exactly these types; none: when first called, for what it is called with.
        options: of `numba.njit`.
    """

    def compile_(function: Callable) -> Any:
        try:
            compiled = njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            return njit(*signature, **options)(function)
        _go_on_without(compiled._cache)
        for types in signature:
            compiled.compile(types)
        if signature:
            compiled.disable_compile()
        return compiled

    return compile_


def _go_on_without(cache: Any) -> None:
    """What is compiled is used also where it cannot be kept, as on a full disk."""
    save = cache.save_overload

    def save_if_possible(types: Any, code: Any) -> None:
        try:
            save(types, code)
        except OSError as error:
            logging.getLogger(__name__).debug("Compiled code is not kept: %s", error)

    cache.save_overload = save_if_possible
