"""Zero-shot editing by Interval Score Matching: a picture, what it shows, and what it should show.

The references that the score of the target prompt is compared with:

    empty    ISM as it is: the interval without text, guidance away from the negative prompt. The picture is
             made to look like the target prompt, whatever it showed.
    source   the interval runs on the source prompt, and guidance leads from the source prompt to the target:

                 e(x_s, s) -> e(x_s, s, source),   e_uncond -> e(x_t, t, source)

             so what the two prompts share pulls nowhere, and what they differ in is guided.
    delta    the step of empty, minus the same step of the source picture towards the source prompt (Delta
             Denoising Score, arXiv 2304.07090, brought to intervals):

                 grad = w(t) { [ e(x_t, t, target) - e(x_s, s) ] - [ e(x'_t, t, source) - e(x'_s, s) ] }

             both e(., t) guided; x' is the source picture's trajectory. What the prior would change of the
             source picture in any case is not changed. With target = source and nothing edited yet, the
             gradient is exactly zero.

The LucidDreamer paper shows such edits and neither gives a formula nor its code; these are ours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .combine import Conditioning
from .ism import Distillation, ism_step
from .schedule import NoiseSchedule
from .trajectory import Model

REFERENCES = ("empty", "source", "delta")


@torch.no_grad()
def edit_step(
    model: Model,
    schedule: NoiseSchedule,
    latents: Tensor,
    noise: Tensor,
    index: int,
    cond: Conditioning,
    *,
    reference: str = "delta",
    source: Tensor | None = None,
    **ism: Any,
) -> Distillation:
    """One step of an edit.

    Args:
        model, schedule, latents, noise, index: as `ism.ism_step` takes them.
        cond: text is the target prompt; `cond.source` is needed unless the reference is empty.
        reference: one of `REFERENCES`.
        source: latents of the source picture, like `latents`; for delta.
        ism: further arguments of `ism_step`.

    Returns:
        the step at `latents`; with delta, `grad` has the step at `source` taken off.

    Raises:
        ValueError: no such reference, or what it needs is missing.
    """
    if reference not in REFERENCES:
        raise ValueError(f"reference {reference!r}: expected one of {REFERENCES}")
    if reference != "empty" and cond.source is None:
        raise ValueError(f"reference {reference!r} needs a source prompt")
    if reference == "source":
        cond = replace(cond, uncond=cond.source, inverse=cond.source)
    # fresh noise in the inversion, if any, is the same in both steps
    draws = ism.get("generator")
    state = None if draws is None else draws.get_state()
    step = ism_step(model, schedule, latents, noise, index, cond, **ism)
    if reference != "delta":
        return step
    if source is None:
        raise ValueError("reference 'delta' needs the source picture's latents")
    if draws is not None:
        draws.set_state(state)
    still = ism_step(model, schedule, source, noise, index, replace(cond, text=cond.source), **ism)
    return replace(step, grad=step.grad - still.grad)
