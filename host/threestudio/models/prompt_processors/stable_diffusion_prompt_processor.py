"""``stable-diffusion-prompt-processor``: CLIP's last hidden states."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

import threestudio
from threestudio.models.prompt_processors.base import PromptProcessor, fit_prompts, save_embedding
from threestudio.utils.hub import find_model, load_part, loading, quiet

KEY = "system.prompt_processor.pretrained_model_name_or_path"
PARTS = ("tokenizer", "text_encoder")


@threestudio.register("stable-diffusion-prompt-processor")
class StableDiffusionPromptProcessor(PromptProcessor):
    """Encodes with the ``tokenizer`` and ``text_encoder`` of a diffusers folder or hub id."""

    @dataclass
    class Config(PromptProcessor.Config):
        pass

    cfg: Config

    def check_model(self) -> None:
        """Fetches the model too, so that the process that encodes finds it.

        Raises:
            ModelError: it is missing, incomplete, or out of reach.
        """
        find_model(self.cfg.pretrained_model_name_or_path, PARTS, KEY)

    @staticmethod
    def spawn_func(pretrained_model_name_or_path: str, prompts: list[str], cache_dir: str) -> None:
        from transformers import AutoTokenizer, CLIPTextModel

        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        folder = find_model(pretrained_model_name_or_path, PARTS, KEY)
        with quiet(), loading(folder / "tokenizer", KEY):
            tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        text_encoder = load_part(folder, "text_encoder", CLIPTextModel, KEY)
        # a tokenizer without a config of its own would not know its model's limit
        longest = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
        with quiet():  # transformers would say which lengths were tried
            texts = fit_prompts(prompts, lambda text: len(tokenizer.tokenize(text)) <= longest - 2)
        tokens = tokenizer(
            texts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            embeddings = text_encoder(tokens.input_ids)[0]
        for prompt, embedding in zip(prompts, embeddings, strict=True):
            save_embedding(embedding, pretrained_model_name_or_path, prompt, cache_dir)
