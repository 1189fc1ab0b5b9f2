"""`lucid-dreamer-system`: text to 3D Gaussians by score distillation, LucidDreamer's training loop.

One step, numbered from 1:

    1. learning rates of the step
    2. render the batch's views, with augmentations; now and then show the prior disparity instead of colours
    3. the guidance's gradient on the pictures, and the regularisers, back to the Gaussians
    4. clone, split, prune, reset opacities
    5. Adam

Steps of which nothing can be learned are left out, and steps after which the cloud is none are undone: see
`safeguard`. All that is random is drawn from a function of (seed, rank, step), and all that a step leaves
behind is in the checkpoint: parameters and number of Gaussians, density statistics, Adam's moments, the
running record, what went wrong. So a run that was interrupted ends like one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.systems.base import BaseLift3DSystem
from threestudio.utils.config import config_to_primitive, parse_structured
from threestudio.utils.misc import barrier, get_rank

from ..data.cameras import view_batch
from ..data.orbit import Cameras, circle
from ..errors import UserError, check_finite, check_pair, check_range, closest
from ..gaussians.cloud import STATISTICS, moments_of, opacities
from ..gaussians.density import DensityReport
from ..gaussians.ply import write_ply
from ..guidance.cards import find_card
from ..guidance.lucid_guidance import LucidGuidance
from ..guidance.stock import check_schedule
from ..seeding import generator
from . import density as timetable
from .density import DensityConfig
from .record import Record
from .regularizers import opacity_entropy, total_variation
from .safeguard import Safeguard, saying_what_saves_memory
from .sheet import azimuth_label, contact_sheet
from .swap import GuidanceSwap

# Weights of our losses, and of those that threestudio's guidances return.
OUR_LOSSES = ("sds", "tv", "scale", "opaque", "opacity", "anchor")
THEIR_LOSSES = ("sds_img", "sdi", "vsd", "lora", "sd", "sd_img", "train_phi")
KNOWN_WEIGHTS = tuple(f"lambda_{name}" for name in OUR_LOSSES + THEIR_LOSSES)


@threestudio.register("lucid-dreamer-system")
class LucidDreamerSystem(GuidanceSwap, BaseLift3DSystem):
    """Optimises `lucid-gaussian-splatting` through any guidance that takes pictures and prompts."""

    @dataclass
    class Config(BaseLift3DSystem.Config):
        seed: int = 0
        """Seed of augmentations and density control."""
        accumulate: int = 1
        """Render and score each batch in so many parts, one after the other: less memory, one step."""
        as_latent_ratio: float = 0.2
        """How often the prior is shown disparity, as a grey picture, instead of colours."""
        adam_betas: Any = field(default_factory=lambda: [0.9, 0.999])
        """Decay of Adam's moments."""
        adam_eps: float = 1e-15
        """Adam's epsilon; small, so that steps do not depend on the scale of the loss."""
        density: dict = field(default_factory=dict)
        """Density control, see systems/density.py."""
        sheet_views: int = 8
        """Views on the contact sheet."""

        def __post_init__(self) -> None:
            getattr(super(), "__post_init__", lambda: None)()
            check_range("accumulate", self.accumulate, 1)
            check_range("as_latent_ratio", self.as_latent_ratio, 0.0, 1.0)
            check_range("sheet_views", self.sheet_views, 1)
            check_range("adam_eps", self.adam_eps, 0.0, above=True)
            form = "two numbers of at least 0 and below 1, such as [0.9, 0.999]"
            if not all(0.0 <= beta < 1.0 for beta in check_pair("adam_betas", self.adam_betas, form)):
                raise UserError(f"adam_betas is {self.adam_betas!r}; it must be {form}.")
            if self.optimizer:
                raise UserError(
                    "system.optimizer is not read by lucid-dreamer-system: learning rates are lr_means, "
                    "lr_scales, ... of system.geometry; the optimizer is Adam with adam_betas and adam_eps."
                )

    cfg: Config

    # ---- construction ----------------------------------------------------------------------------------

    def configure(self) -> None:
        check_finite("system", config_to_primitive(self.cfg))
        super().configure()
        if not (self.resumed or self.cfg.weights):  # a checkpoint brings its Gaussians
            self.geometry.make_room()
        # Several backward passes and density control make one step, so Lightning cannot call the optimizer.
        self.automatic_optimization = False
        self.density: DensityConfig = parse_structured(DensityConfig, self.cfg.density)
        self.record = Record()
        self.safeguard = Safeguard()
        self._full = False
        self._files: dict[str, str] = {}
        self._test_camera: dict[str, float] = {}
        # DistributedDataParallel would overwrite them at every step by those of the first process
        self._ddp_params_and_buffers_to_ignore = [f"geometry.cloud.{name}" for name in STATISTICS]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Before training. The optimizer needs the first Gaussians, and drawing their points takes a while.

        So first the prompt, which is quick to check, and then the prior: mistakes there are told before
        anything is drawn, and before anything is written.
        """
        self._check_weights()
        self._keep_gradients_unscaled()
        self.prompt_processor = threestudio.find(self.cfg.prompt_processor_type)(self.cfg.prompt_processor)
        self.guidance = threestudio.find(self.cfg.guidance_type)(self.cfg.guidance)
        self.prompt_utils = self.prompt_processor()
        if isinstance(self.guidance, LucidGuidance):
            self.guidance.check_prompts(self.prompt_utils)
        return self.make_optimizer()

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Adam over the Gaussians, of which this draws the first."""
        groups = self.geometry.parameter_groups()
        self.geometry.share()
        return torch.optim.Adam(
            groups,
            betas=tuple(self.cfg.adam_betas),
            eps=self.cfg.adam_eps,
            fused=True,  # one pass over each parameter, on CUDA one launch, instead of a dozen
        )

    def _keep_gradients_unscaled(self) -> None:
        """Density control reads gradients on screen, which a GradScaler would multiply by 65,536.

        With trainer.precision=16-mixed there is one. It has no use here: what has a gradient is computed in
        float32 by the renderer, and in the dtype of its own by the prior.
        """
        plugin = self.trainer.precision_plugin
        if getattr(plugin, "scaler", None) is not None:
            plugin.scaler = None
            threestudio.info(
                f"trainer.precision={self.trainer.precision} changes nothing here, and gradients are not "
                "scaled: Gaussians are float32, and the prior's arithmetic is system.guidance.dtype."
            )

    # ---- checkpoints -----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lucid_record"] = self.record.state()
        checkpoint["lucid_capacity"] = self.geometry.cfg.capacity  # as it was asked for
        checkpoint["lucid_safeguard"] = self.safeguard.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        means = checkpoint["state_dict"].get("geometry.cloud.means")
        if means is None:
            raise UserError("The checkpoint holds no Gaussians: it was made by another system.")
        cloud = self.geometry.cloud
        if len(means) != cloud.capacity:
            # a file of Gaussians that needed more room than was asked for is not looked at again
            if checkpoint.get("lucid_capacity") != self.geometry.cfg.capacity:
                raise UserError(
                    f"The checkpoint has room for {len(means)} Gaussians, this config for {cloud.capacity}. "
                    f"Use the run's own configs/parsed.yaml, or system.geometry.capacity={len(means)}."
                )
            cloud.resize(len(means))
        self.record = Record.from_state(checkpoint.get("lucid_record", {}))
        self.safeguard.load_checkpoint(self, checkpoint)

    # ---- one step --------------------------------------------------------------------------------------

    def forward(self, batch: dict[str, Any], draw: torch.Generator | None = None) -> dict[str, Any]:
        return self.renderer(**batch, generator=draw)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        step = self.true_global_step
        optimizer = self.optimizers()
        rates = self.geometry.learning_rates(self.true_current_epoch, step)
        for group in optimizer.param_groups:
            group["lr"] = rates[group["name"]]

        with saying_what_saves_memory(self):
            logs, rendered, seen = self._gradients(batch, step)
        every = self.trainer.log_every_n_steps
        if every and (step + 1) % every == 0:  # in between Lightning's loggers would not see it
            # Here and not at the end: a GPU is still busy with all of the above, and waited for below.
            self.log_dict({f"train/{name}": value for name, value in logs.items()}, batch_size=1)

        self._restrain_gradients()
        fault = self.safeguard.fault(self, logs["loss"], seen)
        record = self.record.state()
        if fault is None:
            self.record.update(logs)
            self.safeguard.keep(self)
            self._control_density(optimizer, rendered, step + 1)
        else:
            self.zero_grad(set_to_none=True)
            self.safeguard.leave_out(self, step + 1, fault)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if fault is None:
            self._wander(rates, step + 1)
            if not self.safeguard.check(self, step + 1):
                self.record = Record.from_state(record)

    def _gradients(self, batch: dict[str, Any], step: int) -> tuple[dict[str, Tensor], list, Tensor]:
        """Renders, asks the guidance and goes back; part after part, if so configured.

        Returns:
            values for the log; of each part (means2d, radii), width and height; the largest opacity of all.
        """
        draw = generator(self.cfg.seed, "training", get_rank(), step, device=batch["c2w"].device)
        show_disparity = self._chance(self.cfg.as_latent_ratio, "as latent", step)
        logs: dict[str, Tensor] = {}
        rendered, seen = [], []
        for part in split_batch(batch, self.cfg.accumulate):
            out = self(part, draw)
            loss, values = self._loss(out, part, show_disparity)
            self.manual_backward(loss / self.cfg.accumulate)
            rendered.append((out["screen"], part["width"], part["height"]))
            seen.append(out["opacity"].detach().amax())
            for name, value in values.items():
                logs[name] = logs.get(name, 0.0) + value / self.cfg.accumulate
        logs["gaussians"] = self.geometry.cloud.n.float()
        return logs, rendered, torch.stack(seen).amax()

    def _loss(
        self, out: dict[str, Any], batch: dict[str, Any], show_disparity: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and every value for the log."""
        image = out["disparity"].expand_as(out["comp_rgb"]) if show_disparity else out["comp_rgb"]
        guided = self.guidance(image, self.prompt_utils, **batch, rgb_as_latents=False)
        losses = {name: value for name, value in guided.items() if name.startswith("loss_")}
        losses["loss_tv"] = total_variation(out["comp_rgb"]) + total_variation(out["disparity"])
        losses["loss_scale"] = out["scales"].mean()
        # These two are not the paper's, so configs may leave them out.
        if "lambda_opaque" in self.cfg.loss:
            losses["loss_opaque"] = opacity_entropy(out["opacity"])
        if "lambda_opacity" in self.cfg.loss:
            # Whatever no view needs fades, is pruned, and so makes room (3DGS-MCMC, Kheradmand et al. 2024).
            losses["loss_opacity"] = opacities(self.geometry.gaussians).mean()
        total = sum(value * self.C(self._weight(name)) for name, value in losses.items())
        if _has_company():  # each waits for all gradients, those of colours that no view of its own shows too
            total = total + sum(0.0 * p.sum() for p in self.geometry.parameters() if p.requires_grad)
        scalars = {name: value for name, value in guided.items() if _is_scalar(value)}
        values = {**scalars, **losses, "loss": total}
        return total, {name: torch.as_tensor(value).detach().float() for name, value in values.items()}

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._check_batches()
        self._check_degrees()

    def _check_batches(self) -> None:
        """Batches whose size changes during the run.

        Raises:
            UserError: a size that `accumulate` does not divide, or the sizes as the weight of a loss, where
                they would be a schedule.
        """
        sizes = getattr(getattr(self.trainer.datamodule, "cfg", None), "batch_size", None)
        if not isinstance(sizes, Sequence):
            return
        for size in sizes:
            if size % self.cfg.accumulate:
                raise UserError(
                    f"system.accumulate={self.cfg.accumulate} does not divide the {size} of data.batch_size."
                )
        if len(sizes) > 1 and self.cfg.loss.get("lambda_sds") == sizes:
            raise UserError(
                f"system.loss.lambda_sds is {list(sizes)}, which is data.batch_size: as a weight it would be "
                "a schedule [start_step, from, to, end_step]. Write lambda_sds: ${staged:${data.batch_size}}."
            )

    def _check_degrees(self) -> None:
        """Says so where the run is too short for the spherical harmonics that it asks for."""
        degree, every = self.geometry.cfg.sh_degree, self.geometry.cfg.sh_degree_every
        steps = self.trainer.max_steps
        reached = (steps - 1) // every if every and steps > 0 else degree
        if reached < degree:
            threestudio.warn(
                f"system.geometry.sh_degree is {degree}, but in {steps} steps only degree {reached} takes "
                f"part: each waits system.geometry.sh_degree_every={every} steps. Lower that; 0: all at once."
            )

    def _check_weights(self) -> None:
        """What of `system.loss` can be told to be wrong before the guidance is asked.

        Raises:
            UserError: a missing or misspelt weight, or one that is neither a number nor a schedule.
        """
        for name in ("loss_tv", "loss_scale"):
            self._weight(name)
        for key, value in self.cfg.loss.items():
            near = [] if key in KNOWN_WEIGHTS else closest(str(key), KNOWN_WEIGHTS)
            if near:
                raise UserError(f"system.loss has no {key!r}. Did you mean {near[0]!r}?")
            check_schedule(f"system.loss.{key}", value, -math.inf)

    def _weight(self, loss: str) -> Any:
        key = loss.replace("loss_", "lambda_", 1)
        if key not in self.cfg.loss:
            raise UserError(f"system.loss.{key} is missing: it weighs {loss} (0 leaves it out).")
        return self.cfg.loss[key]

    def _restrain_gradients(self) -> None:
        """Where subclasses drop gradients of what may not move."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Nothing: gradients were looked at before density control read them."""

    def _chance(self, probability: float, purpose: str, step: int) -> bool:
        return torch.rand((), generator=generator(self.cfg.seed, purpose, step)).item() < probability

    def rate_key(self, group: str) -> str:
        """The config's key of the learning rate of one of the optimizer's groups."""
        return self.geometry.rate_key(group)

    # ---- density control -------------------------------------------------------------------------------

    @torch.no_grad()
    def _control_density(self, optimizer: Any, rendered: list, step: int) -> None:
        """Gathers statistics and, when it is time, edits the cloud. `step` counts from 1."""
        if timetable.gathers(self.density, step):
            self._gather(rendered)
        cloud = self.geometry.cloud
        moments = moments_of(optimizer, cloud.params)
        if timetable.refines(self.density, step):
            self._sum_over_processes(cloud.grad_sum, cloud.grad_count)
            draw = generator(self.cfg.seed, "density", step)
            self._report(self._round(moments, draw, step), step)
            # Gradients belong to the rows as they were: as in the released code, Adam skips this step.
            for p in cloud.params.values():
                p.grad = None
        if timetable.resets(self.density, step):
            self.geometry.reset_opacity(moments, self.density.reset_opacity)
            cloud.logit_opacities.grad = None

    def _round(self, moments: dict[str, list[Tensor]], draw: torch.Generator, step: int) -> DensityReport:
        if self.density.policy == "gradient":
            return self.geometry.refine(moments, timetable.rules(self.density, step), draw)
        sizes = self.geometry.cfg.num_points, self.geometry.cloud.capacity
        return self.geometry.relocate(moments, timetable.relocation_rules(self.density, step, *sizes), draw)

    def _wander(self, rates: dict[str, float], step: int) -> None:
        """After Adam: the noise that relocation wants, the same in every process."""
        if self.density.policy == "relocation" and self.density.noise and step < self.density.until:
            draw = generator(self.cfg.seed, "wander", step, device=self.geometry.cloud.means.device)
            self.geometry.wander(self.density.noise * rates["geometry.means"], draw)

    def _gather(self, rendered: list) -> None:
        if self.density.last_view_only:
            (means2d, radii), width, height = rendered[-1]
            self.geometry.gather_density(means2d.grad[-1:], radii[-1:], width, height)
            return
        for (means2d, radii), width, height in rendered:
            self.geometry.gather_density(means2d.grad, radii, width, height)

    def _sum_over_processes(self, *tensors: Tensor) -> None:
        """Several GPUs must agree on what to clone."""
        if _has_company():
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def _report(self, report: DensityReport, step: int) -> None:
        self.record.count(report, step, self.geometry.cloud.capacity)
        if report.n == 0:
            raise UserError(
                f"No Gaussian is left after step {step}: all fell below density.prune_opacity or above "
                "density.prune_scale. Lower the one, raise the other, or lower the learning rates."
            )
        if report.refused and not self._full:
            self._full = True
            threestudio.info(
                f"Step {step}: the cloud is full with {report.n} Gaussians, so only those with the largest "
                "gradients multiply from now on. More room: system.geometry.capacity."
            )

    # ---- validation and test ---------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        out = self(batch)
        step, index = self.true_global_step, int(batch["index"][0])
        gray = {"cmap": None, "data_range": (0, 1)}
        cells = [
            {"type": "rgb", "img": out["comp_rgb"][0], "kwargs": {"data_format": "HWC"}},
            {"type": "grayscale", "img": out["disparity"][0, :, :, 0], "kwargs": gray},
            {"type": "grayscale", "img": out["opacity"][0, :, :, 0], "kwargs": gray},
        ]
        path = self.save_image_grid(f"it{step}-{index}.png", cells, name="validation_step", step=step)
        self._files[f"validation view {index}"] = path

    def on_validation_epoch_end(self) -> None:
        pass

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        out = self(batch)
        step, index = self.true_global_step, int(batch["index"][0])
        self.save_rgb_image(f"it{step}-test/{index}.png", out["comp_rgb"][0], name="test_step", step=step)
        if not self._test_camera:
            keys = ("elevation", "camera_distances", "fovy")
            self._test_camera = {key: float(batch[key][0]) for key in keys}
            self._test_camera |= {key: int(batch[key]) for key in ("height", "width")}

    def on_predict_epoch_end(self) -> None:
        super().on_predict_epoch_end()
        folder = Path(self.get_save_dir()) / f"it{self.true_global_step}-export"
        self._files |= {f"export {path.name}": str(path) for path in sorted(folder.iterdir())}

    def on_test_epoch_start(self) -> None:
        self._files.clear()  # views of validation were for watching the training
        if self.trainer.is_global_zero:
            self._save_asset(self.true_global_step)

    def _save_asset(self, step: int) -> None:
        """What the training was for: written before anything that is drawn of it."""
        self._files["asset"] = str(write_ply(self.get_save_path(f"it{step}.ply"), self.geometry.gaussians))
        self._files["metrics"] = self.save_json(f"it{step}-metrics.json", self.metrics())

    def on_test_epoch_end(self) -> None:
        barrier()  # of several processes each drew some of the views; the first makes the rest of all
        if self.trainer.is_global_zero:
            self._save_pictures(self.true_global_step)

    def _save_pictures(self, step: int) -> None:
        """Turntable and sheet."""
        name = f"it{step}-test"
        self._files["turntable"] = self.save_img_sequence(
            name, name, r"(\d+)\.png", save_format="mp4", fps=30, name="test", step=step
        )
        self._files["views"] = self._save_sheet(step)

    @torch.no_grad()
    def _save_sheet(self, step: int) -> str:
        """Views at even azimuths, each as a picture of its own, and all on one sheet."""
        cameras, views = self._sheet_cameras()
        parts = split_batch(views, self.cfg.sheet_views)
        pictures = torch.cat([self(part)["comp_rgb"] for part in parts])
        azimuths = cameras.azimuth.tolist()
        for azimuth, picture in zip(azimuths, pictures, strict=True):
            self.save_rgb_image(f"it{step}-views/{azimuth:03.0f}.png", picture)
        sheet = contact_sheet(pictures, [azimuth_label(a) for a in azimuths], self._prompt())
        return self.save_image(f"it{step}-views.png", sheet)

    def _sheet_cameras(self) -> tuple[Cameras, dict[str, Any]]:
        """Cameras all around at the height of the test views, and their batch."""
        camera = self._test_camera
        cameras = circle(
            self.cfg.sheet_views,
            camera["elevation"],
            camera["camera_distances"],
            torch.rad2deg(torch.tensor(camera["fovy"])).item(),
        )
        views = view_batch(cameras, camera["height"], camera["width"])
        views = {k: v.to(self.device) if torch.is_tensor(v) else v for k, v in views.items()}
        return cameras, views

    def metrics(self) -> dict[str, Any]:
        """What the run came to; the same for the same config and seed on the same machine."""
        cloud = self.geometry.cloud
        return {
            "prompt": self._prompt(),
            "guidance": self.cfg.guidance_type,
            "prior": _prior_name(self.cfg.guidance),
            "seed": self.cfg.seed,
            "steps": self.true_global_step,
            "gaussians": len(cloud),
            "capacity": cloud.capacity,
            **self.record.summary(),
        }

    def summary_files(self) -> dict[str, str]:
        """The files worth naming when the run ends."""
        return dict(self._files)

    def _prompt(self) -> str:
        return str(self.cfg.prompt_processor.get("prompt", ""))


def split_batch(batch: dict[str, Any], parts: int) -> Iterator[dict[str, Any]]:
    """A batch of B views as `parts` batches of B / parts; what has no batch dimension goes to each.

    Raises:
        UserError: `parts` does not divide B.
    """
    n = len(batch["c2w"])
    if n % parts:
        raise UserError(f"system.accumulate={parts} does not divide data.batch_size={n}.")
    size = n // parts
    for start in range(0, n, size):
        yield {
            key: value[start : start + size] if torch.is_tensor(value) and len(value) == n else value
            for key, value in batch.items()
        }


def _has_company() -> bool:
    """Whether several processes train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (int, float)) or (torch.is_tensor(value) and value.numel() == 1)


def _prior_name(guidance: Any) -> str:
    """The prior by its card's name, or as the config names it where it cannot be found (any more)."""
    name = str(guidance.get("prior", guidance.get("pretrained_model_name_or_path", "")))
    try:
        return find_card(name).name
    except UserError:
        return name
