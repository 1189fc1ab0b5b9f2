"""Combining conditional and unconditional outputs: classifier-free guidance and Perp-Neg.

Two conventions of classifier-free guidance are in use:

    ours, LucidDreamer, diffusers:   uncond + g (text - uncond)      g = 1 is the text alone, g = 7.5 is usual
    threestudio's own guidance:      text + g' (text - uncond)       g' = g - 1

All formulas are affine with weights that sum to one in the outputs, so they hold for epsilon and v alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .trajectory import Model

# Perp-Neg terms of smaller weight are dropped, as in the released code.
MIN_NEGATIVE_WEIGHT = 1e-4


@dataclass(frozen=True)
class Conditioning:
    """Text embeddings of a batch of B views, each [B, T, D].

    text: the prompt as seen from each view.
    uncond: what guidance moves away from; the negative prompt.
    inverse: what the inversion is conditioned on; the empty prompt.
    negatives: Perp-Neg's negative prompts [K, B, T, D], or None.
    weights: their weights [K, B], not positive; given exactly when `negatives` is.
    source: what an edit starts from, as seen from each view [B, T, D]; None where nothing is edited.
    picture: what a ControlNet is shown of each view [B, 3, H, W], or None.
    """

    text: Tensor
    uncond: Tensor
    inverse: Tensor
    negatives: Tensor | None = None
    weights: Tensor | None = None
    source: Tensor | None = None
    picture: Tensor | None = None


def classifier_free(uncond: Tensor, text: Tensor, scale: float) -> Tensor:
    """uncond + scale (text - uncond)."""
    return uncond + scale * (text - uncond)


def perpendicular(x: Tensor, y: Tensor) -> Tensor:
    """The part of x perpendicular to y; inner products run over all dimensions but the first."""
    dims = tuple(range(1, x.ndim))
    along = (x * y).sum(dims, keepdim=True) / (y * y).sum(dims, keepdim=True).clamp_min(1e-6)
    return x - along * y


def perp_neg(uncond: Tensor, text: Tensor, negatives: Tensor, weights: Tensor, scale: float) -> Tensor:
    """Perp-Neg (Armandpour et al. 2023): negative prompts act only across the direction of the positive one.

        D = D_text + sum_k w_k perpendicular(D_k, D_text),  D_k = e_k - e_uncond;   uncond + scale D

    Args:
        uncond, text: outputs [B, ...].
        negatives: outputs of the K negative prompts [K, B, ...].
        weights: [K, B]; terms of |w| <= 1e-4 are dropped.
    """
    d_text = text - uncond
    weights = torch.where(weights.abs() > MIN_NEGATIVE_WEIGHT, weights, torch.zeros_like(weights))
    d = d_text
    for negative, w in zip(negatives, weights, strict=True):
        d = d + w.view(-1, *[1] * (text.ndim - 1)) * perpendicular(negative - uncond, d_text)
    return uncond + scale * d


def guided_output(model: Model, x: Tensor, tau: int, cond: Conditioning, scale: float) -> Tensor:
    """The guided network output at (x, tau).

    One network call of 2 B samples, with Perp-Neg of (2 + K) B, and of B where guidance is off (scale 1).
    """
    if scale == 1.0 and cond.negatives is None:
        return model(x, tau, cond.text)
    embeddings = [cond.uncond, cond.text, *(() if cond.negatives is None else cond.negatives)]
    repeated = x.repeat(len(embeddings), *[1] * (x.ndim - 1))
    uncond, text, *negatives = model(repeated, tau, torch.cat(embeddings)).chunk(len(embeddings))
    if not negatives:
        return classifier_free(uncond, text, scale)
    return perp_neg(uncond, text, torch.stack(negatives), cond.weights.to(x), scale)
