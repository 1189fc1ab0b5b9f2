"""Personalisation of a prior: LoRA, and words learned by textual inversion.

    lora:        one of, or a list of:  where  |  {path: where, weight: 0.8, trigger: sks}
    embeddings:  one of, or a list of:  where  |  {path: where, token: sks}

`where` is a .safetensors file, a folder that holds one, a hub id, or the name of a folder in PRIOR/lora.

LoRA comes as diffusers saves it, as PEFT does (`adapter_model.safetensors` with `adapter_config.json`; for
both models in subfolders unet and text_encoder), or as kohya's scripts do (lora_unet_..., lora_te_...). It is
read by diffusers and merged into the weights, W + weight alpha / rank B A, so a step costs what it did.

Embeddings are diffusers' (`learned_embeds.safetensors`, the token is the key) or the web UI's (.pt, .bin: read
without running code from them; the token is the name in the file, or the file's name where it holds none).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import UserError, check_range, closest
from . import folder as files
from .cards import Card, is_hub_id

if TYPE_CHECKING:
    from peft import LoraConfig

LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
EMBEDDING_FILES = ("learned_embeds.safetensors", "learned_embeds.bin")
PICKLED = (".pt", ".bin")
MAX_PICKLE = 64 << 20  # bytes; an embedding of 75 vectors for SDXL has 0.4 MB
WHOLE_UNET = ("down_blocks.", "mid_block.", "up_blocks.")  # how its keys begin where no model is named


@dataclass(frozen=True)
class Lora:
    """One LoRA: its files (two where UNet and text encoder lie apart), its weight, the words it taught."""

    name: str
    files: tuple[Path, ...]
    weight: float = 1.0
    trigger: tuple[str, ...] = ()


@dataclass(frozen=True)
class Embedding:
    """A word of one or more vectors, and the file it is from."""

    file: Path
    token: str


@dataclass(frozen=True)
class Adapters:
    """What is added to a prior. Falsy when nothing is."""

    loras: tuple[Lora, ...] = ()
    embeddings: tuple[Embedding, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.loras or self.embeddings)

    def __str__(self) -> str:
        parts = [f"LoRA {lora.name} ({lora.weight:g})" for lora in self.loras]
        parts += [f"word {embedding.token!r} ({embedding.file.name})" for embedding in self.embeddings]
        return ", ".join(parts) or "none"

    @property
    def words(self) -> tuple[str, ...]:
        """The words that they bring, each once."""
        triggers = [word for lora in self.loras for word in lora.trigger]
        return tuple(dict.fromkeys([*triggers, *(embedding.token for embedding in self.embeddings)]))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of files, weights and tokens: changes exactly when what they do may change. "" for none."""
        if not self:
            return ""
        parts = [
            (lora.weight, *map(files.fingerprint_file, lora.files))
            for lora in self.loras
        ]
        parts += [(e.token, files.fingerprint_file(e.file)) for e in self.embeddings]
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def taught(self, card: Card) -> Card:
        """The card of the prior that has them: it knows their words.

        Raises:
            UserError: a token is a word that a closed vocabulary has already.
        """
        if card.vocabulary is None:
            return card
        for embedding in self.embeddings:
            if embedding.token.lower() in card.vocabulary:
                raise UserError(
                    f"{embedding.file}: the prior {card.name!r} knows the word {embedding.token!r} already. "
                    "Call it something else: embeddings={path: ..., token: another}."
                )
        return replace(card, vocabulary=(*card.vocabulary, *self.words))


# --- reading the config -------------------------------------------------------------------------------------


def find_adapters(lora: Any, embeddings: Any, card: Card, *, where: str = "system.guidance.") -> Adapters:
    """The adapters that a config names; checks that the files are there, and reads their tokens.

    Args:
        lora, embeddings: as in the module's docstring; None or empty: none.
        card: of the prior; names are looked up in the folder `lora` beside its weights.
        where: start of the config's keys, for messages.

    Raises:
        UserError: not of that form, a file is missing or damaged, or is no embedding.
    """
    loras = [_lora(entry, card, f"{where}lora") for entry in _entries(lora, f"{where}lora", _LORA_KEYS)]
    found = [
        _embedding(entry, card, f"{where}embeddings")
        for entry in _entries(embeddings, f"{where}embeddings", _EMBEDDING_KEYS)
    ]
    tokens = [embedding.token for embedding in found]
    for token in tokens:
        if tokens.count(token) > 1:
            raise UserError(
                f"{where}embeddings: two are called {token!r}. Call one something else: {{path: ..., token: ...}}."
            )
    return Adapters(tuple(loras), tuple(found))


