"""Base of materials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from threestudio.utils.base import BaseModule


class BaseMaterial(BaseModule):
    """Turns a geometry's features into colours."""

    @dataclass
    class Config(BaseModule.Config):
        pass

    cfg: Config
    requires_normal: bool = False
    """Whether `forward` wants ``shading_normal``."""
    requires_tangent: bool = False
    """Whether `forward` wants ``tangent``."""

    def configure(self) -> None:
        pass

    def forward(self, features: Tensor, **kwargs: Any) -> Tensor:
        """Colours [..., C] of features [..., Nf].

        ``kwargs`` are viewdirs, positions, light_positions, shading_normal, tangent, and in training whatever
        else the batch holds; take what you need.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward.")

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Any of albedo, metallic, roughness, bump in [0, 1], for exporters."""
        return {}
