"""``sdi-system``: Score Distillation via Inversion (arXiv 2405.15891)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.systems import regularizers
from threestudio.systems.base import BaseLift3DSystem
from threestudio.systems.distilling import DistillingSystem
from threestudio.utils.errors import BatchError


@threestudio.register("sdi-system")
class ScoreDistillationViaInversion(DistillingSystem):
    """Its own losses are orient, sparsity, opaque; z_variance and convex where their weights are given."""

    @dataclass
    class Config(BaseLift3DSystem.Config):
        convexity_res: int = 8
        """Height and width that pictures of normals are reduced to, for loss_convex."""

    cfg: Config

    def own_losses(self, out: dict[str, Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        losses = super().own_losses(out, batch)
        if "z_variance" in out and "lambda_z_variance" in self.cfg.loss:
            losses["loss_z_variance"] = regularizers.z_variance(out["z_variance"], out["opacity"])
        if "lambda_convex" in self.cfg.loss and self.weight_of("loss_convex") > 0:
            if "comp_normal" not in out:
                raise BatchError(
                    "system.loss.lambda_convex is above 0, but the renderer gives no pictures of normals in "
                    "training: set system.renderer.return_comp_normal=true, or the weight to 0."
                )
            losses["loss_convex"] = convexity(out["comp_normal"], self.cfg.convexity_res)
        return losses

    def cells(self, out: dict[str, Any]) -> list[dict[str, Any]]:
        """In validation during training also what the guidance makes of the view: noisy, noise, target."""
        return [*super().cells(out), *self._guidance_cells]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        if hasattr(self, "guidance"):
            with torch.no_grad():
                shown = self.ask_guidance(self(batch), batch, test_info=True)
            self._guidance_cells = [
                {"type": "rgb", "img": shown[name], "kwargs": {"data_format": "HWC"}}
                for name in ("noisy_img", "noise_img", "target")
                if name in shown
            ]
        super().validation_step(batch, batch_idx)
        self._guidance_cells = []

    def configure(self) -> None:
        super().configure()
        self._guidance_cells: list[dict[str, Any]] = []


def convexity(normals: Tensor, size: int) -> Tensor:
    """How little normals turn outwards across and up their pictures [B, H, W, 3]; below 0 where they do."""
    small = F.interpolate(normals.permute(0, 3, 1, 2), (size, size), mode="bilinear").permute(0, 2, 3, 1)
    across = torch.cross(small[:, :, :-1], small[:, :, 1:], dim=-1)[..., 2]
    upwards = torch.cross(small[:, 1:], small[:, :-1], dim=-1)[..., 2]
    return -(across.mean() + upwards.mean())
