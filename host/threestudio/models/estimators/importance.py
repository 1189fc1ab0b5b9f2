"""Samples where the density says that a ray's light comes from (NeRF's second pass, 2020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from threestudio.models.estimators.samples import Samples, weights_and_visibility


class ImportanceEstimator(nn.Module):
    """`importance_samples` as extensions of threestudio call it: dense, with any number of passes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_device", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        return self._device.device

    @torch.no_grad()
    def sampling(
        self,
        prop_sigma_fns: Sequence[Callable[[Tensor, Tensor], Tensor]],
        prop_samples: Sequence[int],
        num_samples: int,
        n_rays: int,
        near_plane: float,
        far_plane: float,
        sampling_type: str = "uniform",
        stratified: bool = False,
        requires_grad: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Starts and ends [n_rays, the last of prop_samples + num_samples] of intervals from near to far.

        Args:
            prop_sigma_fns: of each pass, (t_starts, t_ends) [n_rays, n] -> densities [n_rays, n].
            prop_samples: how many intervals each pass has.
            num_samples: how many cuts are added to the last pass's.
            sampling_type: uniform, or lindisp: even in 1 / t.
            stratified: move the cuts at random (torch's global generator).
            requires_grad: whether the densities may be differentiated, for what their functions keep.

        Raises:
            ValueError: another sampling_type, or functions and numbers that do not pair up.
        """
        if sampling_type not in ("uniform", "lindisp"):
            raise ValueError(f"sampling_type is {sampling_type!r}; it must be uniform or lindisp.")
        near, far = near_plane, far_plane
        if sampling_type == "lindisp":
            near, far = 1 / near, 1 / far
        edges = _cuts(n_rays, 1, False, self.device)
        cdf = edges
        for density, n in zip(prop_sigma_fns, prop_samples, strict=True):
            edges = _inverse(cdf, edges, _cuts(n_rays, n, stratified, self.device))
            edges[:, 0], edges[:, -1] = 0.0, 1.0  # also where there is nothing, for the next pass to see
            t = _along(edges, near, far, sampling_type)
            with torch.set_grad_enabled(requires_grad):
                densities = density(t[:, :-1], t[:, 1:])
            cdf = _light_from(densities.flatten(), _between(t), n_rays)
        fine = _inverse(cdf, edges, _cuts(n_rays, num_samples - 1, stratified, self.device))
        t = _along(torch.cat([edges, fine], dim=-1).sort(dim=-1).values, near, far, sampling_type)
        return t[:, :-1], t[:, 1:]


def _along(s: Tensor, near: float, far: float, sampling_type: str) -> Tensor:
    """Distances of the parts s of a ray; with lindisp near and far are their inverses."""
    t = near + (far - near) * s
    return 1 / t if sampling_type == "lindisp" else t


@torch.no_grad()
def importance_samples(
    n_rays: int,
    near: float,
    far: float,
    n_coarse: int,
    n_fine: int,
    density_fn: Callable[[Tensor, Tensor, Tensor], Tensor],
    stratified: bool,
    device: torch.device,
) -> Samples:
    """n_coarse + n_fine intervals a ray: equal ones, cut further where most of the light comes from.

    Args:
        density_fn: (t_starts, t_ends, ray_indices) [N] -> densities [N].
        stratified: move the cuts at random (torch's global generator).
    """
    coarse = near + (far - near) * _cuts(n_rays, n_coarse, stratified, device)
    samples = _between(coarse)
    densities = density_fn(samples.t_starts, samples.t_ends, samples.ray_indices)
    cdf = _light_from(densities, samples, n_rays)
    fine = _inverse(cdf, coarse, _cuts(n_rays, n_fine - 1, stratified, device))
    return _between(torch.cat([coarse, fine], dim=-1).sort(dim=-1).values)


def _light_from(densities: Tensor, samples: Samples, n_rays: int) -> Tensor:
    """The part [n_rays, n + 1] of a ray's light that comes from before each edge of its n intervals."""
    weights = weights_and_visibility(densities, samples, n_rays)[0].view(n_rays, -1)
    # what shines through the ray comes from behind it: the last interval takes it
    cdf = torch.cat([torch.zeros_like(weights[:, :1]), weights.cumsum(dim=-1)], dim=-1).clamp(max=1.0)
    cdf[:, -1] = 1.0
    return cdf


def _cuts(n_rays: int, n: int, stratified: bool, device: torch.device) -> Tensor:
    """n + 1 increasing numbers [n_rays, n + 1] from 0 to 1; each inner one moves within half a gap."""
    cuts = torch.linspace(0, 1, n + 1, device=device).expand(n_rays, -1)
    if not stratified or n < 2:
        return cuts
    moves = (torch.rand(n_rays, n + 1, device=device) - 0.5) / n
    moves[:, [0, -1]] = 0
    return cuts + moves


def _inverse(cdf: Tensor, at: Tensor, u: Tensor) -> Tensor:
    """Where [R, M] a piecewise linear cdf [R, K] at the points [R, K] takes the values u [R, M]."""
    right = torch.searchsorted(cdf, u.contiguous(), right=True).clamp(1, cdf.shape[1] - 1)
    c0, c1 = cdf.gather(1, right - 1), cdf.gather(1, right)
    a0, a1 = at.gather(1, right - 1), at.gather(1, right)
    return a0 + (a1 - a0) * ((u - c0) / (c1 - c0).clamp(min=1e-8)).clamp(0, 1)


def _between(edges: Tensor) -> Samples:
    """The intervals between increasing edges [R, K + 1], packed."""
    n_rays, n = edges.shape[0], edges.shape[1] - 1
    rays = torch.arange(n_rays, device=edges.device).repeat_interleave(n)
    return Samples(rays, edges[:, :-1].flatten(), edges[:, 1:].flatten())
