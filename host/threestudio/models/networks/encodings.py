"""Encodings of points and directions: what a small network is given in place of coordinates in [0, 1].

Each is a module from [N, n_input_dims] to [N, n_output_dims].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import threestudio
from threestudio.models.networks.hash_grid import HashGrid
from threestudio.utils.base import Updateable
from threestudio.utils.errors import ConfigValueError


class Identity(nn.Module):
    """x scale + offset.

    Args:
        config: scale (1), offset (0).
    """

    def __init__(self, n_input_dims: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.n_input_dims = self.n_output_dims = n_input_dims
        self.scale, self.offset = float(config.get("scale", 1.0)), float(config.get("offset", 0.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.offset


class Frequency(nn.Module):
    """sin and cos of 2^k pi x: coordinate by coordinate, k from 0, sin before cos (as tiny-cuda-nn).

    Args:
        config: n_frequencies (12).
    """

    def __init__(self, n_input_dims: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.n_input_dims = n_input_dims
        n_frequencies = _count(config, "n_frequencies", 12)
        self.n_output_dims = n_input_dims * n_frequencies * 2
        self.factors: Tensor
        self.register_buffer("factors", math.pi * 2.0 ** torch.arange(n_frequencies), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        angle = x[..., None] * self.factors
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class SphericalHarmonics(nn.Module):
    """Real spherical harmonics of unit directions given as (d + 1) / 2, orthonormal on the sphere.

    Band by band, m from -l to l, signs as in tiny-cuda-nn and 3D Gaussian splatting.

    Args:
        config: degree (4), the number of bands, 1 to 4; degree^2 features.
    """

    def __init__(self, n_input_dims: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.n_input_dims = n_input_dims
        self.degree = _count(config, "degree", 4)
        if n_input_dims != 3 or self.degree > 4:
            raise ConfigValueError(
                f"SphericalHarmonics takes 3 coordinates and degree 1 to 4, not {n_input_dims} and "
                f"{self.degree}."
            )
        self.n_output_dims = self.degree**2

    def forward(self, x: Tensor) -> Tensor:
        x, y, z = (x * 2 - 1).unbind(-1)
        bands = [torch.full_like(x, 0.28209479177387814)]
        if self.degree > 1:
            bands += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
        if self.degree > 2:
            bands += [
                1.0925484305920792 * x * y,
                -1.0925484305920792 * y * z,
                0.9461746957575601 * z * z - 0.31539156525252,
                -1.0925484305920792 * x * z,
                0.5462742152960396 * (x * x - y * y),
            ]
        if self.degree > 3:
            bands += [
                -0.5900435899266435 * y * (3 * x * x - y * y),
                2.890611442640554 * x * y * z,
                -0.4570457994644658 * y * (5 * z * z - 1),
                0.37317633259011546 * z * (5 * z * z - 3),
                -0.4570457994644658 * x * (5 * z * z - 1),
                1.445305721320277 * z * (x * x - y * y),
                -0.5900435899266435 * x * (x * x - 3 * y * y),
            ]
        return torch.stack(bands, dim=-1)


class ProgressiveBandFrequency(nn.Module, Updateable):
    """sin and cos of 2^k x, the high frequencies faded in: k by k, sin before cos.

    Args:
        config: n_frequencies; n_masking_step (0), the step at which all are in.
    """

    def __init__(self, in_channels: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.n_frequencies = _count(config, "n_frequencies", None)
        self.n_input_dims = in_channels
        self.n_output_dims = in_channels * 2 * self.n_frequencies
        self.n_masking_step = config.get("n_masking_step", 0)
        self.mask: Tensor
        self.register_buffer("mask", torch.ones(self.n_frequencies), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        angle = x[:, None, :] * 2.0 ** torch.arange(self.n_frequencies, device=x.device)[:, None]
        waves = torch.stack([angle.sin(), angle.cos()], dim=2)  # [N, k, 2, D]
        return (waves * self.mask[:, None, None]).flatten(1)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        if self.n_masking_step <= 0:
            return
        reached = global_step / self.n_masking_step * self.n_frequencies
        ramp = (reached - torch.arange(self.n_frequencies, device=self.mask.device)).clamp(0, 1)
        self.mask.copy_((1 - torch.cos(math.pi * ramp)) / 2)


class BackendEncoding(nn.Module):
    """One encoding of tiny-cuda-nn's names: that library's, or what stands in for it.

    One level of names more than needed: a checkpoint's keys are then those of threestudio.
    """

    def __init__(self, encoding: nn.Module, n_input_dims: int) -> None:
        super().__init__()
        self.encoding = encoding
        self.n_input_dims = n_input_dims
        self.n_output_dims = int(encoding.n_output_dims)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoding(x)

    def with_slope(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """See `with_slope`."""
        return with_slope(self.encoding, x)


class ProgressiveBandHashGrid(nn.Module, Updateable):
    """A hash grid whose fine levels come in during training.

    Args:
        grid: a hash grid with all the levels.
        config: n_levels, n_features_per_level; start_level (how many there are at first), start_step (when
            the next comes) and update_steps (how long until one more).
    """

    def __init__(self, grid: nn.Module, in_channels: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.encoding = grid
        self.n_input_dims = in_channels
        self.n_output_dims = int(grid.n_output_dims)
        self.n_level, self.n_features_per_level = config["n_levels"], config["n_features_per_level"]
        self.start_level, self.start_step = config["start_level"], config["start_step"]
        self.update_steps = config["update_steps"]
        if self.start_level < 0 or self.update_steps < 1:
            raise ConfigValueError(
                "ProgressiveBandHashGrid: start_level must be at least 0 and update_steps at least 1, got "
                f"{self.start_level} and {self.update_steps}."
            )
        self.mask: Tensor
        self.register_buffer("mask", torch.zeros(self.n_output_dims), persistent=False)
        self._show(min(self.start_level, self.n_level))

    def _show(self, n_levels: int) -> None:
        self.current_level = n_levels
        self.mask.zero_()[: n_levels * self.n_features_per_level] = 1.0
        if isinstance(self.encoding, HashGrid):
            self.encoding.n_active_levels = n_levels  # spares looking up what the mask would hide

    def forward(self, x: Tensor) -> Tensor:
        y = self.encoding(x)
        return y if isinstance(self.encoding, HashGrid) else y * self.mask

    def with_slope(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """See `with_slope`."""
        if isinstance(self.encoding, HashGrid):
            return self.encoding.with_slope(x)
        y, slope = with_slope(self.encoding, x)
        return y * self.mask, lambda g: slope(g * self.mask)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        more = max(global_step - self.start_step, 0) // self.update_steps
        level = min(self.start_level + more, self.n_level)
        if level != self.current_level:
            threestudio.debug(f"The hash grid now has {level} of {self.n_level} levels.")
            self._show(level)


class CompositeEncoding(nn.Module, Updateable):
    """An encoding, after the coordinates themselves if asked for.

    Args:
        include_xyz: put the coordinates, as x xyz_scale + xyz_offset, before the encoding's features.
    """

    def __init__(
        self, encoding: nn.Module, include_xyz: bool = False, xyz_scale: float = 2.0, xyz_offset: float = -1.0
    ) -> None:
        super().__init__()
        self.encoding = encoding
        self.include_xyz, self.xyz_scale, self.xyz_offset = include_xyz, xyz_scale, xyz_offset
        self.n_input_dims = encoding.n_input_dims
        self.n_output_dims = int(include_xyz) * encoding.n_input_dims + encoding.n_output_dims

    def forward(self, x: Tensor) -> Tensor:
        return self._joined(x, self.encoding(x))

    def _joined(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x * self.xyz_scale + self.xyz_offset, y], dim=-1) if self.include_xyz else y

    def with_slope(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """See `with_slope`."""
        y, slope = with_slope(self.encoding, x)
        if not self.include_xyz:
            return y, slope
        n = self.n_input_dims
        return self._joined(x, y), lambda g: g[:, :n] * self.xyz_scale + slope(g[:, n:])


def with_slope(encoding: nn.Module, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Features y of x, and a function from a gradient on y to the one on x.

    For normals that are trained: the function's result can be differentiated on the encoding's parameters and
    on its argument, but not on x, which spares half of the work of autograd's general answer.

    Args:
        x: [N, n_input_dims]; taken as a constant.
    """
    own = getattr(encoding, "with_slope", None)
    if own is not None:
        return own(x)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = encoding(x)
    return y, lambda g: torch.autograd.grad(y, x, g, create_graph=True)[0]


def _count(config: dict[str, Any], key: str, default: int | None) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigValueError(
            f"{config.get('otype')} needs {key}, a whole number of at least 1, got {value!r}."
        )
    return value