_LORA_KEYS = ("path", "weight", "trigger")
_EMBEDDING_KEYS = ("path", "token")


def _entries(value: Any, key: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """A config's value as a list of mappings with a path."""
    if value is None or value == "":
        return []
    many = isinstance(value, Sequence) and not isinstance(value, str)
    entries = []
    for entry in value if many else [value]:
        entry = {"path": entry} if isinstance(entry, str | Path) else entry
        form = f"a path, or a mapping of {', '.join(keys)}, or a list of these"
        if not isinstance(entry, Mapping) or not entry.get("path"):
            raise UserError(f"{key} is {value!r}; it must be {form}.")
        for name in entry:
            if name not in keys:
                near = closest(str(name), keys)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise UserError(f"{key} has an unknown key {name!r}.{hint} It takes {form}.")
        entries.append(dict(entry))
    return entries


def _lora(entry: dict[str, Any], card: Card, key: str) -> Lora:
    weight = entry.get("weight", 1.0)
    check_range(f"{key}: weight", weight)
    trigger = entry.get("trigger") or ()
    words = [trigger] if isinstance(trigger, str) else list(trigger)
    words = [part for word in words for part in re.findall(r"[^\s,]+", str(word))]
    path = _locate(str(entry["path"]), card, key)
    chosen = _lora_files(path, key)
    for file in chosen:
        _check_lora(file, key)
    return Lora(Path(str(entry["path"])).stem, chosen, float(weight), tuple(words))


def _embedding(entry: dict[str, Any], card: Card, key: str) -> Embedding:
    path = _locate(str(entry["path"]), card, key)
    file = _in_folder(path, EMBEDDING_FILES, (".safetensors", *PICKLED), key) if path.is_dir() else path
    token = str(entry.get("token") or read_embedding(file)[0])
    if not re.fullmatch(r"[^\s,]+", token):
        raise UserError(
            f"{key}: {file} calls its word {token!r}, but a token has neither spaces nor commas. "
            "Say another: {path: ..., token: ...}."
        )
    return Embedding(file, token)


def _locate(where: str, card: Card, key: str) -> Path:
    """The file or folder that a config's path means."""
    beside = Path(card.path).expanduser() / "lora"
    if re.fullmatch(r"[\w.-]+", where) and (beside / where).is_dir():
        return beside / where
    path = Path(where).expanduser()
    if path.exists():
        return path
    if is_hub_id(where):
        return files.fetch_adapter(where, key)
    names = sorted(p.name for p in beside.iterdir() if p.is_dir()) if beside.is_dir() else []
    near = f" The prior {card.name!r} has: {', '.join(names)}." if names else ""
    raise UserError(f"{key}: there is no {where}. Give a .safetensors file, a folder or a hub id.{near}")


def _lora_files(path: Path, key: str) -> tuple[Path, ...]:
    """The files of a LoRA: one, or PEFT's two."""
    if path.is_file():
        return (path,)
    parts = [path / model / LORA_FILES[1] for model in ("unet", "text_encoder")]
    if any(part.is_file() for part in parts):
        return tuple(part for part in parts if part.is_file())
    return (_in_folder(path, LORA_FILES, (".safetensors",), key),)


def _in_folder(folder: Path, usual: Sequence[str], suffixes: Sequence[str], key: str) -> Path:
    """The file that is meant by its folder: one of the usual names, or the only one of its kind."""
    for name in usual:
        if (folder / name).is_file():
            return folder / name
    found = sorted(p for p in folder.iterdir() if p.suffix in suffixes and p.is_file())
    if len(found) != 1:
        listed = f"{len(found)} files: {', '.join(p.name for p in found[:8])}" if found else "nothing of the kind"
        raise UserError(f"{key}: {folder} holds {listed}. Give the file itself.")
    return found[0]


# --- LoRA ---------------------------------------------------------------------------------------------------


def _check_lora(file: Path, key: str) -> None:
    """The file is safetensors, and its tensors are those of a LoRA that diffusers reads.

    Raises:
        UserError: says what the file is, as far as its keys tell.
    """
    from safetensors import safe_open

    if file.suffix != ".safetensors":
        raise UserError(f"{key}: {file.name} is no .safetensors file; pickled LoRA is not loaded, for it can run code.")
    files.check_safetensors(file, file.parent, next_step="Copy or download it again.")
    with safe_open(file, framework="pt") as content:
        keys = list(content.keys())
    if any("lora" in name.lower() for name in keys):
        if any("dora_scale" in name or "lora_magnitude" in name for name in keys):
            raise UserError(f"{key}: {file} is DoRA, which diffusers does not load. Use a LoRA without it.")
        return
    hint = ""
    if any(name.startswith(("model.diffusion_model.", "first_stage_model.")) for name in keys):
        hint = f" It is a whole checkpoint: system.guidance.prior={file}"
    elif any("hada_" in name or "lokr_" in name for name in keys):
        hint = " It is another kind of adapter (LyCORIS)."
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

    if (settings := file.with_name("adapter_config.json")).is_file() and file.name == LORA_FILES[1]:
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
            with _fitting(file, component, prior):
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
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict

    state, metadata = read_lora(file)
    if strange := [key for key in state if not key.startswith(("unet.", "text_encoder."))]:
        raise ValueError(f"{strange[0]} belongs to no model of Stable Diffusion 1 or 2")
    part = _as_peft(model, component, _of(component, state))
    if not part:
        return False
    settings = _of(component, metadata or {})
    config = LoraConfig(**settings) if settings else _config_of(part)
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


def _config_of(part: Mapping[str, Tensor]) -> LoraConfig:
    """Settings for layers that were saved without: the ranks they have, and alpha the same."""
    from peft import LoraConfig

    ranks = {key.split(".lora_A.")[0]: value.shape[0] for key, value in part.items() if ".lora_A." in key}
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
            module.merge(safe_merge=True, adapter_names=names)
    recurse_remove_peft_layers(model)
    del model.peft_config
    model.requires_grad_(False)


@contextlib.contextmanager
def _fitting(file: Path, component: str, prior: str) -> Iterator[None]:
    """Turns what diffusers, transformers and PEFT raise about a LoRA that does not fit into one message."""
    try:
        yield
    except ImportError as error:
        raise UserError("LoRA needs the package peft: pip install peft") from error
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())[:240]
        raise UserError(
            f"The LoRA {file} does not fit the {component} of the prior {prior!r}: it was made for another base "
            f"model, or is of a kind that diffusers does not load. ({reason})"
        ) from error


