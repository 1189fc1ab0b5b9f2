"""Layers of the networks in forms that a GPU runs faster; what they compute stays the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Latents of a side; with more, the products take memory that their speed is not worth.
LARGEST_PRODUCT = 64
WIDEST_FUSED_HEAD = 256  # channels; above, PyTorch's fused attention has only a kernel of an older GPU's


class ByChannels(nn.GroupNorm):
    """`nn.GroupNorm` of pictures [B, C, h, w] by way of statistics of each channel; of others as ever.

    For compiled networks whose channels are neighbours in memory. PyTorch's own kernel reads one group at a
    time, a few channels of every pixel, and on CUDA in the other layout, so that each is copied twice. What
    the compiler makes of this one reads memory in its order, once for the statistics and once for the values,
    in both passes.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            return super().forward(x)
        return group_norm_by_channels(x, self.num_groups, self.weight, self.bias, self.eps)


def group_norm_by_channels(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group normalisation of [B, C, h, w], in float32.

    A group's variance is the mean variance of its channels and the variance of their means.
    """
    wide = x.float()
    variances, means = (
        value.unflatten(1, (groups, -1)) for value in torch.var_mean(wide, dim=(2, 3), correction=0)
    )
    mean = means.mean(-1, keepdim=True)
    variance = (variances + (means - mean).square()).mean(-1, keepdim=True)
    scale = torch.rsqrt(variance + eps) * weight.float().unflatten(0, (groups, -1))
    shift = bias.float().unflatten(0, (groups, -1)) - mean * scale
    return (wide * scale.flatten(1)[..., None, None] + shift.flatten(1)[..., None, None]).to(x.dtype)


def normalise_by_channels(network: nn.Module) -> None:
    """All of a network's group normalisations become `ByChannels`, with the weights that they have."""
    for module in network.modules():
        if type(module) is nn.GroupNorm and module.affine:
            module.__class__ = ByChannels


def multiply_wide_heads(network: nn.Module) -> None:
    """Attention with heads too wide for a fast fused kernel becomes two matrix products.

    The one of Stable Diffusion's VAE has 512 channels: without its fused backward pass, a step with four
    pictures of 512 x 512 was 17 ms shorter on an H100.
    """
    from diffusers.models.attention_processor import Attention, AttnProcessor

    for module in network.modules():
        if isinstance(module, Attention) and module.inner_dim // module.heads > WIDEST_FUSED_HEAD:
            module.set_processor(AttnProcessor())
