"""Words learned by textual inversion (Gal et al. 2022): a token, and its vectors in the encoder's table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..damaged import reading
from ..errors import UserError
from . import folder as files
from .lora_files import read_bundled

if TYPE_CHECKING:
    from .adapters import Embedding

PICKLED = (".pt", ".bin")
MAX_PICKLE = 64 << 20  # bytes; an embedding of 75 vectors for SDXL has 0.6 MB


def read_embedding(file: Path, bundled: str = "") -> tuple[str, Tensor]:
    """The token and its vectors [n, D] of a textual-inversion file.

    Args:
        bundled: the word's name, if the file is a LoRA's that has it in it.

    Raises:
        UserError: not a file of that kind, damaged, or for another model.
    """
    with reading(f"The embedding {file}", "plain tensors", "Use a .safetensors file, or download it again."):
        if bundled:
            return bundled, _understood(file, read_bundled(file, bundled))[1]
        return _understood(file, _read_pickled(file) if file.suffix in PICKLED else _read_safe(file))


def _understood(file: Path, content: Any) -> tuple[str, Tensor]:
    """Token and vectors from what a file holds, see `read_embedding`."""
    if isinstance(content, Tensor):
        token, vectors = file.stem, content
    elif isinstance(content, Mapping) and "clip_g" in content:
        raise UserError(f"The embedding {file} is for SDXL (clip_g); this needs one for SD 1 or 2.")
    elif isinstance(content, Mapping) and isinstance(content.get("string_to_param"), Mapping):  # the web UI's
        token = content.get("name") or file.stem
        vectors = next(iter(content["string_to_param"].values()), None)
    elif isinstance(content, Mapping) and len(content) == 1:
        token, vectors = next(iter(content.items()))
        # the web UI's in safetensors, and what those call it who know SDXL's
        token = file.stem if token in ("emb_params", "*", "clip_l") else token
    else:
        token, vectors = "", None
    if not isinstance(vectors, Tensor) or vectors.ndim not in (1, 2) or not vectors.numel():
        raise UserError(
            f"The embedding {file} is no textual inversion: it must hold one token with its vectors. A LoRA "
            f"goes to system.guidance.lora."
        )
    if not vectors.isfinite().all():
        raise UserError(f"The embedding {file} is damaged: not all of its numbers are finite.")
    return str(token), vectors.detach().float().reshape(-1, vectors.shape[-1])


def _read_safe(file: Path) -> Any:
    from safetensors.torch import load_file

    if file.suffix != ".safetensors":
        raise UserError(f"The embedding {file} must be .safetensors, .pt or .bin.")
    files.check_safetensors(file, file.parent, next_step="Copy or download it again.")
    return load_file(file)


def _read_pickled(file: Path) -> Any:
    if file.stat().st_size > MAX_PICKLE:
        raise UserError(f"The embedding {file} has {file.stat().st_size:,} bytes: that is none.")
    with torch.serialization.safe_globals(list(_STAND_INS)):
        content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, dict) and isinstance(content.get("string_to_param"), _ParameterDict):
        content["string_to_param"] = content["string_to_param"].parameters()
    return content


class _ParameterDict:
    """In place of torch's, which old files keep their vectors in: holds what is stored, does nothing."""

    def parameters(self) -> dict[str, Any]:
        stored = vars(self)
        return stored.get("_parameters") or {key: stored.get(key) for key in stored.get("_keys", ())}


_STAND_INS = (
    (_ParameterDict, "torch.nn.modules.container.ParameterDict"),
    (set, "__builtin__.set"),
)


def add_words(tokenizer: Any, encoder: Any, embeddings: Iterable[Embedding], prior: str) -> None:
    """Adds each embedding's token to the tokenizer, and its vectors to the encoder's table, in place.

    Raises:
        UserError: its width is another model's, or the tokenizer has the token already.
    """
    from diffusers.loaders import TextualInversionLoaderMixin

    class Loader(TextualInversionLoaderMixin):
        hf_device_map, components = None, {}

    width = encoder.get_input_embeddings().weight.shape[1]
    for embedding in embeddings:
        vectors = read_embedding(embedding.file, embedding.bundled)[1]
        if vectors.shape[1] != width:
            raise UserError(
                f"The embedding {embedding.file} has vectors of width {vectors.shape[1]}, the text encoder "
                f"of the prior {prior!r} takes {width}: it was made for another base model."
            )
        try:
            Loader().load_textual_inversion(
                {embedding.token: vectors}, token=embedding.token, tokenizer=tokenizer, text_encoder=encoder
            )
        except ValueError as error:
            raise UserError(
                f"The embedding {embedding.file} cannot be called {embedding.token!r}: the prior {prior!r} "
                f"has that token. {embedding.another_name}"
            ) from error
    encoder.requires_grad_(False)


def spell_out(prompt: str, tokenizer: Any) -> str:
    """The prompt with a word of several vectors written as its several tokens."""
    from diffusers.loaders import TextualInversionLoaderMixin

    return TextualInversionLoaderMixin().maybe_convert_prompt(prompt, tokenizer)
