"""What is text, what its words are, and how it is cut."""

from __future__ import annotations

import doctest

import pytest

from threestudio_lucid import texts
from threestudio_lucid.errors import UserError

KEY = "system.prompt_processor.prompt"


def test_examples():
    assert doctest.testmod(texts).failed == 0


@pytest.mark.parametrize("text", ["a mug", "☕", "...", "#1", "~", "[1,2]", "a\tmug\n", "émüg 杯"])
def test_text_that_says_something(text):
    texts.check_prompt(text, KEY)


@pytest.mark.parametrize("text", [None, "", "  ", "\n\t", "\u200b\ufeff", "\u0301"])
def test_nothing_that_can_be_seen_is_no_prompt(text):
    with pytest.raises(UserError, match=rf"There is no prompt: add {KEY}="):
        texts.check_prompt(text, KEY)


@pytest.mark.parametrize("text", ["\0", "a\0mug", "\x1b[1m a mug", "a\udce9", ["a", "mug"], {"a": "mug"}, 5])
def test_what_is_no_text(text):
    with pytest.raises(UserError, match=f"{KEY} (is|holds).*no text"):
        texts.check_prompt(text, KEY)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A  red\nMUG.", ["a", "red", "mug"]),
        ('a "red", (blue) mug!?', ["a", "red", ",", "blue", "mug"]),
        (", ,a mug, ,", ["a", "mug"]),
        ("a mug: - blue – ‘new’ …", ["a", "mug", "blue", "new"]),
        ("mug/cup ice-cream cat's", ["mug", "cup", "ice-cream", "cat's"]),
        ("mug☕ ☕ ❤️ + $5 #1 & <toy>", ["mug☕", "☕", "❤️", "+", "$5", "#1", "&", "toy"]),
        ("... !!! ,,,", []),
    ],
)
def test_words_without_punctuation(text, words):
    assert texts.plain_words(text) == words


def test_known_words_stay_as_they_are_written():
    assert texts.plain_words("A <Toy>! Toy <Toy>", {"<Toy>"}) == ["a", "toy", "toy", "<Toy>"]


@pytest.mark.parametrize("longest", range(1, 30))
def test_the_longest_beginning_of_whole_words(longest):
    text = "one two, three fourfivesix"
    cut = texts.cut_to_fit(text, lambda t: len(t) <= longest)
    fitting = [t for t in ("one", "one two", "one two, three", text) if len(t) <= longest]
    assert cut == (fitting[-1] if fitting else text[:longest])


def test_a_line_of_the_log_is_short():
    assert texts.shortened("a mug\n") == "a mug"
    assert len(texts.shortened("word " * 10_000)) < 110
