"""Cards: what a config must know about a prior before its weights are loaded.

A prior is named in four ways:

    auto                           sd21 where there is CUDA, else mini
    mini, sd21, sd15, ...          a card of this extension: priors/NAME.yaml, or priors/NAME/card.yaml
                                   beside the weights
    path/to/folder, model.safetensors, my-card.yaml
                                   a diffusers folder (its card.yaml is read if there is one), a single-file
                                   checkpoint, or a card of your own
    organisation/model             a repository of the Hugging Face hub, in diffusers' format

Configs read a card through a resolver: `width: ${prior:${system.guidance.prior},render_size}`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, check_choice, check_range, closest
from ..resolvers import register_resolver

PRIORS_FOLDER = Path(__file__).parents[1] / "priors"
KINDS = ("latent-diffusion",)
DTYPES = ("auto", "float32", "bfloat16", "float16")
# Where a single-file checkpoint without a card of its own finds the configs and the tokenizer it does not
# hold.
DEFAULT_CONFIG = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@dataclass(frozen=True)
class Card:
    """What is known about a prior. The defaults are Stable Diffusion's at 512 pixels."""

    name: str
    """What people call it."""
    path: str
    """Folder, single file, or hub id. In a card a path that starts with a dot is relative to the card."""
    kind: str = "latent-diffusion"
    """How it is sampled; only latent diffusion so far."""
    config: str | None = None
    """For a single file: folder or hub id with configs, tokenizer and scheduler of its architecture."""
    image_size: int = 512
    """Pixels of the square images it was trained on; others are resized to this."""
    latent_size: int = 64
    """Height and width of its latents."""
    render_size: int = 512
    """Pixels to render views at when optimising for it."""
    guidance_scale: float = 7.5
    """Classifier-free guidance, uncond + g (text - uncond), for sampling and for distillation."""
    num_steps: int = 50
    """DDIM steps of a good sample."""
    num_points: int = 100_000
    """Gaussians to start from, in keeping with its resolution."""
    dtype: str = "auto"
    """Arithmetic of UNet and VAE; auto: float16 on CUDA, on a CPU bfloat16 where it is fast, else float32."""
    prediction_type: str | None = None
    """epsilon or v_prediction; null: as its scheduler says."""
    vae: str | None = None
    """Folder or hub id of another autoencoder of the same latents (madebyollin/taesd); null: its own."""
    vocabulary: tuple[str, ...] | None = None
    """Every word it knows, if it knows only these; null: open."""
    prompt: str = "a hamburger"
    """A prompt to try it with."""

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("prediction_type", self.prediction_type, (None, "epsilon", "v_prediction"))
        for name in ("image_size", "latent_size", "render_size", "num_steps", "num_points"):
            check_range(name, getattr(self, name), low=1)
        check_range("guidance_scale", self.guidance_scale, low=0.0)

    def get(self, key: str) -> Any:
        """A field by name.

        Raises:
            UserError: no such field; the message lists the fields.
        """
        fields = [f.name for f in dataclasses.fields(self)]
        if key not in fields:
            raise UserError(f"The card of a prior has no {key!r}; it has: {', '.join(fields)}.")
        value = getattr(self, key)
        return list(value) if isinstance(value, tuple) else value


def find_card(name: str | Path, folder: Path = PRIORS_FOLDER) -> Card:
    """The card of a prior, by any of the ways to name one (see the module's docstring).

    Args:
        folder: where cards are looked up by name.

    Raises:
        UserError: nothing of that name; a folder or file that is not there or not a prior; a card with
            errors.
    """
    name = str(name)
    if name == "auto":
        name = auto_name()
    if card := _named(name, folder):
        return card
    path = Path(name).expanduser()
    if path.is_dir():
        return read_card(path / "card.yaml") if (path / "card.yaml").is_file() else _card_of_folder(path)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return read_card(path)
    if path.suffix == ".safetensors" and path.is_file():
        return Card(name=path.stem, path=str(path.resolve()), config=DEFAULT_CONFIG)
    if is_hub_id(name):
        return _card_of_hub(name)
    raise UserError(_not_found(name, path, folder))


@functools.cache
def auto_name() -> str:
    """sd21 where there is CUDA, else mini; says which and why, once per process."""
    import torch

    if torch.cuda.is_available():
        announce("Prior: auto is sd21 (there is a GPU); another: system.guidance.prior=NAME")
        return "sd21"
    announce("Prior: auto is mini, the bundled one (no GPU here); another: system.guidance.prior=NAME")
    return "mini"


