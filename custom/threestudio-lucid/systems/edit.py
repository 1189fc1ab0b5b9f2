"""`lucid-edit-system`: changes a finished asset to what a prompt says, and keeps the rest of it.

It is `lucid-dreamer-system` but for what may move:

    shape: keep     colours alone
    shape: anchor   everything, drawn back to where it was by loss_anchor; no density control
    shape: free     everything, with density control

A mask leaves the Gaussians outside it as they are, to the last bit: they get no gradient, so Adam's moments
stay zero, and density control passes over them. The asset as it was is kept beside the one that is edited,
in checkpoints too: the guidance compares with it, and the pictures at the end show both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.utils.config import parse_structured

from ..errors import UserError, check_choice
from ..gaussians.cloud import Gaussians, scales
from ..gaussians.mask import MaskConfig, editable
from ..gaussians.ply import write_ply
from ..guidance.lucid_guidance import twin
from .lucid_dreamer import LucidDreamerSystem, split_batch
from .sheet import azimuth_label, contact_sheet

SHAPES = ("keep", "anchor", "free")
COLORS = ("sh_dc", "sh_rest")


@threestudio.register("lucid-edit-system")
class LucidEditSystem(LucidDreamerSystem):
    """Edits `lucid-gaussian-splatting` through any guidance; `lucid-edit-guidance` knows what it was."""

    @dataclass
    class Config(LucidDreamerSystem.Config):
        shape: str = "keep"
        """keep: colours alone change; anchor: all, drawn back by loss.lambda_anchor; free: all."""
        mask: dict = field(default_factory=dict)
        """Which Gaussians may change, see gaussians/mask.py; empty: all."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_choice("system.shape", self.shape, SHAPES)

    cfg: Config

    def configure(self) -> None:
        self.mask: MaskConfig = parse_structured(MaskConfig, self.cfg.mask)
        super().configure()
        self._check_asset()
        if self.cfg.shape != "free":
            self.density.until = 0
        # What is edited, as it was.
        self.source = threestudio.find(self.cfg.geometry_type)(self.cfg.geometry)
        self.source.requires_grad_(False)
        self.source_renderer = threestudio.find(self.cfg.renderer_type)(
            self.cfg.renderer, geometry=self.source, material=self.material, background=self.background
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = super().configure_optimizers()
        reference = getattr(self.guidance, "reference_for", lambda _: "empty")(self.prompt_utils)
        self._compares = reference == "delta"
        if not self.resumed:
            cloud = self.geometry.cloud
            self.source.cloud.load_state_dict(cloud.state_dict())
            chosen = editable(cloud.living, self.mask)
            cloud.frozen[: len(chosen)] = ~chosen
            threestudio.info(
                f"Edit: {int(chosen.sum())} of {len(chosen)} Gaussians may change ({self._moves()})."
            )
        return optimizer

    def _moves(self) -> str:
        return {"keep": "their colours", "anchor": "near what they are", "free": "freely"}[self.cfg.shape]

    def _check_asset(self) -> None:
        """There is something to edit.

        Raises:
            UserError: no file of Gaussians and no checkpoint.
        """
        if self.resumed or self.cfg.weights or self.geometry.file_of_gaussians():
            return
        init = self.cfg.geometry.get("init")
        raise UserError(
            f"system.geometry.init is {init!r}, which is no file of Gaussians: there is nothing to edit. "
            "Give a finished asset, system.geometry.init=file:asset.ply, or system.weights=last.ckpt. "
            "(Points and meshes become Gaussians by configs/ism-gs.yaml.)"
        )

    def _check_weights(self) -> None:
        super()._check_weights()
        if self.cfg.shape == "anchor":
            self._weight("loss_anchor")

    # ---- one step --------------------------------------------------------------------------------------

    def forward(self, batch: dict[str, Any], draw: torch.Generator | None = None) -> dict[str, Any]:
        if not (self.training and self._compares):
            return super().forward(batch, draw)
        with torch.no_grad():  # on the same backgrounds, disturbed alike
            before = self.source_renderer(**batch, generator=None if draw is None else twin(draw))
        return super().forward(batch, draw) | {"before": before}

    def _loss(
        self, out: dict[str, Any], batch: dict[str, Any], show_disparity: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if "before" in out:
            before = out["before"]
            rgb = before["comp_rgb"]
            batch = batch | {"source_rgb": before["disparity"].expand_as(rgb) if show_disparity else rgb}
        total, values = super()._loss(out, batch, show_disparity)
        if self.cfg.shape == "anchor":
            anchor = anchor_loss(self.geometry.gaussians, self.source.gaussians)
            total = total + anchor * self.C(self._weight("loss_anchor"))
            values |= {"loss_anchor": anchor.detach(), "loss": total.detach()}
        return total, values

    @torch.no_grad()
    def _restrain_gradients(self) -> None:
        cloud = self.geometry.cloud
        for name, p in cloud.params.items():
            if self.cfg.shape == "keep" and name not in COLORS:
                p.grad = None
            elif p.grad is not None:
                p.grad[cloud.frozen] = 0.0

    # ---- what it leaves --------------------------------------------------------------------------------

    def _save_results(self, step: int) -> None:
        super()._save_results(step)
        path = self.get_save_path(f"it{step}-before.ply")
        self._files["before"] = str(write_ply(path, self.source.gaussians))

    @torch.no_grad()
    def _save_sheet(self, step: int) -> str:
        self._files["edit"] = self._save_comparison(step)
        return super()._save_sheet(step)

    def _save_comparison(self, step: int) -> str:
        """Before, after and difference from even azimuths, on one sheet."""
        cameras, views = self._sheet_cameras()
        azimuths, parts = cameras.azimuth.tolist(), split_batch(views, self.cfg.sheet_views)
        rows: list[list[Tensor]] = [[], [], []]
        for part in parts:
            after = self(part)["comp_rgb"]
            before = self.source_renderer(**part)["comp_rgb"]
            for row, pictures in zip(rows, (before, after, 1.0 - (after - before).abs()), strict=True):
                row.append(pictures)
        n = len(azimuths)
        pictures = torch.cat([torch.cat(row) for row in rows])
        angles = [azimuth_label(a) for a in azimuths]
        labels = [f"{what}, {angle}" for what in ("before", "after", "difference") for angle in angles]
        sheet = contact_sheet(pictures, labels, self._title(), columns=n)
        return self.save_image(f"it{step}-edit.png", sheet)

    def _title(self) -> str:
        source = self.cfg.prompt_processor.get("source_prompt")
        return f"{source} to {self._prompt()}" if source else self._prompt()

    def metrics(self) -> dict[str, Any]:
        frozen = int(self.geometry.cloud.frozen.sum())
        source = {"source_prompt": str(self.cfg.prompt_processor.get("source_prompt", ""))}
        return {**super().metrics(), **source, "shape": self.cfg.shape, "frozen": frozen}


def anchor_loss(now: Gaussians, before: Gaussians) -> Tensor:
    """How far Gaussians have gone from what they were, mean over the Gaussians; 0 where nothing moved.

    Distances of the centres count in standard deviations (the largest of each at the start); logarithms of
    scales, logits of opacities and quaternions as they are.

    Args:
        now, before: N Gaussians each, in the same order.
    """
    reach = scales(before).amax(dim=1, keepdim=True)
    moved = ((now.means - before.means) / reach).square().sum(dim=1)
    for name in ("log_scales", "quats"):
        moved = moved + (getattr(now, name) - getattr(before, name)).square().sum(dim=1)
    return (moved + (now.logit_opacities - before.logit_opacities).square()).mean()
