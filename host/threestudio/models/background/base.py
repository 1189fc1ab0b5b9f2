"""Base of backgrounds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from threestudio.utils.base import BaseModule


class BaseBackground(BaseModule):
    """What rays meet that meet nothing."""

    @dataclass
    class Config(BaseModule.Config):
        pass

    cfg: Config

    def configure(self) -> None:
        pass

    def forward(self, dirs: Tensor) -> Tensor:
        """Colours [B, H, W, C] along directions [B, H, W, 3]; evaluation cuts the first dim in pieces."""
        raise NotImplementedError(f"{type(self).__name__} has no forward.")
