"""`lucid-picture-datamodule`: one picture, again and again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

import threestudio
from threestudio.utils.config import parse_structured

from ..errors import UserError, check_range
from .picture import Framing, read_mask, read_picture


@dataclass
class LucidPictureDataModuleConfig:
    """A picture, and where it may change."""

    image: str = ""
    """The picture: PNG, JPEG or WebP, of any size and shape."""
    size: int = 512
    """Height and width at which it is edited; the change is brought back to the picture's own size."""
    mask: str = ""
    """A picture of the same size, white where it may change; empty: everywhere."""
    box: Any = None
    """Or a box that may change: [left, top, right, bottom] in shares of width and height."""

    def __post_init__(self) -> None:
        check_range("size", self.size, 8)


class _Again(IterableDataset):
    """The same batch, so many times."""

    def __init__(self, batch: dict[str, Any], times: int | None) -> None:
        super().__init__()
        self.batch, self.times = batch, times

    def __iter__(self) -> Iterator[dict[str, Any]]:
        n = 0
        while self.times is None or n < self.times:
            yield self.batch
            n += 1


@threestudio.register("lucid-picture-datamodule")
class LucidPictureDataModule(pl.LightningDataModule):
    """Batches: picture [H, W, 3], square [1, size, size, 3], mask [H, W, 1] float, and a camera in front."""

    def __init__(self, cfg: Any = None) -> None:
        super().__init__()
        self.cfg = parse_structured(LucidPictureDataModuleConfig, cfg)
        if not self.cfg.image:
            raise UserError("There is no picture: add data.image=mug.png.")
        picture = read_picture(self.cfg.image)
        height, width = picture.shape[:2]
        mask = read_mask(self.cfg.mask, self.cfg.box, height, width)
        self.batch = {
            "picture": picture,
            "square": Framing(height, width).to_square(picture, self.cfg.size)[None],
            "mask": torch.ones(height, width, 1) if mask is None else mask.float(),
            "elevation": torch.zeros(1),
            "azimuth": torch.zeros(1),
            "camera_distances": torch.ones(1),
        }

    def _loader(self, times: int | None) -> DataLoader:
        return DataLoader(_Again(self.batch, times), num_workers=0, batch_size=None)

    def train_dataloader(self) -> DataLoader:
        return self._loader(None)

    def val_dataloader(self) -> DataLoader:
        return self._loader(1)

    def test_dataloader(self) -> DataLoader:
        return self._loader(1)

    def predict_dataloader(self) -> DataLoader:
        return self._loader(1)
