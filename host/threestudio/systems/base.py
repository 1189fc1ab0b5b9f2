"""Training loops: `BaseSystem`, and `BaseLift3DSystem` for lifting a 2D prior to 3D."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch

import threestudio
from threestudio.kinds import ROLES, kind_of, names_of
from threestudio.systems.utils import parse_optimizer, parse_scheduler
from threestudio.utils.base import Updateable, update_end_if_possible, update_if_possible
from threestudio.utils.config import load_config, parse_structured
from threestudio.utils.errors import CheckpointError, DivergenceError, UnknownNameError
from threestudio.utils.memory import keep_freed_memory
from threestudio.utils.misc import C, cleanup, find_last_path, get_device, load_module_weights
from threestudio.utils.saving import SaverMixin

PATIENCE = 10
"""How many steps in a row may lack finite gradients before a run gives up."""
SCALER_PATIENCE = 30
"""As many where a GradScaler looks for a scale: it leaves such steps out, and halves it, from 65536 down."""


class BaseSystem(pl.LightningModule, Updateable, SaverMixin):
    """A LightningModule made from a config.  Override `configure`, the steps and ``on_validation_epoch_end``.

    Made in this order: config, loggers, `configure`, weights of ``cfg.weights``, `post_configure`.
    """

    @dataclass
    class Config:
        loggers: dict = field(default_factory=dict)
        """Loggers besides TensorBoard and CSV, e.g. wandb: {enable: true}."""
        loss: dict = field(default_factory=dict)
        """Weights of the losses, numbers or schedules: lambda_<name>."""
        optimizer: dict = field(default_factory=dict)
        """name, args, params; see threestudio.systems.utils.parse_optimizer."""
        scheduler: dict | None = None
        """Learning-rate schedule; see threestudio.systems.utils.parse_scheduler."""
        weights: str | None = None
        """Checkpoint to start from, without its optimizer and step."""
        weights_ignore_modules: list[str] | None = None
        """Modules not taken from weights."""
        cleanup_after_validation_step: bool = False
        """Free GPU memory after each validation view."""
        cleanup_after_test_step: bool = False
        """Free GPU memory after each test view."""

    cfg: Config

    def __init__(self, cfg: Any, resumed: bool = False) -> None:
        super().__init__()
        self.cfg = parse_structured(type(self).Config, cfg)
        self._resumed = resumed
        self._resumed_eval: tuple[int, int] | None = None
        self._left_out = 0
        self.create_loggers(self.cfg.loggers)
        if get_device().type == "cpu":
            keep_freed_memory()  # a step asks for what the step before has freed
        self.configure()
        if self.cfg.weights is not None:
            self.load_weights(self.cfg.weights, self.cfg.weights_ignore_modules)
        self.post_configure()

    # ---- weights and steps ---------------------------------------------------------------------------------

    def load_weights(self, weights: str, ignore_modules: list[str] | None = None) -> None:
        """Take the weights of a checkpoint, except ``ignore_modules``; weights it does not have stay."""
        state_dict, epoch, global_step = load_module_weights(
            weights, ignore_modules=ignore_modules, map_location="cpu"
        )
        self.load_state_dict(state_dict, strict=False)
        self.do_update_step(epoch, global_step, on_load_weights=True)

    def load_state_dict(self, state_dict: Any, strict: bool = True, **kwargs: Any) -> Any:
        """As ``nn.Module.load_state_dict``; weights that do not fit are the checkpoint's fault.

        Raises:
            CheckpointError: (a RuntimeError) names or shapes differ.
        """
        try:
            return super().load_state_dict(state_dict, strict=strict, **kwargs)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()[1:]]
            shown = "\n  ".join(line if len(line) < 200 else line[:200] + " ..." for line in lines[:4])
            raise CheckpointError(
                f"The checkpoint was made by another system or config: its weights do not fit "
                f"{type(self).__name__}.\n  {shown}"
            ) from error

    def set_resume_status(self, current_epoch: int, global_step: int) -> None:
        """What `true_current_epoch` and `true_global_step` answer outside of training, from a checkpoint."""
        self._resumed_eval = (current_epoch, global_step)

    @property
    def resumed(self) -> bool:
        """Whether this run continues from a checkpoint."""
        return self._resumed

    @property
    def true_global_step(self) -> int:
        """The training step; of the checkpoint when only evaluating."""
        return self._resumed_eval[1] if self._resumed_eval is not None else self.global_step

    @property
    def true_current_epoch(self) -> int:
        """The epoch; of the checkpoint when only evaluating."""
        return self._resumed_eval[0] if self._resumed_eval is not None else self.current_epoch

    def configure(self) -> None:
        """Build the modules."""

    def post_configure(self) -> None:
        """Called when modules and weights are in place."""

    def C(self, value: Any) -> float:
        """A scheduled scalar now; see `threestudio.utils.misc.C`."""
        return C(value, self.true_current_epoch, self.true_global_step)

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule if any, of the config."""
        optimizer = parse_optimizer(self.cfg.optimizer, self)
        if self.cfg.scheduler is None:
            return {"optimizer": optimizer}
        return {"optimizer": optimizer, "lr_scheduler": parse_scheduler(self.cfg.scheduler, optimizer)}

    def summary_files(self) -> dict[str, str] | list[str] | None:
        """The files to name when the run ends, as ``{what: path}`` or paths; None lists the save folder."""
        return None

    # ---- steps ---------------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no training_step.")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no validation_step.")

    def on_validation_epoch_end(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no on_validation_epoch_end.")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no test_step.")

    def on_test_epoch_end(self) -> None:
        """Called after the last test view."""

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has nothing to export.")

    def on_predict_epoch_end(self) -> None:
        """Called after the last view of an export."""

    def preprocess_data(self, batch: dict[str, Any], stage: str) -> None:
        """Change ``batch`` in place before anything sees it; stage is train, validation, test or predict."""

    # ---- gradients that are no numbers -------------------------------------------------------------------

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Leave out a step whose gradients are not finite, say so and why, and give up after `PATIENCE`.

        Raises:
            DivergenceError: too many in a row.
        """
        grads = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
        if not grads:
            return
        if torch.stack([grad.isfinite().all() for grad in grads.values()]).all():  # one wait for the device
            self._left_out = 0
            return
        self._left_out += 1
        optimizer.zero_grad(set_to_none=True)
        cause = getattr(getattr(self, "guidance", None), "explain_fault", lambda: None)()
        scales = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        name = next(name for name, grad in grads.items() if not grad.isfinite().all())
        told = f"Step {self.global_step + 1}: " + (cause or f"the gradient of {name} is not finite")
        if self._left_out >= (SCALER_PATIENCE if scales and cause is None else PATIENCE):
            raise DivergenceError(
                f"{told}. So it was {self._left_out} steps in a row. Lower the learning rate "
                "(system.optimizer.args.lr) or system.guidance.guidance_scale, or use float32: "
                "trainer.precision=32-true, system.guidance.half_precision_weights=false. "
                f"{self.saved_so_far()}"
            )
        if cause or not scales:
            threestudio.warn(f"{told}; the step is left out.")

    def saved_so_far(self) -> str:
        """A sentence that names the last checkpoint of this run."""
        callback = self.trainer.checkpoint_callback
        path = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
        return f"Go on from the last good state: resume={path}" if path else "No checkpoint was saved yet."

    # ---- update_step around every batch --------------------------------------------------------------------

    def _batch_start(self, batch: Any, stage: str, loader: Any) -> None:
        self.preprocess_data(batch, stage)
        self.dataset = loader.dataset
        update_if_possible(self.dataset, self.true_current_epoch, self.true_global_step)
        self.do_update_step(self.true_current_epoch, self.true_global_step)

    def _batch_end(self, loader: Any) -> None:
        self.dataset = loader.dataset
        update_end_if_possible(self.dataset, self.true_current_epoch, self.true_global_step)
        self.do_update_step_end(self.true_current_epoch, self.true_global_step)

    def on_train_batch_start(self, batch: Any, batch_idx: int, unused: int = 0) -> None:
        self._batch_start(batch, "train", self.trainer.train_dataloader)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._batch_start(batch, "validation", self.trainer.val_dataloaders)

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._batch_start(batch, "test", self.trainer.test_dataloaders)

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._batch_start(batch, "predict", self.trainer.predict_dataloaders)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._batch_end(self.trainer.train_dataloader)

    def on_validation_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._batch_end(self.trainer.val_dataloaders)
        if self.cfg.cleanup_after_validation_step:
            cleanup()

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._batch_end(self.trainer.test_dataloaders)
        if self.cfg.cleanup_after_test_step:
            cleanup()

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._batch_end(self.trainer.predict_dataloaders)


class BaseLift3DSystem(BaseSystem):
    """A system of geometry, material, background and renderer.

    The guidance and the prompt processor are named in the config but made by subclasses: in ``on_fit_start``
    when only training needs them, in ``configure`` when they have trainable weights.
    """

    @dataclass
    class Config(BaseSystem.Config):
        geometry_type: str = ""
        """Registered name of the geometry."""
        geometry: dict = field(default_factory=dict)
        """Its config."""
        geometry_convert_from: str | None = None
        """Checkpoint of another run whose geometry to start from; LAST in it is the newest match."""
        geometry_convert_inherit_texture: bool = False
        """Take the networks of its appearance too."""
        geometry_convert_override: dict = field(default_factory=dict)
        """Changes to that run's geometry config."""
        material_type: str = ""
        """Registered name of the material."""
        material: dict = field(default_factory=dict)
        """Its config."""
        background_type: str = ""
        """Registered name of the background."""
        background: dict = field(default_factory=dict)
        """Its config."""
        renderer_type: str = ""
        """Registered name of the renderer."""
        renderer: dict = field(default_factory=dict)
        """Its config."""
        guidance_type: str = ""
        """Registered name of the guidance."""
        guidance: dict = field(default_factory=dict)
        """Its config."""
        prompt_processor_type: str = ""
        """Registered name of the prompt processor."""
        prompt_processor: dict = field(default_factory=dict)
        """Its config."""
        exporter_type: str = "mesh-exporter"
        """Registered name of what --export makes."""
        exporter: dict = field(default_factory=dict)
        """Its config."""

    cfg: Config

    def configure(self) -> None:
        """Build geometry, material, background, renderer."""
        converts = self.cfg.geometry_convert_from and not self.cfg.weights and not self.resumed
        self.geometry = self._convert_geometry() if converts else self._make("geometry")
        self.material = self._make("material")
        self.background = self._make("background")
        self.renderer = self._make(
            "renderer", geometry=self.geometry, material=self.material, background=self.background
        )

    def _make(self, role: str, **parts: Any) -> Any:
        """The ``role``_type of the config, from the config of that role."""
        return self._class_of(role)(self.cfg[role], **parts)

    def _class_of(self, role: str) -> Any:
        """The class that ``role``_type names.

        Raises:
            UnknownNameError: it is not given, not registered, or registered as something else.
        """
        key = f"{role}_type"
        name, kind = self.cfg[key], ROLES[key]
        if not name:
            choices = ", ".join(names_of(kind, threestudio.__modules__))
            raise UnknownNameError(f"system.{key} is not given. Registered as {kind}: {choices}.", name=name)
        cls = threestudio.find(name)
        found = kind_of(name, cls)
        if found not in (kind, None):
            choices = ", ".join(names_of(kind, threestudio.__modules__))
            raise UnknownNameError(
                f"system.{key} is {name!r}, which is registered as {found}. As {kind}: {choices}."
            )
        return cls

    def _convert_geometry(self) -> Any:
        path = find_last_path(self.cfg.geometry_convert_from)
        threestudio.info(f"Starting from the geometry of {path}")
        parsed = os.path.join(os.path.dirname(path), "../configs/parsed.yaml")
        old = load_config(parsed).system
        old_cfg = parse_structured(
            BaseLift3DSystem.Config, {key: old[key] for key in old if _is_lift3d_key(key)}
        )
        old_cfg.geometry.update(self.cfg.geometry_convert_override)
        geometry = threestudio.find(old_cfg.geometry_type)(old_cfg.geometry)
        state_dict, epoch, global_step = load_module_weights(path, module_name="geometry", map_location="cpu")
        try:
            geometry.load_state_dict(state_dict, strict=False)
        except RuntimeError as error:
            raise CheckpointError(
                f"system.geometry_convert_from: {path} does not fit its own config. {error}"
            ) from error
        geometry.to(get_device())
        geometry.do_update_step(epoch, global_step, on_load_weights=True)
        converted = threestudio.find(self.cfg.geometry_type).create_from(
            geometry, self.cfg.geometry, copy_net=self.cfg.geometry_convert_inherit_texture
        )
        del geometry
        cleanup()
        return converted

    # ---- messages ------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        # the exporter is made after the training, which is late to hear of a mistake
        exporter = self._class_of("exporter")
        if hasattr(exporter, "Config"):
            parse_structured(exporter.Config, self.cfg.exporter)
        if self._save_dir is not None:
            threestudio.info(f"Validation results will be saved to {self.get_save_dir()}")
        else:
            threestudio.warn("No save folder is set: validation results will not be saved.")

    def on_test_end(self) -> None:
        if self._save_dir is not None:
            threestudio.info(f"Test results saved to {self.get_save_dir()}")

    # ---- export --------------------------------------------------------------------------------------------

    def on_predict_start(self) -> None:
        self.exporter = self._make(
            "exporter", geometry=self.geometry, material=self.material, background=self.background
        )

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        if self.exporter.cfg.save_video:
            self.test_step(batch, batch_idx)

    def on_predict_epoch_end(self) -> None:
        for output in self.exporter():
            save = getattr(self, f"save_{output.save_type}", None)
            if save is None:
                kinds = sorted(name[5:] for name in dir(self) if name.startswith("save_"))
                raise ValueError(
                    f"{type(self.exporter).__name__} asks for save_type {output.save_type!r}, but "
                    f"{type(self).__name__} saves only: {', '.join(kinds)}."
                )
            save(f"it{self.true_global_step}-export/{output.save_name}", **output.params)
        if self.exporter.cfg.save_video:  # last: a film that fails takes nothing with it
            self.on_test_epoch_end()

    def on_predict_end(self) -> None:
        if self._save_dir is not None:
            threestudio.info(f"Export saved to {self.get_save_dir()}")

    # ---- a look at the guidance ----------------------------------------------------------------------------

    def guidance_evaluation_save(self, comp_rgb: torch.Tensor, guidance_eval_out: dict[str, Any]) -> str:
        """Save renders [B, H, W, 3] beside what the prior makes of them, one row an item."""
        columns = ("imgs_noisy", "imgs_1step", "imgs_1orig", "imgs_final")
        batch_size = guidance_eval_out["bs"]

        def cell(img: torch.Tensor) -> dict[str, Any]:
            return {"type": "rgb", "img": img, "kwargs": {"data_format": "HWC"}}

        rows = [
            [cell(comp_rgb[i]), *(cell(guidance_eval_out[column][i]) for column in columns)]
            for i in range(batch_size)
        ]
        return self.save_image_grid(
            f"it{self.true_global_step}-train.png",
            rows,
            name="train_step",
            step=self.true_global_step,
            texts=guidance_eval_out["texts"],
        )


def _is_lift3d_key(key: str) -> bool:
    return key in BaseLift3DSystem.Config.__dataclass_fields__
