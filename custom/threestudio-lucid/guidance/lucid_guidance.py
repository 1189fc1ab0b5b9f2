"""Score distillation as threestudio's systems call it: lucid-ism-guidance and lucid-sds-guidance.

They share everything but the objective (`LucidGuidance.distill`), so swapping one for the other swaps the
target of the score difference and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.utils.base import BaseObject
from threestudio.utils.misc import C, get_rank

from ..errors import UserError, check_choice, check_range
from ..seeding import generator
from . import stock
from .adapters import find_adapters
from .cards import find_card
from .combine import Conditioning, guided_output
from .control import Control
from .faults import Faults, Witness
from .ism import RECIPE_DEFAULTS, RECIPES, Distillation, ism_step
from .prior import Prior
from .sample import denoise, sampling_path
from .schedule import draw_index, index_range, interval, warmup_rate
from .sds import sds_step
from .trajectory import Model, ddim_step, x0_and_eps
from .vocabulary import check_words


class LucidGuidance(BaseObject):
    """What ISM and SDS share: encoding, timesteps, randomness, embeddings, loss, pictures."""

    # whether the guidance scale that threestudio's SDS is run with is this objective's too (see `stock`)
    keeps_sds_scale = False

    @dataclass
    class Config(stock.StockKeys, BaseObject.Config):
        prior: str = "auto"
        """Name, folder, single file or hub id of the diffusion model; auto: sd21 with CUDA, else mini."""
        lora: Any = None
        """LoRA: a file, folder, hub id, name, or a list of these or of {path, weight, trigger}."""
        embeddings: Any = None
        """Words by textual inversion: a file, folder, hub id, or a list of these or of {path, token}."""
        dtype: Optional[str] = None
        """auto, float32, bfloat16 or float16; null: as the prior's card says."""
        vae: Optional[str] = None
        """Another autoencoder of the same latents, a folder or hub id (madebyollin/taesd); null: its own."""
        compile: bool = False
        """torch.compile UNet and VAE encoder: a minute or two at first, then shorter steps on a GPU."""
        graphs: bool = True
        """Replay recordings of the networks: CUDA graphs, or on a CPU lists of operators."""
        recipe: str = "released"
        """released: as LucidDreamer's code; paper: as its Algorithm 1. Fields that are null follow it."""
        guidance_scale: Optional[float] = None
        """Classifier-free guidance, uncond + g (text - uncond); null: the prior's card (7.5 for sd21)."""
        delta_t: Optional[int] = None
        """Interval between s and t in timesteps; null: released 80, paper 50."""
        delta_t_start: Optional[int] = None
        """Interval at the first step, annealed to delta_t in warm-up; null: released 100, paper delta_t."""
        delta_s: Optional[int] = None
        """Stride of the inversion in timesteps; null: 200."""
        xs_inv_steps: Optional[int] = None
        """Most strides of the inversion, counted down from s (released recipe); null: 5, with 200 all."""
        inversion_guidance_scale: float = 1.0
        """Above 1: push the inversion from inverse_text towards the negative prompt."""
        inversion_eta: float = 0.0
        """Share of fresh noise in the strides of the inversion; 0: deterministic."""
        min_step_percent: Any = None
        """Lowest timestep drawn, as a fraction, a schedule; null: released 0.02, paper 0."""
        max_step_percent: Any = None
        """Highest timestep drawn at the first step, or as a schedule at any; null: released 0.98, paper 1."""
        max_step_percent_end: Optional[float] = None
        """Highest timestep drawn after warm-up; null: released 0.5, paper 1, kept within the two above."""
        warmup_steps: Optional[int] = None
        """Steps over which the timestep range and the interval are annealed; null: released 1500, paper 0."""
        grad_scale: Optional[float] = None
        """Factor on the gradient, against the regularisers; null: 0.1, or what a stock block implies."""
        noise_offset: float = 0.1
        """Noise per channel, the same for all pixels, on top of the noise per pixel."""
        horizontal_flip: float = 0.5
        """Probability of mirroring the whole batch; 0 where left and right differ."""
        view_dependent_prompting: bool = True
        """Use the texts of the views."""
        seed: int = 0
        """Of timesteps, noise and flips, which are functions of (seed, step)."""
        control: Any = None
        """A ControlNet, {model: ..., scores, scale, start, end}: see guidance/control.py; null: none."""
        max_items_eval: int = 4
        """Most views in the pictures of guidance_eval; -1: all."""

    cfg: Config

    def __init__(self, cfg: Any = None, *args: Any, **kwargs: Any) -> None:
        name = next(
            (n for n, cls in threestudio.__modules__.items() if type(self) is cls), type(self).__name__
        )
        stock.check_block(name, cfg, (field.name for field in fields(self.Config)))
        super().__init__(cfg, *args, **kwargs)

    def configure(self) -> None:
        self._check_config()
        defaults = RECIPE_DEFAULTS[self.cfg.recipe]
        given = {name: getattr(self.cfg, name) for name in defaults}
        self.settings = {name: defaults[name] if v is None else v for name, v in given.items()}
        if self.cfg.delta_t_start is None:
            self.settings["delta_t_start"] = max(defaults["delta_t_start"], self.settings["delta_t"])
        low, high = (self.settings[name] for name in ("min_step_percent", "max_step_percent"))
        if self.cfg.max_step_percent_end is None and isinstance(high, int | float):
            end = min(defaults["max_step_percent_end"], high)
            self.settings["max_step_percent_end"] = max(end, low) if isinstance(low, int | float) else end
        self._check_settings()

        dtype = "float32" if self.cfg.half_precision_weights is False else None
        card = find_card(stock.prior_of(self.cfg))
        if self.cfg.vae is not None:
            card = replace(card, vae=self.cfg.vae)
        adapters = find_adapters(self.cfg.lora, self.cfg.embeddings, card, where="system.guidance.")
        self.prior = Prior.load(card, self.device, self.cfg.dtype or dtype, adapters)
        card = self.prior.card
        # load now: what is wrong with the weights should show before training starts
        _ = self.prior.schedule, self.prior.unet, self.prior.vae
        self.prior.speed_up(self.cfg.compile, self.cfg.graphs)
        self.control = Control.load(self.cfg.control, self.prior)
        self.guidance_scale: float = stock.scale_of(self.cfg, card, keeps_sds_scale=self.keeps_sds_scale)
        self.strength = stock.strength_of(self.cfg, self.guidance_scale)
        if line := stock.report(self.cfg, self.guidance_scale, self.strength):
            threestudio.info(line)
        self._empty: Tensor | None = None
        self._checked_prompts: set[str] = set()
        self._step, self._calls = -1, 0
        self._witness: Witness | None = None
        self.faults = Faults(self.prior.dtype)
        self.update_step(0, 0)
        threestudio.info(
            f"Guidance: {type(self).__name__} ({self.cfg.recipe}) with prior {card.name}, "
            f"{card.image_size} px, guidance scale {self.guidance_scale:g}, "
            f"{str(self.prior.dtype).removeprefix('torch.')} on {self.prior.device}"
            + (f", with {adapters}" if adapters else "")
        )

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Timestep range and interval of this step; also restarts its sequence of random draws."""
        if global_step != self._step:
            self._settle()
            self._step, self._calls = global_step, 0
        s = self.settings
        # the released loop counts its iterations from 1
        self._rate = warmup_rate(global_step + 1, s["warmup_steps"])
        low, high = (C(s[name], epoch, global_step) for name in ("min_step_percent", "max_step_percent"))
        high_end = high if stock.is_schedule(s["max_step_percent"]) else s["max_step_percent_end"]
        first, end = index_range(self._rate, len(self.prior.schedule), low, high, high_end)
        self._bound = None if self.cfg.grad_clip is None else C(self.cfg.grad_clip, epoch, global_step)
        if self.control is not None:
            self.control.scale = C(self.control.cfg.scale, epoch, global_step)
        highest = self.prior.schedule.max_index
        self.min_step, self.max_step = min(first, highest), min(end - 1, highest)

    def update_step_end(self, epoch: int, global_step: int) -> None:
        """Tells of a step that was left out, unless the system has asked for it."""
        self._settle()

    def __call__(
        self,
        rgb: Tensor,
        prompt_utils: Any,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,
        source_rgb: Tensor | None = None,
        condition: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The loss whose gradient on the latents is the distillation gradient, divided by the batch size.

        Where it is no number, or a senseless one (see `faults`), it is replaced by zeros, and told.

        Args:
            rgb: renderings [B, H, W, 3] in [0, 1], or with `rgb_as_latents` latents [B, H, W, C].
            prompt_utils: what `lucid-prompt-processor` or threestudio's Stable Diffusion prompt processor
                returns.
            elevation, azimuth: [B], degrees.
            camera_distances: [B].
            guidance_eval: also return pictures of this step under "eval".
            source_rgb: like `rgb`, what an edit starts from; for objectives that compare with it.
            condition: what a ControlNet is shown of each view [B, 3, H, W] in [0, 1], mirrored with it.

        Returns:
            loss_sds: sum of the squared gradient / (2 B); its gradient on the latents is grad / B.
            grad_norm: norm of grad over the batch.
            min_step, max_step, timestep, delta_t: index range, timestep tau and interval of this step.
        """
        draws, noise_draws = self._generators()
        coin = float(torch.rand((), generator=draws))
        index = draw_index(self.min_step, self.max_step + 1, draws)
        cond = self._conditioning(prompt_utils, elevation, azimuth, camera_distances)
        delta_t = interval(
            self._rate,
            self.settings["delta_t"],
            self.settings["delta_t_start"],
            round_up=cond.negatives is not None,
        )

        flipped = coin < self.cfg.horizontal_flip
        if condition is not None:
            cond = replace(cond, picture=condition.flip(-1) if flipped else condition)
        witness = self._witness = Witness()
        witness.note("a rendered picture", rgb)
        source = None
        if source_rgb is not None:  # seen with the same randomness, so that what is alike stays alike
            source = self._latents(source_rgb, rgb_as_latents, flipped, twin(noise_draws)).detach()
            witness.note("the encoded picture of what is edited", source)
        latents = self._latents(witness.guarded(rgb), rgb_as_latents, flipped, noise_draws)
        witness.note("an encoded picture", latents)
        witness.note_texts(cond)
        noise = self._noise(latents, noise_draws)
        step = self.distill(latents.detach(), noise, index, cond, delta_t, noise_draws, source)
        grad = witness.screen(step)
        grad = grad if self._bound is None else grad.clamp(-self._bound, self._bound)
        self._witness = None
        self.faults.add(witness)

        out = {
            "loss_sds": _GivenGradient.apply(latents, grad),
            "grad_norm": grad.norm(),
            "min_step": self.min_step,
            "max_step": self.max_step,
            "timestep": step.tau_t,
            "delta_t": delta_t,
        }
        if guidance_eval:
            out["eval"] = self._pictures(step, cond, elevation, azimuth, camera_distances)
        return out

    def distill(
        self,
        latents: Tensor,
        noise: Tensor,
        index: int,
        cond: Conditioning,
        delta_t: int,
        generator: torch.Generator,
        source: Tensor | None = None,
    ) -> Distillation:
        """The objective: one step of score distillation. `source`: latents of `source_rgb`."""
        raise NotImplementedError

    def grad_scale_at(self, index: int) -> float:
        """What the weighted difference of the scores at this noise level is multiplied by."""
        return self.strength.grad_scale(self.prior.alphas_cumprod[self.prior.schedule.timestep(index)])

    # --- for systems that render latents --------------------------------------------------------------------

    @property
    def latent_size(self) -> int:
        """Height and width of the prior's latents."""
        return self.prior.latent_size

    def decode_latents(
        self, latents: Tensor, latent_height: int | None = None, latent_width: int | None = None
    ) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] of latents [B, C, h, w], resized first; null: to the prior's size."""
        size = (latent_height or self.latent_size, latent_width or self.latent_size)
        return self.prior.decode(F.interpolate(latents.float(), size, mode="bilinear", align_corners=False))

    def networks(self, cond: Conditioning) -> tuple[Model, Model]:
        """Of the unguided scores, and of the guided one: the prior's, with or without a ControlNet."""
        if self.control is None:
            unguided = guided = self.prior.predict
        else:
            unguided, guided = self.control.networks(cond.picture)
        if self._witness is None:
            return unguided, guided
        return (
            self._witness.watched("the score without text", unguided),
            self._witness.watched("the score with text", guided),
        )

    # --- steps that are left out ----------------------------------------------------------------------------

    def explain_fault(self) -> str | None:
        """Why a gradient of this step was left out, as a clause; None if none was. Waits for the device."""
        return self.faults.explain()

    def what_helps(self) -> str:
        """The settings that a score depends on, for the message of a run that cannot go on."""
        where, cfg = "system.guidance.", self.cfg
        parts = [f"{where}guidance_scale (now {self.guidance_scale:g})"]
        if self.prior.dtype != torch.float32:
            now = str(self.prior.dtype).removeprefix("torch.")
            parts.append(f"{where}dtype=float32 (now {now})")
        if cfg.inversion_guidance_scale != 1.0:
            parts.append(f"{where}inversion_guidance_scale (now {cfg.inversion_guidance_scale:g})")
        if self.control is not None:
            parts.append(f"{where}control.scale (now {self.control.scale:g})")
        if self.prior.adapters:
            parts.append(f"{where}lora and embeddings")
        return ", ".join([*parts, f"and the files of the prior ({self.prior.source})"])

    def _settle(self) -> None:
        """Tells of what went wrong in the step, unless the system has asked."""
        if told := self.faults.settle(self._step + 1, self.what_helps()):
            threestudio.warn(told)

    # --- the parts of a step --------------------------------------------------------------------------------

    def _generators(self) -> tuple[torch.Generator, torch.Generator]:
        """One for python numbers, one for tensors; anew at each call, so that a resumed run repeats them."""
        key = (get_rank(), self._step, self._calls)
        self._calls += 1
        return (
            generator(self.cfg.seed, "guidance", *key),
            generator(self.cfg.seed, "guidance-noise", *key, device=self.prior.device),
        )

    def _latents(self, rgb: Tensor, as_latents: bool, flipped: bool, draws: torch.Generator) -> Tensor:
        """Latents [B, C, h, w] of images [B, H, W, 3], or images that are latents at the prior's size."""
        images = rgb.permute(0, 3, 1, 2)
        images = images.flip(-1) if flipped else images
        channels = self.prior.latent_channels if as_latents else 3
        if images.shape[1] != channels:
            raise ValueError(f"rgb has {images.shape[1]} channels; expected {channels}")
        if not as_latents:
            return self.prior.encode(images, draws)
        size = (self.prior.latent_size, self.prior.latent_size)
        return F.interpolate(images.float(), size, mode="bilinear", align_corners=False)

    def _noise(self, latents: Tensor, draws: torch.Generator) -> Tensor:
        """Gaussian noise like the latents, with an offset per channel that the batch shares."""
        channels = latents.shape[1]
        noise = torch.randn(latents.shape, generator=draws, device=latents.device)
        offset = torch.randn((1, channels, 1, 1), generator=draws, device=latents.device)
        return noise + self.cfg.noise_offset * offset

    def _conditioning(
        self, prompt_utils: Any, elevation: Tensor, azimuth: Tensor, camera_distances: Tensor
    ) -> Conditioning:
        """Embeddings of the views, from our prompt processor or threestudio's."""
        view_dependent = self.cfg.view_dependent_prompting
        self.check_prompts(prompt_utils)
        if hasattr(prompt_utils, "embeddings_for"):
            return prompt_utils.embeddings_for(elevation, azimuth, view_dependent)

        self._check_prompts(prompt_utils)
        views, batch = (elevation, azimuth, camera_distances, view_dependent), len(azimuth)
        if view_dependent and getattr(prompt_utils, "use_perp_neg", False):
            embeddings, weights = prompt_utils.get_text_embeddings_perp_neg(*views)
            text, uncond, negatives = embeddings.float().split([batch, batch, len(embeddings) - 2 * batch])
            negatives = negatives.unflatten(0, (batch, -1)).transpose(0, 1)
            cond = Conditioning(text, uncond, uncond, negatives, weights.T)
        else:
            text, uncond = prompt_utils.get_text_embeddings(*views).float().chunk(2)
            cond = Conditioning(text, uncond, uncond)
        if text.shape[-1] != (width := self.prior.unet.config.cross_attention_dim):
            raise UserError(
                f"The prompt processor's embeddings are {text.shape[-1]} wide, the prior "
                f"{self.prior.card.name!r} reads {width}. Use prompt_processor_type: "
                "lucid-prompt-processor with the guidance's prior."
            )
        return replace(cond, inverse=self._empty_text().expand(batch, -1, -1))

    def check_prompts(self, prompt_utils: Any) -> None:
        """The prompt must be encoded by this very prior, with the same LoRA and words.

        Raises:
            UserError: it is not; says which keys to set.
        """
        adapters = self.prior.adapters
        if not hasattr(prompt_utils, "embeddings_for"):
            if adapters:
                raise UserError(
                    f"The guidance has {adapters}, of which threestudio's prompt processors know nothing. "
                    "Use system.prompt_processor_type=lucid-prompt-processor, with the same adapters."
                )
            return
        if prompt_utils.prior_path != self.prior.card.path:
            raise UserError(
                f"The prompt is encoded for {prompt_utils.prior_path}, the guidance uses "
                f"{self.prior.card.path}. Set system.prompt_processor.prior to system.guidance.prior."
            )
        if prompt_utils.adapters.fingerprint != adapters.fingerprint:
            raise UserError(
                f"The prompt is encoded with {prompt_utils.adapters}, the guidance has {adapters}. Set "
                "system.prompt_processor.lora to ${system.guidance.lora}, and embeddings likewise."
            )

    def _check_prompts(self, prompt_utils: Any) -> None:
        """What threestudio's prompt processor does not: check the words of a closed vocabulary, once each."""
        prompts = [getattr(prompt_utils, "prompt", ""), *(getattr(prompt_utils, "prompts_vd", None) or ())]
        for prompt in prompts:
            if prompt not in self._checked_prompts:
                check_words(prompt, self.prior.card)
                self._checked_prompts.add(prompt)

    def _empty_text(self) -> Tensor:
        """[1, T, D]: the empty prompt, which threestudio's prompt processors do not provide."""
        if self._empty is None:
            self._empty = self.prior.encode_text([""])
            self.prior.release_text_encoder()
        return self._empty

    @torch.no_grad()
    def _pictures(
        self,
        step: Distillation,
        cond: Conditioning,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
    ) -> dict[str, Any]:
        """Where the prior would take x_t: in one step, at once, and sampled to the end. [n, H, W, 3] each."""
        prior, tau = self.prior, step.tau_t
        n = len(step.x_t)
        n = min(self.cfg.max_items_eval, n) if self.cfg.max_items_eval > 0 else n
        x = step.x_t[:n]
        cond = _first(cond, n)
        path = sampling_path(prior.schedule, prior.card.num_steps)
        path = [tau, *(u for u in path if u < tau)]
        _, model = self.networks(cond)
        output = guided_output(model, x, tau, cond, self.guidance_scale)
        latents = {
            "imgs_noisy": x,
            "imgs_1step": ddim_step(prior.schedule, output, x, tau, path[1]),
            "imgs_1orig": x0_and_eps(prior.schedule, output, x, tau)[0],
            "imgs_final": denoise(model, prior.schedule, x, path, cond, self.guidance_scale),
        }
        level = tau / len(prior.schedule)
        cameras = zip(
            elevation[:n].tolist(), azimuth[:n].tolist(), camera_distances[:n].tolist(), strict=True
        )
        return {
            "bs": n,
            "noise_levels": [level] * n,
            **{name: prior.decode(value).permute(0, 2, 3, 1) for name, value in latents.items()},
            "texts": [f"n{level:.02f}\ne{e:.01f}\na{a:.01f}\nc{d:.02f}" for e, a, d in cameras],
        }

    # --- checks ---------------------------------------------------------------------------------------------

    def _check_config(self) -> None:
        where = "system.guidance."
        check_choice(where + "recipe", self.cfg.recipe, RECIPES)
        check_range(where + "inversion_guidance_scale", self.cfg.inversion_guidance_scale, 0.0)
        check_range(where + "horizontal_flip", self.cfg.horizontal_flip, 0.0, 1.0)
        check_range(where + "noise_offset", self.cfg.noise_offset, 0.0)
        check_range(where + "inversion_eta", self.cfg.inversion_eta, 0.0)
        if self.cfg.grad_scale is not None:
            check_range(where + "grad_scale", self.cfg.grad_scale, 0.0, above=True)
        if self.cfg.max_items_eval != -1:
            check_range(where + "max_items_eval", self.cfg.max_items_eval, 1)
        if self.cfg.grad_clip is not None:
            stock.check_schedule(where + "grad_clip", self.cfg.grad_clip, 0.0)
        if self.cfg.guidance_scale is not None:
            check_range(where + "guidance_scale", self.cfg.guidance_scale, 0.0)

    def _check_settings(self) -> None:
        where, s = "system.guidance.", self.settings
        for name in ("delta_t", "delta_t_start", "delta_s"):
            check_range(where + name, s[name], 1, 999)
        for name in ("xs_inv_steps", "warmup_steps"):
            check_range(where + name, s[name], 0)
        check_range(where + "max_step_percent_end", s["max_step_percent_end"], 0.0, 1.0)
        for name in ("min_step_percent", "max_step_percent"):
            stock.check_schedule(where + name, s[name], 0.0, 1.0)
        low, high, end = (s[n] for n in ("min_step_percent", "max_step_percent", "max_step_percent_end"))
        if not (stock.is_schedule(low) or stock.is_schedule(high)) and not low <= end <= high:
            raise UserError(
                f"{where}min_step_percent <= max_step_percent_end <= max_step_percent must hold, but they "
                f"are {low}, {end} and {high}."
            )


