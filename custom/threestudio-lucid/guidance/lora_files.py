"""What LoRA files hold: the names that trainers give the layers, and the settings that they keep beside them.

A key is a model, a layer and a part of its change. Trainers spell each in their own way, and mix the ways:

    unet.mid_block.attentions.0. ... .to_q.lora_A.weight                    diffusers, PEFT
    base_model.model.mid_block. ... .to_q.lora_A.default.weight             PEFT, with an adapter's name
    unet.mid_block. ... .attn1.processor.to_q_lora.down.weight              diffusers before PEFT
    text_encoder.text_model. ... .q_proj.lora_linear_layer.down.weight      the same, of a text encoder
    lora_unet_mid_block_attentions_0_ ... _to_q.lora_down.weight            kohya's scripts, LyCORIS
    diffusion_model.input_blocks.4.1. ... .to_q.lora_down.weight            by the names of the first release

So layers are looked up by their names with "_" for ".", see `plain`.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..damaged import reading
from ..errors import UserError
from . import folder as files
from .cards import announce

PEFT_FILE, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
MAX_SETTINGS = 1 << 20  # bytes of adapter_config.json
AGAIN = "Copy or download it again."

# --- keys ---------------------------------------------------------------------------------------------------

_PART = re.compile(
    r"""(?P<layer>.+?)(?:
      [._]lora(?:_linear_layer)? \.(?P<old>down|up)\.weight             # diffusers before PEFT
    | \.lora_(?P<kohya>down|up|mid)\.weight                             # kohya, LyCORIS
    | \.lora_(?P<table>embedding_)?(?P<peft>[AB])
        (?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?:\.(?P<of>weight|bias))?
    | (?:[._]lora(?:_linear_layer|_[AB]|_down|_up)?)?\.(?P<alpha>alpha)
    | \.(?P<other>diff|diff_b|w_norm|b_norm)
    )""",
    re.VERBOSE,
)
_WHOLE = re.compile(r"(?P<layer>.+?)(?:\.base_layer)?\.(?P<part>weight|bias)")  # PEFT's bias, modules_to_save
_PEFT_START = re.compile(r"((?:unet|text_encoder)\.)?base_model\.model\.")
_OTHERS = {"diff": "weight added", "w_norm": "weight added", "diff_b": "bias added", "b_norm": "bias added"}
_SIDES = {"A": "down", "B": "up", "down": "down", "up": "up", "mid": "mid"}
_MODELS = {
    "unet": re.compile(r"unet\.|lora_unet_|lycoris_unet_|(?:model\.)?diffusion_model\."),
    "text_encoder": re.compile(r"text_encoder\.|lora_te_|lycoris_te_|clip_l\.(?:transformer\.)?"),
}
# How the layers of each begin, where no model is named.
_LAYERS = {
    "unet": re.compile(
        r"(?:down_blocks|mid_block|up_blocks|conv_in|conv_out|conv_norm_out|time_embedding"
        r"|input_blocks|middle_block|output_blocks|time_embed|out)(?:[._]|$)"
    ),
    "text_encoder": re.compile(r"(?:text_model|encoder|embeddings|final_layer_norm)(?:[._]|$)"),
}
_BUNDLED = re.compile(r"bundle_emb\.(?P<token>[^.]+)\.(?P<rest>.+)")


class Key(NamedTuple):
    """What a key means: a part of the change of a layer, whose name is the file's, of one of the models."""

    model: str
    layer: str
    part: str
    adapter: str


def parse_key(key: str) -> Key | None:
    """
    >>> parse_key("lora_unet_conv_in.lora_down.weight")
    Key(model='unet', layer='conv_in', part='down', adapter='')
    >>> parse_key("base_model.model.text_model.final_layer_norm.bias")
    Key(model='text_encoder', layer='text_model.final_layer_norm', part='bias', adapter='')
    """
    bare = _PEFT_START.sub(r"\1", re.sub(r"^lycoris_(?!unet_|te_)", "", key))
    found = _PART.fullmatch(bare)
    if found is None and _PEFT_START.match(key):
        found = _WHOLE.fullmatch(bare)
    if found is None:
        return None
    groups = found.groupdict()
    if "part" in groups:
        part = groups["part"]
    elif groups["other"]:
        part = _OTHERS[groups["other"]]
    elif groups["alpha"]:
        part = "alpha"
    else:
        part = _SIDES[groups["old"] or groups["kohya"] or groups["peft"]]
        part += f" {groups['of']}" if groups["of"] == "bias" else " table" if groups["table"] else ""
    for model, start in _MODELS.items():
        if begins := start.match(found["layer"]):
            return Key(model, found["layer"][begins.end() :], part, groups.get("adapter") or "")
    for model, start in _LAYERS.items():
        if start.match(found["layer"]):
            return Key(model, found["layer"], part, groups.get("adapter") or "")
    return None


