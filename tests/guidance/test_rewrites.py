"""Rewritten networks against the same as they were written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from threestudio_lucid.guidance import rewrites
from threestudio_lucid.guidance.norms import group_norm
from threestudio_lucid.guidance.recorded import record
from threestudio_lucid.guidance.rewrites import aten, onednn, simplify

has_bfloat16 = torch.backends.mkldnn.is_available() and onednn._is_mkldnn_bf16_supported()
DTYPES = [
    torch.float32,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not has_bfloat16, reason="too old a CPU")),
]


class Pictures(nn.Module):
    """Convolutions and normalisations of all kinds."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(2, channels) for _ in range(3)])
        self.points = nn.Conv2d(channels, channels, 1)
        self.strided = nn.Conv2d(channels, channels, 1, stride=2, bias=False)
        self.grouped = nn.Conv2d(channels, channels, 3, padding=2, dilation=2, groups=2)
        self.plain = nn.GroupNorm(2, channels, affine=False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.dropout(self.points(F.silu(self.norms[0](x)))) / 1.0
        shared = self.norms[1](x)  # SiLU is not all that needs it
        x = F.silu(shared) + shared
        x = self.strided(self.norms[2](x))
        return self.plain(self.grouped(x))


class Attentions(nn.Module):
    """Linear layers of the same input: with a bias, without one, and one layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(6, 4), nn.Linear(6, 4)
        self.v, self.w = nn.Linear(6, 5, bias=False), nn.Linear(6, 5, bias=False)
        self.out = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2 + F.silu(x)
        x = self.q(x) * self.k(x) + F.silu(x).sum() + torch.cat([self.v(x), self.w(x)], -1).sum()
        return self.out(x) + self.out(self.q(y) * self.k(y))


def rewritten(network: nn.Module, x: Tensor) -> GraphModule:
    simple = simplify(record(network.eval(), (x,)))
    simple.recompile()
    return simple


def targets(network: GraphModule) -> list[object]:
    return [node.target for node in network.graph.nodes]


def assert_same(network: nn.Module, x: Tensor) -> list[object]:
    with torch.no_grad():
        simple, expected = rewritten(network, x), network(x)
        tolerance = 1e-5 if x.dtype == torch.float32 else 5e-2
        torch.testing.assert_close(simple(x), expected, rtol=tolerance, atol=tolerance)
    return targets(simple)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [8, 12])  # the kernel for norms takes eights
def test_pictures(channels, order, dtype):
    torch.manual_seed(0)
    network = Pictures(channels).to(dtype)
    found = assert_same(network, torch.randn(2, 3, 8, 6, dtype=dtype).contiguous(memory_format=order))
    assert found.count(onednn._convolution_pointwise.default) == 3  # the fourth has become linear
    ours = 3 if channels == 8 and dtype == torch.float32 else 0
    assert found.count(group_norm) == ours and found.count(aten.group_norm.default) == 4 - ours
    assert aten.dropout.default not in found and aten.div.Tensor not in found


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_of_one_input_become_one(dtype):
    torch.manual_seed(0)
    network = Attentions().to(dtype)
    found = assert_same(network, torch.randn(2, 3, 6, dtype=dtype))
    linear = aten.linear.default if dtype == torch.float32 else onednn._linear_pointwise.default
    # q and k of x and of y, v and w, and twice the output
    assert found.count(linear) == 5
    assert found.count(aten.silu.default) == 1


def test_random_numbers_are_not_shared():
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.rand_like(x) - torch.rand_like(x)

    x = torch.zeros(4)
    assert rewritten(Noisy(), x)(x).abs().min() > 0


def test_many_threads_keep_their_own_norms(monkeypatch):
    monkeypatch.setattr(rewrites.torch, "get_num_threads", lambda: 16)
    assert group_norm not in assert_same(Pictures(8), torch.randn(1, 3, 4, 4))


def test_a_name_is_taken_once():
    graph, owner = torch.fx.Graph(), nn.Module()
    rewrites.hold(owner, graph, "weight", torch.ones(1))
    with pytest.raises(KeyError, match="weight"):
        rewrites.hold(owner, graph, "weight", torch.zeros(1))
