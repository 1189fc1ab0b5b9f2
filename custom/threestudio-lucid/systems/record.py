"""What a run remembers of itself, through checkpoints, for its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..gaussians.density import DensityReport

# Running means look back over about this many steps.
HORIZON = 50


@dataclass
class Record:
    """Running means of the losses and counts of density control.

    `full_since` is the step of the first round from which on the cloud was as large as it may be.
    """

    means: dict[str, float] = field(default_factory=dict)
    cloned: int = 0
    split: int = 0
    pruned: int = 0
    refused: int = 0
    rounds: int = 0
    full_since: int | None = None

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Takes in one step's losses; a loss that is new starts its mean."""
        losses = {name: value for name, value in values.items() if name.startswith("loss")}
        if not losses:
            return
        # together, for each copy from a GPU waits for it
        numbers = torch.stack([value.reshape(()) for value in losses.values()]).tolist()
        for name, x in zip(losses, numbers, strict=True):
            self.means[name] = x if name not in self.means else _towards(self.means[name], x)

    def count(self, report: DensityReport, step: int, capacity: int) -> None:
        """Takes in one round of density control."""
        self.rounds += 1
        if report.n < capacity:
            self.full_since = None
        elif self.full_since is None:
            self.full_since = step
        for name in ("cloned", "split", "pruned", "refused"):
            setattr(self, name, getattr(self, name) + getattr(report, name))

    def summary(self) -> dict[str, Any]:
        """For metrics.json."""
        names = ("cloned", "split", "pruned", "refused", "rounds", "full_since")
        counts = {name: getattr(self, name) for name in names}
        return {"density": counts, "losses": dict(sorted(self.means.items()))}

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Record:
        return cls(**state)


def _towards(mean: float, value: float) -> float:
    return mean + (value - mean) / HORIZON
