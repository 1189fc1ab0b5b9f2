"""`lucid-picture-edit-system`: changes a picture to what a prompt says, by score distillation on its latents.

The latents are the parameters. They start as the picture's, and every step moves them against the guidance's
gradient. What is written is the picture plus the change,

    edited = picture + mask * (decode(latents) - decode(latents at the start)),

the change enlarged to the picture's size: so what the autoencoder loses is not lost, a picture may be larger
than the prior's, and what is masked out stays to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.systems.base import BaseSystem
from threestudio.utils.misc import C, get_device

from ..data.picture import Framing
from ..errors import UserError
from ..guidance.cards import find_card
from ..guidance.prior import Prior
from ..guidance.stock import check_schedule
from .safeguard import LucidSafeguard
from .sheet import contact_sheet

# The larger side of a picture on the sheet of before, after and difference.
SHEET_SIDE = 512


@threestudio.register("lucid-picture-edit-system")
class LucidPictureEditSystem(LucidSafeguard, BaseSystem):
    """Edits the one picture of `lucid-picture-datamodule`."""

    @dataclass
    class Config(BaseSystem.Config):
        guidance_type: str = "lucid-edit-guidance"
        """Registered name of the guidance."""
        guidance: dict = field(default_factory=dict)
        """Its config."""
        prompt_processor_type: str = "lucid-prompt-processor"
        """Registered name of the prompt processor."""
        prompt_processor: dict = field(default_factory=dict)
        """Its config."""
        lr: Any = 0.1
        """Step of plain gradient descent on the latents, a number or a schedule that falls geometrically.
        Adam would make all latents move alike, those of the background too."""

        def __post_init__(self) -> None:
            getattr(super(), "__post_init__", lambda: None)()
            check_schedule("system.lr", self.lr, 0.0)
            if self.optimizer:
                raise UserError("system.optimizer is not read here: it is gradient descent with system.lr.")

    cfg: Config

    # ---- construction ----------------------------------------------------------------------------------

    def configure(self) -> None:
        super().configure()
        # no weights are loaded here: only the size of the latents is needed
        told = self.cfg.guidance
        card = find_card(told.get("pretrained_model_name_or_path") or told.get("prior", "auto"))
        if told.get("vae"):
            card = replace(card, vae=told["vae"])
        dtype = "float32" if told.get("half_precision_weights") is False else None
        self.prior = Prior.load(card, get_device(), told.get("dtype") or dtype)
        shape = (1, self.prior.latent_channels, self.prior.latent_size, self.prior.latent_size)
        self.latents = torch.nn.Parameter(torch.zeros(shape))
        self.register_buffer("start", torch.zeros(shape))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self._files: dict[str, str] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.prompt_processor = threestudio.find(self.cfg.prompt_processor_type)(self.cfg.prompt_processor)
        self.prompt_utils = self.prompt_processor()
        self.guidance = threestudio.find(self.cfg.guidance_type)(self.cfg.guidance)
        getattr(self.guidance, "reference_for", lambda _: None)(self.prompt_utils)
        return torch.optim.SGD([self.latents], lr=0.0)

    # ---- one step --------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self._begin(batch)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = C(self.cfg.lr, self.true_current_epoch, self.true_global_step, interpolation="exp")
        guided = self.guidance(
            self.latents.permute(0, 2, 3, 1),
            self.prompt_utils,
            elevation=batch["elevation"],
            azimuth=batch["azimuth"],
            camera_distances=batch["camera_distances"],
            rgb_as_latents=True,
            source_rgb=self.start.permute(0, 2, 3, 1),
        )
        for name, value in guided.items():
            self.log(f"train/{name}", torch.as_tensor(value).detach().float())
        loss = guided["loss_sds"] * self.C(self.cfg.loss.get("lambda_sds", 1.0))
        self._loss = loss.detach()
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.latents.grad is not None:
            self.latents.grad.mul_(self._latent_mask)
        super().on_before_optimizer_step(optimizer)

    def rate_key(self, group: str) -> str:
        """The config's key of the learning rate."""
        return "system.lr"

    @torch.no_grad()
    def _begin(self, batch: dict[str, Any]) -> None:
        """The picture's latents, once; the mask at their size, anew in every process."""
        size = self.latents.shape[-1]
        if not bool(self.started):
            self.start.copy_(self.prior.encode(batch["square"].permute(0, 3, 1, 2)))
            self.latents.copy_(self.start)
            self.started.fill_(True)
        # a latent may move if any pixel of its own may
        mask = Framing(*batch["mask"].shape[:2]).to_square(batch["mask"], batch["square"].shape[1])
        self._latent_mask = F.adaptive_max_pool2d(mask.permute(2, 0, 1)[None], size).gt(0.0).float()

    # ---- what it leaves --------------------------------------------------------------------------------

    @torch.no_grad()
    def edited(self, batch: dict[str, Any]) -> Tensor:
        """The edited picture [H, W, 3] in [0, 1], as large as the picture."""
        picture, mask = batch["picture"], batch["mask"]
        change = (self.prior.decode(self.latents) - self.prior.decode(self.start))[0].permute(1, 2, 0)
        change = Framing(*picture.shape[:2]).from_square(change)
        return torch.where(mask > 0.5, (picture + change).clamp(0.0, 1.0), picture)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        step = self.true_global_step
        self._files["validation"] = self.save_rgb_image(f"it{step}-0.png", self.edited(batch))

    def on_validation_epoch_end(self) -> None:
        pass

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._files.clear()
        step, picture, edited = self.true_global_step, batch["picture"], self.edited(batch)
        self._files["edited"] = self.save_rgb_image(f"it{step}-edited.png", edited)
        self._files["before"] = self.save_rgb_image(f"it{step}-before.png", picture)
        metrics = {
            "source_prompt": str(self.cfg.prompt_processor.get("source_prompt", "")),
            "prompt": str(self.cfg.prompt_processor.get("prompt", "")),
            "guidance": self.cfg.guidance_type,
            "prior": self.prior.card.name,
            "steps": step,
            "mean_change": float((edited - picture).abs().mean()),
            "changed_pixels": float(((edited - picture).abs().amax(dim=-1) > 0.1).float().mean()),
        }
        self._files["metrics"] = self.save_json(f"it{step}-metrics.json", metrics)
        change = 1.0 - (edited - picture).abs()
        sheet = contact_sheet(
            _shown(picture, edited, change), ["before", "after", "difference"], self._title()
        )
        self._files["before and after"] = self.save_image(f"it{step}-edit.png", sheet)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        path = self.save_rgb_image(f"it{self.true_global_step}-export/edited.png", self.edited(batch))
        self._files["edited"] = path

    def summary_files(self) -> dict[str, str]:
        """The files worth naming when the run ends."""
        return dict(self._files)

    def _title(self) -> str:
        source, target = (self.cfg.prompt_processor.get(key, "") for key in ("source_prompt", "prompt"))
        return f"{source} to {target}" if source else str(target)


def _shown(*pictures: Tensor) -> Tensor:
    """Pictures [H, W, 3] as [N, h, w, 3], made smaller where they are large."""
    stacked = torch.stack([picture.cpu() for picture in pictures])
    height, width = stacked.shape[1:3]
    scale = min(1.0, SHEET_SIDE / max(height, width))
    if scale == 1.0:
        return stacked
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    small = F.interpolate(
        stacked.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False, antialias=True
    )
    return small.permute(0, 2, 3, 1)
