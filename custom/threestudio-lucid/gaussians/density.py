"""Density control of 3D Gaussian splatting (Kerbl et al. 2023, section 5), inside an arena of fixed size.

Plain functions on explicit tensors, all edited in place:

    params    name -> [capacity, ...], see `cloud.Gaussians` for names and units
    moments   name -> what the optimizer remembers per element of that parameter, each like the parameter
    n         int64 scalar, how many rows live

`rebuild` is the only function that moves rows, and it moves parameters and moments together. Where the
picture wants to change but cannot (a large screen-space gradient), small Gaussians are cloned and large ones
split in two; transparent and oversized ones go. The defaults are LucidDreamer's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Params = Mapping[str, Tensor]
Moments = Mapping[str, list[Tensor]]

# A split replaces a Gaussian by two, each smaller by 0.8 * 2.
CHILDREN = 2
SHRINK = 0.8 * CHILDREN


@dataclass(frozen=True)
class DensityRules:
    """Thresholds of one round of density control.

    grad_threshold: mean norm of dL/d(position on screen), in the units of `screen_gradients`, from which on a
        Gaussian is cloned or split.
    clone_scale: largest standard deviation (world units) that is still cloned; above it, split.
    prune_opacity: below it a Gaussian is removed.
    prune_scale: largest standard deviation (world units) above which a Gaussian is removed; None keeps all.
    """

    grad_threshold: float = 7.5e-4
    clone_scale: float = 0.0105
    prune_opacity: float = 0.005
    prune_scale: float | None = 0.35


@dataclass(frozen=True)
class DensityReport:
    """What one round did. `refused` wanted to be cloned or split, but the arena was full."""

    cloned: int
    split: int
    pruned: int
    refused: int
    n: int


def screen_gradients(means2d_grad: Tensor, radii: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Sum and count over views of the norm of dL/d(screen position), each [N].

    Args:
        means2d_grad: [B, N, 2], gradient with respect to pixel positions.
        radii: [B, N], 0 where a Gaussian is not in that view; such views do not count.
        width, height: of the picture. The norm is taken in normalised device coordinates (the picture is 2 x
            2), as 3DGS does, so that thresholds do not depend on the resolution.
    """
    seen = radii > 0
    x, y = means2d_grad.unbind(-1)
    norm = torch.hypot(0.5 * width * x, 0.5 * height * y)  # a tensor of the two would have to be copied
    return torch.where(seen, norm, torch.zeros_like(norm)).sum(0), seen.sum(0).to(norm)


@torch.no_grad()
def rebuild(params: Params, moments: Moments, n: Tensor, keep: Tensor, born: Params | None = None) -> None:
    """The living rows become `keep` (indices of old rows, in this order) followed by the `born` rows.

    Kept rows take their moments along; born rows start with zero moments; the rest of the arena becomes zero.

    Raises:
        ValueError: more rows than the arena holds, or born rows of different lengths.
    """
    lengths = {len(rows) for rows in born.values()} if born else {0}
    if len(lengths) > 1:
        raise ValueError(f"born rows have different lengths: {sorted(lengths)}")
    k, end = len(keep), len(keep) + lengths.pop()
    for name, p in params.items():
        if end > len(p):
            raise ValueError(f"{end} Gaussians do not fit a capacity of {len(p)}")
        rows = p[keep]
        p[:k] = rows
        if born:
            p[k:end] = born[name]
        p[end:] = 0
        for moment in moments.get(name, ()):
            moment[:k] = moment[keep]
            moment[k:] = 0
    n.fill_(end)


