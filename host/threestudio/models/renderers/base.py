"""Bases of renderers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from threestudio.models.parts import SubModules
from threestudio.utils.base import BaseModule


class Renderer(BaseModule):
    """Makes images of geometry, material and background.  The system calls it with a batch as keywords."""

    @dataclass
    class Config(BaseModule.Config):
        radius: float = 1.0
        """Half the side of the box around the object."""

    cfg: Config

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        self.sub_modules = SubModules(geometry, material, background)
        radius = self.cfg.radius
        self.bbox: Tensor
        self.register_buffer("bbox", torch.tensor([[-radius] * 3, [radius] * 3], dtype=torch.float32))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """ "comp_rgb" [B, H, W, C], "opacity" [B, H, W, 1], ...: see each renderer."""
        raise NotImplementedError(f"{type(self).__name__} has no forward.")

    @property
    def geometry(self) -> Any:
        return self.sub_modules.geometry

    @property
    def material(self) -> Any:
        return self.sub_modules.material

    @property
    def background(self) -> Any:
        return self.sub_modules.background

    def set_geometry(self, geometry: Any) -> None:
        self.sub_modules.geometry = geometry

    def set_material(self, material: Any) -> None:
        self.sub_modules.material = material

    def set_background(self, background: Any) -> None:
        self.sub_modules.background = background


class VolumeRenderer(Renderer):
    """Renders by integrating along rays."""


class Rasterizer(Renderer):
    """Renders by projecting primitives."""
