"""``solid-color-background``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.utils.errors import ConfigValueError


@threestudio.register("solid-color-background")
class SolidColorBackground(BaseBackground):
    """One colour, or in training now and then a random one for each image."""

    @dataclass
    class Config(BaseBackground.Config):
        n_output_dims: int = 3
        """Channels."""
        color: Any = (1.0, 1.0, 1.0)
        """The colour, one value a channel."""
        learned: bool = False
        """Train the colour."""
        random_aug: bool = False
        """In training, sometimes take a random colour."""
        random_aug_prob: float = 0.5
        """How often, in [0, 1]; drawn once a batch, from torch's global generator."""

        def __post_init__(self) -> None:
            if not 0.0 <= float(self.random_aug_prob) <= 1.0:
                raise ConfigValueError(f"random_aug_prob must be in [0, 1], got {self.random_aug_prob}.")

    cfg: Config

    def configure(self) -> None:
        color = torch.tensor([float(value) for value in self.cfg.color])
        if len(color) not in (1, self.cfg.n_output_dims):
            raise ConfigValueError(
                f"color of the background has {len(color)} values for {self.cfg.n_output_dims} channels."
            )
        self.env_color: Tensor
        if self.cfg.learned:
            self.env_color = nn.Parameter(color)
        else:
            self.register_buffer("env_color", color)

    def forward(self, dirs: Tensor) -> Tensor:
        shape = (*dirs.shape[:-1], self.cfg.n_output_dims)
        color = self.env_color.to(dirs).expand(shape)
        if not (self.training and self.cfg.random_aug and torch.rand(()) < self.cfg.random_aug_prob):
            return color
        drawn = torch.rand(dirs.shape[0], *[1] * (dirs.ndim - 2), self.cfg.n_output_dims)
        # + 0 * color: a learned colour keeps its place in the graph, as DDP wants.
        return drawn.to(dirs).expand(shape) + 0 * color
