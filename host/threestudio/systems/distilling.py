"""What systems of a guidance and a renderer share: the step, the losses and their weights, the pictures."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from threestudio.systems import regularizers
from threestudio.systems.base import BaseLift3DSystem
from threestudio.systems.batch import check_batch
from threestudio.utils.errors import BatchError, ConfigValueError


class DistillingSystem(BaseLift3DSystem):
    """One step: render the batch, ask the guidance, add `own_losses`, each weighed by ``loss.lambda_*``.

    Every ``loss_x`` of the guidance needs a ``lambda_x``; 0 leaves it out. All are schedules.
    """

    rgb_as_latents = False
    """Whether what is rendered are latents."""

    def on_fit_start(self) -> None:
        """Guidance and prompt are for training only. The prompt comes first: it is quick to check."""
        super().on_fit_start()
        self._check_weights()
        self.prompt_processor = self._make("prompt_processor")
        if not hasattr(self, "guidance"):
            self.guidance = self._make("guidance")

    def _check_weights(self) -> None:
        """All of ``system.loss`` are schedules, before anything is trained.

        Raises:
            ConfigValueError: one is not.
        """
        for key, value in self.cfg.loss.items():
            try:
                self.C(value)
            except ConfigValueError as error:
                raise ConfigValueError(f"system.loss.{key}: {error}") from error

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        check_batch(self.renderer.forward, batch, f"system.renderer_type {self.cfg.renderer_type}")
        return {**self.renderer(**batch)}

    # ---- training ------------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        out = self(batch)
        return {"loss": self.total_loss(self.ask_guidance(out, batch), out, batch)}

    def ask_guidance(self, out: dict[str, Any], batch: dict[str, Any], **options: Any) -> dict[str, Any]:
        """What the guidance says of ``out["comp_rgb"]``."""
        who = f"system.guidance_type {self.cfg.guidance_type}"
        check_batch(self.guidance.__call__, batch, who, given=2)
        return self.guidance(
            out["comp_rgb"], self.prompt_processor(), **batch, rgb_as_latents=self.rgb_as_latents, **options
        )

    def total_loss(self, guided: dict[str, Any], out: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        """The weighed sum of the guidance's losses and our own; logs all there is to log."""
        losses = {name: value for name, value in guided.items() if name.startswith("loss_")}
        for name, value in guided.items():
            if isinstance(value, (int, float)) or getattr(value, "numel", lambda: 0)() == 1:
                self.log(f"train/{name}", value)
        own = self.own_losses(out, batch)
        for name, value in own.items():
            self.log(f"train/{name}", value)
        total = sum(value * self.weight_of(name) for name, value in {**losses, **own}.items())
        for name, value in self.cfg.loss.items():
            self.log(f"train_params/{name}", self.C(value))
        return total

    def own_losses(self, out: dict[str, Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Losses that need no prior, by name (loss_x)."""
        return {**self.orientation_loss(out), **opacity_losses(out)}

    def orientation_loss(self, out: dict[str, Any]) -> dict[str, Tensor]:
        """loss_orient, where its weight is above 0."""
        if not self.weight_of("loss_orient") > 0:
            return {}
        for key in ("normal", "weights", "t_dirs"):
            if key not in out:
                raise BatchError(
                    f"system.loss.lambda_orient is above 0, but {self.cfg.renderer_type} with "
                    f"{self.cfg.geometry_type} gives no {key!r}: set a normal_type of the geometry and a "
                    "material that wants normals, or system.loss.lambda_orient=0."
                )
        return {
            "loss_orient": regularizers.orientation(
                out["weights"], out["normal"], out["t_dirs"], out["opacity"]
            )
        }

    def weight_of(self, loss: str) -> float:
        """The weight of ``loss_x`` now: ``loss.lambda_x``.

        Raises:
            ConfigValueError: it is not in the config.
        """
        key = loss.replace("loss_", "lambda_", 1)
        return self.C(self.loss_setting(key, f"it weighs {loss} (0 leaves it out)"))

    def loss_setting(self, key: str, why: str) -> Any:
        """``system.loss.<key>``.

        Raises:
            ConfigValueError: it is not in the config; the message says ``why`` it is needed.
        """
        if key not in self.cfg.loss:
            raise ConfigValueError(
                f"system.loss.{key} is missing: {why}. There is: "
                f"{', '.join(sorted(map(str, self.cfg.loss))) or 'nothing'}."
            )
        return self.cfg.loss[key]

    # ---- pictures ------------------------------------------------------------------------------------------

    def picture(self, out: dict[str, Any]) -> Tensor:
        """The view [H, W, 3] as people see it."""
        return out["comp_rgb"][0]

    def cells(self, out: dict[str, Any]) -> list[dict[str, Any]]:
        """Colour, normal where there is one, and opacity of the view, side by side."""
        as_rgb = {"data_format": "HWC", "data_range": (0, 1)}
        cells = [{"type": "rgb", "img": self.picture(out), "kwargs": as_rgb}]
        if "comp_normal" in out:
            cells.append({"type": "rgb", "img": out["comp_normal"][0], "kwargs": as_rgb})
        gray = {"cmap": None, "data_range": (0, 1)}
        return [*cells, {"type": "grayscale", "img": out["opacity"][0, :, :, 0], "kwargs": gray}]

    def save_view(self, batch: dict[str, Any], filename: str, name: str, align: Any = "max") -> None:
        """Render a view and save its `cells`."""
        cells = self.cells(self(batch))
        self.save_image_grid(filename, cells, align=align, name=name, step=self.true_global_step)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.save_view(batch, f"it{self.true_global_step}-{int(batch['index'][0])}.png", "validation_step")

    def on_validation_epoch_end(self) -> None:
        pass

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.save_view(batch, f"it{self.true_global_step}-test/{int(batch['index'][0])}.png", "test_step")

    def on_test_epoch_end(self) -> None:
        name = f"it{self.true_global_step}-test"
        self.save_img_sequence(
            name, name, r"(\d+)\.png", save_format="mp4", fps=30, name="test", step=self.true_global_step
        )


def opacity_losses(out: dict[str, Any]) -> dict[str, Tensor]:
    """loss_sparsity and loss_opaque of ``out["opacity"]``."""
    return {
        "loss_sparsity": regularizers.sparsity(out["opacity"]),
        "loss_opaque": regularizers.opaqueness(out["opacity"]),
    }
