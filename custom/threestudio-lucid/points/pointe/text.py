"""Text vectors by CLIP's text model with its projection (transformers), and a closed list of words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import versions
from ...errors import UserError, closest
from ...guidance.prior import quiet
from ...texts import plain_words

CLIP = "openai/clip-vit-large-patch14"
NEXT_STEP = (
    f"Point-E's is {CLIP} on the hub: `hf download {CLIP}`, or give a folder that holds it "
    "(system.geometry.init_args.text_encoder), or start from something else: system.geometry.init=shape:ball."
)


class TextVectors:
    """Prompts to unit vectors. Its dtype is float32."""

    def __init__(self, tokenizer: Any, model: Any):
        """`tokenizer`: CLIPTokenizer, `model`: CLIPTextModelWithProjection."""
        self.tokenizer, self.model = tokenizer, model.eval().requires_grad_(False)

    @classmethod
    def load(
        cls,
        tokenizer: str | Path,
        model: str | Path,
        device: torch.device | str = "cpu",
        next_step: str = NEXT_STEP,
    ) -> TextVectors:
        """From folders or hub ids; a whole CLIP model will do, its half for pictures is left out.

        Args:
            next_step: what to tell who has none.

        Raises:
            UserError: it is not there, cannot be fetched, or is damaged.
        """
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        local = Path(model).is_dir()
        try:
            with quiet():
                words = CLIPTokenizer.from_pretrained(tokenizer, local_files_only=local)
                encoder = CLIPTextModelWithProjection.from_pretrained(
                    model, use_safetensors=True, local_files_only=local
                )
        except Exception as error:  # tokenizers and safetensors raise bare ones for damaged files
            reason = " ".join(str(error).split())[:160]
            advice = versions.hint("transformers") or next_step
            raise UserError(f"The text encoder {model} cannot be loaded ({reason}). {advice}") from error
        return cls(words, encoder.to(device, torch.float32))

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Vectors [n, D] of length 1; what is too long is cut."""
        ids = self.tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=self.model.config.max_position_embeddings,
            return_tensors="pt",
        ).input_ids
        return F.normalize(self.model(input_ids=ids.to(self.model.device)).text_embeds.float(), dim=-1)


def known_words(prompt: str, vocabulary: Iterable[str], who: str) -> str:
    """The prompt in the form that a closed vocabulary was taught: lower case, commas, nothing else.

    Args:
        who: whose vocabulary it is, for the message.

    Raises:
        UserError: a word is not in the vocabulary; names it, its neighbours, all words, and what to do.
    """
    known = sorted(vocabulary)
    words = plain_words(prompt)
    unknown = [word for word in dict.fromkeys(words) if word not in known and word != ","]
    if unknown or not words:
        near = {word: closest(word, known) for word in unknown}
        hints = [f"{w!r}" + (f" (did you mean {' or '.join(n)}?)" if n else "") for w, n in near.items()]
        listed = textwrap.fill(" ".join(known), 100, initial_indent="  ", subsequent_indent="  ")
        raise UserError(
            f"{who} does not know {', '.join(hints) or 'what an empty prompt asks for'}.\n"
            f"It knows these words and no others:\n{listed}\n"
            "Say it with them, take Point-E's public model, or start from a shape such as shape:ball."
        )
    return " ".join(words).replace(" ,", ",")
