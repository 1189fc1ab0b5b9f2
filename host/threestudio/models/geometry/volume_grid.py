"""``volume-grid``: density and features on a regular grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import threestudio
from threestudio.models.geometry.base import BaseImplicitGeometry, contract_to_unisphere
from threestudio.models.geometry.density import blob_magic3d, check_density_bias
from threestudio.models.geometry.normals import (
    FINITE_DIFFERENCES,
    check_normal_type,
    finite_difference_normal,
    no_normals,
)
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.ops import get_activation

_NORMAL_TYPES = (*FINITE_DIFFERENCES, "pred")
_NORMAL_EPS = 1e-3


@threestudio.register("volume-grid")
class VolumeGrid(BaseImplicitGeometry):
    """A grid of values over the box, trilinear between them."""

    @dataclass
    class Config(BaseImplicitGeometry.Config):
        grid_size: Any = (100, 100, 100)
        """Values along z, y and x."""
        n_feature_dims: int = 3
        """Features a point, for the material; 0 for none."""
        density_activation: str | None = "softplus"
        """What makes the density positive."""
        density_bias: Any = "blob"
        """Added before the activation: a number, or blob (Magic3D's)."""
        density_blob_scale: float = 5.0
        """The blob's height at the origin."""
        density_blob_std: float = 0.5
        """Where the blob is 0."""
        normal_type: str | None = "finite_difference"
        """finite_difference (forward), finite_difference_laplacian (central); pred; null: none."""
        isosurface_threshold: Any = "auto"
        """The density at the surface, or "auto": its mean where it is above 0."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_density_bias(self.density_bias, ("blob",))
            check_normal_type(self.normal_type, _NORMAL_TYPES)
            size = list(self.grid_size)
            if len(size) != 3 or not all(isinstance(n, int) and n >= 2 for n in size):
                raise ConfigValueError(f"grid_size is three whole numbers of at least 2, got {size}.")

    cfg: Config

    def configure(self) -> None:
        super().configure()
        get_activation(self.cfg.density_activation)  # a name that is not there is told now
        self.grid_size = tuple(self.cfg.grid_size)
        self.grid = nn.Parameter(torch.zeros(1, self.cfg.n_feature_dims + 1, *self.grid_size))
        self.density_scale: Tensor
        if self.cfg.density_bias == "blob":
            self.register_buffer("density_scale", torch.tensor(0.0))
        else:
            self.density_scale = nn.Parameter(torch.tensor(0.0))
        if self.cfg.normal_type == "pred":
            self.normal_grid = nn.Parameter(torch.zeros(1, 3, *self.grid_size))

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """``density`` [..., 1], ``features`` [..., Nf]; with ``output_normal`` also ``normal`` and
        ``shading_normal`` [..., 3], unit vectors.

        Raises:
            ConfigValueError: normals were asked for and normal_type is null.
        """
        values = self._look_up(points, self.grid)
        raw = self._raw_density(points, values)
        out = {"density": get_activation(self.cfg.density_activation)(raw)}
        if self.cfg.n_feature_dims > 0:
            out["features"] = values[..., 1:]
        if not output_normal:
            return out
        if self.cfg.normal_type is None:
            raise no_normals(_NORMAL_TYPES)
        if self.cfg.normal_type == "pred":
            normal = F.normalize(self._look_up(points, self.normal_grid), dim=-1)
        else:
            normal = finite_difference_normal(
                lambda offset: self._raw_density(offset, self._look_up(offset, self.grid)),
                points,
                raw,
                _NORMAL_EPS,
                self.cfg.radius,
                central=self.cfg.normal_type == "finite_difference_laplacian",
            )
        return {**out, "normal": normal, "shading_normal": normal}

    def forward_density(self, points: Tensor) -> Tensor:
        """The density [..., 1] of points [..., 3]."""
        raw = self._raw_density(points, self._look_up(points, self.grid[:, :1]))
        return get_activation(self.cfg.density_activation)(raw)

    def forward_field(self, points: Tensor) -> tuple[Tensor, None]:
        """The density [..., 1], and no deformation."""
        return self.forward_density(points), None

    def forward_level(self, field: Tensor, threshold: Any) -> Tensor:
        """Negative inside, where the density is above the threshold."""
        return threshold - field

    def export(self, points: Tensor, **kwargs: Any) -> dict[str, Any]:
        """``features`` [..., Nf], where there are any."""
        if self.cfg.n_feature_dims == 0:
            return {}
        return {"features": self._look_up(points, self.grid)[..., 1:]}

    def _look_up(self, points: Tensor, grid: Tensor) -> Tensor:
        """Values [..., C] of a grid [1, C, Gz, Gy, Gx], whose outermost values lie on the box."""
        at = contract_to_unisphere(points, self.bbox, self.unbounded) * 2 - 1
        values = F.grid_sample(grid, at.reshape(1, 1, 1, -1, 3), align_corners=True, mode="bilinear")
        return values.reshape(grid.shape[1], -1).T.reshape(*points.shape[:-1], grid.shape[1])

    def _raw_density(self, points: Tensor, values: Tensor) -> Tensor:
        """Before the activation, [..., 1]; the learned scale is that of DreamFusion."""
        bias = self.cfg.density_bias
        if isinstance(bias, str):
            bias = blob_magic3d(points.detach(), self.cfg.density_blob_scale, self.cfg.density_blob_std)
        return values[..., :1] * self.density_scale.exp() + bias
