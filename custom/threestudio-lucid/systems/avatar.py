"""`lucid-avatar-system`: LucidDreamer's loop, with a ControlNet that is shown a posed body from every view.

The paper makes avatars so (Sec. 4.3 of arXiv 2311.11284; its code was not released): the body gives the first
Gaussians and, as DensePose maps, the pictures for a ControlNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import threestudio

from ..bodies.body import Body
from ..bodies.maps import check_map, draw_maps
from ..bodies.sources import body_from_config
from ..errors import UserError
from .lucid_dreamer import LucidDreamerSystem
from .sheet import azimuth_label, contact_sheet


@threestudio.register("lucid-avatar-system")
class LucidAvatarSystem(LucidDreamerSystem):
    """`lucid-dreamer-system` that hands the guidance a map of the body for each view, as `condition`."""

    @dataclass
    class Config(LucidDreamerSystem.Config):
        body: dict = field(default_factory=dict)
        """{model: mannequin, smplx:FOLDER or file:PATH, pose, height, ...}: see bodies/sources.py."""
        body_map: str = "viridis"
        """What the ControlNet is shown of it: viridis, parula, iuv (DensePose's parts), depth, normal."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_map(self.body_map, "system.body_map")

    cfg: Config

    def configure(self) -> None:
        self._check_agreement()
        self.body: Body = body_from_config(self.cfg.body, "system.body")
        super().configure()

    def _check_agreement(self) -> None:
        """Raises UserError where the geometry starts from another body or pose than the maps show."""
        geometry = self.cfg.geometry
        kind, _, model = str(geometry.get("init", "")).partition(":")
        given = dict(geometry.get("init_args") or {})
        block = given.get("block")
        if kind != "body" or not (model or block):  # no body, or none that is named: the geometry tells that
            return
        told = {key: value for key, value in given.items() if key not in ("block", "fit")}
        ours = _plain({"model": "mannequin"} | dict(self.cfg.body))
        theirs = _plain({"model": model} | told if block is None else {"model": "mannequin"} | dict(block))
        if ours != theirs:
            different = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
            where = "; ".join(f"{key}: {ours.get(key)!r} against {theirs.get(key)!r}" for key in different)
            raise UserError(
                f"system.body and the body that system.geometry starts from differ ({where}). Write it into "
                "system.body alone, with geometry.init: body and init_args: {block: ${system.body}}."
            )

    def _loss(
        self, out: dict[str, Any], batch: dict[str, Any], show_disparity: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return super()._loss(out, batch | {"condition": self.maps(batch)}, show_disparity)

    def maps(self, batch: dict[str, Any]) -> Tensor:
        """[B, 3, H, W] of a batch's cameras."""
        size = int(batch["height"]), int(batch["width"])
        return draw_maps(self.body, batch["c2w"], batch["fovy"], *size, self.cfg.body_map)

    def _save_sheet(self, step: int) -> str:
        cameras, views = self._sheet_cameras()
        labels = [azimuth_label(azimuth) for azimuth in cameras.azimuth.tolist()]
        sheet = contact_sheet(self.maps(views).permute(0, 2, 3, 1), labels, f"the body, {self.cfg.body_map}")
        self._files["maps"] = self.save_image(f"it{step}-maps.png", sheet)
        return super()._save_sheet(step)


def _plain(block: Mapping[str, Any]) -> dict[str, Any]:
    """A block to be compared: without what is null or empty, the pose as it is meant."""
    out = {key: value for key, value in block.items() if value not in (None, "", [])}
    pose = out.setdefault("pose", "standing")
    if isinstance(pose, Mapping):
        out["pose"] = {joint: [float(n) for n in turn] for joint, turn in pose.items()}
    return out
