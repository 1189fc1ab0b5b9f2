"""Point-E's networks: transformers whose tokens are points (Nichol et al. 2022, arXiv 2212.08751).

A noisy cloud x [B, 6, N] (xyz, rgb) goes in, the noise in it comes out. There is no positional encoding: a
cloud is a set, and the network does not care in which order, nor how many. Parameters have the names and
shapes of the public checkpoints, so that those load by key.

    B batch   N points   T prefix tokens   W width   D width of a text vector
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GRID_TOKENS, GRID_WIDTH = 256, 1024  # of the picture that the public upsampler can be shown


class Attention(nn.Module):
    """Self-attention. `c_qkv` writes query, key and value of head 0, then those of head 1, ..."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.c_qkv = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """[B, T, W] -> [B, T, W]."""
        heads = self.c_qkv(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, 3 W/heads]
        q, k, v = heads.chunk(3, dim=-1)
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers, four times as wide between them, with a GELU (exact, by erf)."""

    def __init__(self, width: int):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(h)))


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and beside a residual."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attn(self.ln_1(h))
        return h + self.mlp(self.ln_2(h))


class Backbone(nn.Module):
    """The blocks, one after the other."""

    def __init__(self, width: int, layers: int, heads: int):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, h: Tensor) -> Tensor:
        for block in self.resblocks:
            h = block(h)
        return h


class PointTransformer(nn.Module):
    """What the networks have in common.

    Args:
        width, layers, heads: of the transformer.
        out_channels: 12 in the public models: the noise, and six numbers about its variance that the Karras
            sampler does not use. Ours have 6.

    Attributes:
        half: compute the blocks in bfloat16; what goes in and comes out, and the sum along the residuals,
            stay float32.
    """

    half = False

    def __init__(self, width: int, layers: int, heads: int, out_channels: int):
        super().__init__()
        self.time_embed = Mlp(width)
        self.ln_pre = nn.LayerNorm(width)
        self.backbone = Backbone(width, layers, heads)
        self.ln_post = nn.LayerNorm(width)
        self.input_proj = nn.Linear(6, width)
        self.output_proj = nn.Linear(width, out_channels)
        nn.init.zeros_(self.output_proj.weight)
        nn.init.zeros_(self.output_proj.bias)

    def embed_time(self, t: Tensor) -> Tensor:
        """Timesteps [B] in 0 ... 1023 -> [B, W]."""
        return self.time_embed(timestep_embedding(t, self.ln_pre.normalized_shape[0]))

    def noise(self, x: Tensor, prefix: Sequence[Tensor] = (), added: Tensor | None = None) -> Tensor:
        """The noise in a cloud.

        Args:
            x: [B, 6, N].
            prefix: tokens to put in front of the points, each [B, T, W].
            added: [B, W], what every point is told.

        Returns:
            [B, 6, N].
        """
        points = self.input_proj(x.transpose(1, 2))
        if added is not None:
            points = points + added[:, None]
        h = self.ln_pre(torch.cat([*prefix, points], dim=1))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half):
            h = self.backbone(h)
        return self.output_proj(self.ln_post(h[:, -x.shape[2] :])).transpose(1, 2)[:, :6]


class TextToPoints(PointTransformer):
    """Noise in a cloud, given a text vector.

    Args:
        text_width: D.
        as_tokens: text and time are two tokens in front of the points, as in the public model; else they are
            added to every point. The latter is for small networks: no layer is spent on fetching them, and
            attention spreads over points alone, so that a network trained on few draws many.
    """

    def __init__(
        self,
        width: int = 512,
        layers: int = 12,
        heads: int = 8,
        text_width: int = 768,
        out_channels: int = 12,
        as_tokens: bool = True,
    ):
        super().__init__(width, layers, heads, out_channels)
        self.clip_embed = nn.Linear(text_width, width)
        self.as_tokens = as_tokens

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """x [B, 6, N], t [B], text [B, D] of length 1, or 0 for no text -> noise [B, 6, N]."""
        # a unit vector's coordinates are of size 1 / sqrt(D): bring them to 1
        told = self.clip_embed(math.sqrt(text.shape[1]) * text), self.embed_time(t)
        if self.as_tokens:
            return self.noise(x, prefix=[token[:, None] for token in told])
        return self.noise(x, added=told[0] + told[1])


class PointsToPoints(PointTransformer):
    """Noise in the points that make a coarse cloud a fine one: the upsampler.

    It can be shown a picture as well, as a grid of CLIP features; without one the grid is zero and its tokens
    are there all the same, for they take their share of the attention.
    """

    channel_scales: Tensor
    channel_biases: Tensor

    def __init__(self, width: int = 512, layers: int = 12, heads: int = 8, out_channels: int = 12):
        super().__init__(width, layers, heads, out_channels)
        self.register_buffer("channel_scales", torch.ones(6))
        self.register_buffer("channel_biases", torch.zeros(6))
        self.cond_point_proj = nn.Linear(6, width)
        self.clip_embed = nn.Sequential(nn.LayerNorm(GRID_WIDTH), nn.Linear(GRID_WIDTH, width))

    def forward(self, x: Tensor, t: Tensor, low_res: Tensor) -> Tensor:
        """x [B, 6, N], t [B], low_res [B, 6, M] in units of the data (rgb to 255) -> noise [B, 6, N]."""
        coarse = low_res.transpose(1, 2) * self.channel_scales + self.channel_biases
        grid = self.clip_embed(x.new_zeros(len(x), GRID_TOKENS, GRID_WIDTH))
        return self.noise(x, prefix=[self.embed_time(t)[:, None], grid, self.cond_point_proj(coarse)])


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """cos and sin of t times width/2 frequencies from 1 down to 1/10000, [B, width]."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
