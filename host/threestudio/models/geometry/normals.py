"""Normals of fields: against the direction in which the field grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio.utils.errors import ConfigValueError, did_you_mean

FINITE_DIFFERENCES = ("finite_difference", "finite_difference_laplacian")


def check_normal_type(value: Any, types: tuple[str, ...]) -> None:
    """Raises:
    ConfigValueError: ``value`` is neither None nor one of ``types``.
    """
    if value is not None and value not in types:
        raise ConfigValueError(
            f"normal_type is {value!r}: choose {', '.join(types)}, or null for none."
            f"{did_you_mean(str(value), types)}"
        )


def no_normals(types: tuple[str, ...]) -> ConfigValueError:
    """The error for normals that were asked of a geometry with ``normal_type: null``."""
    return ConfigValueError(
        f"The geometry is asked for normals but has normal_type null: choose one of {', '.join(types)}, or a "
        "material that needs none (no-material, neural-radiance-material)."
    )


def finite_difference_normal(
    field: Callable[[Tensor], Tensor],
    points: Tensor,
    values: Tensor,
    eps: float,
    radius: float,
    central: bool,
) -> Tensor:
    """Unit normals [..., 3] from the field's values some way off along each axis.

    Args:
        field: points [..., 3] -> values [..., 1].
        values: the field at ``points`` [..., 1].
        eps: how far off.
        radius: offset points are kept within this half side of the box.
        central: on both sides (six more evaluations a point, and not three).
    """
    offsets = eps * torch.eye(3, dtype=points.dtype, device=points.device)

    def at(offset: Tensor) -> Tensor:
        return field((points[..., None, :] + offset).clamp(-radius, radius))[..., 0]

    if central:
        slope = 0.5 * (at(offsets) - at(-offsets)) / eps
    else:
        slope = (at(offsets) - values) / eps
    return F.normalize(-slope, dim=-1)
