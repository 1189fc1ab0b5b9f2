"""`lucid-point-body`: points on a posed body, `system.geometry.init: "body:mannequin"`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch

import threestudio

from ..points.cloud import PointCloud
from ..points.initializers import PREFIX, PointInitializer
from ..points.meshes import sample_surface
from ..points.shapes import GREY
from .body import Body
from .sources import body_from_config


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

        def __post_init__(self) -> None:
            super().__post_init__()
            _body(self)  # what is wrong with it should show when the config is read

    cfg: Config

    def draw(self, draw: torch.Generator) -> PointCloud:
        body = _body(self.cfg)
        corners = body.corners[~body.hidden].astype(np.float64)
        return sample_surface(corners, np.full_like(corners, GREY), self.cfg.num_points, draw)


def _body(cfg: Any) -> Body:
    names = ("pose", "height", "up", "front", "shape", "gender")
    block = {"model": cfg.value} | {name: getattr(cfg, name) for name in names}
    return body_from_config(block, "system.geometry.init_args")
