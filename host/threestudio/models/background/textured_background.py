"""``textured-background``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.ops import get_activation


@threestudio.register("textured-background")
class TexturedBackground(BaseBackground):
    """A learned picture on the sphere of directions: across by the angle from +z, down by the azimuth."""

    @dataclass
    class Config(BaseBackground.Config):
        n_output_dims: int = 3
        """Channels."""
        height: int = 64
        """Texels around, by azimuth."""
        width: int = 64
        """Texels from +z to -z."""
        color_activation: str = "sigmoid"
        """What brings texels into [0, 1]."""

        def __post_init__(self) -> None:
            for key in ("n_output_dims", "height", "width"):
                if not getattr(self, key) >= 1:
                    raise ConfigValueError(f"{key} must be at least 1, got {getattr(self, key)}.")

    cfg: Config

    def configure(self) -> None:
        get_activation(self.cfg.color_activation)  # a name that is not there is told now
        shape = (1, self.cfg.n_output_dims, self.cfg.height, self.cfg.width)
        self.texture = nn.Parameter(torch.randn(shape))

    def spherical_xyz_to_uv(self, dirs: Tensor) -> Tensor:
        """Texture coordinates [..., 2] in [0, 1] of directions [..., 3]."""
        x, y, z = dirs.unbind(dim=-1)
        across = torch.atan2(torch.hypot(x, y), z) / math.pi
        around = torch.atan2(y, x) / (2 * math.pi) + 0.5
        return torch.stack([across, around], dim=-1)

    def forward(self, dirs: Tensor) -> Tensor:
        """Colours [..., C] along directions [..., 3]."""
        where = self.spherical_xyz_to_uv(dirs.reshape(-1, 3)) * 2 - 1
        texels = F.grid_sample(
            self.texture, where.view(1, -1, 1, 2), padding_mode="reflection", align_corners=False
        )
        color = texels[0, :, :, 0].T.reshape(*dirs.shape[:-1], self.cfg.n_output_dims)
        return get_activation(self.cfg.color_activation)(color)