# --- embeddings ---------------------------------------------------------------------------------------------


def read_embedding(file: Path) -> tuple[str, Tensor]:
    """The token and its vectors [n, D] of a textual-inversion file.

    Raises:
        UserError: not a file of that kind, damaged, or for another model.
    """
    content = _read_pickled(file) if file.suffix in PICKLED else _read_safe(file)
    if isinstance(content, Tensor):
        token, vectors = file.stem, content
    elif isinstance(content, Mapping) and {"clip_l", "clip_g"} & set(content):
        raise UserError(f"The embedding {file} is for SDXL (clip_l, clip_g); this needs one for SD 1 or 2.")
    elif isinstance(content, Mapping) and isinstance(content.get("string_to_param"), Mapping):  # the web UI's
        token = content.get("name") or file.stem
        vectors = next(iter(content["string_to_param"].values()), None)
    elif isinstance(content, Mapping) and len(content) == 1:
        token, vectors = next(iter(content.items()))
        token = file.stem if token in ("emb_params", "*") else token  # the web UI's in safetensors
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
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UserError(
            f"The embedding {file} cannot be read as plain tensors: it is damaged, or holds code, which is not "
            "run. Use a .safetensors file."
        ) from error


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
        vectors = read_embedding(embedding.file)[1]
        if vectors.shape[1] != width:
            raise UserError(
                f"The embedding {embedding.file} has vectors of width {vectors.shape[1]}, the text encoder of "
                f"the prior {prior!r} takes {width}: it was made for another base model."
            )
        try:
            Loader().load_textual_inversion(
                {embedding.token: vectors}, token=embedding.token, tokenizer=tokenizer, text_encoder=encoder
            )
        except ValueError as error:
            raise UserError(
                f"The embedding {embedding.file} cannot be called {embedding.token!r}: the prior {prior!r} has "
                "that token. Call it something else: {path: ..., token: another}."
            ) from error
    encoder.requires_grad_(False)


def spell_out(prompt: str, tokenizer: Any) -> str:
    """The prompt with a word of several vectors written as its several tokens."""
    from diffusers.loaders import TextualInversionLoaderMixin

    return TextualInversionLoaderMixin().maybe_convert_prompt(prompt, tokenizer)


# --- for configs --------------------------------------------------------------------------------------------


def without_words(prompt: str, words: Iterable[str]) -> str:
    """The prompt without the words that adapters bring, for models that do not have them.

    >>> without_words("a sks mug, front view", ["sks"])
    'a mug, front view'
    """
    for word in words:
        prompt = re.sub(rf"(?<![^\s,]){re.escape(word)}(?![^\s,])\s*", "", prompt, flags=re.IGNORECASE)
    return " ".join(prompt.split())
