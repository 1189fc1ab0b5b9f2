"""A CLIP tokenizer whose vocabulary is the toybox's: every word of a caption is one token.

Byte-pair encoding as in CLIP (Radford et al. 2021): lower case, "</w>" ends a word, byte-level fallback, so
that any text at all can be encoded. The merges are learned from the words until each is one token.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

MAX_LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"

Pair = tuple[str, str]


def _merge(symbols: list[str], pair: Pair) -> list[str]:
    """`symbols` with every occurrence of `pair` joined, from left to right."""
    out: list[str] = []
    i = 0
    while i < len(symbols):
        if tuple(symbols[i : i + 2]) == pair:
            out.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return out


def learn_merges(words: list[str]) -> list[Pair]:
    """Byte-pair merges, most frequent pair first, until every word is one symbol.

    >>> learn_merges(["an", "tan"])
    [('a', 'n</w>'), ('t', 'an</w>')]
    """
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[Pair] = []
    while any(len(symbols) > 1 for symbols in spelled):
        counts = Counter(pair for symbols in spelled for pair in pairwise(symbols))
        pair = min(counts, key=lambda p: (-counts[p], p))  # the alphabet settles ties
        merges.append(pair)
        spelled = [_merge(symbols, pair) for symbols in spelled]
    return merges


def make_tokenizer(words: list[str]) -> CLIPTokenizer:
    """Tokenizer for `words` (lower case letters), with `model_max_length` 32."""
    merges = learn_merges(words)
    letters = list(bytes_to_unicode().values())
    symbols = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges), START, END]
    vocab = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write what `CLIPTokenizer.from_pretrained` reads, and vocab.json and merges.txt for transformers 4."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def split_words(tokenizer: CLIPTokenizer, words: list[str]) -> list[str]:
    """The words that are not exactly one token."""
    return [word for word in words if len(tokenizer(word).input_ids) != 3]


def check_single_tokens(tokenizer: CLIPTokenizer, words: list[str]) -> None:
    """Raises ValueError naming the words that are not exactly one token."""
    split = split_words(tokenizer, words)
    if split:
        raise ValueError(f"not one token each: {', '.join(split)}")