@threestudio.register("lucid-ism-guidance")
class LucidISMGuidance(LucidGuidance):
    """Interval Score Matching: the score at x_t against the unconditional score at x_s."""

    def distill(self, latents, noise, index, cond, delta_t, generator, source=None) -> Distillation:
        unguided, guided = self.networks(cond)
        return ism_step(
            unguided,
            self.prior.schedule,
            latents,
            noise,
            index,
            cond,
            **self._ism_arguments(index, delta_t, generator),
            guided=guided,
        )

    def _ism_arguments(self, index: int, delta_t: int, generator: torch.Generator) -> dict[str, Any]:
        """What the config says of the interval, for `ism_step`."""
        return {
            "delta_t": delta_t,
            "delta_s": self.settings["delta_s"],
            "xs_inv_steps": self.settings["xs_inv_steps"],
            "guidance_scale": self.guidance_scale,
            "grad_scale": self.grad_scale_at(index),
            "inversion_guidance_scale": self.cfg.inversion_guidance_scale,
            "eta": self.cfg.inversion_eta,
            "generator": generator,
            "recipe": self.cfg.recipe,
        }


@threestudio.register("lucid-sds-guidance")
class LucidSDSGuidance(LucidGuidance):
    """Score Distillation Sampling: the score at x_t against the noise in it. No inversion, so no delta_s."""

    keeps_sds_scale = True

    def distill(self, latents, noise, index, cond, delta_t, generator, source=None) -> Distillation:
        _, guided = self.networks(cond)  # its only one
        return sds_step(
            guided,
            self.prior.schedule,
            latents,
            noise,
            index,
            cond,
            delta_t=delta_t,
            guidance_scale=self.guidance_scale,
            grad_scale=self.grad_scale_at(index),
        )


class _GivenGradient(torch.autograd.Function):
    """threestudio's 1/2 |latents - stopped(latents - grad)|^2 / B without its rounding: exactly grad / B."""

    @staticmethod
    def forward(ctx, latents: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return 0.5 * grad.square().sum() / len(grad)

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors
        return upstream * grad / len(grad), None


def _first(cond: Conditioning, n: int) -> Conditioning:
    """The embeddings of the first n views."""
    has_negatives = cond.negatives is not None
    return Conditioning(
        cond.text[:n],
        cond.uncond[:n],
        cond.inverse[:n],
        cond.negatives[:, :n] if has_negatives else None,
        cond.weights[:, :n] if has_negatives else None,
        None if cond.source is None else cond.source[:n],
        None if cond.picture is None else cond.picture[:n],
    )


def twin(draws: torch.Generator) -> torch.Generator:
    """A generator that will draw what this one will."""
    return torch.Generator(draws.device).set_state(draws.get_state())
