"""Classifier-free guidance and Perp-Neg, by geometry and by hand."""

from __future__ import annotations

import pytest
import torch

from threestudio_lucid.guidance.combine import (
    Conditioning,
    classifier_free,
    guided_output,
    perp_neg,
    perpendicular,
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_scale_one_is_the_text_alone():
    uncond, text = randn(2, 4, 3, 3), randn(2, 4, 3, 3, seed=1)
    torch.testing.assert_close(classifier_free(uncond, text, 1.0), text)
    torch.testing.assert_close(classifier_free(uncond, text, 0.0), uncond)


def test_perpendicular_by_hand():
    # <(3, 4), (1, 0)> = 3, so 3 (1, 0) goes and (0, 4) stays; sample by sample
    x, y = torch.tensor([[3.0, 4.0], [1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    torch.testing.assert_close(perpendicular(x, y), torch.tensor([[0.0, 4.0], [1.0, 0.0]]))


def test_perpendicular_has_no_component_along_y():
    x, y = randn(3, 4, 5, 5), randn(3, 4, 5, 5, seed=1)
    assert (perpendicular(x, y) * y).sum((1, 2, 3)).abs().max() < 1e-4


def test_perpendicular_to_nothing_is_everything():
    x = randn(2, 4, 3, 3)
    torch.testing.assert_close(perpendicular(x, torch.zeros_like(x)), x)


def test_perp_neg_by_hand():
    # D = (1, 0), D_1 = (3, 4): its perpendicular part (0, 4) counts -.5, so D + ... = (1, -2); twice that
    uncond, text = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    negatives, weights = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[-0.5]])
    torch.testing.assert_close(perp_neg(uncond, text, negatives, weights, 2.0), torch.tensor([[2.0, -4.0]]))


def test_negligible_weights_are_dropped_per_view():
    uncond, text, negatives = randn(2, 4, 3, 3), randn(2, 4, 3, 3, seed=1), randn(1, 2, 4, 3, 3, seed=2)
    out = perp_neg(uncond, text, 1e6 * negatives, torch.tensor([[-9e-5, -2e-4]]), 7.5)
    plain = classifier_free(uncond, text, 7.5)
    torch.testing.assert_close(out[0], plain[0])
    assert (out[1] - plain[1]).abs().max() > 1.0


@pytest.mark.parametrize("k", [0, 2])
def test_one_network_call_and_the_same_as_one_by_one(k):
    calls = []

    def model(x, tau, emb):
        calls.append(len(x))
        return x * emb.mean((1, 2)).view(-1, 1, 1, 1) + x.roll(1, 1) * emb[:, 0, 0].view(-1, 1, 1, 1) * tau

    x, text, uncond = randn(3, 4, 2, 2), randn(3, 5, 6, seed=1), randn(3, 5, 6, seed=2)
    negatives, weights = randn(k, 3, 5, 6, seed=3), -randn(k, 3, seed=4).abs()
    cond = Conditioning(text, uncond, uncond, *((negatives, weights) if k else ()))
    out = guided_output(model, x, 7, cond, 7.5)
    assert calls == [(2 + k) * 3]

    for b in range(3):
        e = [model(x[b : b + 1], 7, emb[b : b + 1]) for emb in (uncond, text, *negatives)]
        d = d_text = e[1] - e[0]
        for i in range(k):
            d_k = e[2 + i] - e[0]
            d = d + weights[i, b] * (d_k - (d_k * d_text).sum() / (d_text**2).sum() * d_text)
        torch.testing.assert_close(out[b : b + 1], e[0] + 7.5 * d, rtol=1e-4, atol=1e-4)
