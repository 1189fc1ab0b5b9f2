"""Prompts for a prior that knows a closed list of words: an unknown word is an error, never a guess."""

from __future__ import annotations

import re
import textwrap

from ..errors import UserError, closest
from .cards import Card


def normalise(prompt: str, card: Card) -> str:
    """The prompt as a closed-vocabulary prior was taught: lower case, no full stop, single spaces.

    Words that it knows as they are written stay so. Priors with an open vocabulary get the prompt as it is.
    """
    if card.vocabulary is None:
        return prompt

    def plain(found: re.Match) -> str:
        word = found[0]
        return word if word in card.vocabulary else re.sub(r"[^\w'-]+", " ", word.lower())

    words = re.sub(r"[^\s,]+", plain, prompt)
    return re.sub(r"\s+(,|$)", r"\1", " ".join(words.split()))


def check_words(prompt: str, card: Card, *, where: str = "system.prompt_processor.prompt") -> None:
    """Every word of the prompt is in the card's vocabulary, if it has one.

    Raises:
        UserError: names the unknown words, the closest known ones, all known ones, and what to do.
    """
    if card.vocabulary is None:
        return
    known = {form for word in card.vocabulary for form in (word, word.lower())}
    unknown = [w for w in dict.fromkeys(re.findall(r"[^\s,]+", normalise(prompt, card))) if w not in known]
    if not unknown:
        return
    hints = []
    for word in unknown:
        near = closest(word, sorted(known))
        hints.append(f"{word!r}" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
    words = textwrap.fill(
        " ".join(sorted(w for w in known if re.match(r"\w", w))),
        100,
        initial_indent="  ",
        subsequent_indent="  ",
    )
    raise UserError(
        f"{where}: the prior {card.name!r} does not know {', '.join(hints)}.\n"
        f"It knows these words and no others:\n{words}\n"
        f"Say it with them, e.g. {card.prompt!r}, or use a prior with an open vocabulary: "
        "system.guidance.prior=sd21 (needs a GPU). A word that a LoRA or an embedding brings is known once "
        "that is given: system.guidance.embeddings=FILE, system.guidance.lora={path: FILE, trigger: WORD}."
    )
