"""``stable-diffusion-prompt-processor``: CLIP's last hidden states."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

import threestudio
from threestudio.models.prompt_processors.base import PromptProcessor, save_embedding


@threestudio.register("stable-diffusion-prompt-processor")
class StableDiffusionPromptProcessor(PromptProcessor):
    """Encodes with the ``tokenizer`` and ``text_encoder`` of a diffusers folder or hub id."""

    @dataclass
    class Config(PromptProcessor.Config):
        pass

    cfg: Config

    @staticmethod
    def spawn_func(pretrained_model_name_or_path: str, prompts: list[str], cache_dir: str) -> None:
        from transformers import AutoTokenizer, CLIPTextModel

        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, subfolder="tokenizer")
        text_encoder = CLIPTextModel.from_pretrained(pretrained_model_name_or_path, subfolder="text_encoder")
        longest = tokenizer.model_max_length
        for prompt in prompts:
            length = len(tokenizer(prompt).input_ids)
            if length > longest:
                threestudio.warn(
                    f"The prompt has {length} tokens; those beyond {longest} are cut: [{prompt}]"
                )
        tokens = tokenizer(
            prompts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            embeddings = text_encoder(tokens.input_ids)[0]
        for prompt, embedding in zip(prompts, embeddings, strict=True):
            save_embedding(embedding, pretrained_model_name_or_path, prompt, cache_dir)
