"""Layers in other forms against the layers that they stand for."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import nn

from threestudio_lucid.guidance.layers import ByChannels, multiply_wide_heads, normalise_by_channels


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_group_norm_by_channels_is_group_norm(layout):
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 24, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    # channels far from zero, each elsewhere and each wider than the last: all three terms of the variance
    x = torch.randn(2, 24, 9, 7) * torch.linspace(0.1, 3, 24)[:, None, None]
    x = (x + 20 * torch.randn(24, 1, 1)).to(memory_format=layout).requires_grad_()
    cotangent = torch.randn(2, 24, 9, 7)

    def passes() -> tuple[torch.Tensor, torch.Tensor]:
        y = norm(x)
        return y, torch.autograd.grad(y, x, cotangent)[0]

    expected = passes()
    normalise_by_channels(norm)
    assert type(norm) is ByChannels
    actual = passes()
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=2e-5)  # float32 at 20 is 2e-6 apart
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=2e-5)


def test_group_norm_of_what_is_no_picture_stays():
    norm, x = nn.GroupNorm(2, 8), torch.randn(3, 8, 5)
    expected = norm(x)
    normalise_by_channels(norm)
    assert torch.equal(norm(x), expected)


@pytest.mark.parametrize(("width", "heads", "kind"), [(320, 1, AttnProcessor), (320, 2, AttnProcessor2_0)])
def test_only_wide_heads_are_multiplied(width, heads, kind):
    torch.manual_seed(0)
    attention = Attention(
        width, heads=heads, dim_head=width // heads, norm_num_groups=32, residual_connection=True
    )
    x = torch.randn(2, width, 4, 4)
    expected = attention(x)
    multiply_wide_heads(attention)
    assert type(attention.processor) is kind
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)
