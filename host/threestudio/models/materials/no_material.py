"""``no-material``: features are colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

import threestudio
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.networks import get_mlp
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.ops import get_activation


@threestudio.register("no-material")
class NoMaterial(BaseMaterial):
    """Features, or a network's answer to them, through an activation: colours without light."""

    @dataclass
    class Config(BaseMaterial.Config):
        n_output_dims: int = 3
        """Channels of the colour."""
        color_activation: str = "sigmoid"
        """What brings features into [0, 1]."""
        input_feature_dims: int | None = None
        """Features a point, when a network is used."""
        mlp_network_config: dict | None = None
        """The network from features to colours; none uses the features themselves."""
        requires_normal: bool = False
        """Ask the geometry for normals, for whoever else wants them."""

    cfg: Config

    def configure(self) -> None:
        get_activation(self.cfg.color_activation)  # a name that is not there is told now
        self.requires_normal = self.cfg.requires_normal
        self.use_network = self.cfg.input_feature_dims is not None and self.cfg.mlp_network_config is not None
        if self.use_network:
            self.network = get_mlp(
                self.cfg.input_feature_dims, self.cfg.n_output_dims, self.cfg.mlp_network_config
            )

    def forward(self, features: Tensor, **kwargs: Any) -> Tensor:
        if self.use_network:
            features = self.network(features.reshape(-1, features.shape[-1])).view(*features.shape[:-1], -1)
        elif features.shape[-1] != self.cfg.n_output_dims:
            raise ConfigValueError(
                f"no-material without a network needs {self.cfg.n_output_dims} features a point, "
                f"got {features.shape[-1]}: set geometry.n_feature_dims, or material.mlp_network_config."
            )
        return get_activation(self.cfg.color_activation)(features)

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Any]:
        return {"albedo": self(features, **kwargs).clamp(0, 1)[..., :3]}
