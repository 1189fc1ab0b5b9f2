"""Whether the weights of a network are numbers: one that is not makes everything behind it none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import UserError


def check_finite(weights: nn.Module | Mapping[str, Tensor], source: Path, advice: str = "") -> None:
    """Every weight of a network must be finite. Waits for its device once.

    Args:
        weights: the network, or its state dict.
        source: the file that they were read from, or a folder with .safetensors files.
        advice: what to do about it; empty: get the file again.

    Raises:
        UserError: names file and tensor; also where the file's numbers are too large for the dtype.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    state = {name: value for name, value in state.items() if value.is_floating_point() and value.numel()}
    if not state or bool(torch.stack([value.isfinite().all() for value in state.values()]).all()):
        return
    name, value = next((name, value) for name, value in state.items() if not bool(value.isfinite().all()))
    file, stored = _find(name, source)
    count = value.numel() - int(value.isfinite().sum())
    what = f"{file}: the weights {name} hold {count:,} numbers of {value.numel():,} that are not finite"
    if stored is not None and bool(stored.isfinite().all()):
        dtype = str(value.dtype).removeprefix("torch.")
        raise UserError(
            f"{what} in {dtype}: in the file they are as large as {float(stored.abs().max()):.3g}. "
            "Use system.guidance.dtype=float32."
        )
    raise UserError(f"{what}: the file is damaged. {advice or 'Copy or download it again, or use another.'}")


def _find(name: str, source: Path) -> tuple[Path, Tensor | None]:
    """The file that holds a tensor, and the tensor as it is there; else the source alone."""
    from safetensors import safe_open

    files = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
    for file in (file for file in files if file.suffix == ".safetensors"):
        with safe_open(file, framework="pt") as opened:
            if name in opened.keys():  # noqa: SIM118 (it is no dict)
                return file, opened.get_tensor(name)
    return files[0] if len(files) == 1 else source, None
