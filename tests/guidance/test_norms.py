"""Group normalisation pixel by pixel against PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from threestudio_lucid.guidance.norms import group_norm


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "samples,channels,groups,size", [(2, 8, 8, (4, 4)), (3, 48, 6, (5, 7)), (1, 64, 32, (1, 1))]
)
def test_values_are_those_of_pytorch(samples, channels, groups, size, order, silu):
    torch.manual_seed(0)
    x = 3 + 2 * torch.randn(samples, channels, *size)
    x[:, ::3] *= 20
    x = x.contiguous(memory_format=order)
    weight, bias = torch.randn(channels), torch.randn(channels)
    expected = F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-3)
    expected = F.silu(expected) if silu else expected
    kept = x.clone()
    actual = group_norm(x, groups, weight, bias, 1e-3, silu)
    assert actual.dtype == torch.float32 and actual.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, kept)
    torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=1e-5)


def test_silu_of_the_largest_and_smallest():
    """Values far beyond what 2^t can be in float32."""
    weight = torch.tensor([1.0, 1000, -1000, 1e30, -1e30, 0, 30, -30])
    x = torch.randn(1, 8, 6, 6)
    expected = F.silu(F.group_norm(x, 8, weight, torch.zeros(8)))
    torch.testing.assert_close(group_norm(x, 8, weight, torch.zeros(8), silu=True), expected)


def test_what_is_no_number_stays_none():
    x = torch.randn(2, 8, 4, 4)
    x[1, 3, 2, 2] = torch.nan
    y = group_norm(x, 2, torch.ones(8), torch.zeros(8), silu=True)
    assert y[0].isfinite().all() and y[1, :4].isnan().all() and y[1, 4:].isfinite().all()
