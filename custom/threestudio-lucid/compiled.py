"""Numba's compiler with its cache on disk, where there is a place for one."""

from __future__ import annotations

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
            return njit(*signature, cache=True, **options)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            return njit(*signature, **options)(function)

    return compile_
