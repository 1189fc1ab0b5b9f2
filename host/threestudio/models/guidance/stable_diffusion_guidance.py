"""``stable-diffusion-guidance``: Score Distillation Sampling (arXiv 2209.14988), threestudio's.

    x_t  = sqrt(a_t) latents + sqrt(1 - a_t) noise
    e    = e(x_t, text) + s (e(x_t, text) - e(x_t, negative text))
    grad = w(t) (e - noise)

with Score Jacobian Chaining (arXiv 2212.00774) as ``use_sjc``, Perp-Neg where the prompt asks for it, and
HiFA's image loss and annealing (arXiv 2305.18766).  The gradient is added to the latents, divided by the
batch size: descent moves them against it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.guidance.latent_model import LatentModel
from threestudio.models.guidance.noise import copies, guided
from threestudio.models.guidance.pictures import pictures_of
from threestudio.utils.base import BaseObject
from threestudio.utils.errors import ConfigValueError, ModelError
from threestudio.utils.hub import loading, quiet
from threestudio.utils.misc import C, is_schedule, schedule_knots

KEY = "system.guidance.pretrained_model_name_or_path"
LARGEST_GRADIENT = 1e4
"""Root mean square over a view's latents above which a gradient means nothing: scores are about 1."""
WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "sds": lambda alphas: 1 - alphas,
    "uniform": torch.ones_like,
    "fantasia3d": lambda alphas: alphas**0.5 * (1 - alphas),
}
"""w(t) of alphas_cumprod at t."""


def in_own_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the trainer's mixed precision stops here, for the model has its own."""

    @wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return wrapper


