"""`lucid-point-body`: points on a posed body, `system.geometry.init: "body:mannequin"`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch

import threestudio

from ..errors import UserError
from ..points.cloud import PointCloud
from ..points.initializers import PREFIX, PointInitializer
from ..points.meshes import sample_surface
from ..points.shapes import GREY
from .sources import body_from_config, check_block


@threestudio.register(PREFIX + "body")
class BodyPoints(PointInitializer):
    """Grey points on the surface of a body, even by area. In its own size unless `fit` is true."""

    @dataclass
    class Config(PointInitializer.Config):
        pose: Any = "standing"
        """A name (standing, t, a, arms up, walking, waving, sitting), or turns of joints in degrees."""
        height: Optional[float] = None
        """From sole to crown when standing, world units; null: 1.83."""
        up: str = ""
        """Of a file, the axis that points up; empty: +z, in GLB files +y."""
        front: str = ""
        """Of a file, the axis that it faces; empty: +x, in GLB files +z."""
        shape: Any = None
        """SMPL's first shape coefficients."""
        gender: Optional[str] = None
        """SMPL's: neutral, female or male; null: neutral."""
        block: Any = None
        """A whole block {model, pose, height, ...} instead of all these, such as ${system.body}."""

        def __post_init__(self) -> None:
            super().__post_init__()
            _block(self)  # files are opened when there are points to draw, not when a run goes on

    cfg: Config

    def draw(self, draw: torch.Generator) -> PointCloud:
        body = body_from_config(*_block(self.cfg))
        corners = body.corners[~body.hidden].astype(np.float64)
        return sample_surface(corners, np.full_like(corners, GREY), self.cfg.num_points, draw)


def _block(cfg: Any) -> tuple[dict[str, Any], str]:
    """What a config tells of the body, in its fields or in a block, and where.

    Raises:
        UserError: both, neither, or see `sources.check_block`.
    """
    where = "system.geometry.init_args"
    told = {name: getattr(cfg, name) for name in ("height", "up", "front", "shape", "gender")}
    told = {name: value for name, value in told.items() if value} | {"pose": cfg.pose}
    if cfg.block is None:
        if not cfg.value:
            raise UserError("init is 'body' and names none: write body:mannequin, body:smplx:FOLDER, ...")
        return check_block({"model": cfg.value} | told, where), where
    if cfg.value or told != {"pose": "standing"}:
        raise UserError(f"{where}.block tells the body already: write what is to differ into system.body.")
    return check_block(cfg.block, f"{where}.block"), f"{where}.block"
