"""Joined convolutions against the same ones in a row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from threestudio_lucid.guidance.joined import Joined, join_leading
from threestudio_lucid.guidance.prior import Prior


def chain(halvings: int, biases: bool = True, channels: int = 5) -> list[nn.Conv2d]:
    torch.manual_seed(halvings)
    first = nn.Conv2d(3, channels, 3, padding=1)
    others = [nn.Conv2d(channels, channels, 3, 2, 1, bias=biases) for _ in range(halvings)]
    return [first, *others]


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("halvings", [1, 2, 3])
@pytest.mark.parametrize("size", [(16, 24), (32, 16), (64, 64), (18, 30), (2, 8)])  # some cannot be joined
def test_values_and_gradients_are_those_of_the_chain(halvings, biases, size):
    convs = chain(halvings, biases)
    x = torch.randn(2, 3, *size, requires_grad=True)
    plain = nn.Sequential(*convs)
    joined = Joined(convs)
    expected, actual = plain(x), joined(x)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(expected)
    (expected_grad,) = torch.autograd.grad(expected, x, weights)
    (actual_grad,) = torch.autograd.grad(actual, x, weights)
    torch.testing.assert_close(actual_grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_without_its_border_it_would_be_another_map():
    convs = chain(2)
    x = torch.randn(1, 3, 32, 32)
    difference = (Joined(convs).without_border(x) - nn.Sequential(*convs)(x)).abs().amax((0, 1))
    assert difference[0].min() > 1e-3 and difference[:, 0].min() > 1e-3
    assert difference[1:, 1:].max() < 1e-5


def test_only_a_chain_at_the_beginning_is_joined():
    block = nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.ReLU())
    convs = chain(3)
    layers = nn.Sequential(*convs[:3], block, convs[3])
    assert [type(layer) for layer in join_leading(layers)] == [Joined, nn.Sequential, nn.Conv2d]
    for left in (nn.Sequential(convs[0], block, convs[1]), nn.Sequential(nn.ReLU(), *convs)):
        assert join_leading(left) is left
    grouped = nn.Sequential(convs[0], nn.Conv2d(5, 5, 3, 2, 1, groups=5))
    assert join_leading(grouped) is grouped


def test_the_bundled_prior_encodes_as_before():
    import diffusers

    prior = Prior.load("mini", "cpu", "float32")
    plain = diffusers.AutoencoderTiny.from_pretrained(Path(prior.source) / "vae")
    assert isinstance(prior.vae.encoder.layers[0], Joined)
    pixels = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(
            prior.encode(pixels), plain.encode(2 * pixels - 1).latents, rtol=1e-3, atol=1e-4
        )
