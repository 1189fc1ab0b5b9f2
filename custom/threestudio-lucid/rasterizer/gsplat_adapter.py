"""The gsplat back end (CUDA): hands the call on to gsplat 1.5.3 or newer, which is imported on first use.

gsplat differs from the other back ends in one constant: it caps alpha at 0.999, they and 3DGS at 0.99.
"""

from __future__ import annotations

import importlib.util

import torch
from packaging.version import Version
from torch import Tensor

from ..errors import UserError
from . import reference

OLDEST = "1.5.3"  # the first that draws several clouds at once


def is_installed() -> bool:
    """Whether gsplat can be imported (it is not imported to find out)."""
    return importlib.util.find_spec("gsplat") is not None


def _check_version(found: str) -> None:
    if Version(found) < Version(OLDEST):
        raise UserError(
            f"gsplat {found} is installed, and {OLDEST} is needed: pip install -U gsplat, or use "
            "backend='inria' or backend='cpu'."
        )


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
    """The back-end interface: see `threestudio_lucid.rasterizer.rasterize` for every argument.

    Raises:
        UserError: gsplat is not installed or too old, or the tensors are not on a CUDA device.
    """
    if not is_installed():
        raise UserError(
            "backend is 'gsplat', which is not installed: pip install gsplat, or use backend='cpu'."
        )
    if means.device.type != "cuda":
        raise UserError(
            f"backend is 'gsplat', which needs CUDA tensors, got {means.device}: use backend='cpu'."
        )
    if len(means) == 0:  # gsplat has no answer for an empty cloud
        return reference.rasterize(
            means, quats, scales, opacities, colors, viewmats, Ks, width, height,
            sh_degree=sh_degree, backgrounds=backgrounds, near=near, eps2d=eps2d,
        )  # fmt: skip
    from gsplat import __version__, rasterization

    _check_version(__version__)
    views, own = len(viewmats), scales.dim() == 3
    if own:  # gsplat has a batch of clouds for that, here each with the one view
        means, quats, opacities, colors = (
            x.expand(views, *x.shape) for x in (means, quats, opacities, colors)
        )
        viewmats, Ks, backgrounds = viewmats[:, None], Ks[:, None], backgrounds[:, None]
    image, alpha, meta = rasterization(
        means=means,
        quats=quats,
        scales=scales,
        opacities=opacities,
        colors=colors,
        viewmats=viewmats,
        Ks=Ks,
        width=width,
        height=height,
        near_plane=near,
        eps2d=eps2d,
        sh_degree=sh_degree,
        packed=False,  # keeps means2d and radii as [B, N, ...]
        backgrounds=backgrounds,
        render_mode="RGB+D",  # D is the sum of w_i z_i, not normalised
    )
    means2d = meta["means2d"]
    if own:
        image, alpha = image[:, 0], alpha[:, 0]
        means2d = _with_gradient_of(means2d, (views, *means2d.shape[2:]))
    elif means2d.requires_grad:
        means2d.retain_grad()
    radii = meta["radii"].amax(dim=-1)  # one along x, one along y
    info = {
        "means2d": means2d,
        "depths": meta["depths"].flatten(0, -2),
        "conics": meta["conics"].flatten(0, -3),
        "radii": radii.flatten(0, -2).to(torch.int32),
    }
    return image[..., :3], alpha, image[..., 3:], info


def _with_gradient_of(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor's values in another shape; its gradient too becomes the `.grad` of what is returned."""
    reshaped = tensor.detach().reshape(shape)

    def keep(gradient: Tensor) -> None:
        gradient = gradient.reshape(shape)
        reshaped.grad = gradient if reshaped.grad is None else reshaped.grad + gradient

    if tensor.requires_grad:
        tensor.register_hook(keep)
    return reshaped
