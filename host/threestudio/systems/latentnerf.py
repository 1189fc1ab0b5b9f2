"""``latentnerf-system``: a field of latents, then of colours (Latent-NeRF, arXiv 2211.07600)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

import threestudio
from threestudio.systems.base import BaseLift3DSystem
from threestudio.systems.distilling import DistillingSystem
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.ops import ShapeLoss


@threestudio.register("latentnerf-system")
class LatentNeRF(DistillingSystem):
    """Renders latents, which the guidance's VAE decodes for pictures; with ``refinement`` it renders colours.

    Its own losses are orient, sparsity, opaque, and shape where there is a ``guide_shape``.
    """

    @dataclass
    class Config(BaseLift3DSystem.Config):
        guide_shape: str | None = None
        """A mesh (.obj) whose shape the field should roughly have."""
        refinement: bool = False
        """Whether what is rendered are colours."""

    cfg: Config

    @property
    def rgb_as_latents(self) -> bool:
        return not self.cfg.refinement

    def configure(self) -> None:
        super().configure()
        if self.cfg.guide_shape is not None:
            self.shape_loss = ShapeLoss(self.cfg.guide_shape)
        if self.rgb_as_latents:  # for pictures too, not only for training
            self.guidance = decoding(self._make("guidance"), self.cfg.guidance_type)

    def own_losses(self, out: dict[str, Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        losses = super().own_losses(out, batch)
        if self.cfg.guide_shape is not None and self.weight_of("loss_shape") > 0:
            losses["loss_shape"] = self.shape_loss(out["points"], out["density"])
        return losses

    def picture(self, out: dict[str, Any]) -> Tensor:
        if not self.rgb_as_latents:
            return super().picture(out)
        return self.guidance.decode_latents(out["comp_rgb"][:1].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[0]


def decoding(guidance: Any, name: str) -> Any:
    """``guidance``, if it can make pictures of latents.

    Raises:
        ConfigValueError: it cannot.
    """
    if not hasattr(guidance, "decode_latents"):
        raise ConfigValueError(
            f"system.guidance_type {name} cannot decode latents (it has no decode_latents), so this system, "
            "which renders latents, cannot use it. stable-diffusion-guidance can."
        )
    return guidance
