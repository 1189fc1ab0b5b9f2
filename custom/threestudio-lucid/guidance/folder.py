"""A diffusers folder on disk or on the hub: is everything there, undamaged, and what do its configs say?

Checked before anything is built, so that a mistake is one message and not a stack trace from inside a loader.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ..damaged import DAMAGED, reason
from ..errors import UserError

COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
_CONFIGS = {
    **dict.fromkeys(_WEIGHTS, "config.json"),
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
# What is fetched from the hub: no pickles, no half-precision duplicates, no safety checker.
CONFIG_PATTERNS = ["model_index.json", "*/*config.json", "tokenizer/*.json", "tokenizer/*.txt"]
WEIGHT_PATTERNS = [
    *(f"{component}/{file}" for component, file in _WEIGHTS.items()),
    *(f"{component}/{file}.index.json" for component, file in _WEIGHTS.items()),
    *(f"{component}/{Path(file).stem}-*-of-*.safetensors" for component, file in _WEIGHTS.items()),
]
# Of a repository with a LoRA or an embedding; the latter may be pickled, for it is read as plain tensors.
ADAPTER_PATTERNS = [
    "*.safetensors",
    "*/adapter_model.safetensors",
    "adapter_config.json",
    "*/adapter_config.json",
    "learned_embeds.bin",
]


def read_config(folder: Path, component: str) -> dict:
    """The config of a component ("unet", "scheduler", ...) as a dict.

    Raises:
        UserError: there is none, or it is not JSON.
    """
    return _read_json(folder / component / _CONFIGS[component], folder)


def _read_json(file: Path, folder: Path) -> dict:
    if not file.is_file():
        raise UserError(_missing(folder, file))
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except DAMAGED as error:
        raise UserError(f"{file} is damaged: {reason(error)}. {_next_step(folder)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it is not a JSON object. {_next_step(folder)}")
    return content


def find_vae(name: str) -> tuple[Path, dict]:
    """An autoencoder that is not part of its prior: where it is, and its config.

    Args:
        name: a folder (of it alone, or of a prior that has one) or a hub id, such as madebyollin/taesd.

    Raises:
        UserError: it is not there, cannot be fetched, or is damaged.
    """
    path = Path(name).expanduser()
    folder = path if path.is_dir() else _fetch_vae(name)
    if (folder / "vae" / _CONFIGS["vae"]).is_file():
        folder = folder / "vae"
    config = _read_json(folder / _CONFIGS["vae"], folder)
    weights = folder / _WEIGHTS["vae"]
    if not weights.is_file():
        raise UserError(_missing(folder, weights))
    check_safetensors(weights, folder)
    return folder, config


def _fetch_vae(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HfHubHTTPError, LocalEntryNotFoundError

    names = [_CONFIGS["vae"], _WEIGHTS["vae"]]
    patterns = [*names, *(f"vae/{name}" for name in names)]
    try:
        return Path(
            snapshot_download(repository, allow_patterns=patterns)
        )  # from the cache without a network
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"system.guidance.vae is {repository!r}, which is no folder here, not in the hub's local cache, "
            f"and cannot be fetched ({type(error).__name__}). Check name and network, or give a folder."
        ) from error


def downscaling(vae_config: dict) -> int:
    """Pixels per latent: each block of the autoencoder but one halves the picture.

    Raises:
        UserError: the config has no list of blocks.
    """
    blocks = vae_config.get("block_out_channels") or vae_config.get("encoder_block_out_channels") or [0] * 4
    if not isinstance(blocks, list | tuple):  # tuples in a model that was made and not loaded
        raise UserError(f"The config of the autoencoder is damaged: its blocks are {str(blocks)[:40]!r}.")
    return 2 ** (len(blocks) - 1)


def check_folder(folder: Path) -> None:
    """Everything a prior needs is in `folder` and its weights are whole.

    Raises:
        UserError: the folder or a file is missing, or weights are damaged; names it and says what to do.
    """
    if not folder.is_dir():
        raise UserError(f"The prior's folder {folder} does not exist. {_next_step(folder)}")
    for component in COMPONENTS:
        if component != "tokenizer":  # older ones have no config; `CLIPTokenizer` needs the words alone
            read_config(folder, component)
    words = [folder / "tokenizer" / name for name in ("tokenizer.json", "vocab.json")]
    if not any(file.is_file() for file in words):
        raise UserError(_missing(folder, words[1]))
    for component in _WEIGHTS:
        for file in weight_files(folder, component):
            check_safetensors(file, folder)


def weight_files(folder: Path, component: str) -> list[Path]:
    """The safetensors file of a component, or the files that its index names.

    Raises:
        UserError: one is missing.
    """
    file = folder / component / _WEIGHTS[component]
    index = file.with_name(file.name + ".index.json")
    if not file.is_file() and index.is_file():
        try:
            names = {str(n) for n in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except DAMAGED as error:
            raise UserError(f"{index} is damaged. {_next_step(folder)}") from error
        files = [file.with_name(Path(name).name) for name in sorted(names)]
    else:
        files = [file]
    for file in files:
        if not file.is_file():
            raise UserError(_missing(folder, file))
    return files


def check_safetensors(file: Path, folder: Path, next_step: str | None = None) -> None:
    """Raises UserError unless the file's header is sound and its length is what the header says.

    Args:
        folder: the prior that the file belongs to.
        next_step: what to do about it; None: as is said of that prior.
    """
    from safetensors import safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except DAMAGED as error:
        size = file.stat().st_size if file.exists() else 0
        raise UserError(
            f"{file} is damaged or incomplete ({size:,} bytes: {reason(error)}). "
            f"{next_step or _next_step(folder)}"
        ) from error


def fetch(repository: str, *, weights: bool) -> Path:
    """A local snapshot of a hub repository: from the cache when it is complete, else from the network.

    Args:
        weights: also the weights, not just the configs.

    Raises:
        UserError: it is not in the cache and cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HfHubHTTPError, LocalEntryNotFoundError

    patterns = CONFIG_PATTERNS + (WEIGHT_PATTERNS if weights else [])
    try:
        folder = Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=True))
        if weights:
            check_folder(folder)
        else:
            read_config(folder, "unet")
        return folder
    except (LocalEntryNotFoundError, UserError):
        pass  # not there, or an earlier download was interrupted
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        said = " ".join(str(error).split()).split(". ")[0][:160]
        raise UserError(
            f"The prior {repository!r} is no folder here, not in the hub's local cache, and cannot be "
            f"fetched ({type(error).__name__}: {said}). Check the name and the network, "
            f"fetch it on another machine with `hf download {repository}` and give the folder, or use the "
            "bundled one: system.guidance.prior=mini."
        ) from error