@torch.no_grad()
def refine(
    params: Params,
    moments: Moments,
    n: Tensor,
    grad_sum: Tensor,
    grad_count: Tensor,
    rules: DensityRules,
    generator: torch.Generator,
    frozen: Tensor | None = None,
) -> DensityReport:
    """One round of clone, split and prune; clears the statistics.

    Survivors come first, in their order, then clones, then first children, then second children. When the
    arena cannot hold all that want to multiply, those of the largest gradients do. A Gaussian made in this
    round is neither cloned nor split again in it.

    Args:
        grad_sum, grad_count: [capacity], what `screen_gradients` added up since the last round.
        generator: draws where children go; on the CPU, so that every device draws the same.
        frozen: [capacity] bool; rows that are neither cloned, split nor pruned. Their marks move with them.
    """
    count = int(n)
    if frozen is None:
        frozen = torch.zeros_like(grad_sum, dtype=torch.bool)
    held = frozen[:count]
    gradient = (grad_sum / grad_count.clamp_min(1.0))[:count]  # 0 of what no view has shown
    largest = params["log_scales"][:count].amax(dim=1).exp()
    opaque = params["logit_opacities"][:count].sigmoid() >= rules.prune_opacity
    limit = float("inf") if rules.prune_scale is None else rules.prune_scale

    # 1. who wants to multiply: what would be pruned at once does not take part
    wants = (gradient >= rules.grad_threshold) & opaque & ~held
    small = largest <= rules.clone_scale
    clone = wants & small & (largest <= limit)
    split = wants & ~small & (largest / SHRINK <= limit)

    # 2. who goes for good
    stays = held | opaque & (largest <= limit)

    # 3. room: a clone needs one row more; a split one more, or two if its parent had to go anyway
    needs = clone.long() + split.long() * (1 + (~stays).long())
    chosen = _largest_that_fit(gradient, needs, room=grad_sum.numel() - stays.sum())
    refused = (clone | split) & ~chosen
    clone, split = clone & chosen, split & chosen
    pruned = ~stays & ~split

    # 4. do it
    keep = (stays & ~split).nonzero().squeeze(1)
    clones, parents = clone.nonzero().squeeze(1), split.nonzero().squeeze(1)
    children = split_children(params, parents, generator)
    born = {name: torch.cat([p[clones], children[name]]) for name, p in params.items()}
    born["frozen"] = frozen.new_zeros(len(born["means"]))
    rebuild({**params, "frozen": frozen}, moments, n, keep, born)
    grad_sum.zero_()
    grad_count.zero_()
    left_out = torch.stack([pruned.sum(), refused.sum()]).tolist()
    return DensityReport(len(clones), len(parents), *left_out, n=len(keep) + len(born["means"]))


def split_children(params: Params, parents: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Two children of each parent: drawn from it as a normal distribution, and smaller by 1.6; [2 P, ...]."""
    children = {name: torch.cat([p[parents]] * CHILDREN) for name, p in params.items()}
    sigma = children["log_scales"].exp()
    local = sigma * torch.randn(sigma.shape, generator=generator).to(sigma)
    children["means"] = children["means"] + rotate(children["quats"], local)
    children["log_scales"] = children["log_scales"] - math.log(SHRINK)
    return children


def rotate(quats: Tensor, vectors: Tensor) -> Tensor:
    """Rotates vectors [N, 3] by quaternions wxyz [N, 4] of any norm > 0."""
    w, xyz = F.normalize(quats, dim=-1).split([1, 3], dim=-1)
    across = 2.0 * torch.cross(xyz, vectors, dim=-1)
    return vectors + w * across + torch.cross(xyz, across, dim=-1)


@torch.no_grad()
def reset_opacity(
    params: Params, moments: Moments, n: Tensor, maximum: float = 0.01, frozen: Tensor | None = None
) -> None:
    """opacity <- min(opacity, maximum), with zero moments: what the picture does not need will stay faint.

    Args:
        frozen: [capacity] bool; rows that keep their opacity.
    """
    logits = params["logit_opacities"][: int(n)]
    reset = logits.clamp(max=math.log(maximum / (1.0 - maximum)))
    logits.copy_(reset if frozen is None else torch.where(frozen[: int(n)], logits, reset))
    for moment in moments.get("logit_opacities", ()):
        moment.zero_()


def _largest_that_fit(gradient: Tensor, needs: Tensor, room: Tensor) -> Tensor:
    """Mask of the candidates (needs > 0) of largest gradient whose needs fit the room; ties by index."""
    order = torch.where(needs > 0, gradient, -torch.ones_like(gradient)).argsort(descending=True, stable=True)
    fits = (needs[order].cumsum(0) <= room) & (needs[order] > 0)
    return torch.zeros_like(fits).scatter_(0, order, fits)
