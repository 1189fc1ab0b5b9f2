"""The CPU back end: compiled by numba, threaded, with hand-written gradients.

Arithmetic is float32 (float64 within the projection and where splats are assigned to tiles); tensors of
another dtype or on another device are brought here and their results back. Results and gradients are
bit-identical from run to run and for any number of threads: nothing is summed in an order that depends on
timing. The depth's gradient reaches the Gaussians' own z as well as their weights (LucidDreamer's CUDA
rasterizer leaves the former out).

The kernels are compiled at the first call (about 10 s on one core) and cached on disk: beside them where that
folder can be written to, else in the user's cache folder, else not at all. `NUMBA_CACHE_DIR` overrides this.
"""

from __future__ import annotations

import functools
import logging
import time
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import threads
from .constants import SH_C0

logger = logging.getLogger(__name__)

# In a range of work: with less, handing it to another thread costs more than it saves.
GAUSSIANS_AT_LEAST = 512
ENTRIES_AT_LEAST = 512
MAX_PAIRS = 2**31 - 1


@functools.cache
def _kernels() -> ModuleType:
    """The compiled kernels. Imported on first use: numba is slow to import and slower to compile."""
    began = time.perf_counter()
    logger.info("Loading the CPU rasterizer; the first time on a machine it is compiled (about 10 s).")
    from . import kernels

    logger.info("CPU rasterizer ready after %.1f s.", time.perf_counter() - began)
    return kernels


def _array(tensor: Tensor, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """The tensor's values as a C-contiguous numpy array, shared where possible."""
    return tensor.detach().to("cpu", dtype).contiguous().numpy()


def _flat(tensor: Tensor) -> np.ndarray:
    return _array(tensor).reshape(-1)


def _empty(*shape: int) -> np.ndarray:
    return np.empty(shape, np.float32)


def _tensors(like: Tensor, *arrays: np.ndarray) -> tuple[Tensor, ...]:
    """Results, with the dtype and on the device of an input."""
    return tuple(torch.from_numpy(array).to(like.device, like.dtype) for array in arrays)


def _projected(
    means: Tensor, quats: Tensor, scales: Tensor, viewmats: Tensor, Ks: Tensor
) -> list[np.ndarray]:
    """What the projection kernels read: float32 and flat, but cameras in float64."""
    cameras = (_array(tensor, torch.float64) for tensor in (viewmats, Ks))
    return [*(_flat(tensor) for tensor in (means, quats, scales)), *cameras]


class _Project(torch.autograd.Function):
    """projection.project: (means2d [B, N, 2], depths [B, N], conics [B, N, 3])."""

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        viewmats: Tensor,
        Ks: Tensor,
        width: int,
        height: int,
        near: float,
        eps2d: float,
    ) -> tuple[Tensor, ...]:
        ctx.size = (width, height)
        views, count = len(viewmats), len(means)
        outputs = _empty(views, count, 2), _empty(views, count), _empty(views, count, 3)
        threads.run(
            _kernels().project_forward, count, *_projected(means, quats, scales, viewmats, Ks), width, height,
            near, eps2d, *(output.reshape(-1) for output in outputs), grain=GAUSSIANS_AT_LEAST,
        )  # fmt: skip
        means2d, depths, conics = _tensors(means, *outputs)
        ctx.save_for_backward(means, quats, scales, viewmats, Ks, conics)
        return means2d, depths, conics

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, v_means2d: Tensor, v_depths: Tensor, v_conics: Tensor
    ) -> tuple[Tensor | None, ...]:
        *inputs, conics = ctx.saved_tensors
        projected = _projected(*inputs)
        grads = [np.empty_like(array) for array in projected[:3]]  # means, quats, scales
        cotangents = (_flat(v) for v in (v_means2d, v_depths, v_conics))
        threads.run(
            _kernels().project_backward, len(inputs[0]), *projected, *ctx.size, _flat(conics), *cotangents,
            *grads, grain=GAUSSIANS_AT_LEAST,
        )  # fmt: skip
        grads = [grad.reshape(tensor.shape) for grad, tensor in zip(grads, inputs, strict=False)]
        return *_tensors(v_means2d, *grads), *[None] * 6


