"""The way back: a guidance block of ours, read by threestudio's own guidances.

So that `system.guidance_type=stable-diffusion-guidance` alone turns a config of ours into one of
threestudio's SDS, with the same prior, timesteps and strength:

    prior                   is pretrained_model_name_or_path
    dtype                   float32: half_precision_weights false; float16: true
    guidance_scale          g in uncond + g (text - uncond), theirs is g - 1
    max_step_percent_end, warmup_steps
                            the schedule [0, max_step_percent, max_step_percent_end, warmup_steps] of
                            max_step_percent
    grad_scale              a factor on loss.lambda_sds
    the rest                belongs to ISM, and is named in the log and left out

Keys that both have stay as they are; null leaves theirs its default.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .. import versions
from ..errors import UserError, check_range
from .cards import find_card
from .folder import downscaling, read_config


def translate(
    block: Mapping[str, Any], own: Collection[str], theirs: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """A block of ours for a class with the keys `theirs`.

    Args:
        own: the keys of our classes. Keys that neither has are kept, for the class to refuse.

    Returns:
        the block, and what was left out.

    Raises:
        UserError: the block has LoRA, learned words or a ControlNet, which threestudio's classes do not load.
    """
    for key in ("lora", "embeddings", "control"):
        if block.get(key) and key not in theirs:
            raise UserError(
                f"system.guidance.{key} is not loaded by threestudio's own guidances. Use lucid-ism-guidance "
                "or, for SDS, lucid-sds-guidance."
            )
    kept = {k: v for k, v in block.items() if (k in theirs and v is not None) or k not in {*own, *theirs}}
    moved = {}
    if "prior" in block and "pretrained_model_name_or_path" in theirs:
        moved["pretrained_model_name_or_path"] = path = find_card(block["prior"]).path
        _check_diffusers(Path(path))
    if block.get("dtype") in ("float32", "float16") and "half_precision_weights" in theirs:
        moved["half_precision_weights"] = block["dtype"] == "float16"
    if kept.get("guidance_scale") is not None:
        check_range("system.guidance.guidance_scale", kept["guidance_scale"], 0.0)
        moved["guidance_scale"] = max(kept["guidance_scale"] - 1.0, 0.0)
    if "max_step_percent" in theirs and (timesteps := _highest_timestep(block)) is not None:
        moved["max_step_percent"] = timesteps
    translated = {"prior", "dtype", "max_step_percent_end", "warmup_steps", "grad_scale", "seed"}
    left_out = [
        key for key, value in block.items() if key in own and key not in {*theirs, *translated} and value
    ]
    return {**kept, **moved}, left_out


def _check_diffusers(prior: Path) -> None:
    """UserError where the prior is a folder whose VAE is of a class that this diffusers has not."""
    import diffusers

    if not (prior / "vae" / "config.json").is_file():
        return
    name = read_config(prior, "vae").get("_class_name", "AutoencoderKL")
    if not hasattr(diffusers, name):
        raise versions.needs(f"The prior {prior.name!r}, whose VAE is an {name},", "diffusers")


@dataclass(frozen=True)
class Encoded:
    """What an AutoencoderTiny encodes [B, C, h, w], and as a posterior without any spread."""

    latents: Tensor

    @property
    def latent_dist(self) -> Encoded:
        return self

    def sample(self, generator: Any = None) -> Tensor:
        return self.latents

    mode = sample


def fit_autoencoder(vae: Any, latent_size: int) -> None:
    """Makes the VAE of threestudio's own guidance encode as that reads it.

    threestudio brings all pictures to 512 pixels and asks for a posterior, as of Stable Diffusion's VAE. A
    prior of smaller pictures gets them at its own size, and an AutoencoderTiny's latents stand for their
    posterior.

    Args:
        vae: AutoencoderKL or AutoencoderTiny, changed in place.
        latent_size: height and width of the latents that the UNet was trained on.
    """
    encode, size = vae.encode, latent_size * downscaling(vae.config)

    def encode_fitting(images: Tensor, *args: Any, **kwargs: Any) -> Any:
        if images.shape[-1] > size:
            # in float32, for a CPU does not shrink halves
            small = F.interpolate(
                images.float(), (size, size), mode="bilinear", align_corners=False, antialias=True
            )
            images = small.to(images)
        encoded = encode(images, *args, **kwargs)
        return Encoded(encoded.latents) if hasattr(encoded, "latents") else encoded

    vae.encode = encode_fitting


def _highest_timestep(block: Mapping[str, Any]) -> list[float] | None:
    """max_step_percent as a schedule that ends with the warm-up, where the block says where it ends."""
    high, end = block.get("max_step_percent"), block.get("max_step_percent_end")
    steps = block.get("warmup_steps")
    if end is None or not steps or not (high is None or isinstance(high, int | float)):
        return None
    return [0, float(high if high is not None else 0.98), float(end), int(steps)]


def weigh(weight: Any, factor: float) -> Any:
    """A weight of a loss times `factor`: a number, or a schedule's values.

    >>> weigh(4, 0.5), weigh([0, 1.0, 3.0, 100], 0.5), weigh([1.0, 3.0, 100], 0.5)
    (2.0, [0, 0.5, 1.5, 100], [0.5, 1.5, 100])
    """
    if isinstance(weight, int | float):
        return weight * factor
    entries = list(weight)
    values = {0, 1} if len(entries) == 3 else {1, *range(2, len(entries), 2)}
    return [entry * factor if i in values else entry for i, entry in enumerate(entries)]
