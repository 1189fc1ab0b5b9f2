"""LoRA, W + weight alpha / rank B A (Hu et al. 2021): files in three formats, merged into a model's weights.

diffusers' own (old and new), PEFT's, with `adapter_config.json` beside it, and kohya's scripts' are read by
diffusers, which knows what they call the layers. Layers that a file has and the model has not are an error.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import versions
from ..errors import UserError
from . import folder as files

if TYPE_CHECKING:
    from peft import LoraConfig

    from .adapters import Lora

PEFT_FILE, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
WHOLE_UNET = ("down_blocks.", "mid_block.", "up_blocks.")  # how its keys begin where no model is named


def with_settings(chosen: Iterable[Path]) -> list[Path]:
    """A LoRA's files, and the settings that PEFT keeps beside its own."""
    found = []
    for file in chosen:
        settings = file.with_name(PEFT_SETTINGS)
        found += [file, settings] if file.name == PEFT_FILE and settings.is_file() else [file]
    return found


def check_lora(file: Path, key: str) -> None:
    """The file is safetensors, and its tensors are those of a LoRA that diffusers reads.

    Raises:
        UserError: says what the file is, as far as its keys tell.
    """
    from safetensors import safe_open

    if file.suffix != ".safetensors":
        raise UserError(
            f"{key}: {file.name} is no .safetensors file; pickled LoRA is not loaded, for it can run code."
        )
    files.check_safetensors(file, file.parent, next_step="Copy or download it again.")
    with safe_open(file, framework="pt") as content:
        keys = list(content.keys())
    for mark, kind in {
        "dora_scale": "DoRA",
        "lora_magnitude": "DoRA",
        "hada_": "LoHa",
        "lokr_": "LoKr",
    }.items():
        if any(mark in name for name in keys):
            raise UserError(f"{key}: {file} is {kind}, which is not loaded here. Use a plain LoRA.")
    if any("lora" in name.lower() for name in keys):
        return
    hint = ""
    if any(name.startswith(("model.diffusion_model.", "first_stage_model.")) for name in keys):
        hint = f" It is a whole checkpoint: system.guidance.prior={file}"
    elif len(keys) <= 2:
        hint = f" It may be an embedding: system.guidance.embeddings={file}"
    raise UserError(f"{key}: {file} is no LoRA: none of its {len(keys)} tensors is one's ({keys[:1]}).{hint}")


def read_lora(file: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """A LoRA's tensors by diffusers' names, and the settings that were saved with it, if any.

    Keys begin with the model, `unet.` or `text_encoder.`, in both. kohya's alphas are put into B, as
    alpha / rank: diffusers 0.42 loses those of a text encoder when they differ.

    Raises:
        UserError: diffusers does not know its keys.
    """
    from diffusers import StableDiffusionPipeline

    if (settings := file.with_name(PEFT_SETTINGS)).is_file() and file.name == PEFT_FILE:
        return _read_peft(file, settings)
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        str(file.parent),
        weight_name=file.name,
        use_safetensors=True,
        local_files_only=True,
        return_lora_metadata=True,
    )
    if all(key.startswith(WHOLE_UNET) for key in state):  # saved from the UNet alone
        state = {f"unet.{key}": value for key, value in state.items()}
        metadata = metadata and {f"unet.{key}": value for key, value in metadata.items()}
    for name, alpha in (alphas or {}).items():
        module = name.removesuffix(".alpha")  # or, of attention, the whole name of A
        down = module if module in state else f"{module}.lora.down.weight"
        up = down.replace(".down.", ".up.")
        state[up] = state[up].float() * (alpha / state[down].shape[0])
    return state, metadata or None


