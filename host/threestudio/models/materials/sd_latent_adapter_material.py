"""``sd-latent-adapter-material``: latents of Stable Diffusion as colours, by a trained linear map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import threestudio
from threestudio.models.materials.base import BaseMaterial
from threestudio.utils.errors import ConfigValueError

# How much red, green and blue each of the four channels of Stable Diffusion's latents adds, about; where
# Latent-NeRF starts.
LATENTS_TO_RGB = (
    (0.298, 0.207, 0.208),
    (0.187, 0.286, 0.173),
    (-0.158, 0.189, 0.264),
    (-0.184, -0.271, -0.473),
)


@threestudio.register("sd-latent-adapter-material")
class StableDiffusionLatentAdapterMaterial(BaseMaterial):
    """For the refinement of a field of latents: (features @ adapter + 1) / 2, clamped to [0, 1]."""

    @dataclass
    class Config(BaseMaterial.Config):
        pass

    cfg: Config

    def configure(self) -> None:
        self.adapter = nn.Parameter(torch.tensor(LATENTS_TO_RGB))

    def forward(self, features: Tensor, **kwargs: Any) -> Tensor:
        """Colours [..., 3] of latents [..., 4]."""
        if features.shape[-1] != len(self.adapter):
            raise ConfigValueError(
                f"sd-latent-adapter-material takes {len(self.adapter)} features a point, got "
                f"{features.shape[-1]}: set geometry.n_feature_dims."
            )
        return ((features @ self.adapter + 1) / 2).clamp(0.0, 1.0)

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Any]:
        return {"albedo": self(features)}
