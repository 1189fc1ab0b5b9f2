"""What the grader sees on pictures sampled from a prior."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toybox import captions
from toybox.grade.grader import Grader
from toybox.grade.scores import Score, score
from toybox.objects import OBJECTS
from toybox.pictures import write_sheet
from toybox.progress import Progress


def draw_prompts(n: int, seed: int = 0) -> list[str]:
    """`n` prompts that go evenly through all objects, colours and views."""
    rng = np.random.default_rng(seed)
    decks = [
        _deck(list(OBJECTS), n, rng),
        _deck(list(captions.COLORS), n, rng),
        _deck(list(captions.VIEWS), n, rng),
    ]
    return [captions.caption(name, color, view=view) for name, color, view in zip(*decks, strict=True)]


def _deck(names: list[str], n: int, rng: np.random.Generator) -> list[str]:
    """`n` names: every one equally often (but for the last round), in random order."""
    rounds = [rng.permutation(names) for _ in range(-(-n // len(names)))]
    return [str(name) for name in np.concatenate(rounds)[:n]]


def grade_prior(
    grader: Grader,
    name: str = "mini",
    n: int = 300,
    seed: int = 0,
    sheet: Path | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
) -> Score:
    """Sample `n` pictures from a prior and grade them.

    Args:
        name: a prior, as in configs: a card's name or a folder.
        sheet: PNG for the pictures; the wrong ones have a red border.
        steps, guidance_scale: None: the card's.
    """
    from threestudio_lucid.guidance.prior import Prior
    from threestudio_lucid.guidance.sample import sample

    prior = Prior.load(name, device="cpu")
    prompts = draw_prompts(n, seed)
    generator = torch.Generator().manual_seed(seed)
    images = []
    with Progress("sample", n) as progress:
        for start in range(0, n, 25):
            part = prompts[start : start + 25]
            images.append(
                sample(prior, part, num_steps=steps, guidance_scale=guidance_scale, generator=generator)
                .float()
                .cpu()
            )
            progress.update(start + len(part))
    pictures = torch.cat(images).clamp(0, 1)
    grades, wanted = grader(pictures), [captions.parse(prompt) for prompt in prompts]
    if sheet is not None:
        wrong = [score([g], [w]).mistakes.total() > 0 for g, w in zip(grades, wanted, strict=True)]
        write_sheet(sheet, with_borders(pictures, wrong), columns=20)
    return score(grades, wanted)


def with_borders(pictures: Tensor, marked: Sequence[bool], width: int = 3) -> Tensor:
    """Pictures [n, 3, h, w] with a red frame around the marked ones."""
    out = pictures.clone()
    red = torch.tensor([0.9, 0.0, 0.0])[:, None, None]
    for picture, mark in zip(out, marked, strict=True):
        if mark:
            inside = picture[:, width:-width, width:-width].clone()
            picture[:] = red
            picture[:, width:-width, width:-width] = inside
    return out
