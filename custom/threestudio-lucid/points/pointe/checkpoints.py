"""The public checkpoints: where they are, and how one becomes the weights of a network."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ...errors import UserError
from ...weights import check_finite

ADDRESS = "https://openaipublic.azureedge.net/main/point-e"
BASE_URL = f"{ADDRESS}/base_40m_textvec.pt"
UPSAMPLER_URL = f"{ADDRESS}/upsample_40m.pt"
OTHERWISE = "start from something else: system.geometry.init=shape:ball"
# what readers raise at bytes that are no checkpoint
DAMAGED = (
    *(pickle.UnpicklingError, RuntimeError, OSError, EOFError, SafetensorError),
    *(LookupError, ValueError, TypeError),
)


def is_url(where: str | Path) -> bool:
    """Whether it reads as an address on the web."""
    return str(where).startswith(("https://", "http://"))


def find_checkpoint(where: str | Path, source: str) -> Path:
    """The file at a path or an address; what is downloaded is kept in `torch.hub.get_dir()/checkpoints`.

    Args:
        source: the public address, for the message.

    Raises:
        UserError: there is no such file, or it cannot be downloaded; says where to get it.
    """
    if is_url(where):
        return _download(str(where))
    path = Path(where).expanduser()
    if not path.is_file():
        raise UserError(
            f"There is no checkpoint {path}. Point-E's is at {source} (160 MB): give that address and it is "
            f"downloaded, or download it yourself and give the file's path. Or {OTHERWISE}."
        )
    return path


def _download(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # to a temporary name, then renamed
        torch.hub.download_url_to_file(url, str(path))
    except (OSError, RuntimeError) as error:  # HTTP and network errors are OSErrors
        raise UserError(
            f"{url} cannot be downloaded ({type(error).__name__}: {error}). Check the network, or fetch it "
            f"on another machine and put it at {path}, or anywhere and give its path. Or {OTHERWISE}."
        ) from error
    return path


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a .safetensors file, or a .pt file that holds nothing but tensors.

    Raises:
        UserError: the file is damaged, or no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise UserError(
            f"{path} cannot be read ({reason}). Is it damaged or cut short? Delete it and get it again."
        ) from None
    if not isinstance(weights, dict) or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise UserError(f"{path} holds no state dict (a table of names and tensors).")
    return weights


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Give a network (it may be on the meta device) the weights of a file, in float32, frozen and in eval
    mode.

    Raises:
        UserError: see `read_weights`; or its names or shapes are not the network's, or numbers not finite.
    """
    weights = read_weights(path)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    problems = [f"lacks {name}" for name in wanted.keys() - found.keys()]
    problems += [f"has an unknown {name}" for name in found.keys() - wanted.keys()]
    problems += [
        f"{name} is {found[name]}, not {wanted[name]}"
        for name in wanted.keys() & found.keys()
        if wanted[name] != found[name]
    ]
    if problems:
        listed = "; ".join(sorted(problems)[:3])
        raise UserError(f"{path} does not fit this network: {listed} ({len(problems)} differences).")
    check_finite(weights, path)
    model.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return model.eval().requires_grad_(False)