def _read_peft(file: Path, settings: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As PEFT saves one model's: keys that begin with base_model.model, settings beside it."""
    from peft import LoraConfig
    from safetensors.torch import load_file

    state = {key.removeprefix("base_model.model."): value for key, value in load_file(file).items()}
    model = "unet" if any(key.startswith(WHOLE_UNET) for key in state) else "text_encoder"
    config = LoraConfig.from_peft_type(**json.loads(settings.read_text(encoding="utf-8"))).to_dict()
    return (
        {f"{model}.{key}": value for key, value in state.items()},
        {f"{model}.{key}": value for key, value in config.items()},
    )


def merge_loras(model: Any, component: str, loras: Iterable[Lora], prior: str) -> None:
    """Adds to the weights of a UNet or text encoder, in place, what each LoRA has for it.

    Args:
        model: UNet2DConditionModel or CLIPTextModel; float32, so that the sum is rounded once.
        component: "unet" or "text_encoder".
        prior: its name, for messages.

    Raises:
        UserError: a LoRA is for another base model, or has tensors for something that the model has not.
    """
    names, weights = [], []
    for lora in loras:
        for file in lora.files:
            with _fitting(file, component, prior), warnings.catch_warnings():
                # PEFT's, of a second adapter and of settings it does not know
                warnings.simplefilter("ignore")
                if _add(model, component, file, name := f"lora_{len(names)}"):
                    names.append(name)
                    weights.append(lora.weight)
    if names:
        _merge(model, names, weights)


def _add(model: Any, component: str, file: Path, name: str) -> bool:
    """One file's layers as an adapter of the model; False where it has none for it.

    By PEFT alone, which treats both models alike: what diffusers 0.42 makes of a text encoder's LoRA depends
    on which of its layers are there.
    """
    from peft import get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict

    state, metadata = read_lora(file)
    if strange := [key for key in state if not key.startswith(("unet.", "text_encoder."))]:
        raise ValueError(f"{strange[0]} belongs to no model of Stable Diffusion 1 or 2")
    part = _as_peft(model, component, _of(component, state))
    if not part:
        return False
    if not all(value.isfinite().all() for value in part.values()):
        raise ValueError("the file is damaged: not all of its numbers are finite")
    config = _config_of(part, _of(component, metadata or {}))
    inject_adapter_in_model(config, model, adapter_name=name)
    set_peft_model_state_dict(model, part, adapter_name=name)
    loaded = get_peft_model_state_dict(model, adapter_name=name)
    for key in part:
        if key not in loaded:
            raise ValueError(f"it changes {key.split('.lora')[0]}, which this model has not")
    return True


def _of(component: str, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """What belongs to a model, without its name."""
    start = f"{component}."
    return {key.removeprefix(start): value for key, value in mapping.items() if key.startswith(start)}


def _as_peft(model: Any, component: str, part: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one model under PEFT's names, by diffusers' own conversion."""
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
    from diffusers.utils.state_dict_utils import StateDictType

    if component == "unet":
        return convert_unet_state_dict_to_peft(part)
    part = convert_state_dict_to_peft(part, original_type=StateDictType.DIFFUSERS_OLD)
    start = "text_model." if hasattr(model, "text_model") else ""  # flat in transformers 5
    return {start + key.removeprefix("text_model."): value for key, value in part.items()}


def _config_of(part: Mapping[str, Tensor], settings: Mapping[str, Any]) -> LoraConfig:
    """Settings for the layers of a file: those saved with it, or the ranks they have and alpha the same."""
    from peft import LoraConfig

    ranks = {key.split(".lora_A.")[0]: value.shape[0] for key, value in part.items() if ".lora_A." in key}
    if settings:
        return LoraConfig(**{**settings, "target_modules": list(ranks)})
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{module}": rank for module, rank in ranks.items() if rank != usual}
    return LoraConfig(
        r=usual, lora_alpha=usual, target_modules=list(ranks), rank_pattern=others, alpha_pattern=dict(others)
    )


def _merge(model: Any, names: list[str], weights: list[float]) -> None:
    """Adds adapters to the weights that they change, and takes them off."""
    from diffusers.utils import recurse_remove_peft_layers, set_weights_and_activate_adapters
    from peft.tuners.tuners_utils import BaseTunerLayer

    set_weights_and_activate_adapters(model, names, weights)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge(adapter_names=names)
    recurse_remove_peft_layers(model)
    del model.peft_config
    model.requires_grad_(False)


@contextlib.contextmanager
def _fitting(file: Path, component: str, prior: str) -> Iterator[None]:
    """Turns what diffusers, transformers and PEFT raise about a LoRA that does not fit into one message."""
    try:
        yield
    except ImportError as error:
        raise versions.needs("LoRA", "diffusers", "transformers", "peft") from error
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())[:240]
        raise UserError(
            f"The LoRA {file} does not fit the {component} of the prior {prior!r}: it was made for another "
            f"base model, or is of a kind that diffusers does not load. ({reason})"
        ) from error