def plain(layer: str) -> str:
    """A layer's name by which it is looked up.

    >>> plain("text_model.encoder.layers.0.self_attn.q_proj"), plain("attn1.processor.to_out")
    ('encoder_layers_0_self_attn_q_proj', 'attn1_to_out')
    """
    return layer.replace(".processor", "").replace(".", "_").removeprefix("text_model_")


# --- what a file is -----------------------------------------------------------------------------------------

# Other ways to change a model with few numbers, by what their keys hold. (LyCORIS' and PEFT's.)
_KINDS = {
    r"\.dora_scale|lora_magnitude": "DoRA",
    r"\.hada_[wt]\d": "LoHa",
    r"\.lokr_[wt]\d": "LoKr",
    r"\.boft_[RrSs]\b": "BOFT",
    r"\.oft_(?:blocks|diag|[RrSs]\b)": "OFT",
    r"\.on_input$|\.ia3_l\b": "IA3",
    r"\.[ab][12]\.weight$": "GLoRA",
    r"\.lora_E\b": "AdaLoRA",
    r"\.vera_lambda": "VeRA",
    r"\.fourierft_": "FourierFT",
    r"\.hra_u": "HRA",
    r"^lora_controlnet": "Control-LoRA",
}
# Other models, by names that Stable Diffusion 1 and 2 have nowhere.
_FOREIGN = {
    r"double_blocks|single_blocks|single_transformer_blocks": "FLUX",
    r"joint_blocks": "Stable Diffusion 3",
    r"^(?:base_model\.model\.)?(?:transformer|lora_transformer|transformer_blocks)[._]": (
        "a diffusion transformer, such as FLUX or Stable Diffusion 3"
    ),
    r"^(?:lora_te[12]_|text_encoder_2\.|clip_g\.)|^bundle_emb\..*\.clip_g": "SDXL",
    r"motion_modules": "AnimateDiff",
}


def check_lora(file: Path, key: str) -> tuple[str, ...]:
    """The file is a LoRA that `read_lora` reads, as far as its keys tell.

    Args:
        key: the config's, for messages.

    Returns:
        The words of the embeddings that are bundled in it.

    Raises:
        UserError: says what the file is instead.
    """
    if file.suffix != ".safetensors":
        raise UserError(
            f"{key}: {file.name} is no .safetensors file; pickled LoRA is not loaded, for it can run code."
        )
    with _opened(file) as content:
        names = list(content.keys())
    read_settings(file, f"{key}: ")
    for mark, kind in _KINDS.items():
        if example := _first(mark, [name for name in names if not _BUNDLED.fullmatch(name)]):
            raise UserError(
                f"{key}: {file} is {kind} (it has {example}), which is not loaded here. Use a plain LoRA."
            )
    for mark, model in _FOREIGN.items():
        if example := _first(mark, names):
            raise UserError(
                f"{key}: {file} was made for {model} (it has {example}). Use a LoRA for Stable Diffusion 1 "
                "or 2, whichever the prior is."
            )
    parsed = {name: parse_key(name) for name in names if not _BUNDLED.fullmatch(name)}
    unknown = [name for name, found in parsed.items() if found is None]
    if len(unknown) == len(parsed):
        raise UserError(f"{key}: {file} is no LoRA: {_instead(file, names)}")
    if unknown:
        raise UserError(
            f"{key}: {file} is a LoRA, but the names of {len(unknown)} of its {len(names)} tensors are not "
            f"known here: {_listed(unknown[:3])}."
        )
    return tuple(dict.fromkeys(found["token"] for name in names if (found := _BUNDLED.fullmatch(name))))


def _first(mark: str, names: Sequence[str]) -> str | None:
    return next((_listed([name]) for name in names if re.search(mark, name)), None)


