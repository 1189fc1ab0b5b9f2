"""Priors of a published architecture with random weights: as slow as the real ones, nothing to download."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from threestudio_lucid.files import write_text
from threestudio_lucid.guidance.cards import find_card

# Stable Diffusion 2.1 base, as the configs in its repository have it
UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
VAE = {
    "sample_size": 512,
    "latent_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.18215,
}
TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
    "projection_dim": 512,
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def sd21_shape(folder: Path) -> Path:
    """A folder in diffusers' format with Stable Diffusion 2.1's shapes (2.5 GB), made if it is not there.

    Its tokenizer is the mini prior's, which has fewer words but as many places (77).
    """
    folder = folder / "sd21-shape"
    if (folder / "card.yaml").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"  # where random numbers are quick
    with torch.device(device):
        parts = {
            "unet": UNet2DConditionModel(**UNET),
            "vae": AutoencoderKL(**VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT)),
        }
    for name, module in parts.items():
        module.half().save_pretrained(folder / name, safe_serialization=True)
    DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    shutil.copytree(Path(find_card("mini").path) / "tokenizer", folder / "tokenizer")
    _set_length(folder / "tokenizer/tokenizer_config.json", TEXT["max_position_embeddings"])
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    card = yaml.safe_dump({"name": "sd21-shape", "path": "."})
    write_text(folder / "card.yaml", card)  # last: it says that the folder is whole
    return folder


def _set_length(file: Path, length: int) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "model_max_length": length}))
