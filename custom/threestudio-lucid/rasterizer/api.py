"""`rasterize`: one function in front of every back end."""

from __future__ import annotations

import functools
import importlib
import logging
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import gsplat_adapter, inria_adapter
from .constants import SH_DEGREE_MAX

logger = logging.getLogger(__name__)

# Each names a module with a function `rasterize`, imported when it is first used.
_MODULES = {"cpu": "cpu", "reference": "reference", "gsplat": "gsplat_adapter", "inria": "inria_adapter"}
BACKENDS = ("auto", *_MODULES)


class Render(NamedTuple):
    """What a view shows.

    Attributes:
        rgb: [B, H, W, 3], the Gaussians' colours over the background.
        alpha: [B, H, W, 1], opacity in [0, 1]: 1 minus the transmittance that is left.
        depth: [B, H, W, 1], sum_i w_i z_i along the optical axis, not normalised (mean depth: depth / alpha).
        info: `means2d` [B, N, 2], centres in pixels, whose `.grad` after the backward pass is dL/d(pixel
            position) in each view (read that and no more: gsplat's may stand outside of the graph); `radii`
            [B, N] int32, in pixels, 0 where a Gaussian shows in no pixel; `depths` [B, N]; `conics`
            [B, N, 3]; `backend`, the name of the back end that ran.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    info: dict[str, Tensor | str]


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
    sh_degree: int | None = None,
    background: Tensor | None = None,
    near: float = 0.01,
    eps2d: float = 0.3,
    backend: str = "auto",
) -> Render:
    """Renders N 3D Gaussians into B pinhole cameras (Kerbl et al. 2023).

    Differentiable in means, quats, scales, opacities, colors and background, not in the cameras.

    Args:
        means: [N, 3], world coordinates.
        quats: [N, 4], rotations (w, x, y, z) of any length > 0.
        scales: [N, 3], or [B, N, 3] for each view its own; standard deviations, world units.
        opacities: [N], in [0, 1].
        colors: [N, 3], or with `sh_degree` spherical-harmonics coefficients [N, K, 3], K >= (degree + 1)^2.
        viewmats: [B, 4, 4], rigid, world to camera: x right, y down, z forward (OpenCV).
        Ks: [B, 3, 3], intrinsics in pixels; the centre of the top left pixel is (0.5, 0.5).
        width, height: pixels.
        sh_degree: degree to evaluate, 0 to 3; None: `colors` are colours.
        background: [3] or [B, 3]; None: black.
        near: Gaussians whose centre is nearer along the optical axis are not drawn.
        eps2d: added to the variances on the image, pixels squared: 0.3 as in 3DGS.
        backend: "cpu" (compiled, threaded), "reference" (plain PyTorch, slow), "gsplat" (CUDA), "inria"
            (CUDA, diff-gaussian-rasterization), or "auto": for CUDA tensors gsplat where it is installed,
            else inria where that is, else cpu.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range, or (on the CPU only, where
            looking is cheap) holds infinities or NaNs.
        UserError: `backend` is not one of `BACKENDS`, or cannot run here.

    Example:
        >>> means, quats = torch.zeros(1, 3), torch.tensor([[1.0, 0, 0, 0]])
        >>> scales, opacities, colors = torch.full((1, 3), 0.1), torch.tensor([0.8]), torch.ones(1, 3)
        >>> viewmats = torch.eye(4)[None].clone()
        >>> viewmats[:, 2, 3] = 2  # the Gaussian is 2 units in front of the camera
        >>> Ks = torch.tensor([[[20.0, 0, 4.5], [0, 20, 4.5], [0, 0, 1]]])
        >>> view = rasterize(means, quats, scales, opacities, colors, viewmats, Ks, width=9, height=9)
        >>> alpha, depth = view.alpha[0, 4, 4].item(), view.depth[0, 4, 4].item()  # the pixel at its centre
        >>> print(f"{alpha:.2f} {depth:.2f}")  # the opacity, and opacity times distance
        0.80 1.60
    """
    name = _choose(backend, means)
    inputs = {"means": means, "quats": quats, "scales": scales, "opacities": opacities, "colors": colors}
    cameras = {"viewmats": viewmats, "Ks": Ks}
    _check_tensors(inputs | cameras | ({} if background is None else {"background": background}))
    _check_shapes(**inputs, **cameras, sh_degree=sh_degree, background=background)
    _check_numbers(width, height, near, eps2d)

    backgrounds = means.new_zeros(3) if background is None else background
    rgb, alpha, depth, info = _load(name)(
        *inputs.values(),
        viewmats.detach(),
        Ks.detach(),
        int(width),
        int(height),
        sh_degree=sh_degree,
        backgrounds=backgrounds.expand(len(viewmats), 3),
        near=float(near),
        eps2d=float(eps2d),
    )
    return Render(rgb, alpha, depth, {**info, "backend": name})


def _choose(backend: str, means: Tensor) -> str:
    """The back end that a name stands for."""
    if backend not in BACKENDS:
        from ..errors import UserError

        raise UserError(f"backend is {backend!r}; it must be one of: {', '.join(BACKENDS)}.")
    if backend != "auto":
        return backend
    if means.device.type != "cuda":
        return "cpu"
    if gsplat_adapter.is_installed():
        return "gsplat"
    if inria_adapter.is_installed():
        return "inria"
    _warn_no_cuda_backend()
    return "cpu"


@functools.cache
def _warn_no_cuda_backend() -> None:
    logger.warning(
        "CUDA tensors, but gsplat is not installed: rasterizing on the CPU. Faster: pip install gsplat"
    )


@functools.cache
def _load(name: str):
    return importlib.import_module(f".{_MODULES[name]}", __package__).rasterize


def _check_tensors(tensors: dict[str, Tensor]) -> None:
    means = tensors["means"]
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{name} must be a tensor of floating point numbers, got {kind}.")
        if tensor.device != means.device:
            raise ValueError(f"{name} must be on the device of means, {means.device}, got {tensor.device}.")
        if tensor.device.type == "cpu":
            bad = tensor.numel() - int(np.count_nonzero(np.isfinite(_values(tensor))))
            if bad:
                raise ValueError(
                    f"{name} must be finite, got {bad} infinities or NaNs of {tensor.numel()} numbers."
                )


def _values(tensor: Tensor) -> np.ndarray:
    """A CPU tensor for numpy, which does not wake a team of threads for an array this small."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


