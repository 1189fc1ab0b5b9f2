"""`toybox-truth-system`: Gaussians that follow pictures of a true object, by L2 and SSIM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import threestudio
from threestudio_lucid.systems.lucid_dreamer import LucidDreamerSystem
from toybox import captions
from toybox.ceiling.ssim import ssim
from toybox.sdf import render
from toybox.truth import build


@threestudio.register("toybox-truth-system")
class TruthSystem(LucidDreamerSystem):
    """`lucid-dreamer-system` with the truth for a guidance, and no regularisers: the pictures say it all."""

    @dataclass
    class Config(LucidDreamerSystem.Config):
        instance: int = 0
        """Seed of the true object, which the prompt names."""
        lambda_ssim: float = 0.2
        """Weight of 1 - SSIM beside the mean squared error."""
        lambda_truth: float = 10.0
        """Weight of both, per view. Adam does not mind; the thresholds of density control do."""

    cfg: Config

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.parts = build(captions.parse(self._prompt()), self.cfg.instance)
        return self.make_optimizer()

    def _loss(
        self, out: dict[str, Any], batch: dict[str, Any], show_disparity: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        picture = out["comp_rgb"]
        rgb, alpha = true_views(self.parts, batch)
        truth = (rgb * alpha + (1.0 - alpha) * out["comp_rgb_bg"].cpu()).to(picture)
        squared = (picture - truth).square().mean()
        unlike = 1.0 - ssim(picture.permute(0, 3, 1, 2), truth.permute(0, 3, 1, 2))
        loss = self.cfg.lambda_truth * len(picture) * (squared + self.cfg.lambda_ssim * unlike)
        values = {"loss_l2": squared, "loss_ssim": unlike, "loss": loss}
        return loss, {name: value.detach() for name, value in values.items()}


def true_views(parts: np.ndarray, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What a batch's cameras see of an object: colours [B, H, W, 3] and opacity [B, H, W, 1].

    Raises:
        ValueError: the views are not square.
    """
    if int(batch["height"]) != int(batch["width"]):
        raise ValueError(f"the toybox draws squares, not {batch['width']} x {batch['height']} pixels")
    cameras = zip(batch["c2w"].cpu().numpy(), batch["fovy"].tolist(), strict=True)
    rgba = [render(parts, c2w, math.degrees(fovy), int(batch["height"])) for c2w, fovy in cameras]
    drawn = torch.from_numpy(np.stack(rgba)).float() / 255
    return drawn[..., :3], drawn[..., 3:]
