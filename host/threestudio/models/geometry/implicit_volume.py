"""``implicit-volume``: a density field from an encoding and small networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.geometry.base import BaseGeometry, BaseImplicitGeometry, contract_to_unisphere
from threestudio.models.geometry.density import blob_dreamfusion, blob_magic3d, check_density_bias
from threestudio.models.geometry.normals import (
    FINITE_DIFFERENCES,
    check_normal_type,
    finite_difference_normal,
    no_normals,
)
from threestudio.models.networks import get_encoding, get_mlp, with_slope
from threestudio.utils.errors import ConfigValueError, ConversionError
from threestudio.utils.ops import get_activation

_BIASES = {"blob_dreamfusion": blob_dreamfusion, "blob_magic3d": blob_magic3d}
_NORMAL_TYPES = ("analytic", *FINITE_DIFFERENCES, "pred")
_ANNEALING = ("min_anneal_step", "max_anneal_step", "start_val", "end_val")


@threestudio.register("implicit-volume")
class ImplicitVolume(BaseImplicitGeometry):
    """Density and features of points, each a small network of the same encoding.

    Normals come from the density before its activation: the direction is the same, and it does not fade to
    zero where there is nothing.
    """

    @dataclass
    class Config(BaseImplicitGeometry.Config):
        n_input_dims: int = 3
        """Coordinates a point."""
        n_feature_dims: int = 3
        """Features a point, for the material; 0 for none."""
        density_activation: str | None = "softplus"
        """What makes the density positive."""
        density_bias: Any = "blob_magic3d"
        """Added before the activation: a number, blob_magic3d or blob_dreamfusion."""
        density_blob_scale: float = 10.0
        """The blob's height at the origin."""
        density_blob_std: float = 0.5
        """The blob's size: where blob_magic3d is 0, blob_dreamfusion's standard deviation."""
        pos_encoding_config: dict = field(
            default_factory=lambda: {
                "otype": "HashGrid",
                "n_levels": 16,
                "n_features_per_level": 2,
                "log2_hashmap_size": 19,
                "base_resolution": 16,
                "per_level_scale": 1.447269237440378,
            }
        )
        """Encoding of points; see threestudio.models.networks.get_encoding."""
        mlp_network_config: dict = field(
            default_factory=lambda: {
                "otype": "VanillaMLP",
                "activation": "ReLU",
                "output_activation": "none",
                "n_neurons": 64,
                "n_hidden_layers": 1,
            }
        )
        """Networks of density, features and predicted normals; see threestudio.models.networks.get_mlp."""
        normal_type: str | None = "finite_difference"
        """analytic; finite_difference (forward), finite_difference_laplacian (central); pred; null: none."""
        finite_difference_normal_eps: Any = 0.01
        """How far apart, or progressive: a cell of the finest level there is of a ProgressiveBandHashGrid."""
        isosurface_threshold: Any = 25.0
        """The density at the surface, or "auto": its mean where it is above 0."""
        anneal_density_blob_std_config: dict | None = None
        """Change density_blob_std linearly: min_anneal_step, max_anneal_step, start_val, end_val."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_density_bias(self.density_bias, tuple(_BIASES))
            check_normal_type(self.normal_type, _NORMAL_TYPES)
            eps = self.finite_difference_normal_eps
            if isinstance(eps, str):
                if eps != "progressive" or "start_level" not in self.pos_encoding_config:
                    raise ConfigValueError(
                        f"finite_difference_normal_eps is {eps!r}: give a number, or 'progressive' with a "
                        "pos_encoding_config of otype ProgressiveBandHashGrid."
                    )
            elif not eps > 0:
                raise ConfigValueError(f"finite_difference_normal_eps must be above 0, got {eps}.")
            annealing = self.anneal_density_blob_std_config
            if annealing is not None and set(annealing) != set(_ANNEALING):
                raise ConfigValueError(
                    f"anneal_density_blob_std_config takes {', '.join(_ANNEALING)}, "
                    f"got {', '.join(annealing)}."
                )

    cfg: Config

    def configure(self) -> None:
        super().configure()
        get_activation(self.cfg.density_activation)  # a name that is not there is told now
        self.encoding = get_encoding(self.cfg.n_input_dims, self.cfg.pos_encoding_config)
        self.density_network = self._network(1)
        if self.cfg.n_feature_dims > 0:
            self.feature_network = self._network(self.cfg.n_feature_dims)
        if self.cfg.normal_type == "pred":
            self.normal_network = self._network(3)
        self.density_blob_std = self.cfg.density_blob_std
        self.finite_difference_normal_eps = self.cfg.finite_difference_normal_eps
        self.update_step(0, 0)

    def _network(self, n_output_dims: int) -> torch.nn.Module:
        return get_mlp(self.encoding.n_output_dims, n_output_dims, self.cfg.mlp_network_config)

    # ---- the field -----------------------------------------------------------------------------------------

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """``density`` [..., 1], ``features`` [..., Nf]; with ``output_normal`` also ``normal`` and
        ``shading_normal`` [..., 3], unit vectors.

        Raises:
            ConfigValueError: normals were asked for and normal_type is null.
        """
        if output_normal and self.cfg.normal_type is None:
            raise no_normals(_NORMAL_TYPES)
        normal = None
        if output_normal and self.cfg.normal_type == "analytic":
            encoded, raw, normal = self._with_analytic_normal(points)
        else:
            encoded = self._encode(points)
            raw = self._raw_density(points, encoded)
        out = {"density": self._activate(raw)}
        if self.cfg.n_feature_dims > 0:
            out["features"] = self.feature_network(encoded).view(*points.shape[:-1], -1)
        if not output_normal:
            return out
        if self.cfg.normal_type == "pred":
            normal = F.normalize(self.normal_network(encoded).view(*points.shape[:-1], 3), dim=-1)
        elif normal is None:
            normal = finite_difference_normal(
                lambda offset: self._raw_density(offset, self._encode(offset)),
                points,
                raw,
                self.finite_difference_normal_eps,
                self.cfg.radius,
                central=self.cfg.normal_type == "finite_difference_laplacian",
            )
        return {**out, "normal": normal, "shading_normal": normal}

    def forward_density(self, points: Tensor) -> Tensor:
        """The density [..., 1] of points [..., 3]."""
        return self._activate(self._raw_density(points, self._encode(points)))

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
        return {"features": self.feature_network(self._encode(points)).view(*points.shape[:-1], -1)}

    def _unit(self, points: Tensor) -> Tensor:
        return contract_to_unisphere(points, self.bbox, self.unbounded).reshape(-1, self.cfg.n_input_dims)

    def _encode(self, points: Tensor) -> Tensor:
        """[N, features] of points [..., 3], N of them."""
        return self.encoding(self._unit(points))

    def _bias(self, points: Tensor) -> Tensor | float:
        if isinstance(self.cfg.density_bias, str):
            blob = _BIASES[self.cfg.density_bias]
            return blob(points, self.cfg.density_blob_scale, self.density_blob_std)
        return float(self.cfg.density_bias)

    def _raw_density(self, points: Tensor, encoded: Tensor) -> Tensor:
        """Before the activation, [..., 1]."""
        return self.density_network(encoded).view(*points.shape[:-1], 1) + self._bias(points)

    def _activate(self, raw: Tensor) -> Tensor:
        return get_activation(self.cfg.density_activation)(raw)

    def _with_analytic_normal(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encoded points, density before the activation, and its normal by differentiation.

        For points that are constants the gradient is put together from its parts (network, encoding, box,
        bias), which spares what autograd would compute besides.
        """
        if points.requires_grad and torch.is_grad_enabled():
            encoded = self._encode(points)
            raw = self._raw_density(points, encoded)
            (gradient,) = torch.autograd.grad(raw.sum(), points, create_graph=True)
            return encoded, raw, F.normalize(-gradient, dim=-1)
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        with torch.enable_grad():
            leaf = points.detach().requires_grad_()
            unit, bias = self._unit(leaf), self._bias(leaf)
            encoded, slope = with_slope(self.encoding, unit)
            if not encoded.requires_grad:  # frozen parameters
                encoded = encoded.detach().requires_grad_()
            raw = self.density_network(encoded).view(*points.shape[:-1], 1)
            (on_encoded,) = torch.autograd.grad(raw.sum(), encoded, create_graph=trains)
            (gradient,) = torch.autograd.grad(unit, leaf, slope(on_encoded), create_graph=trains)
            if torch.is_tensor(bias):
                (on_bias,) = torch.autograd.grad(bias.sum(), leaf)
                gradient = gradient + on_bias
                bias = self._bias(points)
            normal = F.normalize(-gradient, dim=-1)
        if not trains:
            encoded, raw, normal = encoded.detach(), raw.detach(), normal.detach()
        return encoded, raw + bias, normal

    # ---- life ----------------------------------------------------------------------------------------------

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        annealing = self.cfg.anneal_density_blob_std_config
        if annealing is not None:
            first, last = annealing["min_anneal_step"], annealing["max_anneal_step"]
            done = min(max((global_step - first) / max(last - first, 1), 0.0), 1.0)
            self.density_blob_std = (
                annealing["start_val"] + (annealing["end_val"] - annealing["start_val"]) * done
            )
        if self.cfg.finite_difference_normal_eps == "progressive":
            self.encoding.do_update_step(epoch, global_step, on_load_weights)
            levels = self.encoding.encoding.current_level
            grid = {"base_resolution": 16, "per_level_scale": 2.0} | dict(self.cfg.pos_encoding_config)
            cells = grid["base_resolution"] * grid["per_level_scale"] ** (max(levels, 1) - 1)
            self.finite_difference_normal_eps = 2 * self.cfg.radius / cells

    @staticmethod
    @torch.no_grad()
    def create_from(
        other: BaseGeometry, cfg: Any = None, copy_net: bool = True, **kwargs: Any
    ) -> ImplicitVolume:
        """An implicit volume with the density of another one.

        Args:
            copy_net: take its features, and predicted normals, too, where both have them alike.

        Raises:
            ConversionError: (a TypeError) ``other`` is another kind of geometry.
        """
        if not isinstance(other, ImplicitVolume):
            raise ConversionError(
                f"An implicit-volume can be made from another one, not from {type(other).__name__}."
            )
        made = ImplicitVolume(cfg, **kwargs)
        parts = ["encoding", "density_network"]
        if copy_net and made.cfg.n_feature_dims == other.cfg.n_feature_dims > 0:
            parts.append("feature_network")
        if copy_net and made.cfg.normal_type == other.cfg.normal_type == "pred":
            parts.append("normal_network")
        for part in parts:
            getattr(made, part).load_state_dict(getattr(other, part).state_dict())
        return made.to(other.bbox.device)
