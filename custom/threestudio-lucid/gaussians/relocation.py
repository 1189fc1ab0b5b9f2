"""Relocation: 3D Gaussian splatting as Markov chain Monte Carlo (Kheradmand et al. 2024, arXiv 2404.09591).

The sibling of clone, split and prune, for an arena of fixed size: Gaussians that contribute nothing move to
where others do, growth follows a budget instead of a threshold, and a little noise lets faint ones wander. A
Gaussian that is joined by copies of itself shares its opacity and its size with them so that the picture
stays as it was.

Plain functions on explicit tensors, all edited in place; `params`, `moments` and `n` are those of `density`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .density import DensityReport, Moments, Params, rebuild, rotate

MIN_OPACITY = 0.005  # of what is alive, and of every copy
# The noise on positions fades out where opacities come above about 0.005: a sigmoid of this steepness.
NOISE_STEEPNESS = 100.0
# Gauss-Legendre for the integral in `shared_scale`, up to where exp(-u^2) is below any float.
_REACH = 7.0
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)


@dataclass(frozen=True)
class RelocationRules:
    """One round.

    budget: how many Gaussians there may be after it; growth is at most a factor of `growth`.
    min_opacity: below it a Gaussian is dead and moves.
    """

    budget: int
    growth: float = 1.05
    min_opacity: float = MIN_OPACITY


def budget(first: int, capacity: int, progress: float) -> int:
    """How many Gaussians there may be when `progress` in [0, 1] of the time for growth is over.

    Geometric from `first` to `capacity`, so that every round adds the same share.

    >>> [budget(1000, 4000, p) for p in (0.0, 0.5, 1.0, 2.0)]
    [1000, 2000, 4000, 4000]
    """
    return round(first * (capacity / first) ** min(max(progress, 0.0), 1.0))


def shared_opacity(opacity: Tensor, copies: Tensor) -> Tensor:
    """The opacity with which `copies` Gaussians in one place cover like one of `opacity` (eq. 9), [N]."""
    return -torch.expm1(torch.log1p(-opacity) / copies)


def shared_scale(opacity: Tensor, copies: Tensor) -> Tensor:
    """The factor on their scales that goes with `shared_opacity` (eq. 9), [N], for any number of copies.

    The paper's double sum of alternating binomials, sum_i sum_k C(i-1, k) (-1)^k p^(k+1) / sqrt(k+1), loses
    its digits beyond some fifty copies. With 1 / sqrt(k+1) as a Gaussian integral it becomes

        2 / sqrt(pi) * integral over u > 0 of 1 - (1 - p exp(-u^2))^copies

    which has no cancellation.
    """
    p = shared_opacity(opacity.double(), copies.double())[:, None]
    nodes, weights = (torch.from_numpy(x).to(p.device) for x in (_NODES + 1.0, _WEIGHTS))
    falloff = torch.exp(-(0.5 * _REACH * nodes).square())
    covered = -torch.expm1(copies.double()[:, None] * torch.log1p(-p * falloff))
    area = 2.0 / np.sqrt(np.pi) * (covered * weights).sum(1) * 0.5 * _REACH
    return (opacity.double() / area).to(opacity)


@torch.no_grad()
def relocate(
    params: Params,
    moments: Moments,
    n: Tensor,
    rules: RelocationRules,
    generator: torch.Generator,
    frozen: Tensor | None = None,
) -> DensityReport:
    """One round: the dead move to the living, and new ones join up to the budget.

    Where they go is drawn in proportion to the opacity. Hosts and guests lose their moments.

    Args:
        generator: draws the hosts; on the CPU, so that every device draws the same.
        frozen: [capacity] bool; rows that neither move nor share.

    Returns:
        what was done: `pruned` counts the dead, `cloned` those that moved or joined, `refused` the dead
        that found no host.
    """
    count = int(n)
    if frozen is None:
        frozen = torch.zeros(len(params["means"]), dtype=torch.bool, device=params["means"].device)
    held = frozen[:count]
    opacity = params["logit_opacities"][:count].sigmoid()
    dead = (opacity <= rules.min_opacity) & ~held
    hosts = (~dead & ~held).nonzero().squeeze(1)
    vacant = dead.nonzero().squeeze(1)
    wanted = min(int(rules.growth * count), rules.budget, len(params["means"])) - count
    guests = len(vacant) + max(wanted, 0)
    if not len(hosts) or not guests:
        return DensityReport(0, 0, 0, refused=len(vacant), n=count)

    # 1. draw a host for each guest
    chosen = torch.multinomial(opacity[hosts].double().cpu(), guests, replacement=True, generator=generator)
    chosen = hosts[chosen.to(hosts.device)]
    copies = 1 + torch.bincount(chosen, minlength=count)

    # 2. hosts and guests share what the host had
    shared = copies > 1
    factor = shared_scale(opacity[shared], copies[shared])
    share = shared_opacity(opacity[shared], copies[shared]).clamp(min=rules.min_opacity)
    params["log_scales"][:count][shared] += factor.log()[:, None]
    params["logit_opacities"][:count][shared] = torch.logit(share)

    # 3. the dead rows go, the guests come
    keep = (~dead).nonzero().squeeze(1)
    born = {name: p[chosen] for name, p in params.items()}
    born["frozen"] = frozen.new_zeros(guests)
    for each in moments.values():
        for moment in each:
            moment[:count][shared] = 0
    rebuild({**params, "frozen": frozen}, moments, n, keep, born)
    return DensityReport(cloned=guests, split=0, pruned=len(vacant), refused=0, n=int(n))


@torch.no_grad()
def wander(params: Params, n: Tensor, rate: float, generator: torch.Generator, frozen: Tensor) -> None:
    """Noise on the positions of faint Gaussians, shaped like them (eq. 7); `rate` is in units of variance.

    Args:
        generator: draws on its own device.
    """
    count = int(n)
    faint = torch.sigmoid(-NOISE_STEEPNESS * (params["logit_opacities"][:count].sigmoid() - MIN_OPACITY)) * (
        ~frozen[:count]
    )
    means = params["means"][:count]
    noise = torch.randn(means.shape, generator=generator, device=generator.device).to(means)
    # the covariance is R S S R', so the noise goes into the local frame and back
    quats = params["quats"][:count]
    local = rotate(quats * quats.new_tensor([1.0, -1.0, -1.0, -1.0]), noise)
    means += rate * faint[:, None] * rotate(quats, local * (2 * params["log_scales"][:count]).exp())
