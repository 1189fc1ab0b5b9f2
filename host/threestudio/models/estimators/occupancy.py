"""A grid that remembers where there is something, so that rays skip what is empty (Instant NGP, 2022)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import threestudio
from threestudio.models.estimators.marching import march
from threestudio.models.estimators.samples import weights_and_visibility

DensityFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(t_starts, t_ends, ray_indices) [N] -> densities [N]."""


class OccupancyGrid(nn.Module):
    """Cells over a box, each with an estimate of the opacity of one step in it.

    Before the first update everything counts as occupied.  Buffers have the names and shapes of nerfacc's
    OccGridEstimator, and `sampling` and `update_every_n_steps` its behaviour.

    Args:
        roi_aabb: lowest and highest corner of the box [6].
        resolution: cells a side.
    """

    def __init__(self, roi_aabb: Tensor, resolution: int = 32, levels: int = 1) -> None:
        super().__init__()
        self.occs: Tensor
        self.binaries: Tensor
        self.aabbs: Tensor
        self.register_buffer("resolution", torch.full((3,), resolution, dtype=torch.int32))
        self.register_buffer("aabbs", roi_aabb.clone().view(1, 6))
        self.register_buffer("occs", torch.zeros(resolution**3))
        self.register_buffer("binaries", torch.ones(1, *[resolution] * 3, dtype=torch.bool))
        self._updated_at = -1

    @torch.no_grad()
    def sampling(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        sigma_fn: DensityFn | None = None,
        near_plane: float = 0.0,
        far_plane: float = 1e10,
        render_step_size: float = 1e-3,
        early_stop_eps: float = 1e-4,
        alpha_thre: float = 0.0,
        stratified: bool = False,
        cone_angle: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Steps of equal length in occupied cells: ray_indices, t_starts, t_ends, [N] each.

        Args:
            rays_o, rays_d: [R, 3].
            sigma_fn: densities; with them, steps are left out that are nearly transparent, or hidden.
            early_stop_eps: hidden is what less than this part of the light comes through from.
            alpha_thre: nearly transparent is a lower opacity; the mean of the cells' if that is less.
            stratified: shift each ray's steps by a random part of one (torch's global generator).
        """
        near = rays_o.new_full((len(rays_o),), near_plane)
        if stratified:
            near = near + torch.rand(len(near), device=near.device) * render_step_size
        samples = march(
            rays_o, rays_d, near, far_plane, render_step_size, self.binaries[0], self.aabbs.view(2, 3)
        )
        if sigma_fn is not None and len(samples) and (alpha_thre > 0 or early_stop_eps > 0):
            densities = sigma_fn(samples.t_starts, samples.t_ends, samples.ray_indices)
            _, transmittance, alphas = weights_and_visibility(densities, samples, len(rays_o))
            least = min(alpha_thre, self.occs.mean().item())
            samples = samples[(transmittance >= early_stop_eps) & (alphas >= least)]
        return samples.ray_indices, samples.t_starts, samples.t_ends

    @torch.no_grad()
    def update_every_n_steps(
        self,
        step: int,
        occ_eval_fn: Callable[[Tensor], Tensor],
        occ_thre: float = 1e-2,
        ema_decay: float = 0.95,
        warmup_steps: int = 256,
        n: int = 16,
    ) -> None:
        """Every ``n`` steps, ask for the opacity at a random point of cells: all of them until
        ``warmup_steps``, then the occupied ones and a quarter as many as there are.

        A cell keeps the larger of its decayed estimate and the new one, and is occupied above ``occ_thre``,
        or above the mean where that is less.  A second call for the same step does nothing.

        Args:
            occ_eval_fn: points [N, 3] -> opacities of a step [N, 1].
        """
        if step % n or step == self._updated_at:
            return
        self._updated_at = step
        cells = torch.arange(len(self.occs), device=self.occs.device)
        if step >= warmup_steps:
            drawn = torch.randint(len(cells), (len(cells) // 4,), device=cells.device)
            cells = torch.cat([drawn, cells[self.binaries.flatten()]]).unique()
        self.occs[cells] = torch.maximum(
            self.occs[cells] * ema_decay, occ_eval_fn(self._points_in(cells)).view(-1).to(self.occs)
        )
        self.binaries = (self.occs > min(self.occs.mean().item(), occ_thre)).view(self.binaries.shape)

    def _points_in(self, cells: Tensor) -> Tensor:
        """A random point [N, 3] in each cell [N]."""
        nx, ny, nz = self.binaries.shape[1:]
        corner = torch.stack([cells // (ny * nz), cells // nz % ny, cells % nz], dim=-1)
        low, high = self.aabbs.view(2, 3)
        unit = (corner + torch.rand(len(cells), 3, device=cells.device)) / torch.tensor(
            [nx, ny, nz], device=cells.device
        )
        return low + unit * (high - low)


def occupancy_grid(bbox: Tensor, device: torch.device, resolution: int = 32) -> Any:
    """nerfacc's grid where there is CUDA and nerfacc is installed with its kernels, else ours."""
    if device.type == "cuda":
        try:
            import nerfacc
            from nerfacc.cuda._backend import _C
        except Exception as error:  # its kernels are compiled on import, which fails in many ways
            threestudio.debug(f"Without nerfacc's kernels: {error}")
        else:
            if _C is not None:
                return nerfacc.OccGridEstimator(roi_aabb=bbox.flatten(), resolution=resolution, levels=1)
    return OccupancyGrid(bbox.flatten(), resolution)
