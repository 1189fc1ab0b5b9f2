"""The reference back end: alpha compositing written as its formula, slow and obviously right.

For every pixel, over the Gaussians i sorted by depth, nearest first:

    alpha_i = min(0.99, o_i exp(-power_i)), and 0 where that is below 1/255
    T_i     = prod_{j < i} (1 - alpha_j)
    w_i     = alpha_i T_i, up to (not including) the first i with T_{i+1} < 1e-4
    rgb     = sum_i w_i c_i + T background,   alpha = 1 - T,   depth = sum_i w_i z_i

with T what is left after the last one. Autograd gives the gradients. It works in any floating dtype and on
any device; the cost is O(pixels x N) in time, and in memory O(`PAIRS_AT_ONCE`), because blocks of pixels are
recomputed in the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .constants import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN
from .projection import Projection, compute_radii, project
from .sh import sh_to_colors, view_directions

PAIRS_AT_ONCE = 1 << 22


def composite_pixels(
    pixels: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor, features: Tensor
) -> tuple[Tensor, Tensor]:
    """Composites N Gaussians, already sorted by depth, at P pixel centres of one view.

    Args:
        pixels: [P, 2]. means2d: [N, 2]. conics: [N, 3]. opacities: [N]. features: [N, C].

    Returns:
        sum_i w_i features_i [P, C], and the final transmittance [P].
    """
    dx, dy = (pixels[:, None] - means2d[None]).unbind(-1)
    a, b, c = conics.unbind(-1)
    power = (a * dx * dx + c * dy * dy) / 2 + b * dx * dy
    alphas = (opacities * torch.exp(-power)).clamp_max(ALPHA_MAX)
    alphas = torch.where((a > 0) & (alphas >= ALPHA_MIN), alphas, torch.zeros_like(alphas))

    going = (
        torch.cumprod(1 - alphas, dim=1) >= TRANSMITTANCE_MIN
    )  # non-increasing: once stopped, stopped for good
    alphas = torch.where(going, alphas, torch.zeros_like(alphas))
    after = torch.cumprod(1 - alphas, dim=1)
    after = torch.cat([after.new_ones(len(pixels), 1), after], dim=1)  # [P, N + 1]
    weights = alphas * after[:, :-1]
    return weights @ features, after[:, -1]


def composite(
    projection: Projection, opacities: Tensor, colors: Tensor, backgrounds: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Composites B views: (rgb [B, H, W, 3], alpha [B, H, W, 1], depth [B, H, W, 1]).

    Args:
        projection: ellipses of B views.
        opacities: [N], in [0, 1].
        colors: [B or 1, N, 3]. backgrounds: [B, 3].
    """
    means2d, depths, conics = projection
    views, num = depths.shape
    dtype, device = means2d.dtype, means2d.device
    y, x = torch.meshgrid(
        torch.arange(height, dtype=dtype, device=device) + 0.5,
        torch.arange(width, dtype=dtype, device=device) + 0.5,
        indexing="ij",
    )
    blocks = torch.stack([x, y], dim=-1).reshape(-1, 2).split(max(1, PAIRS_AT_ONCE // max(num, 1)))
    rgb, alpha, depth = [], [], []
    for v in range(views):
        order = torch.argsort(depths[v].detach(), stable=True)
        features = torch.cat([colors[min(v, len(colors) - 1)], depths[v, :, None]], dim=1)
        splats = (means2d[v, order], conics[v, order], opacities[order], features[order])
        parts = [checkpoint(composite_pixels, block, *splats, use_reentrant=False) for block in blocks]
        sums = torch.cat([part[0] for part in parts]).view(height, width, 4)
        left = torch.cat([part[1] for part in parts]).view(height, width, 1)
        rgb.append(sums[..., :3] + left * backgrounds[v])
        alpha.append(1 - left)
        depth.append(sums[..., 3:])
    return torch.stack(rgb), torch.stack(alpha), torch.stack(depth)


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
    projection = project(means, quats, scales, viewmats, Ks, width, height, near, eps2d)
    if projection.means2d.requires_grad:
        projection.means2d.retain_grad()
    if sh_degree is None:
        colors = colors[None]
    else:
        colors = sh_to_colors(sh_degree, view_directions(means, viewmats), colors)
    rgb, alpha, depth = composite(projection, opacities, colors, backgrounds, width, height)
    radii = compute_radii(projection.means2d, projection.conics, opacities, width, height)
    info = {
        "means2d": projection.means2d,
        "depths": projection.depths,
        "conics": projection.conics,
        "radii": radii,
    }
    return rgb, alpha, depth, info