def _listed(names: Sequence[str]) -> str:
    """Names from a file in one line of a message."""
    return ", ".join(" ".join(name.split())[:160] for name in names)


def _instead(file: Path, names: Sequence[str]) -> str:
    told = f"none of its {len(names)} tensors is one's ({_listed(names[:1])})."
    if any(name.startswith(("model.diffusion_model.", "first_stage_model.")) for name in names):
        return f"{told} It is a whole checkpoint: system.guidance.prior={file}"
    return f"{told} It may be an embedding: system.guidance.embeddings={file}" if len(names) <= 2 else told


# --- settings -----------------------------------------------------------------------------------------------

# Ways to begin that change the weights beneath, too, which the file does not have.
_CHANGES_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Settings:
    """Of one model: alpha where the file's tensors do not say it; None is the rank."""

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    rank: int | None = None
    ranks: Mapping[str, float] = field(default_factory=dict)
    by_root: bool = False

    def scale(self, layer: str, rank: int) -> float:
        """What B A is multiplied by: alpha / rank, or alpha / sqrt(rank).

        Raises:
            ValueError: the rank is another than the settings say.
        """
        wanted = _matching(self.ranks, layer, self.rank)
        if wanted not in (None, rank):
            raise ValueError(f"{layer} has rank {rank}, its settings say {wanted:g}")
        alpha = _matching(self.alphas, layer, self.alpha)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.by_root else rank)


