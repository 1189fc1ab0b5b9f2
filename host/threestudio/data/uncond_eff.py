"""``eff-random-camera-datamodule``: random cameras whose pictures are rendered on a coarser grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from threestudio import register
from threestudio.data.uncond import (
    RandomCameraDataModule,
    RandomCameraDataModuleConfig,
    RandomCameraIterableDataset,
    spread,
)
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.ops import mask_ray_directions


@dataclass
class EffRandomCameraDataModuleConfig(RandomCameraDataModuleConfig):
    """As `RandomCameraDataModuleConfig`, with the size of the grid of pixels."""

    height: Any = 128
    """Pixels of a training view, or a list, see resolution_milestones."""
    width: Any = 128
    """Likewise."""
    sample_height: Any = 64
    """Rows of it that are rendered; a list as long as height's."""
    sample_width: Any = 64
    """Columns of it that are rendered."""

    def __post_init__(self) -> None:
        super().__post_init__()
        stretches = len(self.resolution_milestones) + 1
        for side in ("height", "width"):
            sizes = spread(getattr(self, side), stretches)
            samples = spread(getattr(self, f"sample_{side}"), stretches)
            if len(samples) != stretches:
                raise ConfigValueError(f"sample_{side} has {len(samples)} values for {stretches} stretches.")
            if not all(2 <= sample <= size for sample, size in zip(samples, sizes, strict=True)):
                raise ConfigValueError(f"sample_{side} must be from 2 to {side}, got {samples} of {sizes}.")


class EffRandomCameraIterableDataset(RandomCameraIterableDataset):
    """Its batches hold the rays of some pixels; ``efficiency_mask`` [h, w] says which, as x + width y."""

    def __init__(self, cfg: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(cfg, *args, **kwargs)
        stretches = len(cfg.resolution_milestones) + 1
        self.sample_heights = spread(cfg.sample_height, stretches)
        self.sample_widths = spread(cfg.sample_width, stretches)
        draws = torch.Generator().manual_seed(self.seed % 2**63)
        sizes = zip(self.heights, self.widths, self.sample_heights, self.sample_widths, strict=True)
        self.efficiency_masks = [mask_ray_directions(*size, generator=draws) for size in sizes]
        self.directions_unit_focals = [
            directions.reshape(-1, 3)[mask]
            for directions, mask in zip(self.directions_unit_focals, self.efficiency_masks, strict=True)
        ]
        self.update_step(0, 0)

    def _set_resolution(self, stretch: int) -> None:
        super()._set_resolution(stretch)
        self._stretch = stretch

    def sample(self, generator: torch.Generator) -> dict[str, Any]:
        return {
            **super().sample(generator),
            "efficiency_mask": self.efficiency_masks[self._stretch],
            "sample_height": self.sample_heights[self._stretch],
            "sample_width": self.sample_widths[self._stretch],
        }


@register("eff-random-camera-datamodule")
class EffRandomCameraDataModule(RandomCameraDataModule):
    """Random training cameras with rays of some pixels; validation and test show whole pictures."""

    cfg: EffRandomCameraDataModuleConfig
    config_class = EffRandomCameraDataModuleConfig
    train_dataset_class = EffRandomCameraIterableDataset
