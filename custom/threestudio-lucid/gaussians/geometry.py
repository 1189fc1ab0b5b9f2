"""`lucid-gaussian-splatting`: the Gaussian cloud as a threestudio geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.models.geometry.base import BaseGeometry
from threestudio.utils.misc import C

from ..errors import UserError, check_range
from ..points import load_points, split_source
from ..seeding import generator
from .cloud import MAX_SH_DEGREE, PARAMETERS, GaussianCloud, Gaussians, gaussians_from_points
from .density import DensityReport, DensityRules, refine, reset_opacity, screen_gradients
from .ply import is_gaussian_ply, read_ply


@threestudio.register("lucid-gaussian-splatting")
class LucidGaussianSplatting(BaseGeometry):
    """Gaussians in an arena of fixed size, their learning rates, and what density control needs.

    Learning rates are numbers or threestudio schedules, between whose steps they fall or rise geometrically.
    The defaults are LucidDreamer's, for objects of radius about 0.5 and 5000 steps.
    """

    @dataclass
    class Config(BaseGeometry.Config):
        init: str = "shape:ball"
        """Where points come from: shape:ball, shape:box, file:points.ply (points), file:asset.ply
        (Gaussians)."""
        init_radius: float = 0.5
        """Radius of the shape, world units."""
        init_opacity: float = 0.1
        """Opacity of every Gaussian at the start, in (0, 1)."""
        init_scale: float = 1.0
        """Standard deviation at the start, in units of the distance to the neighbours."""
        num_points: int = 4096
        """Gaussians at the start; ignored when `init` is a file of Gaussians."""
        capacity: int = 0
        """Most Gaussians there can ever be; 0: four times num_points."""
        sh_degree: int = 0
        """Spherical harmonics, 0 to 3; 0 looks the same from everywhere."""
        sh_degree_every: int = 500
        """Steps until each further degree takes part."""
        seed: int = 0
        """Seed of the points."""

        lr_means: Any = field(default_factory=lambda: [0, 5.6e-4, 5.6e-6, 5000])
        lr_quats: Any = field(default_factory=lambda: [0, 1e-3, 2e-4, 5000])
        lr_scales: Any = field(default_factory=lambda: [0, 5e-3, 1e-3, 5000])
        lr_opacities: Any = 0.05
        lr_sh_dc: Any = field(default_factory=lambda: [0, 5e-3, 3e-3, 5000])
        lr_sh_rest: Any = 2.5e-4

        def __post_init__(self) -> None:
            getattr(super(), "__post_init__", lambda: None)()
            split_source(self.init)
            check_range("init_radius", self.init_radius, 0.0, above=True)
            check_range("init_opacity", self.init_opacity, 1e-6, 1.0 - 1e-6)
            check_range("init_scale", self.init_scale, 0.0, above=True)
            check_range("num_points", self.num_points, 1)
            check_range("capacity", self.capacity, 0)
            check_range("sh_degree", self.sh_degree, 0, MAX_SH_DEGREE)
            check_range("sh_degree_every", self.sh_degree_every, 0)
            if self.capacity:
                check_range("num_points", self.num_points, high=self.capacity)
            for name in ("means", "quats", "scales", "opacities", "sh_dc", "sh_rest"):
                _check_rate(f"lr_{name}", getattr(self, f"lr_{name}"))

    cfg: Config

    def configure(self) -> None:
        super().configure()
        start = self._initial_gaussians()
        capacity = self.cfg.capacity or 4 * max(len(start), self.cfg.num_points)
        if len(start) > capacity:
            check_range(f"capacity (for {self.cfg.init})", capacity, low=len(start))
        self.cloud = GaussianCloud(capacity, self.cfg.sh_degree)
        self.cloud.assign(start)
        self.active_sh_degree = 0

    def _initial_gaussians(self) -> Gaussians:
        kind, path = split_source(self.cfg.init)
        if kind == "file" and is_gaussian_ply(path):
            return read_ply(path)
        draw = generator(self.cfg.seed, "points")
        points = load_points(self.cfg.init, self.cfg.num_points, self.cfg.init_radius, draw)
        return gaussians_from_points(
            points, sh_degree=self.cfg.sh_degree, opacity=self.cfg.init_opacity, scale=self.cfg.init_scale
        )

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        every = self.cfg.sh_degree_every
        self.active_sh_degree = min(self.cfg.sh_degree, global_step // every if every else MAX_SH_DEGREE)

    @property
    def gaussians(self) -> Gaussians:
        """The living Gaussians, raw values that carry gradients."""
        return self.cloud.living

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One optimizer group per parameter, called "geometry.<name>", with its first learning rate."""
        rates = self.learning_rates(0, 0)
        return [
            {"params": [p], "name": f"geometry.{name}", "lr": rates[f"geometry.{name}"]}
            for name, p in self.cloud.params.items()
            if p.numel()
        ]

    def learning_rates(self, epoch: int, step: int) -> dict[str, float]:
        """Learning rates at a step, by the names of `parameter_groups`."""
        fields = {"log_scales": "lr_scales", "logit_opacities": "lr_opacities"}
        return {
            f"geometry.{name}": C(self.cfg[fields.get(name, f"lr_{name}")], epoch, step, interpolation="exp")
            for name in PARAMETERS
        }

    # ---- density control: thin calls of density.py on this cloud ---------------------------------------

    @torch.no_grad()
    def gather_density(self, means2d_grad: Tensor, radii: Tensor, width: int, height: int) -> None:
        """Adds screen-space gradients [B, N, 2] of the living Gaussians to the statistics."""
        total, count = screen_gradients(means2d_grad, radii, width, height)
        self.cloud.grad_sum[: len(total)] += total
        self.cloud.grad_count[: len(count)] += count

    def refine(
        self, moments: dict[str, list[Tensor]], rules: DensityRules, draw: torch.Generator
    ) -> DensityReport:
        """One round of clone, split and prune."""
        c = self.cloud
        return refine(c.params, moments, c.n, c.grad_sum, c.grad_count, rules, draw)

    def reset_opacity(self, moments: dict[str, list[Tensor]], maximum: float) -> None:
        """opacity <- min(opacity, maximum)."""
        reset_opacity(self.cloud.params, moments, self.cloud.n, maximum)


def _check_rate(name: str, value: Any) -> None:
    """UserError naming the field unless it is a number of at least 0, or a schedule of numbers above 0."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        check_range(name, value, 0.0)
        return
    entries = [0, *value] if len(value) == 3 else list(value)
    complete = len(entries) >= 4 and len(entries) % 2 == 0
    numbers = all(isinstance(entry, int | float) for entry in entries)
    if not complete or not numbers or min(entries[1], *entries[2::2]) <= 0.0:
        raise UserError(
            f"{name} is {value!r}; it must be a number of at least 0 or a schedule [step, rate, rate, step] "
            "whose rates are above 0, for they change geometrically."
        )