def _check_shapes(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    sh_degree: int | None,
    background: Tensor | None,
) -> None:
    def check(name: str, tensor: Tensor, *shape: int | None) -> None:
        if tensor.dim() != len(shape) or any(
            want not in (None, got) for want, got in zip(shape, tensor.shape, strict=True)
        ):
            text = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{name} must have the shape [{text}], got {list(tensor.shape)}.")

    check("means", means, None, 3)
    count = len(means)
    check("quats", quats, count, 4)
    check("opacities", opacities, count)
    check("viewmats", viewmats, None, 4, 4)
    if len(viewmats) == 0:
        raise ValueError("viewmats must hold at least one camera, got none.")
    check("scales", scales, *([len(viewmats)] if scales.dim() == 3 else []), count, 3)
    check("Ks", Ks, len(viewmats), 3, 3)
    if sh_degree is None:
        check("colors", colors, count, 3)
    else:
        if sh_degree not in range(SH_DEGREE_MAX + 1):
            raise ValueError(f"sh_degree must be 0 to {SH_DEGREE_MAX} or None, got {sh_degree!r}.")
        check("colors (with sh_degree)", colors, count, None, 3)
        if colors.shape[1] < (sh_degree + 1) ** 2:
            raise ValueError(
                f"colors must hold at least {(sh_degree + 1) ** 2} coefficients per Gaussian for "
                f"sh_degree={sh_degree}, got {colors.shape[1]}."
            )
    if background is not None and tuple(background.shape) not in ((3,), (len(viewmats), 3)):
        shape = list(background.shape)
        raise ValueError(f"background must have the shape [3] or [{len(viewmats)}, 3], got {shape}.")


def _check_numbers(width: int, height: int, near: float, eps2d: float) -> None:
    for name, size in (("width", width), ("height", height)):
        if int(size) != size or size < 1:
            raise ValueError(f"{name} must be a whole number of pixels, at least 1, got {size!r}.")
    if not (near > 0 and math.isfinite(near)):
        raise ValueError(f"near must be above 0, got {near!r}.")
    if not (eps2d >= 0 and math.isfinite(eps2d)):
        raise ValueError(f"eps2d must be at least 0, got {eps2d!r}.")
