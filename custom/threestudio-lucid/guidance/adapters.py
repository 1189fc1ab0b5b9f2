"""Personalisation of a prior: LoRA, and words learned by textual inversion.

    lora:        one of, or a list of:  where  |  {path: where, weight: 0.8, trigger: sks}
    embeddings:  one of, or a list of:  where  |  {path: where, token: sks}

`where` is a .safetensors file, a folder that holds one, a hub id, or the name of a folder in PRIOR/lora.

LoRA comes as diffusers saves it, as PEFT does (`adapter_model.safetensors` with `adapter_config.json`; for
both models in subfolders unet and text_encoder), or as kohya's scripts and LyCORIS do (lora_unet_...,
lora_te_...), see `lora_files`. It is merged into the weights, W + weight alpha / rank B A, so a step costs
what it did. Words that are bundled in a LoRA's file come with it.

Embeddings are diffusers' (`learned_embeds.safetensors`, the token is the key) or the web UI's (.pt, .bin:
read without running code from them; the token is the name in the file, or the file's where it holds none).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UserError, check_range, closest
from . import folder as files
from .cards import Card, is_hub_id
from .embeddings import PICKLED, read_embedding
from .lora_files import PEFT_FILE, check_lora, with_settings

LORA_FILES = ("pytorch_lora_weights.safetensors", PEFT_FILE)
EMBEDDING_FILES = ("learned_embeds.safetensors", "learned_embeds.bin")
LORA_KEYS = ("path", "weight", "trigger")
EMBEDDING_KEYS = ("path", "token")
MAX_WEIGHT = 1e6  # far beyond any use: what is larger is a slip


@dataclass(frozen=True)
class Lora:
    """One LoRA: its files (two where UNet and text encoder lie apart), its weight, the words it taught."""

    name: str
    files: tuple[Path, ...]
    weight: float = 1.0
    trigger: tuple[str, ...] = ()


@dataclass(frozen=True)
class Embedding:
    """A word of one or more vectors, and the file it is from; its name there where that is a LoRA's."""

    file: Path
    token: str
    bundled: str = ""

    @property
    def another_name(self) -> str:
        """What to do where its token is taken."""
        if self.bundled:
            return "It is bundled in a LoRA: save that without it, and the word in a file of its own."
        return "Call it something else: embeddings={path: ..., token: another}."


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
            (lora.weight, *map(files.fingerprint_file, with_settings(lora.files))) for lora in self.loras
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
                    f"{embedding.another_name}"
                )
        return replace(card, vocabulary=(*card.vocabulary, *self.words))


NONE = Adapters()


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
    both = [_lora(entry, card, f"{where}lora") for entry in _entries(lora, f"{where}lora", LORA_KEYS)]
    loras, bundled = [lora for lora, _ in both], [word for _, words in both for word in words]
    found = bundled + [
        _embedding(entry, card, f"{where}embeddings")
        for entry in _entries(embeddings, f"{where}embeddings", EMBEDDING_KEYS)
    ]
    tokens = [embedding.token for embedding in found]
    for token in tokens:
        if tokens.count(token) > 1:
            raise UserError(
                f"{where}embeddings: two are called {token!r}. Call one something else: "
                "{path: ..., token: ...}."
            )
    return Adapters(tuple(loras), tuple(found))


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


def _lora(entry: dict[str, Any], card: Card, key: str) -> tuple[Lora, list[Embedding]]:
    """A LoRA, and the words that are bundled with it."""
    weight = entry.get("weight", 1.0)
    check_range(f"{key}: weight", weight, -MAX_WEIGHT, MAX_WEIGHT)
    trigger = entry.get("trigger") or ()
    words = [trigger] if isinstance(trigger, str) else list(trigger)
    words = [part for word in words for part in re.findall(r"[^\s,]+", str(word))]
    path = _locate(str(entry["path"]), card, key)
    chosen = _lora_files(path, key)
    bundled = [Embedding(file, token, token) for file in chosen for token in check_lora(file, key)]
    for embedding in bundled:
        read_embedding(embedding.file, embedding.bundled)
        _check_token(embedding.token, embedding.file, key)
    return Lora(Path(str(entry["path"])).stem, chosen, float(weight), tuple(words)), bundled


def _embedding(entry: dict[str, Any], card: Card, key: str) -> Embedding:
    path = _locate(str(entry["path"]), card, key)
    file = _in_folder(path, EMBEDDING_FILES, (".safetensors", *PICKLED), key) if path.is_dir() else path
    token = read_embedding(file)[0]
    token = str(entry.get("token") or token)
    _check_token(token, file, key)
    return Embedding(file, token)


def _check_token(token: str, file: Path, key: str) -> None:
    if not re.fullmatch(r"[^\s,]+", token):
        raise UserError(
            f"{key}: {file} calls its word {token!r}, but a token has neither spaces nor commas. "
            "Say another: {path: ..., token: ...}."
        )


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
    parts = [path / model / PEFT_FILE for model in ("unet", "text_encoder")]
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
        listed = (
            f"{len(found)} files: {', '.join(p.name for p in found[:8])}" if found else "nothing of the kind"
        )
        raise UserError(f"{key}: {folder} holds {listed}. Give the file itself.")
    return found[0]


# --- for configs --------------------------------------------------------------------------------------------


def without_words(prompt: str, words: Iterable[str]) -> str:
    """The prompt without the words that adapters bring, for models that do not have them.

    >>> without_words("a sks mug, front view", ["sks"])
    'a mug, front view'
    """
    for word in words:
        prompt = re.sub(rf"(?<![^\s,]){re.escape(word)}(?![^\s,])\s*", "", prompt, flags=re.IGNORECASE)
    return " ".join(prompt.split())
