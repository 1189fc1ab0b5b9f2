"""``magic3d-system``: a coarse field, then a mesh (Magic3D, arXiv 2211.10440)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

import threestudio
from threestudio.systems.base import BaseLift3DSystem
from threestudio.systems.distilling import DistillingSystem
from threestudio.utils.errors import BatchError


@threestudio.register("magic3d-system")
class Magic3D(DistillingSystem):
    """As dreamfusion-system; with ``refinement`` the only loss of its own is normal_consistency of a mesh."""

    @dataclass
    class Config(BaseLift3DSystem.Config):
        refinement: bool = False
        """The second stage, whose renderer gives a mesh."""

    cfg: Config

    def own_losses(self, out: dict[str, Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        if not self.cfg.refinement:
            return super().own_losses(out, batch)
        if "mesh" not in out:
            raise BatchError(
                f"system.refinement is for renderers that give a mesh; {self.cfg.renderer_type} gives none."
            )
        return {"loss_normal_consistency": out["mesh"].normal_consistency()}
