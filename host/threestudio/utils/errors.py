"""Exceptions that are the user's to mend.

Anything with a class attribute ``is_user_error = True`` is a mistake in what the user gave us (a config, a
command line, a file).  ``launch.py`` prints its message alone and exits with code 2; every other exception is
a bug of ours and keeps its traceback.  Each class also derives from the built-in exception that threestudio
raises in the same place, so that code written for threestudio keeps catching it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can correct; the message says what, where, and what to do."""

    is_user_error = True

    def __str__(self) -> str:
        # KeyError, a base of one subclass, would print the repr of the message.
        return str(self.args[0]) if self.args else ""


class UnknownNameError(UserError, KeyError):
    """A registered name that nothing registered."""

    def __init__(self, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


class UnknownKeyError(UserError, TypeError):
    """A config key that the section does not have."""


class UnknownPartError(UserError, AttributeError):
    """A config names a part of the system that it does not have."""


class ConfigValueError(UserError, ValueError):
    """A config value of the wrong type or outside its range."""


class ConfigFileError(UserError, FileNotFoundError):
    """A config file that is missing or cannot be read."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing, damaged, or belongs to something else."""


class FolderError(UserError, OSError):
    """A run's folder that cannot be made, or is another run's."""


class DivergenceError(UserError, RuntimeError):
    """A training whose numbers are none any more."""


class OutOfMemoryError(UserError, RuntimeError):
    """A config that asks for more memory than there is."""


class ModelError(UserError, OSError):
    """A pretrained model that is missing, damaged, or out of reach."""


class ConversionError(UserError, TypeError):
    """A geometry that cannot be made from the one of another run."""


class BatchError(UserError, TypeError):
    """A batch of the datamodule lacks what a renderer or guidance needs."""


class ExtensionError(UserError, ImportError):
    """An extension that cannot be imported."""


class CommandLineError(UserError, ValueError):
    """A command line that cannot be understood."""


def is_user_error(error: BaseException) -> bool:
    """Whether ``error`` is the user's to mend: ours, or an extension's with ``is_user_error = True``."""
    return getattr(error, "is_user_error", False) is True


def closest(name: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """The up to ``n`` choices that look most like ``name``, best first.

    >>> closest("gausian", ["gaussian", "mesh"])
    ['gaussian']
    """
    choices = sorted(set(choices))
    near = difflib.get_close_matches(name, choices, n=n, cutoff=0.55)
    if name:
        near += [choice for choice in choices if choice not in near and (name in choice or choice in name)]
    return near[:n]


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """``" Did you mean 'a' or 'b'?"`` (with the leading space), or ``""`` when nothing is close."""
    near = [repr(choice) for choice in closest(name, choices)]
    if not near:
        return ""
    listed = near[0] if len(near) == 1 else ", ".join(near[:-1]) + " or " + near[-1]
    return f" Did you mean {listed}?"
