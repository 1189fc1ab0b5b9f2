"""Which text a view gets: weights of the front, side and back embeddings, and of Perp-Neg's negative prompts.

Azimuth in degrees, 0 is the front, any range; elevation in degrees. As released by LucidDreamer, with
r = 1 - |azimuth| / 90 in the front half and r = 1 - (|azimuth| - 90) / 90 in the back half:

    |            | text                   | w_front                   | w_side                            |
    |------------|------------------------|---------------------------|-----------------------------------|
    | front half | r front + (1 - r) side | w e^(-2 r), 0 for r > 0.8 | w e^(-10 (1 - r)), 0 for r < 0.2  |
    | back half  | r side + (1 - r) back  | w                         | w/2 e^(-10 r), 0 for r > 0.8      |

with w = -2. The weights are continuous but for one visible step, w_front from 0 to -0.40 at 18 degrees.
"""

from __future__ import annotations

import torch
from torch import Tensor

VIEWS = ("front", "side", "back", "overhead")


def wrapped(azimuth: Tensor) -> Tensor:
    """The same angles in [-180, 180)."""
    return torch.remainder(azimuth + 180.0, 360.0) - 180.0


def linear_weights(azimuth: Tensor) -> Tensor:
    """Weights [B, 4] of VIEWS, blended linearly by azimuth [B]; rows sum to 1, none is overhead."""
    distance = wrapped(azimuth).abs() / 90.0
    front, back = (1.0 - distance).clamp_min(0.0), (distance - 1.0).clamp_min(0.0)
    return torch.stack([front, 1.0 - front - back, back, torch.zeros_like(front)], dim=-1)


def nearest_weights(azimuth: Tensor, front_threshold: float = 45.0, back_threshold: float = 45.0) -> Tensor:
    """Weights [B, 4] of VIEWS, one of them 1: threestudio's rule.

    front within `front_threshold` degrees of azimuth 0, back within `back_threshold` of 180 (both strict),
    else side.
    """
    distance = wrapped(azimuth).abs()
    front = (distance < front_threshold).to(distance.dtype)
    back = (distance > 180.0 - back_threshold).to(distance.dtype)
    return torch.stack([front, (1.0 - front) * (1.0 - back), back, torch.zeros_like(front)], dim=-1)


def with_overhead(weights: Tensor, elevation: Tensor, threshold: float) -> Tensor:
    """`weights` [B, 4], replaced by overhead alone where the elevation [B] is above `threshold` degrees."""
    overhead = torch.zeros_like(weights)
    overhead[:, VIEWS.index("overhead")] = 1.0
    return torch.where((elevation > threshold).unsqueeze(-1), overhead, weights)


def perp_neg_weights(
    azimuth: Tensor, weight: float = -2.0, front_decay: float = 2.0, side_decay: float = 10.0
) -> Tensor:
    """Perp-Neg weights [2, B] of the negative prompts "front view" and "side view" for azimuths [B]."""
    distance = wrapped(azimuth).abs()
    in_front = distance < 90.0
    r = torch.where(in_front, 1.0 - distance / 90.0, 2.0 - distance / 90.0)
    zero = torch.zeros_like(r)

    front_of_front = torch.where(r > 0.8, zero, weight * torch.exp(-front_decay * r))
    side_of_front = torch.where(r < 0.2, zero, weight * torch.exp(-side_decay * (1.0 - r)))
    side_of_back = torch.where(r > 0.8, zero, 0.5 * weight * torch.exp(-side_decay * r))
    front = torch.where(in_front, front_of_front, torch.full_like(r, weight))
    side = torch.where(in_front, side_of_front, side_of_back)
    return torch.stack([front, side])
