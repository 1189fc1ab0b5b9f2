"""Guided noise predictions: classifier-free guidance in threestudio's form, and Perp-Neg."""

from __future__ import annotations

import torch
from torch import Tensor

from threestudio.utils.ops import perpendicular_component


def classifier_free(text: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """text + scale (text - uncond): scale 0 is the text alone, where diffusers writes scale 1."""
    return text + scale * (text - uncond)


def perp_neg(text: Tensor, uncond: Tensor, negatives: Tensor, weights: Tensor, scale: float) -> Tensor:
    """uncond + scale (d + sum_k w_k perp(d_k, d)), with d = text - uncond, d_k = negative_k - uncond.

    Perp-Neg (arXiv 2304.04968): what the wrong directions have in common with the right one is kept.

    Args:
        text, uncond: predictions [B, ...].
        negatives: [B, K, ...].
        weights: [B, K], not positive.
    """
    positive = text - uncond
    total = positive
    for negative, weight in zip(negatives.unbind(1), weights.unbind(1), strict=True):
        factor = weight.to(text).view(-1, *[1] * (text.ndim - 1))
        total = total + factor * perpendicular_component(negative - uncond, positive)
    return uncond + scale * total


def guided(pred: Tensor, scale: float, weights: Tensor | None = None) -> Tensor:
    """The guided prediction of a network called once for a batch of B items.

    Args:
        pred: predictions in the order of `PromptProcessorOutput`: [2B, ...] text, uncond; or with ``weights``
            [(2 + K) B, ...] text, uncond, then the K negatives of each item in turn.
        weights: Perp-Neg's [B, K].
    """
    if weights is None:
        text, uncond = pred.chunk(2)
        return classifier_free(text, uncond, scale)
    batch, count = weights.shape
    text, uncond, negatives = pred.split([batch, batch, batch * count])
    return perp_neg(text, uncond, negatives.unflatten(0, (batch, count)), weights, scale)


def copies(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """``x`` [B, ...] as often, and in the order, as `guided` wants predictions for it.

    threestudio repeats the whole batch for the negatives too, so with B > 1 it pairs items with the negatives
    of others.
    """
    if weights is None:
        return torch.cat([x, x])
    return torch.cat([x, x, x.repeat_interleave(weights.shape[1], dim=0)])
