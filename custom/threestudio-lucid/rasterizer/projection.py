"""From Gaussians in space to ellipses on the image (EWA splatting, Zwicker et al. 2001), in plain PyTorch.

Notation, kept in every back end:

    means2d [B, N, 2]   centre in pixels; the centre of the top left pixel is (0.5, 0.5)
    depths  [B, N]      z in the camera, along the optical axis
    conics  [B, N, 3]   (a, b, c): inverse of the covariance on the image, [[a, b], [b, c]]; 0 if culled
    power(dx, dy)       (a dx^2 + 2 b dx dy + c dy^2) / 2 with (dx, dy) = pixel centre - mean
    alpha               min(0.99, opacity exp(-power)), skipped below 1/255
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .constants import ALPHA_MIN, FOV_MARGIN


class Projection(NamedTuple):
    """Ellipses on the image, see the notation of this module."""

    means2d: Tensor
    depths: Tensor
    conics: Tensor


def quats_to_rotations(quats: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4] in (w, x, y, z) order and of any length > 0."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def project(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near: float = 0.01,
    eps2d: float = 0.3,
) -> Projection:
    """Projects N Gaussians into B pinhole cameras. Differentiable.

    Args:
        means: [N, 3], world.
        quats: [N, 4], wxyz, any length > 0.
        scales: [N, 3] or [B, N, 3], standard deviations along the Gaussian's own axes, world units.
        viewmats: [B, 4, 4], rigid, world to camera (x right, y down, z forward).
        Ks: [B, 3, 3], intrinsics in pixels; skew is not looked at.
        width, height: image size in pixels.
        near: Gaussians whose centre is nearer than this along the optical axis are culled.
        eps2d: added to the variances on the image, pixels squared, so that none falls between pixel centres.

    The perspective map is linear only near the centre of a Gaussian. Far outside of the image its Jacobian
    grows without bound, so it is evaluated no further than 0.3 of half the image beyond the edge, as 3DGS
    does (there: 1.3 tan(fov / 2), the same for a centred principal point).
    """
    # 1. centres: world -> camera -> pixels
    rotation = viewmats[:, None, :3, :3]
    camera = (rotation @ means[None, :, :, None]).squeeze(-1) + viewmats[:, None, :3, 3]
    x, y, depths = camera.unbind(-1)
    visible = depths >= near
    z = torch.where(
        visible, depths, torch.ones_like(depths)
    )  # keeps the gradients of culled Gaussians finite
    fx, fy, cx, cy = (Ks[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1)

    # 2. Jacobian of the perspective map, [B, N, 2, 3]
    margin_x, margin_y = FOV_MARGIN * width / (2 * fx), FOV_MARGIN * height / (2 * fy)
    slope_x = torch.clamp(x / z, -cx / fx - margin_x, (width - cx) / fx + margin_x)
    slope_y = torch.clamp(y / z, -cy / fy - margin_y, (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * slope_x / z, zero, fy / z, -fy * slope_y / z], dim=-1)
    jacobian = jacobian.unflatten(-1, (2, 3))

    # 3. covariance on the image: (J W R S)(J W R S)^T + eps2d I
    root = jacobian @ rotation @ (quats_to_rotations(quats) * scales[..., None, :])
    cov = root @ root.transpose(-1, -2)
    xx, xy, yy = cov[..., 0, 0] + eps2d, cov[..., 0, 1], cov[..., 1, 1] + eps2d

    # 4. its inverse
    determinant = xx * yy - xy * xy
    visible = visible & (determinant > 0)
    determinant = torch.where(visible, determinant, torch.ones_like(determinant))
    conics = torch.stack([yy, -xy, xx], dim=-1) / determinant[..., None]
    return Projection(
        means2d=torch.where(visible[..., None], means2d, torch.zeros_like(means2d)),
        depths=depths,
        conics=torch.where(visible[..., None], conics, torch.zeros_like(conics)),
    )


@torch.no_grad()
def compute_radii(means2d: Tensor, conics: Tensor, opacities: Tensor, width: int, height: int) -> Tensor:
    """Radius in pixels, rounded up, of the ellipse where alpha >= 1/255; 0 where it shows in no pixel.

    The ellipse is power <= K / 2 with K = 2 ln(255 opacity), at most 3.33 standard deviations (3DGS draws 3
    around every Gaussian, however faint). Shows: the box around the ellipse holds a pixel centre.

    Returns:
        [B, N], int32.
    """
    a, b, c = conics.unbind(-1)
    reach = 2 * torch.log(opacities.clamp_min(1e-30) / ALPHA_MIN).expand_as(a)
    determinant = a * c - b * b
    shown = (a > 0) & (reach >= 0) & (determinant > 0)
    determinant = torch.where(shown, determinant, torch.ones_like(determinant))
    reach = torch.where(shown, reach, torch.zeros_like(reach))
    half_x, half_y = (reach * c / determinant).sqrt(), (reach * a / determinant).sqrt()
    shown &= (means2d[..., 0] + half_x >= 0.5) & (means2d[..., 0] - half_x <= width - 0.5)
    shown &= (means2d[..., 1] + half_y >= 0.5) & (means2d[..., 1] - half_y <= height - 0.5)
    largest = ((a + c) / 2 + (((a - c) / 2) ** 2 + b * b).sqrt()) / determinant  # the larger variance
    radius = (reach * largest).sqrt().ceil().clamp_min(1).clamp_max(math.floor(2**30))
    return torch.where(shown, radius, torch.zeros_like(radius)).to(torch.int32)
