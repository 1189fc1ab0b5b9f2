"""Real spherical harmonics of degree 0 to 3: colours that depend on the direction they are seen from.

Order and signs are those of the 3DGS files: (l, m) runs (0,0) | (1,-1) (1,0) (1,1) | (2,-2) … (2,2) | (3,-3)
… (3,3), and odd-|m| functions carry the Condon-Shortley sign. A direction points from the camera to the
Gaussian.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .constants import SH_C0, SH_C1, SH_C2, SH_C3, SH_DEGREE_MAX


def num_bases(degree: int) -> int:
    """Number of basis functions up to and including `degree`: 1, 4, 9, 16."""
    return (degree + 1) ** 2


def sh_basis(degree: int, directions: Tensor) -> Tensor:
    """The basis functions at unit directions.

    Args:
        degree: highest degree, 0 to 3.
        directions: [..., 3], unit length.

    Returns:
        [..., (degree + 1)^2]. Orthonormal: the mean over the sphere of Y_i Y_j is (i == j) / (4 pi).

    Raises:
        ValueError: `degree` is not 0, 1, 2 or 3.
    """
    if degree not in range(SH_DEGREE_MAX + 1):
        raise ValueError(f"degree must be 0 to {SH_DEGREE_MAX}, got {degree!r}.")
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, SH_C0)]
    if degree >= 1:
        basis += [-SH_C1 * y, SH_C1 * z, -SH_C1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        basis += [
            SH_C2[0] * x * y,
            SH_C2[1] * y * z,
            SH_C2[2] * (2 * zz - xx - yy),
            SH_C2[3] * x * z,
            SH_C2[4] * (xx - yy),
        ]
    if degree >= 3:
        basis += [
            SH_C3[0] * y * (3 * xx - yy),
            SH_C3[1] * x * y * z,
            SH_C3[2] * y * (4 * zz - xx - yy),
            SH_C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
            SH_C3[4] * x * (4 * zz - xx - yy),
            SH_C3[5] * z * (xx - yy),
            SH_C3[6] * x * (xx - 3 * yy),
        ]
    return torch.stack(basis, dim=-1)


def sh_to_colors(degree: int, directions: Tensor, sh: Tensor) -> Tensor:
    """Colours seen along `directions`: max(0, 1/2 + sum_k sh_k Y_k(direction)). No upper clamp, as in 3DGS.

    Args:
        degree: degree to evaluate; coefficients beyond it are left out.
        directions: [..., N, 3], any length > 0, from the camera to the Gaussian.
        sh: [N, K, 3] with K >= (degree + 1)^2.

    Returns:
        [..., N, 3], at least 0.

    Example: degree 0, sh = [[[1, 0, -2]]]: 0.5 + 0.2821 (1, 0, -2) gives (0.7821, 0.5, 0), the last clamped.
    """
    directions = torch.nn.functional.normalize(directions, dim=-1)
    basis = sh_basis(degree, directions)
    return (0.5 + torch.einsum("...nk,nkc->...nc", basis, sh[:, : num_bases(degree)])).clamp_min(0)


def view_directions(means: Tensor, viewmats: Tensor) -> Tensor:
    """Vectors [B, N, 3] from the centre of each camera (`viewmats` [B, 4, 4], rigid) to each Gaussian."""
    centres = -torch.einsum("bji,bj->bi", viewmats[:, :3, :3], viewmats[:, :3, 3])  # -R^T t
    return means[None] - centres[:, None]
