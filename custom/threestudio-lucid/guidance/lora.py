"""LoRA, W + weight alpha / rank B A (Hu et al. 2021), merged into a model's weights.

Beside B A, files hold its relatives that are sums, too: a kernel between A and B (LyCORIS' CP), whole
differences of weights and biases (LyCORIS' full and norm), biases and layers trained as they are (PEFT). See
`lora_files` for the formats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .lora_files import Layer, plain, read_lora

if TYPE_CHECKING:
    from .adapters import Lora


@torch.no_grad()
def merge_loras(model: nn.Module, component: str, loras: Iterable[Lora], prior: str) -> None:
    """Adds to the weights of a UNet or text encoder, in place, what each LoRA has for it.

    Args:
        model: UNet2DConditionModel or CLIPTextModel; float32, so that the sum is rounded once.
        component: "unet" or "text_encoder".
        prior: its name, for messages.

    Raises:
        UserError: a LoRA is for another base model, has tensors for something that the model has not, or is
            damaged.
    """
    names = layer_names(model)
    for lora in loras:
        for file in lora.files:
            try:
                for layer in read_lora(file, component):
                    _add(names, layer, lora.weight)
            except UserError:
                raise
            except ValueError as error:
                raise UserError(
                    f"The LoRA {file} does not fit the {component} of the prior {prior!r}: {error}."
                ) from error


def _add(names: dict[str, nn.Module], layer: Layer, weight: float) -> None:
    """Adds one layer's change, times the weight.

    Raises:
        ValueError: the model has no such layer, or one of another size; numbers are not finite.
    """
    module = names.get(plain(layer.name))
    if module is None:
        deep = re.search(r"transformer_blocks[._][1-9]", layer.name)
        raise ValueError(f"it changes {layer.name}, which this model has not{', but SDXL' if deep else ''}")
    for name, change in changes(layer, module):
        parameter = getattr(module, name, None)
        if parameter is None:
            raise ValueError(f"it changes the {name} of {layer.name}, which has none in this model")
        if not _same_but_for_ones(change.shape, parameter.shape):
            raise ValueError(
                f"it was made for another base model. Its {layer.name} has a {name} of "
                f"{_size(change.shape)}, this model's is {_size(parameter.shape)}"
            )
        change = (weight * change).view_as(parameter)
        if not change.isfinite().all():
            raise ValueError(
                f"the file is damaged, or its weight too large: not all numbers of {layer.name} are finite"
            )
        parameter += change.to(parameter.device)


def changes(layer: Layer, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What is added to a layer's parameters: their names and the differences, before the LoRA's weight.

    Parts of a layer are, with r for the rank and [...] a kernel's size or nothing:

        down, mid, up            A [r, in, ...], C [r, r, ...], B [out, r, 1...]: weight + scale B (C) A
        down table, up table     A [r, rows], B [width, r] of an embedding: weight + scale (B A)^T
        up bias                  [out], of B: bias + scale of it
        weight added, bias added differences
        weight, bias             new values

    Raises:
        ValueError: parts are missing or do not fit together.
    """
    parts = layer.parts
    if "down" in parts or "up" in parts or "mid" in parts:
        yield "weight", layer.scale * _product(layer, "down", "up")
    if "down table" in parts or "up table" in parts:
        yield "weight", layer.scale * _product(layer, "down table", "up table").T
    if "up bias" in parts:
        yield "bias", layer.scale * parts["up bias"]
    for name in ("weight", "bias"):
        if f"{name} added" in parts:
            yield name, parts[f"{name} added"]
        now = getattr(module, name, None)
        if name in parts and now is not None:
            new = parts[name]
            yield name, new - now.to(new.device) if new.shape == now.shape else new


