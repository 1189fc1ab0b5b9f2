"""``dreamfusion-system``: renderings of any geometry follow a guidance (DreamFusion, arXiv 2209.14988)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.systems import regularizers
from threestudio.systems.base import BaseLift3DSystem
from threestudio.systems.batch import check_batch
from threestudio.utils.errors import BatchError, ConfigValueError


@threestudio.register("dreamfusion-system")
class DreamFusion(BaseLift3DSystem):
    """One step: render the batch, ask the guidance, add the regularisers, each weighed by ``loss.lambda_*``.

    Every ``loss_x`` of the guidance needs a ``lambda_x``; so do sparsity, opaque and orient, and 0 leaves
    them out. ``lambda_z_variance`` may be absent. All are schedules.
    """

    @dataclass
    class Config(BaseLift3DSystem.Config):
        freq: dict = field(default_factory=dict)
        """guidance_eval: every so many steps, pictures of what the prior makes of the views; 0: never."""

        def __post_init__(self) -> None:
            unknown = [key for key in self.freq if key != "guidance_eval"]
            if unknown:
                raise ConfigValueError(f"freq has no {unknown[0]!r}; it has: guidance_eval.")

    cfg: Config

    def on_fit_start(self) -> None:
        """Guidance and prompt are for training only. The prompt comes first: it is quick to check."""
        super().on_fit_start()
        self.prompt_processor = self._make("prompt_processor")
        self.guidance = self._make("guidance")

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        check_batch(self.renderer.forward, batch, f"system.renderer_type {self.cfg.renderer_type}")
        return {**self.renderer(**batch)}

    # ---- training ------------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        out = self(batch)
        shows = self._shows_guidance()
        options = {"guidance_eval": True} if shows else {}
        who = f"system.guidance_type {self.cfg.guidance_type}"
        check_batch(self.guidance.__call__, batch, who, given=2)
        guided = self.guidance(
            out["comp_rgb"], self.prompt_processor(), **batch, rgb_as_latents=False, **options
        )
        pictures = guided.pop("eval", None)
        if pictures is not None:
            self.guidance_evaluation_save(out["comp_rgb"].detach(), pictures)

        losses = {name: value for name, value in guided.items() if name.startswith("loss_")}
        for name, value in guided.items():
            if not (torch.is_tensor(value) and value.numel() > 1):
                self.log(f"train/{name}", value)
        own = self._regularizers(out)
        for name, value in own.items():
            self.log(f"train/{name}", value)
        loss = sum(value * self._weight(name) for name, value in {**losses, **own}.items())
        for name, value in self.cfg.loss.items():
            self.log(f"train_params/{name}", self.C(value))
        return {"loss": loss}

    def _regularizers(self, out: dict[str, Any]) -> dict[str, Tensor]:
        losses = {}
        if self._weight("loss_orient") > 0:
            for key in ("normal", "weights", "t_dirs"):
                if key not in out:
                    raise BatchError(
                        f"system.loss.lambda_orient is above 0, but {self.cfg.renderer_type} with "
                        f"{self.cfg.geometry_type} gives no {key!r}: set a normal_type of the geometry and a "
                        "material that wants normals, or system.loss.lambda_orient=0."
                    )
            losses["loss_orient"] = regularizers.orientation(
                out["weights"], out["normal"], out["t_dirs"], out["opacity"]
            )
        losses["loss_sparsity"] = regularizers.sparsity(out["opacity"])
        losses["loss_opaque"] = regularizers.opaqueness(out["opacity"])
        if "z_variance" in out and "lambda_z_variance" in self.cfg.loss:
            losses["loss_z_variance"] = regularizers.z_variance(out["z_variance"], out["opacity"])
        return losses

    def _weight(self, loss: str) -> float:
        key = loss.replace("loss_", "lambda_", 1)
        if key not in self.cfg.loss:
            raise ConfigValueError(
                f"system.loss.{key} is missing: it weighs {loss} (0 leaves it out). There is: "
                f"{', '.join(sorted(map(str, self.cfg.loss))) or 'nothing'}."
            )
        return self.C(self.cfg.loss[key])

    def _shows_guidance(self) -> bool:
        every = self.cfg.freq.get("guidance_eval", 0)
        return every > 0 and self.true_global_step % every == 0

    # ---- pictures ------------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._save_view(batch, f"it{self.true_global_step}-{int(batch['index'][0])}.png", "validation_step")

    def on_validation_epoch_end(self) -> None:
        pass

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._save_view(batch, f"it{self.true_global_step}-test/{int(batch['index'][0])}.png", "test_step")

    def on_test_epoch_end(self) -> None:
        name = f"it{self.true_global_step}-test"
        self.save_img_sequence(
            name, name, r"(\d+)\.png", save_format="mp4", fps=30, name="test", step=self.true_global_step
        )

    def _save_view(self, batch: dict[str, Any], filename: str, name: str) -> None:
        """Colour, normal where there is one, and opacity of the view, side by side."""
        out = self(batch)
        as_rgb = {"data_format": "HWC", "data_range": (0, 1)}
        cells = [
            {"type": "rgb", "img": out[key][0], "kwargs": as_rgb}
            for key in ("comp_rgb", "comp_normal")
            if key in out
        ]
        gray = {"cmap": None, "data_range": (0, 1)}
        cells.append({"type": "grayscale", "img": out["opacity"][0, :, :, 0], "kwargs": gray})
        self.save_image_grid(filename, cells, name=name, step=self.true_global_step)
