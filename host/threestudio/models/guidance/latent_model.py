"""A latent diffusion model's UNet and VAE, of whatever size its files say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threestudio.utils.errors import ModelError
from threestudio.utils.hub import find_model, load_part, loading, quiet

PARTS = ("unet", "vae", "scheduler")
VAES = ("AutoencoderKL", "AutoencoderTiny")


@dataclass
class LatentModel:
    """UNet and VAE, frozen, with the sizes they were trained for."""

    folder: Path
    unet: Any
    vae: Any
    latent_size: int
    """Height and width of the latents; 64 for Stable Diffusion."""
    image_size: int
    """Pixels of the pictures; 512 for Stable Diffusion."""

    @classmethod
    def load(cls, name: str, device: torch.device, dtype: torch.dtype, key: str) -> LatentModel:
        """From a diffusers folder or hub id.

        Args:
            name: folder or hub id.
            key: the config key that names it, for messages.

        Raises:
            ModelError: it is missing, damaged, out of reach, or not such a model.
        """
        import diffusers

        folder = find_model(name, PARTS, key)
        with quiet(), loading(folder / "vae", key):
            config = diffusers.AutoencoderKL.load_config(folder / "vae")
        if config.get("_class_name") not in VAES:
            raise ModelError(
                f"{key}: the VAE of {name} is a {config.get('_class_name')}; supported: {', '.join(VAES)}."
            )
        unet = load_part(folder, "unet", diffusers.UNet2DConditionModel, key, dtype).to(device)
        vae = load_part(folder, "vae", getattr(diffusers, config["_class_name"]), key, dtype).to(device)
        if vae.config.latent_channels != unet.config.in_channels:
            raise ModelError(
                f"{key}: {name} does not fit together: its UNet reads {unet.config.in_channels} channels, "
                f"its VAE writes {vae.config.latent_channels}. (Inpainting models take more.)"
            )
        latent_size = unet.config.sample_size
        return cls(folder, unet, vae, latent_size, latent_size * _downscaling(vae.config))

    def encode(self, imgs: Tensor) -> Tensor:
        """Latents of images [B, 3, H, W] in [0, 1], sampled where the VAE has a spread; differentiable."""
        encoded = self.vae.encode((imgs * 2.0 - 1.0).to(self.vae.dtype))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.sample()
        return (latents * self.vae.config.scaling_factor).to(imgs.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] of latents [B, C, h, w]."""
        scaled = latents / self.vae.config.scaling_factor
        image = self.vae.decode(scaled.to(self.vae.dtype)).sample
        return (image * 0.5 + 0.5).clamp(0, 1).to(latents.dtype)

    def predict(self, latents: Tensor, t: Tensor, embeddings: Tensor) -> Tensor:
        """The UNet's output for noisy latents [N, C, h, w] at timesteps [N] with embeddings [N, T, D]."""
        dtype = self.unet.dtype
        return self.unet(latents.to(dtype), t, encoder_hidden_states=embeddings.to(dtype)).sample.to(
            latents.dtype
        )


def _downscaling(config: Any) -> int:
    """Pixels per latent: each of the VAE's blocks but one halves the picture."""
    blocks = config.get("encoder_block_out_channels") or config.get("block_out_channels")
    return 2 ** (len(blocks) - 1)
