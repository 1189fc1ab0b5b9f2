"""``efficient-dreamfusion-system``: as dreamfusion-system, with pictures rendered coarsely and enlarged."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.systems.batch import check_batch
from threestudio.systems.dreamfusion import DreamFusion


@threestudio.register("efficient-dreamfusion-system")
class EffDreamFusion(DreamFusion):
    """For ``eff-random-camera-datamodule``, whose batches hold the rays of an even grid of pixels."""

    def unmask(self, ind: Tensor, subsampled_tensor: Tensor, H: int, W: int) -> Tensor:
        """The whole picture [B, H, W, C], interpolated; 0 outside of the grid.

        Args:
            ind: the grid's pixels [h, w], x + W y.
            subsampled_tensor: [B, C, h, w].
        """
        axes = []
        for size, pixels in ((H, ind[:, 0] // W), (W, ind[0] % W)):
            first, last = int(pixels[0]), int(pixels[-1])
            places = torch.arange(size, device=subsampled_tensor.device, dtype=torch.float32)
            axes.append((places - first) / max(last - first, 1) * 2 - 1)
        y, x = torch.meshgrid(*axes, indexing="ij")
        grid = torch.stack([x, y], dim=-1).expand(len(subsampled_tensor), -1, -1, -1)
        whole = F.grid_sample(subsampled_tensor, grid.to(subsampled_tensor), align_corners=True)
        return whole.permute(0, 2, 3, 1)

    def ask_guidance(self, out: dict[str, Any], batch: dict[str, Any], **options: Any) -> dict[str, Any]:
        check_batch(lambda efficiency_mask: None, batch, "system_type efficient-dreamfusion-system")
        coarse = out["comp_rgb"].permute(0, 3, 1, 2)
        out["comp_rgb"] = self.unmask(batch["efficiency_mask"], coarse, batch["height"], batch["width"])
        return super().ask_guidance(out, batch, **options)
