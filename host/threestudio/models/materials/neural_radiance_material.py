"""``neural-radiance-material``: colours that depend on the direction they are seen from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.networks import get_encoding, get_mlp
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.ops import get_activation


@threestudio.register("neural-radiance-material")
class NeuralRadianceMaterial(BaseMaterial):
    """A network of features and of the encoded view direction."""

    @dataclass
    class Config(BaseMaterial.Config):
        input_feature_dims: int = 8
        """Features a point: geometry.n_feature_dims."""
        color_activation: str = "sigmoid"
        """What brings the network's answer into [0, 1]."""
        dir_encoding_config: dict = field(
            default_factory=lambda: {"otype": "SphericalHarmonics", "degree": 3}
        )
        """Encoding of directions; see threestudio.models.networks.get_encoding."""
        mlp_network_config: dict = field(
            default_factory=lambda: {
                "otype": "FullyFusedMLP",
                "activation": "ReLU",
                "n_neurons": 16,
                "n_hidden_layers": 2,
            }
        )
        """The network; see threestudio.models.networks.get_mlp."""

    cfg: Config

    def configure(self) -> None:
        get_activation(self.cfg.color_activation)  # a name that is not there is told now
        self.encoding = get_encoding(3, self.cfg.dir_encoding_config)
        self.n_input_dims = self.cfg.input_feature_dims + self.encoding.n_output_dims
        self.network = get_mlp(self.n_input_dims, 3, self.cfg.mlp_network_config)

    def forward(self, features: Tensor, viewdirs: Tensor, **kwargs: Any) -> Tensor:
        """Colours [..., 3] of features [..., input_feature_dims] seen along unit vectors [..., 3]."""
        if features.shape[-1] != self.cfg.input_feature_dims:
            raise ConfigValueError(
                f"neural-radiance-material has input_feature_dims {self.cfg.input_feature_dims}, but the "
                f"geometry gives {features.shape[-1]} features a point: make geometry.n_feature_dims equal."
            )
        encoded = self.encoding((viewdirs.reshape(-1, 3) + 1) / 2)
        color = self.network(torch.cat([features.reshape(-1, features.shape[-1]), encoded], dim=-1))
        return get_activation(self.cfg.color_activation)(color.view(*features.shape[:-1], 3))
