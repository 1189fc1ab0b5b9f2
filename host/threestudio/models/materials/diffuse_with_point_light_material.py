"""``diffuse-with-point-light-material``: a matt surface, a lamp and some light from everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.materials.base import BaseMaterial
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.ops import dot, get_activation

_SHADINGS = ("albedo", "textureless", "diffuse")


@threestudio.register("diffuse-with-point-light-material")
class DiffuseWithPointLightMaterial(BaseMaterial):
    """albedo x (ambient + diffuse max(0, n.l)), with DreamFusion's augmentation by shading in training.

    Of a training batch, either everything is lit, or only the albedo is shown, or a white surface is lit:
    only what has a shape looks right in all three.
    """

    @dataclass
    class Config(BaseMaterial.Config):
        ambient_light_color: Any = (0.1, 0.1, 0.1)
        """Light from everywhere."""
        diffuse_light_color: Any = (0.9, 0.9, 0.9)
        """Light of the lamp."""
        ambient_only_steps: int = 1000
        """Training steps before the lamp is lit: only the albedo is shown."""
        diffuse_prob: float = 0.75
        """How often a training batch is lit, from then on."""
        textureless_prob: float = 0.5
        """How often a lit training batch is white."""
        albedo_activation: str = "sigmoid"
        """What brings features into [0, 1]."""
        soft_shading: bool = False
        """In training, draw the lamp's brightness from [0, 1]; light from everywhere makes up for it."""
        ambient_only_on_test: bool = False
        """In evaluation, show only the albedo."""

        def __post_init__(self) -> None:
            for key in ("ambient_light_color", "diffuse_light_color"):
                color = list(getattr(self, key))
                if len(color) != 3:
                    raise ConfigValueError(f"{key} is three numbers, got {color}.")
            for key in ("diffuse_prob", "textureless_prob"):
                if not 0.0 <= float(getattr(self, key)) <= 1.0:
                    raise ConfigValueError(f"{key} must be in [0, 1], got {getattr(self, key)}.")

    cfg: Config
    requires_normal: bool = True

    def configure(self) -> None:
        get_activation(self.cfg.albedo_activation)  # a name that is not there is told now
        self.ambient_light_color: Tensor
        self.diffuse_light_color: Tensor
        for key in ("ambient_light_color", "diffuse_light_color"):
            self.register_buffer(key, torch.tensor([float(value) for value in self.cfg[key]]))
        self.ambient_only = False

    def forward(
        self,
        features: Tensor,
        positions: Tensor,
        shading_normal: Tensor,
        light_positions: Tensor,
        ambient_ratio: float | None = None,
        shading: str | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Colours [..., 3].

        Args:
            features: [..., Nf]; the first three are the albedo.
            positions, light_positions: [..., 3] in the world.
            shading_normal: unit vectors [..., 3].
            ambient_ratio: share of the light that comes from everywhere, of 1 altogether; None takes the
                config's colours.
            shading: albedo, textureless (white) or diffuse; None draws one in training (from torch's global
                generator), and is diffuse in evaluation.
        """
        if shading is None:
            shading = self._draw_shading()
        elif shading not in _SHADINGS:
            raise ValueError(f"shading is {shading!r}: choose one of {', '.join(_SHADINGS)}.")
        albedo = self._albedo(features)
        to_light = F.normalize(light_positions - positions, dim=-1)
        ambient, diffuse = self._light_colors(ambient_ratio)
        light = ambient + dot(shading_normal, to_light).clamp(min=0.0) * diffuse
        # 0 times what is not shown: everything keeps its place in the graph, as DDP wants
        if shading == "albedo":
            return albedo + light * 0
        if shading == "textureless":
            return light + albedo * 0
        return albedo.clamp(0.0, 1.0) * light

    def _albedo(self, features: Tensor) -> Tensor:
        if features.shape[-1] < 3:
            raise ConfigValueError(
                f"diffuse-with-point-light-material needs 3 features a point, got {features.shape[-1]}: set "
                "geometry.n_feature_dims."
            )
        return get_activation(self.cfg.albedo_activation)(features[..., :3])

    def _light_colors(self, ambient_ratio: float | None) -> tuple[Tensor, Tensor]:
        """Of the ambient light and of the lamp, [3] each."""
        white = torch.ones_like(self.diffuse_light_color)
        if ambient_ratio is not None:
            return ambient_ratio * white, (1 - ambient_ratio) * white
        if self.training and self.cfg.soft_shading:
            lamp = torch.rand(()).item()
            return (1 - lamp) * white, lamp * white
        return self.ambient_light_color, self.diffuse_light_color

    def _draw_shading(self) -> str:
        """One for the whole batch."""
        if not self.training:
            return "albedo" if self.ambient_only or self.cfg.ambient_only_on_test else "diffuse"
        lit, white = torch.rand(2).tolist()
        if self.ambient_only or lit >= self.cfg.diffuse_prob:
            return "albedo"
        return "textureless" if white < self.cfg.textureless_prob else "diffuse"

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self.ambient_only = global_step < self.cfg.ambient_only_steps

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Any]:
        return {"albedo": self._albedo(features).clamp(0.0, 1.0)}