@threestudio.register("stable-diffusion-guidance")
class StableDiffusionGuidance(BaseObject):
    """SDS with any latent diffusion model in diffusers' format; pictures are resized to its own size."""

    @dataclass
    class Config(BaseObject.Config):
        pretrained_model_name_or_path: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
        """Folder or hub id of the model."""
        enable_memory_efficient_attention: bool = False
        """Without effect: PyTorch's attention is memory-efficient."""
        enable_sequential_cpu_offload: bool = False
        """Not in this host."""
        enable_attention_slicing: bool = False
        """Attention in slices: less memory, slower."""
        enable_channels_last_format: bool = False
        """Memory layout of the UNet: faster on some GPUs."""
        guidance_scale: float = 100.0
        """s in text + s (text - uncond)."""
        grad_clip: Any = None
        """Bound of each number of the gradient, a schedule; null: none."""
        half_precision_weights: bool = True
        """float16 where there is CUDA; a CPU computes in float32."""

        min_step_percent: Any = 0.02
        """Lowest timestep drawn, as a fraction; a schedule."""
        max_step_percent: Any = 0.98
        """Highest timestep drawn, as a fraction; a schedule."""
        sqrt_anneal: bool = False
        """One timestep for each step, from max_step_percent down with the root of the progress (HiFA)."""
        trainer_max_steps: int = 25000
        """Length of the run, for sqrt_anneal."""
        use_img_loss: bool = False
        """Also loss_sds_img, the same in pixels (HiFA)."""

        use_sjc: bool = False
        """Score Jacobian Chaining instead of SDS."""
        var_red: bool = True
        """Its variance reduction."""
        weighting_strategy: str = "sds"
        """w(t): sds (1 - a), uniform (1), fantasia3d (sqrt(a) (1 - a))."""

        token_merging: bool = False
        """Merge tokens: faster; needs tomesd."""
        token_merging_params: dict | None = field(default_factory=dict)
        """Arguments of tomesd.apply_patch."""

        view_dependent_prompting: bool = True
        """Use the prompts with the directions' words."""
        max_items_eval: int = 4
        """Most items in the pictures of guidance_eval; -1: all."""

        def __post_init__(self) -> None:
            for name in ("min_step_percent", "max_step_percent", "grad_clip"):
                value = getattr(self, name)
                if value is None and name == "grad_clip":
                    continue
                if not isinstance(value, (int, float)):
                    _check_schedule(name, value)
                highest = 1.0 if name != "grad_clip" else float("inf")
                if not all(0.0 <= number <= highest for number in _values(value)):
                    raise ConfigValueError(f"{name} is {value}; it must be 0 to {highest}.")
            if self.weighting_strategy not in WEIGHTINGS:
                raise ConfigValueError(
                    f"weighting_strategy is {self.weighting_strategy!r}; there is: {', '.join(WEIGHTINGS)}."
                )
            if self.sqrt_anneal and self.trainer_max_steps < 1:
                raise ConfigValueError("trainer_max_steps is the length of the run, at least 1.")

    cfg: Config

    def configure(self) -> None:
        half = self.cfg.half_precision_weights and self.device.type == "cuda"
        self.weights_dtype = torch.float16 if half else torch.float32
        name = self.cfg.pretrained_model_name_or_path
        self.model = LatentModel.load(name, self.device, self.weights_dtype, KEY)
        self.unet, self.vae = self.model.unet, self.model.vae
        self._apply_options()
        self.scheduler = self._load_scheduler()
        self.num_train_timesteps: int = self.scheduler.config.num_train_timesteps
        self.alphas = self.scheduler.alphas_cumprod.to(self.device)
        self.us = ((1 - self.alphas) / self.alphas).sqrt()
        self.grad_clip_val: float | None = None
        self._seen: list[tuple[str, Tensor]] = []
        self.set_min_max_steps()
        threestudio.info(
            f"Guidance: Stable Diffusion of {name}, {self.model.image_size} px, "
            f"{str(self.weights_dtype).removeprefix('torch.')} on {self.device}"
        )

    def _apply_options(self) -> None:
        if self.cfg.enable_sequential_cpu_offload:
            threestudio.warn("system.guidance.enable_sequential_cpu_offload is not in this host: left out.")
        if self.cfg.enable_attention_slicing:
            self.unet.set_attention_slice(1)
        if self.cfg.enable_channels_last_format:
            self.unet.to(memory_format=torch.channels_last)
        if self.cfg.token_merging:
            try:
                import tomesd
            except ImportError as error:
                raise ConfigValueError(
                    "system.guidance.token_merging needs tomesd: pip install tomesd, or set it to false."
                ) from error
            tomesd.apply_patch(self.unet, **(self.cfg.token_merging_params or {}))

    def _load_scheduler(self) -> Any:
        from diffusers import DDIMScheduler, DDPMScheduler

        folder = self.model.folder / "scheduler"
        kind = DDPMScheduler if self.cfg.use_sjc else DDIMScheduler
        with quiet(), loading(folder, KEY):
            scheduler = kind.from_pretrained(folder)
        if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise ModelError(
                f"{KEY}: {self.model.folder} predicts {scheduler.config.prediction_type!r}; supported: "
                "epsilon, v_prediction."
            )
        return scheduler

    # ---- the model -----------------------------------------------------------------------------------------

    @property
    def latent_size(self) -> int:
        """Height and width of the model's latents; 64 for Stable Diffusion."""
        return self.model.latent_size

    def set_min_max_steps(self, min_step_percent: float = 0.02, max_step_percent: float = 0.98) -> None:
        """The range that timesteps are drawn from, both ends included, of fractions of all timesteps."""
        last = self.num_train_timesteps - 1
        self.min_step = min(int(self.num_train_timesteps * min_step_percent), last)
        self.max_step = min(int(self.num_train_timesteps * max_step_percent), last)
        if self.min_step > self.max_step:
            raise ConfigValueError(
                f"system.guidance.min_step_percent is {min_step_percent:g} now, above max_step_percent, "
                f"{max_step_percent:g}."
            )

    @in_own_precision
    def forward_unet(self, latents: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """The UNet's output for noisy latents [N, C, h, w] at timesteps [N]."""
        return self.model.predict(latents, t, encoder_hidden_states)

    @in_own_precision
    def encode_images(self, imgs: Tensor) -> Tensor:
        """Latents [B, C, h, w] of images [B, 3, H, W] in [0, 1] at the model's size; differentiable."""
        return self.model.encode(imgs)

    @in_own_precision
    def decode_latents(
        self, latents: Tensor, latent_height: int | None = None, latent_width: int | None = None
    ) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] of latents, resized first (None: to the model's size)."""
        size = (latent_height or self.model.latent_size, latent_width or self.model.latent_size)
        return self.model.decode(_resize(latents, size))

    @torch.no_grad()
    def get_noise_pred(
        self,
        latents_noisy: Tensor,
        t: Tensor,
        text_embeddings: Tensor,
        use_perp_neg: bool = False,
        neg_guidance_weights: Tensor | None = None,
    ) -> Tensor:
        """The guided output of the UNet [B, C, h, w].

        Args:
            latents_noisy: [B, C, h, w].
            t: timesteps [B], or one.
            text_embeddings: as `PromptProcessorOutput` orders them.
            neg_guidance_weights: Perp-Neg's [B, K], with ``use_perp_neg``.
        """
        weights = neg_guidance_weights if use_perp_neg else None
        t = t.to(self.device).reshape(-1).expand(len(latents_noisy))
        pred = self.forward_unet(copies(latents_noisy, weights), copies(t, weights), text_embeddings)
        return guided(pred, self.cfg.guidance_scale, weights)

    def _noise_of(self, output: Tensor, latents_noisy: Tensor, t: Tensor) -> Tensor:
        """The predicted noise in the UNet's output, converted where the model predicts v."""
        if self.scheduler.config.prediction_type == "epsilon":
            return output
        alphas = _per_item(self.alphas[t])
        return alphas.sqrt() * output + (1 - alphas).sqrt() * latents_noisy

    # ---- the gradient --------------------------------------------------------------------------------------

    def __call__(
        self,
        rgb: Tensor,
        prompt_utils: Any,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The loss whose gradient on the latents is the SDS gradient, divided by the batch size.

        Args:
            rgb: pictures [B, H, W, 3] in [0, 1], or latents [B, H, W, C] with ``rgb_as_latents``.
            prompt_utils: what a prompt processor returns.
            elevation, azimuth: degrees [B].
            camera_distances: [B].
            guidance_eval: also pictures of this step as "eval", see `BaseLift3DSystem`.

        Returns:
            loss_sds (and loss_sds_img with ``use_img_loss``), grad_norm, min_step, max_step.
        """
        views = (elevation, azimuth, camera_distances)
        pictures = rgb.permute(0, 3, 1, 2)
        latent_size, image_size = self.model.latent_size, self.model.image_size
        image = None if rgb_as_latents else _resize(pictures, (image_size, image_size))
        if image is None:
            latents = _resize(pictures, (latent_size, latent_size))
        else:
            latents = self.encode_images(image)
        t = torch.randint(self.min_step, self.max_step + 1, [len(rgb)], device=self.device)

        if self.cfg.use_sjc:
            grad, step = self.compute_grad_sjc(latents, t, prompt_utils, *views)
            grad_img = None
        else:
            grad, grad_img, step = self.compute_grad_sds(latents, image, t, prompt_utils, *views)
        self._remember(rgb, latents, step)
        grad = self._clipped(grad)
        out: dict[str, Any] = {
            "loss_sds": _loss_with_gradient(latents, grad),
            "grad_norm": grad.norm(),
            "min_step": self.min_step,
            "max_step": self.max_step,
        }
        if grad_img is not None:
            out["loss_sds_img"] = _loss_with_gradient(image, self._clipped(grad_img))
        if guidance_eval:
            out["eval"] = self._pictures(step, views)
        return out

    def _pictures(self, step: dict[str, Any], views: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
        """`guidance_eval`, and the texts beside its pictures."""
        shown = self.guidance_eval(**step)
        cameras = zip(shown["noise_levels"], *(view.tolist() for view in views), strict=False)
        texts = [f"n{n:.02f}\ne{e:.01f}\na{a:.01f}\nc{c:.02f}" for n, e, a, c in cameras]
        return {**shown, "texts": texts}

    def compute_grad_sds(
        self,
        latents: Tensor,
        image: Tensor | None,
        t: Tensor,
        prompt_utils: Any,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
    ) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """SDS's gradient on the latents, on the image (or None), and what `guidance_eval` takes."""
        prompt = self._prompt(prompt_utils, elevation, azimuth, camera_distances)
        with torch.no_grad():
            noise = torch.randn_like(latents)
            noisy = self.scheduler.add_noise(latents, noise, t)
            output = self.get_noise_pred(noisy, t, **prompt)
            pred = self._noise_of(output, noisy, t)
            alphas = _per_item(self.alphas[t])
            w = WEIGHTINGS[self.cfg.weighting_strategy](alphas)
            grad_img = None
            if self.cfg.use_img_loss and image is not None:
                alpha, sigma = alphas.sqrt(), (1 - alphas).sqrt()
                clean = self.decode_latents((noisy - sigma * pred) / alpha)
                grad_img = w * (image - clean) * alpha / sigma
        step = {"t_orig": t, "latents_noisy": noisy, "noise_pred": output, **prompt}
        return w * (pred - noise), grad_img, step

    def compute_grad_sjc(
        self,
        latents: Tensor,
        t: Tensor,
        prompt_utils: Any,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
    ) -> tuple[Tensor, dict[str, Any]]:
        """SJC's gradient, with noise added to the latents unscaled, and what `guidance_eval` takes."""
        prompt = self._prompt(prompt_utils, elevation, azimuth, camera_distances)
        with torch.no_grad():
            sigma = _per_item(self.us[t])
            noisy = latents + sigma * torch.randn_like(latents)
            scaled = noisy / (1 + sigma**2).sqrt()
            output = self.get_noise_pred(scaled, t, **prompt)
            clean = noisy - sigma * self._noise_of(output, scaled, t)
            grad = ((latents if self.cfg.var_red else noisy) - clean) / sigma
        return grad, {"t_orig": t, "latents_noisy": scaled, "noise_pred": output, **prompt}

    def _prompt(self, prompt_utils: Any, *views: Tensor) -> dict[str, Any]:
        """Embeddings of the views, and Perp-Neg's weights, as arguments of `get_noise_pred`."""
        arguments = (*views, self.cfg.view_dependent_prompting)
        weights = None
        if prompt_utils.use_perp_neg:
            embeddings, weights = prompt_utils.get_text_embeddings_perp_neg(*arguments)
        else:
            embeddings = prompt_utils.get_text_embeddings(*arguments)
        width = self.unet.config.cross_attention_dim
        if embeddings.shape[-1] != width:
            raise ConfigValueError(
                f"The prompt's embeddings are {embeddings.shape[-1]} wide, and the guidance's model reads "
                f"{width}: give system.prompt_processor and system.guidance the same "
                f"pretrained_model_name_or_path (the guidance's is {self.cfg.pretrained_model_name_or_path})."
            )
        return {
            "text_embeddings": embeddings,
            "use_perp_neg": prompt_utils.use_perp_neg,
            "neg_guidance_weights": weights,
        }

    def _clipped(self, grad: Tensor) -> Tensor:
        """Within ``grad_clip``; not a number where it is so large that it means nothing.

        What is no number stays none, so that the system leaves the step out and asks `explain_fault`.
        """
        size = grad.square().flatten(1).mean(1).amax().sqrt()
        grad = torch.where(size <= LARGEST_GRADIENT, grad, torch.full_like(grad, torch.nan))
        return grad if self.grad_clip_val is None else grad.clamp(-self.grad_clip_val, self.grad_clip_val)

    # ---- what went wrong -----------------------------------------------------------------------------------

    def _remember(self, rgb: Tensor, latents: Tensor, step: dict[str, Any]) -> None:
        """Keep hold of what a step computed, in this order, for `explain_fault`."""
        seen = {
            "a rendered picture": rgb,
            "an encoded picture": latents,
            "the embedding of the text": step["text_embeddings"],
            "the noisy latents": step["latents_noisy"],
            "the score": step["noise_pred"],
        }
        self._seen = [(what, value.detach()) for what, value in seen.items()]
        self._timesteps = step["t_orig"]

    def explain_fault(self) -> str | None:
        """Why the gradient of the last call is not finite, as a clause; None if nothing is known."""
        timesteps = ", ".join(str(int(t)) for t in self._timesteps.reshape(-1)) if self._seen else ""
        where = f"at timestep {timesteps}, {str(self.weights_dtype).removeprefix('torch.')}"
        for what, value in self._seen:
            if bad := value.numel() - int(value.isfinite().sum()):
                return f"{what} is not finite ({bad:,} of {value.numel():,} numbers, {where})"
            if what == "the score" and float(value.square().mean().sqrt()) > LARGEST_GRADIENT:
                return f"the score is {float(value.abs().max()):.2g} ({where}), where it should be about 1"
        return None

    # ---- pictures and schedules ----------------------------------------------------------------------------

    @torch.no_grad()
    def guidance_eval(
        self,
        t_orig: Tensor,
        text_embeddings: Tensor,
        latents_noisy: Tensor,
        noise_pred: Tensor,
        use_perp_neg: bool = False,
        neg_guidance_weights: Tensor | None = None,
    ) -> dict[str, Any]:
        """Where the model would take the noisy latents: "bs", "noise_levels", "imgs_*" [bs, H, W, 3]."""
        count = len(latents_noisy)
        shown = min(self.cfg.max_items_eval, count) if self.cfg.max_items_eval > 0 else count
        weights = neg_guidance_weights if use_perp_neg else None
        return pictures_of(self, shown, t_orig, text_embeddings, latents_noisy, noise_pred, weights)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Bound of the gradient and range of timesteps of this step."""
        if self.cfg.grad_clip is not None:
            self.grad_clip_val = C(self.cfg.grad_clip, epoch, global_step)
        low = C(self.cfg.min_step_percent, epoch, global_step)
        if not self.cfg.sqrt_anneal:
            self.set_min_max_steps(low, C(self.cfg.max_step_percent, epoch, global_step))
            return
        progress = min(global_step / self.cfg.trainer_max_steps, 1.0) ** 0.5
        first = next(iter(_values(self.cfg.max_step_percent)))
        percent = low + (first - low) * (1 - progress)
        self.set_min_max_steps(percent, percent)


def _check_schedule(name: str, value: Any) -> None:
    if is_schedule(value):
        return
    try:
        schedule_knots(value)
    except ConfigValueError as error:
        raise ConfigValueError(f"{name}: {error}") from error


def _values(value: Any) -> list[float]:
    """What a schedule goes through."""
    return [value] if isinstance(value, (int, float)) else [v for _, v in schedule_knots(value)]


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _per_item(values: Tensor) -> Tensor:
    """[B] as [B, 1, 1, 1]."""
    return values.view(-1, 1, 1, 1)


def _loss_with_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """A loss whose gradient on ``x`` is ``grad / B``: half the squared distance to ``x - grad``, over B."""
    return 0.5 * F.mse_loss(x, (x - grad).detach(), reduction="sum") / len(x)