def _matching(patterns: Mapping[str, float], layer: str, usual: float | None) -> float | None:
    """PEFT's rule: the first pattern that the end of the layer's name matches."""
    return next((v for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", layer)), usual)


def with_settings(chosen: Sequence[Path]) -> list[Path]:
    """A LoRA's files, and the settings that PEFT keeps beside its own."""
    both = [path for file in chosen for path in (file, file.with_name(PEFT_SETTINGS))]
    return [path for path in both if path in chosen or path.is_file()]


def read_settings(file: Path, where: str = "") -> dict[str, Settings]:
    """What is said beside a LoRA's tensors, by model; under "" for whichever model the file is of.

    It is in PEFT's adapter_config.json, or in the header that diffusers writes.

    Args:
        where: how messages begin.

    Raises:
        UserError: it is damaged, or of something else than a LoRA.
    """
    beside = file.with_name(PEFT_SETTINGS)
    with _opened(file) as opened:
        from_peft = any(_PEFT_START.match(name) for name in list(opened.keys()))
        header = (opened.metadata() or {}).get("lora_adapter_metadata")
    if (from_peft or file.name == PEFT_FILE) and beside.is_file():
        return {"": _read_peft_settings(beside, where)}
    if from_peft and not header:
        _tell_once(
            f"{file} has no {PEFT_SETTINGS} beside it, which would say its alpha: alpha is taken to be the "
            "rank. If it is too weak or too strong, set its weight: {path: ..., weight: 0.5}."
        )
    with reading(f"{where}{file}", "a LoRA", AGAIN):
        parts: dict[str, dict[str, Any]] = defaultdict(dict)
        for name, value in (json.loads(header) if header else {}).items():
            model, _, rest = name.partition(".")
            model, rest = (model, rest) if model in _MODELS else ("", name)
            parts[model][rest] = value
        return {model: _settings(part) for model, part in parts.items()}


def _read_peft_settings(file: Path, where: str) -> Settings:
    with reading(f"{where}{file}", "settings of PEFT", AGAIN):
        if (size := file.stat().st_size) > MAX_SETTINGS:
            raise UserError(f"{where}{file} has {size:,} bytes, which is too much for settings. {AGAIN}")
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        kind = content.get("peft_type") if isinstance(content, dict) else None
        if not isinstance(kind, str):
            raise ValueError("it does not say its peft_type")
        if kind.upper() != "LORA":
            raise UserError(f"{where}{file} is of {kind[:40]}, which is not loaded here. Use a plain LoRA.")
        return _settings(content)


_tell_once = functools.cache(announce)  # what a config names is looked at by several parts of a run


def _settings(content: Mapping[str, Any]) -> Settings:
    """
    Raises:
        ValueError: a number is none, or the weights beneath were changed, too.
    """
    begun = content.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGES_WEIGHTS):
        raise ValueError(
            f"it was begun by {begun}, which changes the model's own weights; convert it with PEFT's "
            "save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    if content.get("use_dora"):
        raise ValueError("it is DoRA, which is not loaded here; use a plain LoRA")
    rank = content.get("r")
    return Settings(
        alpha=_number(content.get("lora_alpha", 8), "lora_alpha"),  # 8 is PEFT's own
        alphas=_numbers(content.get("alpha_pattern"), "alpha_pattern"),
        rank=None if rank is None else int(_number(rank, "r")),
        ranks=_numbers(content.get("rank_pattern"), "rank_pattern"),
        by_root=content.get("use_rslora") is True,
    )


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise ValueError(f"{name} is {str(value)[:40]!r}, which is no number")
    return float(value)


def _numbers(value: Any, name: str) -> dict[str, float]:
    """Numbers by patterns of names."""
    if not value:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {str(value)[:40]!r}, which gives no numbers by names")
    for pattern in value:
        # names, at times with ^, \\. and .*; a pattern of many repeats could take for ever
        if not re.fullmatch(r"\^?(?:[\w-]|\\?\.\*?)+\$?", pattern) or pattern.count("*") > 2:
            raise ValueError(f"{name} has {pattern[:40]!r}, which names no layer")
    return {pattern: _number(number, name) for pattern, number in value.items()}


# --- reading ------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    """One layer's change: its parts by name, see `lora.changes`, and what B A is multiplied by."""

    name: str
    parts: dict[str, Tensor]
    scale: float = 1.0


def read_lora(file: Path, model: str) -> list[Layer]:
    """The layers of one model that a file changes, float32; none where it has none for it.

    Args:
        model: "unet" or "text_encoder".

    Raises:
        ValueError: parts of a layer are missing, or there are several adapters.
        UserError: the file is damaged.
    """
    settings = read_settings(file)
    own = settings.get(model, settings.get("", Settings()))
    layers: dict[str, Layer] = {}
    adapters: dict[tuple[str, str], str] = {}
    for key, tensor in _tensors(file, model):
        name = plain(key.layer)
        before = adapters.setdefault((name, key.part), key.adapter)
        layer = layers.setdefault(name, Layer(key.layer, {}))
        if key.part in layer.parts:
            both = f" ({before} and {key.adapter})" if before != key.adapter else ""
            raise ValueError(f"it has {key.layer} twice{both}, so it is several LoRA; save them apart")
        layer.parts[key.part] = tensor
    for layer in layers.values():
        layer.scale = _scale(layer, own)
    return list(layers.values())


def read_bundled(file: Path, token: str) -> dict[str, Any]:
    """An embedding that is bundled in a LoRA, as in a file of its own; empty where it is not there."""
    content: dict[str, Any] = {}
    with _opened(file) as opened:
        for name in list(opened.keys()):
            if (found := _BUNDLED.fullmatch(name)) and found["token"] == token:
                kind, _, key = found["rest"].partition(".")
                tensor = opened.get_tensor(name)
                content[kind] = {key: tensor} if key else tensor
    return content


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    from safetensors import safe_open

    files.check_safetensors(file, file.parent, next_step=AGAIN)
    with reading(file, "safetensors", AGAIN), safe_open(file, framework="pt") as content:
        yield content


def _tensors(file: Path, model: str) -> list[tuple[Key, Tensor]]:
    with _opened(file) as content:
        names = [name for name in list(content.keys()) if not _BUNDLED.fullmatch(name)]
        wanted = [(name, key) for name in names if (key := parse_key(name)) and key.model == model]
        return [(key, _plain_numbers(content.get_tensor(name))) for name, key in wanted]


def _plain_numbers(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        raise ValueError("its numbers are complex")
    return tensor.float()


def _scale(layer: Layer, settings: Settings) -> float:
    """Raises ValueError where it cannot be said."""
    down = layer.parts.get("down", layer.parts.get("down table"))
    if down is None:
        return 1.0
    if not down.ndim or not down.numel():
        raise ValueError(f"{layer.name} is empty")
    if "alpha" not in layer.parts:
        return settings.scale(layer.name, len(down))
    if layer.parts["alpha"].numel() != 1:
        raise ValueError(f"the alpha of {layer.name} is no number")
    return float(layer.parts["alpha"]) / len(down)