class _ShToColors(torch.autograd.Function):
    """sh.sh_to_colors along the lines of sight: [B, N, 3]."""

    @staticmethod
    def forward(ctx: Any, means: Tensor, sh: Tensor, viewmats: Tensor, degree: int) -> Tensor:
        colors = _empty(len(viewmats), len(means), 3)
        threads.run(
            _kernels().sh_forward, len(means), _array(means), _array(viewmats, torch.float64), _array(sh),
            degree, colors, grain=GAUSSIANS_AT_LEAST,
        )  # fmt: skip
        ctx.degree = degree
        (colors,) = _tensors(means, colors)
        ctx.save_for_backward(means, sh, viewmats, colors)
        return colors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_colors: Tensor) -> tuple[Tensor | None, ...]:
        means, sh, viewmats, colors = ctx.saved_tensors
        grads = _empty(*means.shape), _empty(*sh.shape)
        threads.run(
            _kernels().sh_backward, len(means), _array(means), _array(viewmats, torch.float64), _array(sh),
            ctx.degree, _array(colors), _array(v_colors), *grads, grain=GAUSSIANS_AT_LEAST,
        )  # fmt: skip
        return *_tensors(v_colors, *grads), None, None


class _Bins:
    """The splats of B views sorted into tiles: the same for the forward and the backward pass.

    Attributes:
        records: [B N 16], see kernels.py.
        radii: [B, N].
        pair_offsets: [B N + 1].
        tile_starts: [tiles + 1], where the entries of each tile start.
        entry_splats, entry_pairs: [pairs], the entries.
        shape: (width, height, tiles_x, tiles_y).
    """

    def __init__(
        self,
        means2d: np.ndarray,
        depths: np.ndarray,
        conics: np.ndarray,
        opacities: np.ndarray,
        colors: np.ndarray,
        width: int,
        height: int,
    ) -> None:
        kernels = _kernels()
        views, count = depths.shape
        tiles_x, tiles_y = -(-width // kernels.TILE_W), -(-height // kernels.TILE_H)
        self.shape = (width, height, tiles_x, tiles_y)

        # 1. what each splat needs, and which tiles it touches; in parts, so that threads can share one view
        parts = max(1, min(-(-torch.get_num_threads() // views), count // GAUSSIANS_AT_LEAST))
        splats = views * count
        log_opacities = np.log2(np.maximum(opacities, np.float32(1e-30)))
        self.records, touched = _empty(splats * kernels.RECORD), np.empty(splats * kernels.TOUCHED, np.int32)
        self.radii, self.pair_offsets = np.empty((views, count), np.int32), np.zeros(splats + 1, np.int64)
        tile_counts = np.empty((views, parts, tiles_x * tiles_y), np.int64)
        threads.run(
            kernels.make_records, views * parts,
            *(array.reshape(-1) for array in (means2d, depths, conics, log_opacities, colors)), width, height,
            tiles_x, self.records, touched, self.radii.reshape(-1), self.pair_offsets[1:],
            tile_counts,
        )  # fmt: skip
        kernels.add_up(self.pair_offsets)
        pairs = int(self.pair_offsets[-1])
        if pairs > MAX_PAIRS:
            raise ValueError(
                f"{pairs} pairs of a Gaussian and a tile are more than {MAX_PAIRS}: "
                f"render fewer views at once, or smaller pictures than {width}x{height}."
            )

        # 2. counting sort into tiles
        by_tile = np.zeros(tile_counts.size + 1, np.int64)
        np.cumsum(tile_counts.transpose(0, 2, 1), out=by_tile[1:])
        self.tile_starts = np.ascontiguousarray(by_tile[::parts])
        places = by_tile[:-1].reshape(views, -1, parts).transpose(0, 2, 1).copy()
        entries = np.empty((pairs, 3), np.uint32)
        threads.run(
            kernels.fill_tiles, views * parts, self.records, touched, self.pair_offsets, width, height,
            tiles_x, places, entries,
        )  # fmt: skip

        # 3. and each tile by depth
        self.entry_splats, self.entry_pairs = np.empty(pairs, np.int32), np.empty(pairs, np.int32)
        threads.run(
            kernels.sort_tiles, self.num_tiles, self.tile_starts, entries, self.entry_splats,
            self.entry_pairs, pieces=3,
        )  # fmt: skip

    @property
    def num_tiles(self) -> int:
        return len(self.tile_starts) - 1

    @property
    def grain(self) -> int:
        """Tiles that are worth a range of their own."""
        return max(1, ENTRIES_AT_LEAST * self.num_tiles // max(self.num_pairs, 1))

    @property
    def num_pairs(self) -> int:
        return len(self.entry_splats)


class _Composite(torch.autograd.Function):
    """reference.composite, as (rgb [B, H, W, 3], alpha [B, H, W], depth [B, H, W], radii [B, N])."""

    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor,
        depths: Tensor,
        conics: Tensor,
        opacities: Tensor,
        colors: Tensor,
        backgrounds: Tensor,
        width: int,
        height: int,
    ) -> tuple[Tensor, ...]:
        kernels, views = _kernels(), len(means2d)
        bins = _Bins(*(_array(t) for t in (means2d, depths, conics, opacities, colors)), width, height)
        rgb, alpha = _empty(views, height, width, 3), _empty(views, height, width)
        depth, left = np.empty_like(alpha), _empty(bins.num_tiles * kernels.LEFT)
        entry_blocks = np.empty(bins.num_pairs, np.uint64)
        threads.run(
            kernels.composite_forward, bins.num_tiles,
            bins.tile_starts, bins.entry_splats, bins.records, _array(backgrounds), *bins.shape,
            *(array.reshape(-1) for array in (rgb, alpha, depth)), left, entry_blocks, pieces=8,
            grain=bins.grain,
        )  # fmt: skip
        outputs = _tensors(means2d, rgb, alpha, depth)
        ctx.save_for_backward(conics, opacities, backgrounds, outputs[1])
        ctx.bins, ctx.left, ctx.entry_blocks, ctx.num_colors = bins, left, entry_blocks, len(colors)
        radii = torch.from_numpy(bins.radii).to(means2d.device)
        ctx.mark_non_differentiable(radii)
        return *outputs, radii

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, v_rgb: Tensor, v_alpha: Tensor, v_depth: Tensor, _v_radii: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        kernels, bins = _kernels(), ctx.bins
        conics, opacities, backgrounds, alpha = (_array(tensor) for tensor in ctx.saved_tensors)
        cotangents = [_array(v) for v in (v_rgb, v_alpha, v_depth)]
        pair_grads = _empty(bins.num_pairs * kernels.PAIR_GRADS)
        threads.run(
            kernels.composite_backward, bins.num_tiles,
            bins.tile_starts, bins.entry_splats, bins.entry_pairs, ctx.entry_blocks, bins.records,
            backgrounds, *bins.shape, ctx.left, *(array.reshape(-1) for array in cotangents), pair_grads,
            pieces=8, grain=bins.grain,
        )  # fmt: skip
        views, count, _ = conics.shape
        grads = (
            _empty(views, count, 2), _empty(views, count), _empty(views, count, 3), _empty(count),
            _empty(ctx.num_colors, count, 3),
        )  # fmt: skip
        threads.run(
            kernels.reduce_pairs, count, bins.pair_offsets, pair_grads, conics.reshape(-1), opacities,
            *(grad.reshape(-1) for grad in grads), grain=GAUSSIANS_AT_LEAST,
        )  # fmt: skip
        v_backgrounds = None
        if ctx.needs_input_grad[5]:
            v_backgrounds = np.einsum("bhw,bhwc->bc", 1 - alpha, cotangents[0])
            v_backgrounds = _tensors(v_rgb, v_backgrounds)[0]
        return *_tensors(v_rgb, *grads), v_backgrounds, None, None


def rasterize(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    sh_degree: int | None,
    backgrounds: Tensor,
    near: float,
    eps2d: float,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """The back-end interface: see `threestudio_lucid.rasterizer.rasterize` for every argument."""
    means2d, depths, conics = _Project.apply(means, quats, scales, viewmats, Ks, width, height, near, eps2d)
    if means2d.requires_grad:
        means2d.retain_grad()
    if sh_degree is None:
        colors = colors[None]
    elif sh_degree == 0:
        colors = (0.5 + SH_C0 * colors[None, :, 0]).clamp_min(0)  # the same from everywhere
    else:
        colors = _ShToColors.apply(means, colors, viewmats, sh_degree)
    rgb, alpha, depth, radii = _Composite.apply(
        means2d, depths, conics, opacities, colors, backgrounds, width, height
    )
    info = {"means2d": means2d, "depths": depths, "conics": conics, "radii": radii}
    return rgb, alpha[..., None], depth[..., None], info
