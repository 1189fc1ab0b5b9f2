"""Group normalisation on a CPU, of pictures whose channels are neighbours in memory (channels_last).

PyTorch's own reads a group at a time, so a few channels of every pixel. In this order of memory that takes
ten times as long as in the plain order, and copying a picture to that and back takes longer than all that is
done here, even when two cores copy. Here it is one.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..compiled import cached
from ..simd import LANES, exp2, load, maximum, minimum, spread, store

f32 = np.float32

# A hash of simd.py, which is compiled in here. Numba's cache looks at the date of this file alone, so that
# this line has to change with it; a test says what it should be.
COMPILED_IN = "e8c1036900b9"

_MINUS_LOG2_E, _ONE, _ZERO = f32(-math.log2(math.e)), f32(1), f32(0)
_LARGEST_POWER = f32(120)  # float32 ends at 2^128; what SiLU divides by it is next to nothing up to 1e30


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5, silu: bool = False
) -> Tensor:
    """`F.group_norm` of float32 pictures [B, C, h, w], followed by `F.silu` if asked for, in channels_last.

    C is a multiple of LANES. No gradient.
    """
    pixels = x.permute(0, 2, 3, 1).contiguous()
    out = torch.empty_like(pixels)
    arrays = (tensor.detach().numpy() for tensor in (pixels.view(-1), weight, bias, out.view(-1)))
    _normalise(*arrays, len(x), x.shape[1], groups, eps, silu)
    return out.permute(0, 3, 1, 2)


@cached(
    "void(f4[::1], f4[::1], f4[::1], f4[::1], i8, i8, i8, f8, b1)",
    nogil=True,
    fastmath={"contract", "arcp", "nsz"},
    error_model="numpy",
)
def _normalise(x, weight, bias, out, samples, channels, groups, eps, silu):
    """Pixel by pixel, LANES channels at a time.

    A group's variance is the mean variance of its channels and the variance of their means.
    """
    count, size = x.shape[0] // (samples * channels), channels // groups
    share = f32(1.0 / count)
    # per channel: mean, then shift; variance, then scale
    shift, scale = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for first in range(0, samples * count * channels, count * channels):
        # 1. statistics of each channel
        for c in range(0, channels, LANES):
            total = spread(_ZERO)
            for i in range(first + c, first + count * channels + c, channels):
                total = total + load(x, i)
            mean = total * share
            total = spread(_ZERO)
            for i in range(first + c, first + count * channels + c, channels):
                apart = load(x, i) - mean
                total = total + apart * apart
            store(shift, c, mean)
            store(scale, c, total * share)

        # 2. of each group; y = (x - mean) / sqrt(variance + eps) * weight + bias as x * scale + shift
        for start in range(0, channels, size):
            mean, variance = 0.0, 0.0
            for c in range(start, start + size):
                mean += shift[c] / size
            for c in range(start, start + size):
                variance += (scale[c] + (shift[c] - mean) * (shift[c] - mean)) / size
            inverse = 1.0 / math.sqrt(variance + eps)
            for c in range(start, start + size):
                scale[c] = inverse * weight[c]
                shift[c] = bias[c] - mean * inverse * weight[c]

        # 3. values
        for pixel in range(first, first + count * channels, channels):
            for c in range(0, channels, LANES):
                y = load(x, pixel + c) * load(scale, c) + load(shift, c)
                if silu:
                    t = maximum(minimum(y * _MINUS_LOG2_E, _LARGEST_POWER), -_LARGEST_POWER)
                    y = y / (exp2(t) + _ONE)
                store(out, pixel + c, y)
