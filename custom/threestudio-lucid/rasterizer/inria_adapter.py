"""The inria back end (CUDA): hands the call on to diff-gaussian-rasterization, whichever one is installed.

The original and its forks return two values, three or four: the picture first, the radii as the one tensor
of integers, and sometimes depth, its inverse or a transmittance, each in a convention of its own. So only the
picture and the radii are taken; alpha and depth are pictures too, of the colours 1 and z, and so have the
right gradients in every fork. That is a second pass; gsplat needs one.

What its kernels fix: Gaussians nearer than 0.2 are not drawn, the blur is 0.3 square pixels, a Gaussian ends
at three deviations (the others: where alpha falls below 1/255), the Jacobian is clamped about the picture's
centre.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from . import reference
from .projection import project
from .sh import sh_to_colors, view_directions

PACKAGE = "diff_gaussian_rasterization"
NEAR, EPS2D = 0.2, 0.3


def is_installed() -> bool:
    """Whether diff-gaussian-rasterization can be imported (it is not imported to find out)."""
    return importlib.util.find_spec(PACKAGE) is not None


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
        UserError: the package is not installed, the tensors are not on a CUDA device, or `eps2d` is not 0.3.
    """
    _check(means.device, eps2d)
    if len(means) == 0:
        return reference.rasterize(
            means, quats, scales, opacities, colors, viewmats, Ks, width, height,
            sh_degree=sh_degree, backgrounds=backgrounds, near=near, eps2d=eps2d,
        )  # fmt: skip
    means, quats, scales, opacities, colors, viewmats, Ks, backgrounds = (
        x.float() for x in (means, quats, scales, opacities, colors, viewmats, Ks, backgrounds)
    )
    with torch.no_grad():
        means2d, depths, conics = project(means, quats, scales, viewmats, Ks, width, height, max(near, NEAR))
    # theirs carry no values: what reaches them is dL/d(pixel position), as the gradient of a leaf
    means2d = means2d.detach().requires_grad_(means.requires_grad)
    if sh_degree is not None:
        colors = sh_to_colors(sh_degree, view_directions(means, viewmats), colors)
    quats = torch.nn.functional.normalize(quats, dim=-1)

    pictures, radii = [], []
    for v, K in enumerate(Ks.tolist()):  # they take Python numbers: one wait for the GPU
        z = means @ viewmats[v, 2, :3] + viewmats[v, 2, 3]
        shown = opacities if near <= NEAR else opacities * (z >= near)
        view = _View(viewmats[v], K, width, height)
        sizes = scales if scales.dim() == 2 else scales[v]
        splats = means, _ndc(means2d[v], width, height), shown, sizes, quats
        rgb, radius = view.draw(*splats, colors if colors.dim() == 2 else colors[v])
        sums, _ = view.draw(*splats, torch.stack([z, torch.ones_like(z), torch.zeros_like(z)], dim=-1))
        depth, alpha = sums[..., :1], sums[..., 1:2]
        pictures.append((rgb + (1 - alpha) * backgrounds[v], alpha, depth))
        radii.append(radius)
    rgb, alpha, depth = (torch.stack(images) for images in zip(*pictures, strict=True))
    info = {"means2d": means2d, "depths": depths, "conics": conics, "radii": torch.stack(radii)}
    return rgb, alpha, depth, info


def _check(device: torch.device, eps2d: float) -> None:
    if not is_installed():
        raise UserError(
            "backend is 'inria', and diff-gaussian-rasterization is not installed: install it from its "
            "repository (graphdeco-inria/diff-gaussian-rasterization or a fork), or use backend='gsplat'."
        )
    if device.type != "cuda":
        raise UserError(f"backend is 'inria', which needs CUDA tensors, got {device}: use backend='cpu'.")
    if eps2d != EPS2D:
        raise UserError(f"backend is 'inria', whose blur is {EPS2D}, got {eps2d:g}: use backend='gsplat'.")


def _ndc(means2d: Tensor, width: int, height: int) -> Tensor:
    """[N, 3]: in their units a picture is 2 wide and 2 high, and so are their gradients."""
    scaled = means2d * means2d.new_tensor([2 / width, 2 / height])
    return torch.cat([scaled, torch.zeros_like(scaled[:, :1])], dim=-1)


class _View:
    """One camera in the package's terms."""

    def __init__(self, viewmat: Tensor, K: list[list[float]], width: int, height: int):
        (fx, _, cx), (_, fy, cy), _ = K
        projection = viewmat.new_tensor(  # pixels to [-1, 1]; the third row, a depth, is read by nothing
            [
                [2 * fx / width, 0, 2 * cx / width - 1, 0],
                [0, 2 * fy / height, 2 * cy / height - 1, 0],
                [0, 0, 1, 0],
                [0, 0, 1, 0],
            ]
        )
        self.settings = {
            "image_height": height,
            "image_width": width,
            "tanfovx": width / (2 * fx),
            "tanfovy": height / (2 * fy),
            "bg": torch.zeros(3, device=viewmat.device),
            "scale_modifier": 1.0,
            "viewmatrix": viewmat.T.contiguous(),
            "projmatrix": (projection @ viewmat).T.contiguous(),
            "sh_degree": 0,
            "campos": -viewmat[:3, :3].T @ viewmat[:3, 3],
            "prefiltered": False,
            "debug": False,
            "antialiasing": False,
        }

    def draw(
        self, means: Tensor, ndc: Tensor, opacities: Tensor, scales: Tensor, quats: Tensor, colors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Picture [H, W, 3] over black of N Gaussians with colors [N, 3], and radii [N] int32."""
        package: Any = importlib.import_module(PACKAGE)
        fields = package.GaussianRasterizationSettings._fields
        if missing := [name for name in fields if name not in self.settings]:
            raise UserError(
                f"The diff-gaussian-rasterization that is installed needs {', '.join(missing)}, which is not "
                "known here: use backend='gsplat'."
            )
        settings = {name: self.settings[name] for name in fields}
        rasterizer = package.GaussianRasterizer(package.GaussianRasterizationSettings(**settings))
        image, *others = rasterizer(
            means3D=means,
            means2D=ndc,
            opacities=opacities[:, None],
            colors_precomp=colors,
            scales=scales,
            rotations=quats,
        )
        radii = next(value for value in others if not value.is_floating_point())
        return image.permute(1, 2, 0), radii.to(torch.int32)
