"""Convolutions with nothing between them, as the one convolution that they are together.

An `AutoencoderTiny` without blocks in its first stages begins so, the bundled prior's with three, the largest
of which work at full resolution: they took half of the time of encoding a picture and of its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Joined(nn.Module):
    """A chain of convolutions as a single one, of blocks of S x S pixels; S is the product of the strides.

    Each of the chain pads with zeros what the one before it made, so near the border they are more than one
    convolution: there the output is made by the chain, from a strip of the picture.

    Args:
        chain: what `joins` says can be joined. Its weights must not change any more.
    """

    def __init__(self, chain: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self.chain = nn.Sequential(*chain)
        weight, bias, stride, padding, self.border = _compose(chain)
        self.stride = stride
        # rows of the picture, from its edge, that the first `border` rows of the output depend on
        self.strip = max((self.border - 1) * stride + weight.shape[-1] - padding, 1)
        # the kernel in whole blocks, as many before the pixel's own as after it
        self.reach = max(-(-padding // stride), -(-(weight.shape[-1] - padding) // stride) - 1)
        before = self.reach * stride - padding
        after = (2 * self.reach + 1) * stride - before - weight.shape[-1]
        weight = F.pixel_unshuffle(F.pad(weight, (before, after, before, after)), stride)
        bias = None if bias is None else bias.to(chain[0].weight.dtype)
        self.register_buffer("weight", weight.to(chain[0].weight.dtype), persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % self.stride or width % self.stride or min(height, width) < self.strip:
            return self.chain(x)
        y = F.conv2d(F.pixel_unshuffle(x, self.stride), self.weight, self.bias, padding=self.reach)
        if self.border == 0:
            return y
        top = self.chain(x[:, :, : self.strip])[:, :, : self.border]
        left = self.chain(x[:, :, :, : self.strip])[:, :, self.border :, : self.border]
        below = torch.cat((left, y[:, :, self.border :, self.border :]), dim=3)
        return torch.cat((top, below), dim=2)


@torch.no_grad()
def _compose(chain: Sequence[nn.Conv2d]) -> tuple[Tensor, Tensor | None, int, int, int]:
    """Weight and bias in float32, stride and padding of the whole, and how many rows (or columns) of its
    output, at the beginning, depend on what a later convolution pads with.

    With y[i] = sum_k w_1[k] x[i s_1 - p_1 + k] and z[o] = sum_j w_2[j] y[o s_2 - p_2 + j], the weight of
    x[o s_1 s_2 - (p_2 s_1 + p_1) + n] in z[o] is the sum of w_2[j] w_1[k] over j s_1 + k = n.
    """
    first, *others = chain
    weight, bias = first.weight.float(), None if first.bias is None else first.bias.float()
    stride, padding, border = first.stride[0], first.padding[0], 0
    for conv in others:
        outer = conv.weight.float()
        weight = F.conv_transpose2d(outer, weight, stride=stride)
        if bias is not None:
            bias = outer.sum((2, 3)) @ bias
        if conv.bias is not None:
            bias = conv.bias.float() if bias is None else bias + conv.bias.float()
        padding += conv.padding[0] * stride
        border = -(-(border + conv.padding[0]) // conv.stride[0])
        stride *= conv.stride[0]
    return weight, bias, stride, padding, border


def joins(conv: nn.Module, first: bool) -> bool:
    """Whether a module is a convolution that can be part of a chain, as its first or a later part.

    A later one must halve the picture and not reach beyond its last row; the padding of the first is its own.
    """
    if type(conv) is not nn.Conv2d or conv.groups != 1 or conv.dilation != (1, 1):
        return False
    if conv.padding_mode != "zeros" or conv.kernel_size != (3, 3) or conv.padding != (1, 1):
        return False
    return conv.stride == ((1, 1) if first else (2, 2))


def join_leading(layers: nn.Sequential) -> nn.Sequential:
    """The layers with the chain that they begin with joined, if there is one: the same values."""
    modules = list(layers)
    length = next((i for i, module in enumerate(modules) if not joins(module, first=i == 0)), len(modules))
    return nn.Sequential(Joined(modules[:length]), *modules[length:]) if length > 1 else layers
