"""``neural-environment-map-background``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.models.networks import get_encoding, get_mlp
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.ops import get_activation


@threestudio.register("neural-environment-map-background")
class NeuralEnvironmentMapBackground(BaseBackground):
    """A small network of the direction; in training now and then a random colour for each image."""

    @dataclass
    class Config(BaseBackground.Config):
        n_output_dims: int = 3
        """Channels."""
        color_activation: str = "sigmoid"
        """What brings the network's answer into [0, 1]."""
        dir_encoding_config: dict = field(
            default_factory=lambda: {"otype": "SphericalHarmonics", "degree": 3}
        )
        """Encoding of directions; see threestudio.models.networks.get_encoding."""
        mlp_network_config: dict = field(
            default_factory=lambda: {
                "otype": "VanillaMLP",
                "activation": "ReLU",
                "n_neurons": 16,
                "n_hidden_layers": 2,
            }
        )
        """The network; see threestudio.models.networks.get_mlp."""
        random_aug: bool = False
        """In training, sometimes take a random colour."""
        random_aug_prob: float = 0.5
        """How often, in [0, 1]; drawn once a batch, from torch's global generator."""
        eval_color: Any = None
        """One colour for evaluation, in place of the network's."""

        def __post_init__(self) -> None:
            if not 0.0 <= float(self.random_aug_prob) <= 1.0:
                raise ConfigValueError(f"random_aug_prob must be in [0, 1], got {self.random_aug_prob}.")
            if self.eval_color is not None and len(self.eval_color) != self.n_output_dims:
                raise ConfigValueError(
                    f"eval_color has {len(self.eval_color)} values for {self.n_output_dims} channels."
                )

    cfg: Config

    def configure(self) -> None:
        get_activation(self.cfg.color_activation)  # a name that is not there is told now
        self.encoding = get_encoding(3, self.cfg.dir_encoding_config)
        self.network = get_mlp(
            self.encoding.n_output_dims, self.cfg.n_output_dims, self.cfg.mlp_network_config
        )

    def forward(self, dirs: Tensor) -> Tensor:
        """Colours [..., C] along unit vectors [B, ..., 3]."""
        shape = (*dirs.shape[:-1], self.cfg.n_output_dims)
        if not self.training and self.cfg.eval_color is not None:
            return torch.tensor([float(value) for value in self.cfg.eval_color]).to(dirs).expand(shape)
        encoded = self.encoding((dirs.reshape(-1, 3) + 1) / 2)
        color = get_activation(self.cfg.color_activation)(self.network(encoded)).view(shape)
        if not (self.training and self.cfg.random_aug and torch.rand(()) < self.cfg.random_aug_prob):
            return color
        drawn = torch.rand(dirs.shape[0], *[1] * (dirs.ndim - 2), self.cfg.n_output_dims)
        # + 0 * color: the network keeps its place in the graph, as DDP wants.
        return drawn.to(dirs).expand(shape) + 0 * color
