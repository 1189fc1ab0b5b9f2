"""What a density starts as: a bias before the activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from threestudio.utils.errors import ConfigValueError, did_you_mean


def distance_to_origin(points: Tensor) -> Tensor:
    """|x| [..., 1] of points [..., 3]; the gradient at the origin is 0, where the root's is infinite."""
    return (points**2).sum(dim=-1, keepdim=True).clamp(min=1e-12).sqrt()


def blob_dreamfusion(points: Tensor, scale: float, std: float) -> Tensor:
    """scale exp(-|x|^2 / (2 std^2)) [..., 1] (DreamFusion, 2022)."""
    return scale * torch.exp(-0.5 * (points**2).sum(dim=-1, keepdim=True) / std**2)


def blob_magic3d(points: Tensor, scale: float, std: float) -> Tensor:
    """scale (1 - |x| / std) [..., 1] (Magic3D, 2022): positive within a ball of radius std."""
    return scale * (1 - distance_to_origin(points) / std)


def check_density_bias(value: Any, names: tuple[str, ...]) -> None:
    """Raises:
    ConfigValueError: ``value`` is neither a number nor one of ``names``.
    """
    if isinstance(value, str) and value not in names:
        raise ConfigValueError(
            f"density_bias is {value!r}: give a number or one of {', '.join(names)}."
            f"{did_you_mean(value, names)}"
        )
    if not isinstance(value, (int, float, str)) or isinstance(value, bool):
        raise ConfigValueError(f"density_bias is a number or one of {', '.join(names)}, got {value!r}.")
