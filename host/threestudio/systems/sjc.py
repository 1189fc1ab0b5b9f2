"""``sjc-system``: a voxel grid of latents by Score Jacobian Chaining (arXiv 2212.00774)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.systems.base import BaseLift3DSystem
from threestudio.systems.distilling import DistillingSystem
from threestudio.systems.latentnerf import decoding

BEHIND = 10.0
"""The depth of what shows nothing, in world units."""


@threestudio.register("sjc-system")
class ScoreJacobianChaining(DistillingSystem):
    """Renders latents. Its own losses are emptiness, and depth where its weight is above 0.

    ``system.loss`` also holds emptiness_scale, and for the depth center_ratio, the part of a picture's side
    that is its middle.
    """

    @dataclass
    class Config(BaseLift3DSystem.Config):
        subpixel_rendering: bool = True
        """Decode pictures from latents of twice the prior's size."""

    cfg: Config
    rgb_as_latents = True

    def configure(self) -> None:
        super().configure()
        self.guidance = decoding(self._make("guidance"), self.cfg.guidance_type)

    def own_losses(self, out: dict[str, Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        scale = self.loss_setting("emptiness_scale", "it is how sharply loss_emptiness tells empty from not")
        losses = {"loss_emptiness": emptiness(out["weights"], self.C(scale))}
        if self.weight_of("loss_depth") > 0:
            ratio = self.loss_setting("center_ratio", "it is the middle's part of a side, for loss_depth")
            losses["loss_depth"] = center_depth(out["depth"], out["opacity"], self.C(ratio))
        return losses

    def picture(self, out: dict[str, Any]) -> Tensor:
        size = getattr(self.guidance, "latent_size", 64) * (2 if self.cfg.subpixel_rendering else 1)
        latents = out["comp_rgb"][:1].permute(0, 3, 1, 2)
        decoded = self.guidance.decode_latents(latents, latent_height=size, latent_width=size)
        return decoded.permute(0, 2, 3, 1)[0]

    def save_view(self, batch: dict[str, Any], filename: str, name: str, align: Any = 512) -> None:
        super().save_view(batch, filename, name, align)

    def cells(self, out: dict[str, Any]) -> list[dict[str, Any]]:
        """Also the depth, logarithmically, which validation shows."""
        cells = super().cells(out)
        if self.trainer.testing or self.trainer.predicting:
            return cells
        depth = depth_of(out["depth"], out["opacity"])[0, :, :, 0].detach()
        shown = torch.log1p(depth) / torch.log1p(torch.tensor(BEHIND))
        spectral = {"cmap": "spectral", "data_range": (0, 1)}
        return [*cells, {"type": "grayscale", "img": shown.cpu().numpy(), "kwargs": spectral}]


def emptiness(weights: Tensor, scale: float) -> Tensor:
    """Mean of log(1 + scale w) over the samples: few that count rather than many that count a little."""
    return torch.log1p(scale * weights).mean()


def depth_of(depth: Tensor, opacity: Tensor) -> Tensor:
    """The depth [B, H, W, 1], `BEHIND` where nothing is in the way."""
    return depth + BEHIND * (1 - opacity)


def center_depth(depth: Tensor, opacity: Tensor, ratio: float) -> Tensor:
    """sign(d) log |d|, d how much deeper the middle of the pictures is than their rim, on average.

    Args:
        depth, opacity: [B, H, W, 1].
        ratio: of the middle's sides to the picture's.
    """
    composed = depth_of(depth, opacity)[..., 0]
    height, width = composed.shape[1:]
    inner_h, inner_w = int(ratio * height), int(ratio * width)
    top, left = (height - inner_h) // 2, (width - inner_w) // 2
    middle = composed[:, top : top + inner_h, left : left + inner_w]
    n_rim = (height * width - inner_h * inner_w) * len(composed)
    difference = middle.mean() - (composed.sum() - middle.sum()) / max(n_rim, 1)
    return torch.sign(difference) * torch.log(difference.abs() + 1e-12)
