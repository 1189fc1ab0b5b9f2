"""Bases of geometries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from threestudio.models.isosurface import isosurface
from threestudio.models.mesh import Mesh
from threestudio.utils.base import BaseModule
from threestudio.utils.errors import ConfigValueError, ConversionError
from threestudio.utils.ops import scale_tensor


def contract_to_unisphere(x: Tensor, bbox: Tensor, unbounded: bool = False) -> Tensor:
    """Points [..., 3] as network inputs in [0, 1].

    Args:
        bbox: lowest and highest corner [2, 3]; they become 0 and 1.
        unbounded: take all of space: the box's inside becomes the middle half, the outside is squeezed around
            it (the contraction of mip-NeRF 360, (2 - 1/|x|) x/|x| outside of the unit sphere).
    """
    x = scale_tensor(x, (bbox[0], bbox[1]), (0, 1))
    if not unbounded:
        return x
    x = x * 2 - 1
    norm = x.norm(dim=-1, keepdim=True)
    # clamp: the square root's gradient is infinite at 0, and `where` would pass 0 * inf on as NaN
    outside = (2 - 1 / norm.clamp(min=1.0)) * (x / norm.clamp(min=1.0))
    return torch.where(norm > 1, outside, x) / 4 + 0.5


class BaseGeometry(BaseModule):
    """Anything that has a shape."""

    @dataclass
    class Config(BaseModule.Config):
        pass

    cfg: Config

    @staticmethod
    def create_from(other: BaseGeometry, cfg: Any = None, **kwargs: Any) -> BaseGeometry:
        """This kind of geometry in the shape of ``other``.

        Raises:
            ConversionError: (a TypeError) there is no way from that kind to this one.
        """
        raise ConversionError(f"There is no conversion from {type(other).__name__} to this geometry.")

    def export(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What an exporter may want to know at some points, e.g. "features"."""
        return {}


def _box(radius: float) -> Tensor:
    """Corners [2, 3] of the cube from -radius to radius."""
    return torch.tensor([[-radius] * 3, [radius] * 3], dtype=torch.float32)


class BaseImplicitGeometry(BaseGeometry):
    """A field that is asked at points [..., 3] within the box of ``radius``."""

    @dataclass
    class Config(BaseGeometry.Config):
        radius: float = 1.0
        """Half the side of the box around the object."""
        isosurface: bool = True
        """Whether the field's surface can be asked for."""
        isosurface_method: str = "mt"
        """How it is cut: mt (marching tetrahedra) or mc-cpu (marching cubes)."""
        isosurface_resolution: int = 128
        """Cells along each side of the box."""
        isosurface_threshold: Any = 0.0
        """The field's value at the surface, or "auto": its mean where it is above 0."""
        isosurface_chunk: int = 0
        """Points asked at once; 0 asks all at once."""
        isosurface_coarse_to_fine: bool = True
        """Look for the surface first, then cut again within its own box."""
        isosurface_deformable_grid: bool = False
        """Let the field move the corners of the cells."""
        isosurface_remove_outliers: bool = True
        """Drop small loose parts."""
        isosurface_outlier_n_faces_threshold: Any = 0.01
        """What is small: fewer triangles than this number, or than this fraction of the largest part."""

        def __post_init__(self) -> None:
            if isinstance(self.radius, (int, float)) and not self.radius > 0:
                raise ConfigValueError(f"radius must be above 0, got {self.radius}.")
            if self.isosurface_method not in ("mt", "mc-cpu"):
                raise ConfigValueError(
                    f"isosurface_method is {self.isosurface_method!r}: choose 'mt' or 'mc-cpu'."
                )
            threshold = self.isosurface_threshold
            if isinstance(threshold, str) and threshold != "auto":
                raise ConfigValueError(f"isosurface_threshold is a number or 'auto', got {threshold!r}.")

    cfg: Config

    def configure(self) -> None:
        self.bbox: Tensor
        self.register_buffer("bbox", _box(self.cfg.radius))
        self.unbounded = False

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """``density`` [..., 1] (or ``sdf``), ``features`` [..., Nf]; if asked for, ``normal`` [..., 3]."""
        raise NotImplementedError(f"{type(self).__name__} has no forward.")

    def forward_field(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        """The field [..., 1] whose level set is the surface; a deformation [..., 3] of the points or None."""
        raise NotImplementedError(f"{type(self).__name__} has no forward_field.")

    def forward_level(self, field: Tensor, threshold: float | Callable[[Tensor], Tensor]) -> Tensor:
        """The level of a field: zero on the surface and, as a signed distance, **negative inside**.

        So a density has the level ``threshold - field``, and marching cubes are handed ``-level``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward_level.")

    def isosurface(self) -> Mesh:
        """The surface as a closed mesh; see `threestudio.models.isosurface`."""
        return isosurface(self)


class BaseExplicitGeometry(BaseGeometry):
    """Points, meshes, and other things that are where they are."""

    @dataclass
    class Config(BaseGeometry.Config):
        radius: float = 1.0
        """Half the side of the box around the object."""

    cfg: Config

    def configure(self) -> None:
        self.bbox: Tensor
        self.register_buffer("bbox", _box(self.cfg.radius))
