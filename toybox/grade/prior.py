"""What the grader sees on pictures sampled from a prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from toybox import cameras, captions
from toybox.dataset import composite, random_backgrounds
from toybox.grade.distributions import Distance, distance
from toybox.grade.grader import Grader
from toybox.grade.scores import Score, score
from toybox.objects import OBJECTS
from toybox.pictures import write_sheet
from toybox.progress import Progress
from toybox.sdf import render
from toybox.truth import build

if TYPE_CHECKING:
    from threestudio_lucid.guidance.prior import Prior


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


@dataclass(frozen=True)
class PriorScore:
    """What samples of a prior came to.

    score: how many are what their prompts say.
    samples: how they differ from true pictures.
    floor: how the autoencoder's copies of other true pictures do; a perfect denoiser comes to that.
    """

    score: Score
    samples: Distance
    floor: Distance

    def text(self) -> str:
        """A line for each number."""
        return (
            f"{self.score.text()}\nsamples        {self.samples.text()}\nautoencoder    {self.floor.text()}"
        )


def grade_prior(
    grader: Grader,
    name: str = "mini",
    n: int = 300,
    seed: int = 0,
    sheet: Path | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
) -> PriorScore:
    """Sample `n` pictures from a prior, grade them, and compare them with as many true ones.

    Args:
        name: a prior, as in configs: a card's name or a folder.
        sheet: PNG for the pictures; the wrong ones have a red border.
        steps, guidance_scale: None: the card's.
    """
    from threestudio_lucid.guidance.prior import Prior
    from threestudio_lucid.guidance.sample import sample

    prior = Prior.load(name)
    prompts = draw_prompts(n, seed)
    generator = torch.Generator().manual_seed(seed)

    def draw(part: Sequence[str]) -> Tensor:
        return sample(prior, part, num_steps=steps, guidance_scale=guidance_scale, generator=generator)

    pictures = in_parts("sample", draw, prompts)
    size = prior.card.image_size
    truth, others = (true_pictures(prompts, size, np.random.default_rng([seed, k])) for k in (1, 2))
    copies = in_parts("copy", lambda part: _copy(prior, part), others)

    grades, wanted = grader(pictures), [captions.parse(prompt) for prompt in prompts]
    if sheet is not None:
        wrong = [score([g], [w]).mistakes.total() > 0 for g, w in zip(grades, wanted, strict=True)]
        write_sheet(sheet, with_borders(pictures, wrong), columns=20)
    true, sampled, copied = (grader.features(x).numpy() for x in (truth, pictures, copies))
    return PriorScore(score(grades, wanted), distance(sampled, true), distance(copied, true))


@torch.no_grad()
def _copy(prior: Prior, pictures: Tensor) -> Tensor:
    return prior.decode(prior.encode(pictures.to(prior.device)))


def in_parts(what: str, make: Callable[[Any], Tensor], of: Any, size: int = 25) -> Tensor:
    """Pictures [n, 3, h, w] in [0, 1] on the CPU, made of a few at a time, with a progress bar."""
    made = []
    with Progress(what, len(of)) as progress:
        for start in range(0, len(of), size):
            made.append(make(of[start : start + size]).float().cpu())
            progress.update(min(start + size, len(of)))
    return torch.cat(made).clamp(0, 1)


def true_pictures(prompts: Sequence[str], size: int, rng: np.random.Generator) -> Tensor:
    """A true picture of what each prompt says, [n, 3, size, size], on backgrounds as in the prior's training.

    Instances and cameras are random, the latter such as fit the prompt's direction.
    """
    rgba = []
    for prompt in prompts:
        spec = captions.parse(prompt)
        parts = build(spec, int(rng.integers(2**32)))
        *where, fovy = _camera(spec.view, rng)
        rgba.append(render(parts, cameras.orbit(*where), fovy, size))
    drawn = composite(np.stack(rgba), random_backgrounds(len(rgba), rng))
    return torch.from_numpy(drawn).permute(0, 3, 1, 2)


def _camera(view: str | None, rng: np.random.Generator) -> tuple[float, float, float, float]:
    while True:
        azimuth, elevation, *rest = cameras.sample(rng)
        if view is None or captions.direction(elevation, azimuth) == view:
            return azimuth, elevation, *rest


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