def _product(layer: Layer, down: str, up: str) -> Tensor:
    """B A, or of CP B C A, with C's kernel: [out, in, ...].

    Raises:
        ValueError: one of them is missing, or their ranks differ.
    """
    if missing := [name for name in (down, up) if name not in layer.parts]:
        raise ValueError(f"the file is damaged: {layer.name} lacks its {missing[0]} part")
    a, b, c = layer.parts[down], layer.parts[up], layer.parts.get("mid")
    if min(a.ndim, b.ndim) < 2 or b[0].numel() != len(a):
        raise ValueError(
            f"the file is damaged: the parts of {layer.name} are {_size(a.shape)} and {_size(b.shape)}, "
            "which have no common rank"
        )
    b = b.flatten(1)
    if c is None:
        return torch.tensordot(b, a, dims=1)
    if c.ndim < 3 or c.shape[:2] != (len(a), len(a)) or a[0, 0].numel() != 1:
        raise ValueError(f"the file is damaged: the mid part of {layer.name} is {_size(c.shape)}")
    return torch.einsum("op,pq...,qi->oi...", b, c, a.flatten(1))


def _same_but_for_ones(shape: torch.Size, wanted: torch.Size) -> bool:
    """A 1x1 convolution's weight is a linear layer's: base models differ in which of them they have."""
    return _without_ones(shape) == _without_ones(wanted)


def _without_ones(shape: torch.Size) -> list[int]:
    """Without what a kernel of 1x1 has at the end."""
    kernel = list(shape[2:])
    return [*shape[:2], *kernel] if any(n != 1 for n in kernel) else list(shape[:2])


def _size(shape: torch.Size) -> str:
    return " x ".join(map(str, shape)) or "one number"


# --- what files may call a model's layers -------------------------------------------------------------------


def layer_names(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that have weights, by all that files may call them, as `lora_files.plain` writes it."""
    found = {}
    blocks = _original_blocks(model)
    for name, module in model.named_modules():
        if getattr(module, "weight", None) is None:
            continue
        usual = plain(name)
        others = [re.sub(r"_to_out_0$", "_to_out", usual)]  # diffusers before PEFT
        if "self_attn" in usual:
            others.append(re.sub(r"_(q|k|v|out)_proj$", r"_to_\1", usual))
        others += [plain(_original_name(name, blocks))] if blocks else []
        for other in (usual, *others):
            found.setdefault(other, module)
    return found


# A UNet's layers in the first release of Stable Diffusion, whose names some trainers keep.
_ORIGINAL_PARTS = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "norm1": "in_layers.0",
    "norm2": "out_layers.0",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ORIGINAL_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "conv_norm_out": "out.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}


def _original_blocks(model: Any) -> dict[str, str]:
    """Blocks of a UNet, by their names, and what they were called first; empty for other models."""
    layers = getattr(getattr(model, "config", None), "layers_per_block", None)
    if not isinstance(layers, int) or not hasattr(model, "down_blocks"):
        return {}
    found = {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    found |= {"mid_block.resnets.1": "middle_block.2"}
    for side, first, each in (("down", 1, layers), ("up", 0, layers + 1)):
        start = {"down": "input", "up": "output"}[side]
        for b, block in enumerate(getattr(model, f"{side}_blocks")):
            for i in range(each):
                at = f"{start}_blocks.{first + b * (layers + 1) + i}"
                found[f"{side}_blocks.{b}.resnets.{i}"] = f"{at}.0"
                found[f"{side}_blocks.{b}.attentions.{i}"] = f"{at}.1"
            if side == "down":
                found[f"down_blocks.{b}.downsamplers.0.conv"] = f"input_blocks.{(b + 1) * (layers + 1)}.0.op"
            else:  # in the block of the last layer, behind its attention
                last = 2 if getattr(block, "attentions", None) else 1
                found[f"up_blocks.{b}.upsamplers.0.conv"] = f"{at}.{last}.conv"
    return found


def _original_name(name: str, blocks: dict[str, str]) -> str:
    if name in _ORIGINAL_ENDS or name in blocks:
        return _ORIGINAL_ENDS.get(name) or blocks[name]
    found = re.match(r"((?:(?:down|up)_blocks\.\d+|mid_block)\.(resnets|attentions)\.\d+)\.(.+)", name)
    if not found or found[1] not in blocks:
        return name
    part = _ORIGINAL_PARTS.get(found[3], found[3]) if found[2] == "resnets" else found[3]
    return f"{blocks[found[1]]}.{part}"
