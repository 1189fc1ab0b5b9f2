"""The multiresolution hash grid as a module, and its autograd functions for the CPU's kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import threestudio
from threestudio.models.networks.hash_layout import Layout, layout_of
from threestudio.models.networks.hash_reference import encode_reference
from threestudio.utils.parallel import run_in_ranges

GRAIN = 2048
"""Points a thread takes at a time."""


class HashGrid(nn.Module):
    """Features of points from hashed grids of many resolutions, trilinear within a cell.

    The flat parameter ``params`` has tiny-cuda-nn's layout, so that a checkpoint fits either.

    Args:
        n_input_dims: coordinates a point, 1 to 4; three of them on a CPU are fast.
        config: see `hash_layout.layout_of`.
    """

    def __init__(self, n_input_dims: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.layout = layout_of(n_input_dims, config)
        self.n_input_dims = n_input_dims
        self.n_output_dims = self.layout.n_output_dims
        self.n_active_levels = len(self.layout.levels)
        """Levels that are looked up, from the coarsest; the features of the others are 0."""
        size = self.layout.rows * self.layout.n_features
        self.params = nn.Parameter(torch.empty(size).uniform_(-1e-4, 1e-4))

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, n_output_dims], float32, of points [N, n_input_dims]; what is outside of [0, 1] is
        taken at the nearest point inside."""
        x = x.float().clamp(0.0, 1.0)
        if self._is_compiled(x):
            return _Encode.apply(x, self._table, self.layout, self.n_active_levels)
        return encode_reference(x, self._table, self.layout, self.n_active_levels)

    def with_slope(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """See `threestudio.models.networks.with_slope`."""
        x = x.detach().float().clamp(0.0, 1.0)
        table, layout, n_active = self._table, self.layout, self.n_active_levels
        if self._is_compiled(x):
            y = _Encode.apply(x, table, layout, n_active)
            return y, lambda g: _EncodeSlope.apply(x, g, table, layout, n_active)
        with torch.enable_grad():
            x.requires_grad_()
            y = encode_reference(x, table, layout, n_active)
        return y, lambda g: torch.autograd.grad(y, x, g, create_graph=True)[0]

    @property
    def _table(self) -> Tensor:
        return self.params.float().view(-1, self.layout.n_features)

    def _is_compiled(self, x: Tensor) -> bool:
        return x.device.type == "cpu" and self.n_input_dims == 3


@functools.cache
def _kernels() -> Any:
    """The compiled kernels, imported on first use: numba is slow to import and slower to compile."""
    threestudio.debug("Loading the hash grid's kernels; the first time on a machine they are compiled.")
    from threestudio.models.networks import hash_kernels

    return hash_kernels


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _gather(x: Tensor, h: Tensor | None, table: Tensor, layout: Layout, n_active: int) -> Tensor:
    kernels = _kernels()
    y = torch.empty(len(x), layout.n_output_dims)
    y[:, n_active * layout.n_features :] = 0
    points = _array(x)
    along = points if h is None else _array(h)
    kernel = kernels.gather(layout.n_features, h is not None)
    levels = kernels.level_arrays(layout)
    run_in_ranges(kernel, len(x), points, along, _array(table), *levels, n_active, y.numpy(), grain=GRAIN)
    return y


def _scatter(x: Tensor, h: Tensor | None, g: Tensor, layout: Layout, n_active: int) -> Tensor:
    kernels = _kernels()
    v_table = torch.zeros(layout.rows, layout.n_features)
    points = _array(x)
    along = points if h is None else _array(h)
    kernel = kernels.scatter(layout.n_features, h is not None)
    run_in_ranges(kernel, n_active, points, along, _array(g), *kernels.level_arrays(layout), v_table.numpy())
    return v_table


def _slope(x: Tensor, h: Tensor | None, g: Tensor, table: Tensor, layout: Layout, n_active: int) -> Tensor:
    kernels = _kernels()
    v_x = torch.zeros(len(x), 3)
    points = _array(x)
    along = points if h is None else _array(h)
    kernel = kernels.slope(layout.n_features, h is not None)
    levels = kernels.level_arrays(layout)
    run_in_ranges(
        kernel, len(x), points, along, _array(g), _array(table), *levels, n_active, v_x.numpy(), grain=GRAIN
    )
    return v_x


class _Encode(torch.autograd.Function):
    """y of x and table; differentiable twice, as analytic normals need it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, layout: Layout, n_active: int) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.layout, ctx.n_active = layout, n_active
        return _gather(x, None, table, layout, n_active)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, table = ctx.saved_tensors
        wants_x, wants_table = ctx.needs_input_grad[:2]
        v_x = _EncodeSlope.apply(x, g, table, ctx.layout, ctx.n_active) if wants_x else None
        v_table = _EncodeScatter.apply(x, g, ctx.layout, ctx.n_active) if wants_table else None
        return v_x, v_table, None, None


class _EncodeSlope(torch.autograd.Function):
    """The gradient on x of sum(g y), itself differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, table: Tensor, layout: Layout, n_active: int) -> Tensor:
        ctx.save_for_backward(x, g, table)
        ctx.layout, ctx.n_active = layout, n_active
        return _slope(x, None, g, table, layout, n_active)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
        x, g, table = ctx.saved_tensors
        layout, n_active = ctx.layout, ctx.n_active
        wants_x, wants_g, wants_table = ctx.needs_input_grad[:3]
        return (
            _slope(x, h, g, table, layout, n_active) if wants_x else None,
            _gather(x, h, table, layout, n_active) if wants_g else None,
            _scatter(x, h, g, layout, n_active) if wants_table else None,
            None,
            None,
        )


class _EncodeScatter(torch.autograd.Function):
    """The gradient on the table of sum(g y).  Nothing here differentiates it again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, layout: Layout, n_active: int) -> Tensor:
        return _scatter(x, None, g, layout, n_active)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError("The hash grid's gradient on its table cannot be differentiated again.")
