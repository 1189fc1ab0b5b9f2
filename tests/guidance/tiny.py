"""Tiny real diffusion models in diffusers' folder format: random weights, saved as anyone's would be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz,.'0123456789"


def save_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer of single letters, as the files that `CLIPTokenizer.from_pretrained` reads."""
    folder.mkdir(parents=True)
    symbols = [*LETTERS, *(c + "</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({s: i for i, s in enumerate(symbols)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 40,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def make_vae(kind: str):
    from diffusers import AutoencoderKL, AutoencoderTiny

    if kind == "tiny":
        return AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
            latent_channels=4,
        )
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.18215,
        sample_size=32,
    )


def make_unet(width: int = 12, channels: int = 4):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def make_text_encoder(width: int = 12):
    from transformers import CLIPTextConfig, CLIPTextModel

    end = 2 * len(LETTERS) + 1
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=end + 1,
            hidden_size=width,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=40,
            bos_token_id=end - 1,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def save_prior(folder: Path, vae: str = "kl", prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """A whole prior: 32 pixels, latents 4 x 8 x 8."""
    from diffusers import DDIMScheduler

    torch.manual_seed(seed)
    make_vae(vae).save_pretrained(folder / "vae")
    make_unet().save_pretrained(folder / "unet")
    make_text_encoder().save_pretrained(folder / "text_encoder")
    save_tokenizer(folder / "tokenizer")
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.36.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny" if vae == "tiny" else "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


# --- the same model as one file, in the layout of the original Stable Diffusion checkpoints

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _unet_key(key: str) -> str:
    start = next(name for name in _UNET if key.startswith(name + "."))
    rest = key[len(start) + 1 :]
    if ".resnets." in start:
        part = next(name for name in _RESNET if rest.startswith(name + "."))
        rest = _RESNET[part] + rest[len(part) :]
    return f"model.diffusion_model.{_UNET[start]}.{rest}"


def _vae_key(key: str, blocks: int = 3) -> str:
    key = re.sub(r"encoder\.down_blocks\.(\d)\.resnets\.", r"encoder.down.\1.block.", key)
    key = re.sub(r"encoder\.down_blocks\.(\d)\.downsamplers\.0\.", r"encoder.down.\1.downsample.", key)
    turned = re.match(r"decoder\.up_blocks\.(\d)\.(resnets|upsamplers\.0)\.(.*)", key)
    if turned:
        part = {"resnets": "block", "upsamplers.0": "upsample"}[turned[2]]
        key = f"decoder.up.{blocks - 1 - int(turned[1])}.{part}.{turned[3]}"
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    if "mid_block.attentions.0." in key:
        where, part = key.split("mid_block.attentions.0.")
        name = next(n for n in _VAE_ATTENTION if part.startswith(n + "."))
        key = f"{where}mid.attn_1.{_VAE_ATTENTION[name]}{part[len(name) :]}"
    key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    return f"first_stage_model.{key}"


def save_single_file(folder: Path, file: Path) -> Path:
    """The prior in `folder` as one .safetensors file."""
    from safetensors.torch import load_file, save_file

    single = {}
    for key, value in load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").items():
        single[_unet_key(key)] = value
    for key, value in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors").items():
        is_linear = "mid_block.attentions" in key and value.ndim == 2
        single[_vae_key(key)] = value[:, :, None, None].contiguous() if is_linear else value
    for key, value in load_file(folder / "text_encoder" / "model.safetensors").items():
        single["cond_stage_model.transformer.text_model." + key.removeprefix("text_model.")] = value
    save_file(single, file)
    return file