def read_card(file: Path) -> Card:
    """A card from a YAML file.

    Raises:
        UserError: it cannot be read, is not a mapping, has unknown, missing or wrong fields.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"The card {file} cannot be read: {_first_line(error)}.") from error
    if not isinstance(content, dict):
        raise UserError(f"The card {file} must be a mapping of fields to values.")
    fields = {f.name: f for f in dataclasses.fields(Card)}
    for key in content:
        if key not in fields:
            near = closest(str(key), fields)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"The card {file} has an unknown field {key!r}.{hint} Fields: {', '.join(fields)}."
            )
    for key in ("name", "path"):
        if key not in content:
            raise UserError(f"The card {file} lacks the field {key!r}.")
    content = {key: _typed(file, fields[key], value) for key, value in content.items()}
    for key in ("path", "config", "vae"):
        if str(content.get(key) or "").startswith("."):
            content[key] = str((file.parent / content[key]).resolve())
    try:
        return Card(**content)
    except UserError as error:
        raise UserError(f"The card {file}: {error}") from error


def known_names(folder: Path = PRIORS_FOLDER) -> list[str]:
    """Names of the cards of this extension."""
    return sorted(
        {p.stem for p in folder.glob("*.yaml")} | {p.parent.name for p in folder.glob("*/card.yaml")}
    )


def register_resolvers() -> None:
    """Makes `${prior:NAME,KEY}` work in OmegaConf configs; may be called again."""
    register_resolver("prior", lambda name, key: find_card(str(name)).get(str(key)))


def is_hub_id(name: str) -> bool:
    """Whether a name reads as organisation/model."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None and not name.endswith(".safetensors")


# --- helpers ------------------------------------------------------------------------------------------------


def _named(name: str, folder: Path) -> Card | None:
    if not re.fullmatch(r"[\w.-]+", name):
        return None
    for file in (folder / f"{name}.yaml", folder / name / "card.yaml"):
        if file.is_file():
            return read_card(file)
    return None


@functools.cache  # a config asks for many fields, and out of reach is slow to find out
def _card_of_hub(name: str) -> Card:
    """A card for a hub repository: sizes as its configs say, Stable Diffusion's while it is out of reach."""
    from .folder import fetch

    try:
        return dataclasses.replace(_card_of_folder(fetch(name, weights=False)), name=name, path=name)
    except UserError:
        return Card(name=name, path=name)


def _card_of_folder(path: Path) -> Card:
    """A card for a diffusers folder that has none: sizes as its configs say."""
    from .folder import downscaling, read_config

    latent_size = read_config(path, "unet").get("sample_size", 64)
    if not isinstance(latent_size, int):
        raise UserError(
            f"{path}/unet/config.json says sample_size {latent_size!r}, which is no square size of latents. "
            f"Write a card.yaml with image_size and latent_size into {path}."
        )
    image_size = latent_size * downscaling(read_config(path, "vae"))
    return Card(
        name=path.resolve().name,
        path=str(path.resolve()),
        image_size=image_size,
        latent_size=latent_size,
        render_size=image_size,
    )


def _typed(file: Path, spec: dataclasses.Field, value: Any) -> Any:
    """The value as the field's type; YAML reads `7` where a float is meant, and lists where tuples are."""
    kinds = {"int": int, "float": (int, float), "str": str, "dict": dict, "tuple": list}
    wanted = str(spec.type)
    if value is None and "None" in wanted:
        return None
    kind = next(k for k in kinds if wanted.startswith(k))
    if not isinstance(value, kinds[kind]) or isinstance(value, bool):
        what = {"dict": "a mapping", "tuple": "a list of words"}.get(kind, f"of type {kind}")
        raise UserError(f"The card {file}: {spec.name} is {json.dumps(value)}; it must be {what}.")
    if kind == "tuple":
        return tuple(str(word) for word in value)
    return float(value) if kind == "float" else value


def _not_found(name: str, path: Path, folder: Path) -> str:
    names = known_names(folder)
    if name == "mini":
        return (
            f"The bundled prior is not at {folder / 'mini'}. Train it with `python -m toybox.train_prior`, "
            f"or use another: system.guidance.prior=sd21 (needs a GPU)."
        )
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        return (
            f"{name}: pickled checkpoints are not loaded, for they can run code. Convert it to .safetensors."
        )
    if path.suffix == ".safetensors" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        kind = "file" if path.suffix else "folder"
        return (
            f"The prior {name} does not exist: no such {kind}. Correct system.guidance.prior, or use one "
            f"of the names: auto, {', '.join(names)}."
        )
    near = closest(name, ["auto", *names])
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"No prior is called {name!r}.{hint} There are: auto, {', '.join(names)}; or give a folder in "
        "diffusers' format, a .safetensors file, or a hub id such as organisation/model."
    )


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


def announce(message: str) -> None:
    """To the host's log where there is a host."""
    host = sys.modules.get("threestudio")
    info = getattr(host, "info", None) or logging.getLogger("threestudio_lucid").info
    info(message)
