"""Prompts for a prior that knows a closed list of words: an unknown word is an error, never a guess."""

from __future__ import annotations

import re
import textwrap

from ..errors import UserError, closest
from ..texts import one_line, plain_words, shortened
from .cards import Card

# A message names no more unknown words than this.
MANY = 8


def normalise(prompt: str, card: Card) -> str:
    """The prompt as a closed-vocabulary prior was taught: lower case, commas, single spaces, nothing else.

    Words that it knows as they are written stay so. Priors with an open vocabulary get the prompt as it is,
    on one line.
    """
    if card.vocabulary is None:
        return one_line(prompt)
    return " ".join(plain_words(prompt, card.vocabulary)).replace(" ,", ",")


def check_words(prompt: str, card: Card, *, where: str = "system.prompt_processor.prompt") -> None:
    """If the card has a vocabulary, every word of the prompt is in it; and what is not empty has a word.

    Raises:
        UserError: names the unknown words, the closest known ones, all known ones, and what to do.
    """
    if card.vocabulary is None or not prompt.strip():
        return
    known = {form for word in card.vocabulary for form in (word, word.lower())}
    words = [word for word in plain_words(prompt, card.vocabulary) if word != ","]
    unknown = [word for word in dict.fromkeys(words) if word not in known]
    if words and not unknown:
        return
    hints = []
    for word in unknown[:MANY]:
        near = closest(word, sorted(known))
        hints.append(f"{word!r}" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
    if len(unknown) > MANY:
        hints.append(f"and {len(unknown) - MANY} more")
    mistake = (
        f"the prior {card.name!r} does not know {', '.join(hints)}"
        if unknown
        else f"{shortened(prompt)!r} has no word that the prior {card.name!r} could know"
    )
    listed = textwrap.fill(
        " ".join(sorted(w for w in known if re.match(r"\w", w))),
        100,
        initial_indent="  ",
        subsequent_indent="  ",
    )
    raise UserError(
        f"{where}: {mistake}.\n"
        f"It knows these words and no others:\n{listed}\n"
        f"Say it with them, e.g. {card.prompt!r}, or use a prior with an open vocabulary: "
        "system.guidance.prior=sd21 (needs a GPU). A word that a LoRA or an embedding brings is known once "
        "that is given: system.guidance.embeddings=FILE, system.guidance.lora={path: FILE, trigger: WORD}."
    )
