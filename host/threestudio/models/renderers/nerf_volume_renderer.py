"""``nerf-volume-renderer``: pictures of a density field by integration along rays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.estimators import Samples, importance_samples, occupancy_grid
from threestudio.models.estimators.samples import sum_along_rays, weights_and_visibility
from threestudio.models.renderers.base import VolumeRenderer
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.ops import chunk_batch

_ESTIMATORS = ("occgrid", "importance")
_OCCUPANCY_RESOLUTION = 32
_EARLY_STOP = 1e-4
_LEAST_ALPHA = 0.01
_PERTURBATION = 1e-2
_EVAL_RAYS = 2**15  # traced at once in evaluation: a large picture has too many samples for the memory


@threestudio.register("nerf-volume-renderer")
class NeRFVolumeRenderer(VolumeRenderer):
    """Samples each ray where there may be something, asks geometry and material there, and adds up."""

    @dataclass
    class Config(VolumeRenderer.Config):
        num_samples_per_ray: int = 512
        """Steps along the box's diagonal (occgrid); or the samples of the second pass (importance)."""
        eval_chunk_size: int = 160000
        """Points asked at once in evaluation; 0 for all."""
        randomized: bool = True
        """In training, shift the samples at random."""
        near_plane: float = 0.0
        """Where rays begin, in lengths of their directions."""
        far_plane: float = 1e10
        """Where rays end; importance needs a finite distance."""
        return_comp_normal: bool = False
        """Give ``comp_normal`` in training too."""
        return_normal_perturb: bool = False
        """In training, give the normals at points a hundredth off, as ``normal_perturb``."""
        estimator: str = "occgrid"
        """occgrid: equal steps in occupied cells; importance: more samples where the density is."""
        grid_prune: bool = True
        """Skip empty cells and what is hidden or transparent; false takes every step in the box."""
        prune_alpha_threshold: bool = True
        """Of the steps in occupied cells, skip those that are transparent or hidden."""
        proposal_network_config: dict | None = None
        """Of threestudio's estimator proposal, which this host does not have."""
        prop_optimizer_config: dict | None = None
        """Of the same."""
        prop_scheduler_config: dict | None = None
        """Of the same."""
        num_samples_per_ray_proposal: int = 64
        """Of the same."""
        num_samples_per_ray_importance: int = 64
        """Samples of the first pass (importance)."""

        def __post_init__(self) -> None:
            if self.estimator not in _ESTIMATORS:
                raise ConfigValueError(
                    f"estimator is {self.estimator!r}: this host has {' and '.join(_ESTIMATORS)}."
                )
            for key in ("num_samples_per_ray", "num_samples_per_ray_importance"):
                if getattr(self, key) < 2:
                    raise ConfigValueError(f"{key} must be at least 2, got {getattr(self, key)}.")
            if not 0 <= self.near_plane < self.far_plane:
                raise ConfigValueError(
                    f"near_plane {self.near_plane} and far_plane {self.far_plane}: it takes 0 <= near < far."
                )
            if self.estimator == "importance" and self.far_plane > 1e6:
                raise ConfigValueError(
                    "estimator importance divides the ray from near_plane to far_plane: give far_plane, e.g. "
                    "the camera's distance plus the radius."
                )

    cfg: Config

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        super().configure(geometry, material, background)
        if material.requires_normal and getattr(geometry.cfg, "normal_type", "unknown") is None:
            raise ConfigValueError(
                f"{type(material).__name__} needs normals, but the geometry has normal_type null: set "
                "geometry.normal_type (e.g. analytic), or take no-material or neural-radiance-material."
            )
        self.render_step_size = math.sqrt(3) * 2 * self.cfg.radius / self.cfg.num_samples_per_ray
        if self.cfg.estimator == "occgrid":
            self.estimator = occupancy_grid(self.bbox, self.device, _OCCUPANCY_RESOLUTION)
            if not self.cfg.grid_prune:
                self.estimator.occs.fill_(1.0)
                self.estimator.binaries.fill_(True)

    # ---- rendering -----------------------------------------------------------------------------------------

    def forward(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        light_positions: Tensor,
        bg_color: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Pictures along rays.

        Args:
            rays_o, rays_d: [B, H, W, 3].
            light_positions: [B, 3].
            bg_color: [B, C] or [B, H, W, C]; None takes the background's.
            kwargs: the rest of the batch, which the material is given in training.

        Returns:
            comp_rgb, comp_rgb_fg (without background) and comp_rgb_bg [B, H, W, C]; opacity, depth (not
            divided by the opacity) and z_variance (of the depth, 0 where opacity is at most 0.5)
            [B, H, W, 1]; comp_normal [B, H, W, 3] in [0, 1], in evaluation if the material wants normals, in
            training if asked for.

            In training also, of N samples: weights, t_points, t_intervals [N, 1], t_dirs and points [N, 3],
            ray_indices [N], and what the geometry said of them (density, features, normal, ...);
            normal_perturb [N, 3] if asked for.
        """
        image_shape = rays_o.shape[:3]
        rays = [
            rays_o.reshape(-1, 3),
            rays_d.reshape(-1, 3),
            light_positions.reshape(-1, 1, 1, 3).expand(rays_o.shape).reshape(-1, 3),
        ]
        if self.training:
            per_ray, per_sample = self._trace(*rays, **kwargs)
        else:
            pieces = zip(*(part.split(_EVAL_RAYS) for part in rays), strict=True)
            parts = [self._trace(*piece)[0] for piece in pieces]
            per_ray = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            per_sample = {}
        out = {key: values.view(*image_shape, -1) for key, values in per_ray.items()}
        out["comp_rgb_bg"] = self._in_chunks(self.background, dirs=rays_d)
        behind = out["comp_rgb_bg"] if bg_color is None else _as_picture(bg_color, image_shape)
        out["comp_rgb"] = out["comp_rgb_fg"] + behind * (1 - out["opacity"])
        return {**out, **per_sample}

    def _trace(
        self, origins: Tensor, directions: Tensor, lights: Tensor, **kwargs: Any
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What `forward` gives of each ray [R, .] and of each sample [N, .], background apart.

        Args:
            origins, directions, lights: of each ray [R, 3].
            kwargs: for the material.
        """
        n_rays = len(origins)
        samples = self._sample(origins, directions).at_least_one()
        ray = samples.ray_indices
        t_points, t_dirs = samples.t_middles[:, None], directions[ray]
        points = origins[ray] + t_dirs * t_points
        geo_out = self._in_chunks(self.geometry, points, output_normal=self.material.requires_normal)
        colors = self._in_chunks(
            self.material,
            viewdirs=t_dirs,
            positions=points,
            light_positions=lights[ray],
            **geo_out,
            **kwargs,
        )
        weights = weights_and_visibility(geo_out["density"][:, 0], samples, n_rays)[0][:, None]
        opacity = sum_along_rays(weights, samples, n_rays)
        per_ray = {
            "comp_rgb_fg": sum_along_rays(weights * colors, samples, n_rays),
            "opacity": opacity,
            "depth": sum_along_rays(weights * t_points, samples, n_rays),
            "z_variance": _z_variance(weights, t_points, opacity, samples),
        }
        if "normal" in geo_out and (not self.training or self.cfg.return_comp_normal):
            normal = F.normalize(sum_along_rays(weights * geo_out["normal"], samples, n_rays), dim=-1)
            per_ray["comp_normal"] = (normal + 1) / 2 * opacity
        per_sample = {
            "weights": weights,
            "t_points": t_points,
            "t_intervals": samples.lengths[:, None],
            "t_dirs": t_dirs,
            "ray_indices": ray,
            "points": points,
            **geo_out,
        }
        if self.training and "normal" in geo_out and self.cfg.return_normal_perturb:
            near_by = points + torch.randn_like(points) * _PERTURBATION
            per_sample["normal_perturb"] = self.geometry(near_by, output_normal=True)["normal"]
        return per_ray, per_sample

    def _in_chunks(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """The function's answer; in evaluation asked in pieces, which bounds the memory."""
        return chunk_batch(function, 0 if self.training else self.cfg.eval_chunk_size, *args, **kwargs)

    def _sample(self, origins: Tensor, directions: Tensor) -> Samples:
        """Where to look along rays [R, 3]."""

        def density_at(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
            rays = ray_indices.long()
            points = origins[rays] + directions[rays] * ((t_starts + t_ends) / 2)[:, None]
            return self._in_chunks(self.geometry.forward_density, points)[:, 0]

        randomized = self.training and self.cfg.randomized
        if self.cfg.estimator == "importance":
            return importance_samples(
                len(origins),
                self.cfg.near_plane,
                self.cfg.far_plane,
                self.cfg.num_samples_per_ray_importance,
                self.cfg.num_samples_per_ray,
                density_at,
                randomized,
                origins.device,
            )
        prunes = self.cfg.grid_prune and self.cfg.prune_alpha_threshold
        ray_indices, t_starts, t_ends = self.estimator.sampling(
            origins,
            directions,
            sigma_fn=density_at if prunes else None,
            near_plane=self.cfg.near_plane,
            far_plane=self.cfg.far_plane,
            render_step_size=self.render_step_size,
            early_stop_eps=_EARLY_STOP if prunes else 0.0,
            alpha_thre=_LEAST_ALPHA if prunes else 0.0,
            stratified=randomized,
            cone_angle=0.0,
        )
        return Samples(ray_indices.long(), t_starts, t_ends)

    # ---- life ----------------------------------------------------------------------------------------------

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Keeps the occupancy grid up to date while training."""
        updates = self.cfg.estimator == "occgrid" and self.cfg.grid_prune
        if updates and self.training and not on_load_weights:
            self.estimator.update_every_n_steps(
                step=global_step,
                # 1 - exp(-density step), for short steps
                occ_eval_fn=lambda points: self.geometry.forward_density(points) * self.render_step_size,
            )


def _z_variance(weights: Tensor, t_points: Tensor, opacity: Tensor, samples: Samples) -> Tensor:
    """Variance [R, 1] of the depth along each ray (HiFA, 2023), 0 where the opacity is at most 0.5."""
    n_rays = len(opacity)
    share = weights / opacity.clamp(min=1e-5)[samples.ray_indices]
    mean = sum_along_rays(share * t_points, samples, n_rays)
    off = (t_points - mean[samples.ray_indices]) ** 2
    return sum_along_rays(share * off, samples, n_rays) * (opacity > 0.5)


def _as_picture(color: Tensor, image_shape: torch.Size) -> Tensor:
    """A colour for each image [B, C], or each pixel [B, H, W, C], as something that fits [B, H, W, C].

    Raises:
        ValueError: another shape.
    """
    if color.shape[:-1] == image_shape[:1]:
        return color[:, None, None, :]
    if color.shape[:-1] == image_shape:
        return color
    raise ValueError(
        f"bg_color is [B, C] or [B, H, W, C] with B, H, W = {', '.join(map(str, image_shape))}, not "
        f"{list(color.shape)}."
    )
