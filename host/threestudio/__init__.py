"""A small stand-in for threestudio: the same import names, registry, configs and Lightning loop.

Written from the interface of threestudio v0.2.3, so that an extension written for threestudio runs here
unchanged, on current PyTorch, with or without CUDA.  It is not a fork: what it leaves out is simply not
registered, and asking for it gives an error that lists what there is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from pytorch_lightning.utilities.rank_zero import rank_zero_debug, rank_zero_info, rank_zero_only

from threestudio.utils.errors import UnknownNameError

__version__ = "0.2.3"

__modules__: dict[str, Any] = {}

_Class = TypeVar("_Class", bound=type)


def register(name: str) -> Callable[[_Class], _Class]:
    """Class decorator that makes a class known to configs as ``name``.

    Raises:
        ValueError: ``name`` is taken by another class.
    """

    def decorator(cls: _Class) -> _Class:
        if name in __modules__:
            owner = __modules__[name]
            raise ValueError(
                f"Module {name!r} is registered twice: by {owner.__module__}.{owner.__qualname__} "
                f"and by {cls.__module__}.{cls.__qualname__}."
            )
        __modules__[name] = cls
        return cls

    return decorator


def find(name: str) -> Any:
    """The class registered as ``name``; ``"main:a,b"`` is a new class of the bases ``(a, b, main)``.

    The left-most mixin wins, so ``super()`` runs a > b > main.  No spaces around the names.

    Raises:
        UnknownNameError: (a KeyError) nothing registered that name; the message lists the closest, and all
            of their kind.
    """
    if ":" not in name:
        return _find_one(name)
    main_name, _, mixin_names = name.partition(":")
    if ":" in mixin_names:
        raise UnknownNameError(f"Cannot read {name!r}: write 'main:mixin,mixin' with one colon.")
    bases = (*(_find_one(mixin) for mixin in mixin_names.split(",")), _find_one(main_name))
    return type(f"{main_name}.{mixin_names}", bases, {})


def _find_one(name: str) -> Any:
    try:
        return __modules__[name]
    except KeyError:
        from threestudio.kinds import unknown_name

        raise UnknownNameError(unknown_name(name, __modules__), name=name) from None


def registered_name(cls: type) -> str | None:
    """The name ``cls`` is registered under, or None."""
    for name, registered in __modules__.items():
        if registered is cls:
            return name
    return None


# Lightning's logger, as in threestudio: what configures the one configures the other.
logger = logging.getLogger("pytorch_lightning")

debug = rank_zero_debug
info = rank_zero_info


@rank_zero_only
def warn(message: Any, *args: Any, **kwargs: Any) -> None:
    """Log a warning, from the first process only."""
    logger.warning(message, *args, **kwargs)


from threestudio import data, models, systems  # noqa: E402, F401 (importing them registers what they hold)
