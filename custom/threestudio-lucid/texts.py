"""Texts that people write: what is none, the words of one, and how it is cut."""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections.abc import Callable, Container
from typing import Any

from .errors import UserError

# Punctuation that says something; a word with it is another word.
_SPEAKING = "&#@%*_"


def check_text(value: Any, where: str) -> None:
    """The value is text.

    Args:
        where: the config's key, for messages.

    Raises:
        UserError: no string, or characters that are none: NUL and its like, or bytes that were not UTF-8.
    """
    if not isinstance(value, str):
        raise UserError(f'{where} is {value!r}, which is no text: write {where}="a hamburger".')
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cs") and not character.isspace():
            raise UserError(f"{where} is no text: it holds the character {character!a}.")


def check_prompt(value: Any, where: str) -> None:
    """The value is text that says something.

    Raises:
        UserError: no text (see `check_text`), or nothing that is visible.
    """
    if value is None or (isinstance(value, str) and not any(map(_is_visible, value.replace("\0", "?")))):
        raise UserError(f'There is no prompt: add {where}="a hamburger".')
    check_text(value, where)


def _is_visible(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNPS"


def one_line(text: str) -> str:
    """The text with single spaces between its words, which is how text encoders read it.

    >>> one_line(" a red\\n mug ")
    'a red mug'
    """
    return " ".join(text.split())


def shortened(text: str, longest: int = 100) -> str:
    """The text for a line of the log: with an ellipsis in the middle where it is longer.

    >>> shortened("a very, very long prompt", 15)
    'a very, … prompt'
    """
    text = one_line(text)
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half].rstrip()} … {text[-half:].lstrip()}"


def plain_words(text: str, known: Container[str] = ()) -> list[str]:
    """The words and commas of a text as captions have them: lower case, without other punctuation.

    Only what separates or ends sentences is punctuation. Symbols and emoji are words of their own or parts of
    words, so that whoever knows a closed list of words does not know these.

    Args:
        known: words that stay as they are written.

    >>> plain_words('A Red "mug" , with a hat ☕!')
    ['a', 'red', 'mug', ',', 'with', 'a', 'hat', '☕']
    """
    words: list[str] = []
    for found in re.findall(r"[^\s,]+|,", text):
        if found in known:
            words.append(found)
        elif found == ",":
            if words and words[-1] != ",":
                words.append(found)
        else:
            parts = "".join(" " if _is_punctuation(c) else c for c in found.lower()).split()
            words += [stripped for part in parts if (stripped := part.strip("'-"))]
    return words[:-1] if words[-1:] == [","] else words


def _is_punctuation(character: str) -> bool:
    if character in "<>":  # brackets, here
        return True
    return unicodedata.category(character)[0] == "P" and character not in "'-" + _SPEAKING


def cut_to_fit(text: str, fits: Callable[[str], bool]) -> str:
    """The longest beginning that fits, of whole words unless there is only one.

    Args:
        fits: of a text; what is longer than one that does not fit, does not fit either.

    >>> cut_to_fit("a red mug, shiny", lambda text: len(text) <= 11)
    'a red mug'
    """
    if fits(text):
        return text
    longest = bisect.bisect_left(range(1, len(text)), True, key=lambda n: not fits(text[:n]))
    cut = text[:longest]
    if text[longest] not in " ,":  # within a word
        cut = cut.rpartition(" ")[0] or cut
    return cut.rstrip(" ,")