def fetch_adapter(repository: str, key: str) -> Path:
    """A local snapshot of a hub repository that holds a LoRA or an embedding, from the cache if it is there.

    Args:
        key: the config's, for the message.

    Raises:
        UserError: it is not in the cache and cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=ADAPTER_PATTERNS, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(repository, allow_patterns=ADAPTER_PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{key}: {repository!r} is no file or folder here, not in the hub's local cache, and cannot be "
            f"fetched ({type(error).__name__}). Check the name and the network, or give a file."
        ) from error


def fingerprint(folder: Path, components: tuple[str, ...]) -> str:
    """A hash of what the components' files hold, whatever they are called or when they were written.

    Of files above 8 MB the length and 64 evenly spaced blocks of 64 KiB are hashed: training changes every
    weight.
    """
    digest = hashlib.blake2b(digest_size=16)
    for component in components:
        for file in sorted((folder / component).rglob("*")):
            if file.is_file():
                digest.update(f"{component}/{file.name}/{file.stat().st_size}".encode())
                _hash_file(file, digest)
    return digest.hexdigest()


def fingerprint_file(file: Path) -> str:
    """As `fingerprint`, of one file."""
    digest = hashlib.blake2b(str(file.stat().st_size).encode(), digest_size=16)
    _hash_file(file, digest)
    return digest.hexdigest()


def _hash_file(file: Path, digest) -> None:
    size, block, blocks = file.stat().st_size, 1 << 16, 64
    with file.open("rb") as stream:
        if size <= 1 << 23:
            digest.update(stream.read())
            return
        for k in range(blocks):
            stream.seek((size - block) * k // (blocks - 1))
            digest.update(stream.read(block))


def _missing(folder: Path, file: Path) -> str:
    pickled = list(file.parent.glob("*.bin")) if file.suffix == ".safetensors" else []
    if pickled:
        return (
            f"{file} does not exist; there is {pickled[0].name}, but pickled weights are not loaded, for "
            "they can run code. Save the model with diffusers' save_pretrained(..., safe_serialization=True)."
        )
    return (
        f"{file} does not exist, so {folder} is not a whole prior in diffusers' format. {_next_step(folder)}"
    )


def _next_step(folder: Path) -> str:
    from .cards import PRIORS_FOLDER

    if folder.resolve() == (PRIORS_FOLDER / "mini").resolve():
        return (
            "Get it back with `git checkout -- custom/threestudio-lucid/priors/mini`, train it with "
            "`python -m toybox.train_prior`, or use another: system.guidance.prior=sd21 (needs a GPU)."
        )
    return "Copy or download it again, or use another: system.guidance.prior=auto."
