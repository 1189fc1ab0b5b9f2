"""``dreamfusion-system``: renderings of any geometry follow a guidance (DreamFusion, arXiv 2209.14988)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import threestudio
from threestudio.systems import regularizers
from threestudio.systems.base import BaseLift3DSystem
from threestudio.systems.distilling import DistillingSystem
from threestudio.utils.errors import ConfigValueError


@threestudio.register("dreamfusion-system")
class DreamFusion(DistillingSystem):
    """Its own losses are orient, sparsity, opaque, and z_variance where ``lambda_z_variance`` is given."""

    @dataclass
    class Config(BaseLift3DSystem.Config):
        freq: dict = field(default_factory=dict)
        """guidance_eval: every so many steps, pictures of what the prior makes of the views; 0: never."""

        def __post_init__(self) -> None:
            unknown = [key for key in self.freq if key != "guidance_eval"]
            if unknown:
                raise ConfigValueError(f"freq has no {unknown[0]!r}; it has: guidance_eval.")

    cfg: Config

    def ask_guidance(self, out: dict[str, Any], batch: dict[str, Any], **options: Any) -> dict[str, Any]:
        every = self.cfg.freq.get("guidance_eval", 0)
        if every > 0 and self.true_global_step % every == 0:
            options["guidance_eval"] = True
        guided = super().ask_guidance(out, batch, **options)
        pictures = guided.pop("eval", None)
        if pictures is not None:
            self.guidance_evaluation_save(out["comp_rgb"].detach(), pictures)
        return guided

    def own_losses(self, out: dict[str, Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        losses = super().own_losses(out, batch)
        if "z_variance" in out and "lambda_z_variance" in self.cfg.loss:
            losses["loss_z_variance"] = regularizers.z_variance(out["z_variance"], out["opacity"])
        return losses
