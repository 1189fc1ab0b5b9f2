"""The one exception that means "you can fix this": a wrong name, value, file or prompt."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence


class UserError(ValueError):
    """A mistake of the user's, told in one message that says what to do next.

    The launcher prints the message alone (no stack trace) and exits with code 2. It recognises the class by
    the attribute below and not by its type, so the extension needs nothing from the host it runs in.
    """

    is_user_error = True


def closest(word: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """Up to `n` of `choices` that are spelt like `word`, best first; empty when none is near."""
    return difflib.get_close_matches(word, list(choices), n=n, cutoff=0.6)


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raises UserError naming the field, the value and the choices unless `value` is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        named = ("null" if choice is None else str(choice) for choice in choices)
        raise UserError(f"{name} is {value!r}; it must be one of: {', '.join(named)}.")


def check_range(
    name: str, value: float, low: float | None = None, high: float | None = None, *, above: bool = False
) -> None:
    """UserError naming the field and the value unless it is a number and low <= value <= high.

    Args:
        above: low < value instead.
    """
    bounds = [] if low is None else [f"{'above' if above else 'at least'} {low:g}"]
    bounds += [] if high is None else [f"at most {high:g}"]
    if not isinstance(value, int | float):
        raise UserError(
            f"{name} is {value!r}; it must be a number{', ' if bounds else ''}{' and '.join(bounds)}."
        )
    too_low = low is not None and (value <= low if above else value < low)
    if too_low or (high is not None and value > high) or not math.isfinite(value):
        raise UserError(f"{name} is {value}; it must be {' and '.join(bounds) or 'a finite number'}.")


def check_finite(section: str, values: object) -> None:
    """Raises UserError that names the key of the first number in a config that is infinite or none.

    Args:
        section: key of `values`.
        values: mappings and lists, nested, of whatever.
    """
    if isinstance(values, Mapping):
        for key, value in values.items():
            check_finite(f"{section}.{key}", value)
    elif isinstance(values, Sequence) and not isinstance(values, str | bytes):
        for index, value in enumerate(values):
            check_finite(f"{section}[{index}]", value)
    elif isinstance(values, float) and not math.isfinite(values):
        raise UserError(f"{section} is {values}; it must be a finite number.")


def check_pair(name: str, value: object, form: str) -> tuple[float, float]:
    """The two numbers of a list.

    Args:
        form: what the field takes, for the message.

    Raises:
        UserError: it is no list of two numbers.
    """
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(numbers) != 2 or not all(isinstance(n, int | float) for n in numbers):
        raise UserError(f"{name} is {value!r}; it must be {form}.")
    return numbers[0], numbers[1]
