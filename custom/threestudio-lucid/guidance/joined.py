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
    """A chain of convolutions as one, of 3 x 3 blocks of S x S pixels; S is the product of the strides.

    Each of the chain pads with zeros what the one before it made, so at the border they are more than one
    convolution: the first row and column of the output are made by the chain, from a strip of the picture.

    Args:
        chain: what `joins` says can be joined. Its weights must not change any more.
    """

    def __init__(self, chain: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self.chain = nn.Sequential(*chain)
        weight, bias, self.stride = _compose(chain)
        # It reaches S pixels to either side, of the last block only the first row and column.
        weight = F.pixel_unshuffle(F.pad(weight, (0, self.stride - 1, 0, self.stride - 1)), self.stride)
        bias = None if bias is None else bias.to(chain[0].weight.dtype)
        self.register_buffer("weight", weight.to(chain[0].weight.dtype), persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] % self.stride or x.shape[-1] % self.stride:
            return self.chain(x)
        inner = self.without_border(x)[:, :, 1:, 1:]
        top = self.chain(x[:, :, : self.stride + 1])[:, :, :1]
        left = self.chain(x[:, :, :, : self.stride + 1])[:, :, 1:, :1]
        return torch.cat((top, torch.cat((left, inner), dim=3)), dim=2)

    def without_border(self, x: Tensor) -> Tensor:
        """What is right but for the first row and the first column."""
        return F.conv2d(F.pixel_unshuffle(x, self.stride), self.weight, self.bias, padding=1)


@torch.no_grad()
def _compose(chain: Sequence[nn.Conv2d]) -> tuple[Tensor, Tensor | None, int]:
    """Weight [., ., 2 S + 1, 2 S + 1] and bias of the whole, in float32, and its stride and padding S.

    With y[i] = sum_k w_1[k] x[i s_1 - p_1 + k] and z[o] = sum_j w_2[j] y[o s_2 - p_2 + j], the weight of
    x[o s_1 s_2 - (p_2 s_1 + p_1) + n] in z[o] is the sum of w_2[j] w_1[k] over j s_1 + k = n. Here s_1 = p_1
    is the stride so far, s_2 = 2 and p_2 = 1, so that both are doubled, 1, 2, 4.
    """
    first, *others = chain
    weight, bias = first.weight.float(), None if first.bias is None else first.bias.float()
    stride = 1
    for conv in others:
        outer = conv.weight.float()
        weight = F.conv_transpose2d(outer, weight, stride=stride)
        if bias is not None:
            bias = outer.sum((2, 3)) @ bias
        if conv.bias is not None:
            bias = conv.bias.float() if bias is None else bias + conv.bias.float()
        stride *= 2
    return weight, bias, stride


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
