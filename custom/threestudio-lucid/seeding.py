"""Randomness as a function of (seed, purpose, step): the same whether a run was interrupted or not."""

from __future__ import annotations

import hashlib

import torch


def seed_of(seed: int, *key: int | str) -> int:
    """A 63-bit seed made from `seed` and a key; equal keys give equal seeds, others unrelated ones.

    >>> seed_of(0, "cameras", 7) == seed_of(0, "cameras", 7) != seed_of(0, "cameras", 8)
    True
    """
    text = "/".join([str(int(seed)), *map(str, key)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded by `seed_of`, e.g. `generator(0, "augmentation", step)`."""
    return torch.Generator(device=device).manual_seed(seed_of(seed, *key))
