"""``stable-diffusion-sdi-guidance``: Score Distillation via Inversion (arXiv 2405.15891).

The noise is not drawn but found: the latents are inverted by DDIM to the timestep, with a negative guidance
scale, and what the model then sees as clean latents is the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.guidance.noise import copies, guided
from threestudio.models.guidance.stable_diffusion_guidance import StableDiffusionGuidance, in_own_precision
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.misc import C, schedule_knots

_NOT_HERE = ("use_sjc", "sqrt_anneal", "use_img_loss")


@threestudio.register("stable-diffusion-sdi-guidance")
class StableDiffusionSDIGuidance(StableDiffusionGuidance):
    """SDI with any latent diffusion model in diffusers' format."""

    @dataclass
    class Config(StableDiffusionGuidance.Config):
        pretrained_model_name_or_path: str = "stabilityai/stable-diffusion-2-1-base"
        """Folder or hub id of the model."""
        trainer_max_steps: int = 10000
        """Length of the run, for t_anneal."""
        n_ddim_steps: int = 50
        """Steps of the sampler that makes pictures."""
        enable_sdi: bool = True
        """Find the noise by inversion; false draws it."""
        inversion_guidance_scale: float = -7.5
        """s of the inversion, in text + s (text - uncond)."""
        inversion_n_steps: int = 10
        """Strides that an inversion to the last timestep would take."""
        inversion_eta: float = 0.3
        """Share of fresh noise in each stride."""
        t_anneal: bool = True
        """One timestep for each step, from max_step_percent down to min_step_percent."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in _NOT_HERE:
                if getattr(self, name):
                    raise ConfigValueError(
                        f"{name} belongs to stable-diffusion-guidance; leave it out of this one."
                    )
            for name in ("inversion_n_steps", "n_ddim_steps", "trainer_max_steps"):
                if getattr(self, name) < 1:
                    raise ConfigValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    cfg: Config

    @torch.no_grad()
    def predict_noise(
        self,
        latents_noisy: Tensor,
        t: Tensor,
        prompt_utils: Any,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        guidance_scale: float = 1.0,
        text_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The guided output of the UNet [B, C, h, w], Perp-Neg's weights or None, and the embeddings.

        Args:
            t: timesteps [B], or one.
            guidance_scale: s in text + s (text - uncond).
            text_embeddings: instead of those of ``prompt_utils``.
        """
        prompt = self._prompt(prompt_utils, elevation, azimuth, camera_distances)
        weights = prompt["neg_guidance_weights"]
        embeddings = prompt["text_embeddings"]
        if text_embeddings is not None and weights is None:
            embeddings = text_embeddings
        t = t.to(self.device).reshape(-1).expand(len(latents_noisy))
        pred = self.forward_unet(copies(latents_noisy, weights), copies(t, weights), embeddings)
        return guided(pred, guidance_scale, weights), weights, embeddings

    # ---- inversion -----------------------------------------------------------------------------------------

    def get_inversion_timesteps(self, invert_to_t: int) -> list[int]:
        """From -1, no noise at all, to a random place in the stride that begins at the timestep."""
        stride = self.num_train_timesteps // self.cfg.inversion_n_steps
        first = self.scheduler.config.steps_offset
        path = [t for t in range(first, self.num_train_timesteps, max(stride, 1)) if t < invert_to_t]
        beyond = int(torch.randint(0, max(stride, 1), ()))
        return [-1, *path, min(invert_to_t + beyond, self.num_train_timesteps - 1)]

    def _alpha(self, t: int) -> Tensor:
        return self.alphas[t] if t >= 0 else self.scheduler.final_alpha_cumprod.to(self.device)

    def _split(self, output: Tensor, sample: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Clean latents and noise that the UNet's output says ``sample`` is made of."""
        if self.scheduler.config.prediction_type == "epsilon":
            return (sample - (1 - alpha).sqrt() * output) / alpha.sqrt(), output
        clean = alpha.sqrt() * sample - (1 - alpha).sqrt() * output
        return clean, alpha.sqrt() * output + (1 - alpha).sqrt() * sample

    def ddim_inversion_step(self, model_output: Tensor, t: int, next_t: int, sample: Tensor) -> Tensor:
        """One stride from ``t`` (-1: no noise) to more noise at ``next_t``, some of it fresh."""
        alpha, alpha_next = self._alpha(t), self._alpha(next_t)
        clean, noise = self._split(model_output, sample, alpha)
        variance = (1 - alpha) / (1 - alpha_next) * (1 - alpha_next / alpha)
        fresh = self.cfg.inversion_eta * variance.clamp(min=0).sqrt() * torch.randn_like(sample)
        return alpha_next.sqrt() * clean + (1 - alpha_next).sqrt() * noise + fresh

    @torch.no_grad()
    def invert_noise(
        self,
        start_latents: Tensor,
        invert_to_t: Tensor,
        prompt_utils: Any,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Noisy latents of each item at its timestep, and the noise in them, [B, C, h, w] both."""
        found = [
            self._invert_one(
                start_latents[i : i + 1], int(t), prompt_utils, elevation[i : i + 1], azimuth[i : i + 1],
                camera_distances[i : i + 1],
            )
            for i, t in enumerate(invert_to_t)
        ]  # fmt: skip
        return torch.cat([noisy for noisy, _ in found]), torch.cat([noise for _, noise in found])

    def _invert_one(self, start: Tensor, t: int, prompt_utils: Any, *view: Tensor) -> tuple[Tensor, Tensor]:
        latents = start
        path = self.get_inversion_timesteps(t)
        for now, after in pairwise(path):
            level = torch.tensor([max(now, 0)], device=self.device)
            output, _, _ = self.predict_noise(
                latents, level, prompt_utils, *view, guidance_scale=self.cfg.inversion_guidance_scale
            )
            latents = self.ddim_inversion_step(output, now, after, latents)
        alpha = self._alpha(path[-1])
        return latents, (latents - alpha.sqrt() * start) / (1 - alpha).sqrt()

    # ---- the loss ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def compute_grad_sdi(
        self,
        latents: Tensor,
        t: Tensor,
        prompt_utils: Any,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        call_with_defined_noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """Target, noisy latents, noise [B, C, h, w], and what `guidance_eval` takes."""
        views = (elevation, azimuth, camera_distances)
        if call_with_defined_noise is None and self.cfg.enable_sdi:
            noisy, noise = self.invert_noise(latents, t, prompt_utils, *views)
        else:
            given = call_with_defined_noise
            noise = torch.randn_like(latents) if given is None else given
            noisy = self.scheduler.add_noise(latents, noise, t)
        scale = self.cfg.guidance_scale
        output, weights, embeddings = self.predict_noise(noisy, t, prompt_utils, *views, guidance_scale=scale)
        target, _ = self._split(output, noisy, self.alphas[t].view(-1, 1, 1, 1))
        step = {
            "t_orig": t,
            "text_embeddings": embeddings,
            "latents_noisy": noisy,
            "noise_pred": output,
            "use_perp_neg": prompt_utils.use_perp_neg,
            "neg_guidance_weights": weights,
        }
        return target, noisy, noise, step

    @in_own_precision
    def __call__(
        self,
        rgb: Tensor,
        prompt_utils: Any,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,
        test_info: bool = False,
        call_with_defined_noise: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The distance of the latents to the target.

        Args:
            rgb: pictures [B, H, W, 3] in [0, 1], or latents [B, H, W, C] with ``rgb_as_latents``.
            test_info: also pictures of the first item: target, noisy_img, noise_img [H, W, 3].
            call_with_defined_noise: noise [B, C, h, w] to take instead of the inversion's.

        Returns:
            loss_sdi: mean of the squared distance / (2 B); grad_norm, min_step, max_step.
        """
        views = (elevation, azimuth, camera_distances)
        size = self.latent_size if rgb_as_latents else self.model.image_size
        images = F.interpolate(rgb.permute(0, 3, 1, 2).float(), (size, size), mode="bilinear")
        latents = images if rgb_as_latents else self.encode_images(images)
        t = torch.randint(self.min_step, self.max_step + 1, [len(rgb)], device=self.device)
        target, noisy, noise, step = self.compute_grad_sdi(
            latents, t, prompt_utils, *views, call_with_defined_noise=call_with_defined_noise
        )
        self._remember(rgb, latents, step)
        out: dict[str, Any] = {
            "loss_sdi": 0.5 * F.mse_loss(latents, target) / len(rgb),
            "grad_norm": (latents - target).norm().detach(),
            "min_step": self.min_step,
            "max_step": self.max_step,
        }
        if test_info:
            shown = {"target": target, "noisy_img": noisy, "noise_img": noise}
            out |= {name: self.decode_latents(x[:1])[0].permute(1, 2, 0) for name, x in shown.items()}
            out |= {"target_latent": target, "noise_pred": step["noise_pred"]}
        elif guidance_eval:
            out["eval"] = self._pictures(step, views)
        return out

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Bound of the gradient and range of timesteps of this step."""
        if not self.cfg.t_anneal:
            super().update_step(epoch, global_step, on_load_weights)
            return
        low, high = C(self.cfg.min_step_percent, epoch, global_step), self.cfg.max_step_percent
        first = high if isinstance(high, (int, float)) else schedule_knots(high)[0][1]
        progress = min(global_step / self.cfg.trainer_max_steps, 1.0)
        percent = low + (first - low) * (1 - progress)
        self.set_min_max_steps(percent, percent)
