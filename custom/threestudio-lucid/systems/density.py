"""When density control happens in a run: LucidDreamer's timetable around `gaussians.density`, or that of
3DGS-MCMC around `gaussians.relocation`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError, check_choice, check_range
from ..gaussians.density import DensityRules
from ..gaussians.relocation import RelocationRules, budget

POLICIES = ("gradient", "relocation")


@dataclass
class DensityConfig:
    """Timetable and thresholds of density control. Steps count from 1; the defaults are for 5000 of them."""

    policy: str = "gradient"
    """gradient: clone, split and prune by thresholds (3DGS, LucidDreamer); relocation: those that nobody sees
    move to where others are, and the cloud grows by a budget (3DGS-MCMC).
    """
    start: int = 100
    """No clone, split or prune up to and including this step."""
    until: int = 3000
    """Gradients are gathered, and density is controlled, before this step only; 0: never."""
    every: int = 100
    """Steps from one round to the next."""
    grad_threshold: float = 7.5e-4
    """Screen-space gradient from which a Gaussian is cloned or split. It scales with the weight of the
    losses.
    """
    clone_scale: float = 0.0105
    """Largest standard deviation that is cloned, world units; larger ones are split."""
    prune_opacity: float = 0.005
    """Opacity below which a Gaussian is removed."""
    prune_scale: float = 0.35
    """Standard deviation above which a Gaussian is removed, world units."""
    prune_scale_after: int = 300
    """... in rounds after this step."""
    reset_every: int = 300
    """Steps from one reset of all opacities to the next; 0: never."""
    reset_opacity: float = 0.01
    """What they are reset to, if they are above it."""
    last_view_only: bool = False
    """Gather gradients from the last view of a batch only, as the released code does; else from all."""

    growth: float = 1.05
    """relocation: most that the cloud grows by in a round, as a factor; it has its capacity at `until`."""
    noise: float = 5e5
    """relocation: noise on the positions of faint Gaussians, in units of lr_means; 0: none."""

    def __post_init__(self) -> None:
        check_choice("density.policy", self.policy, POLICIES)
        check_range("density.growth", self.growth, 1.0)
        check_range("density.noise", self.noise, 0.0)
        for name in ("start", "until", "prune_scale_after", "reset_every"):
            check_range(f"density.{name}", getattr(self, name), 0)
        check_range("density.every", self.every, 1)
        for name in ("grad_threshold", "clone_scale", "prune_scale"):
            check_range(f"density.{name}", getattr(self, name), 0.0, above=True)
        for name in ("prune_opacity", "reset_opacity"):
            check_range(f"density.{name}", getattr(self, name), 0.0, 1.0)
        if self.reset_every and self.reset_opacity <= self.prune_opacity:
            raise UserError(
                f"density.reset_opacity ({self.reset_opacity}) must be above density.prune_opacity "
                f"({self.prune_opacity}): else a reset removes everything."
            )


def gathers(cfg: DensityConfig, step: int) -> bool:
    """Whether step `step` (from 1) adds to the statistics."""
    return step < cfg.until and cfg.policy == "gradient"


def refines(cfg: DensityConfig, step: int) -> bool:
    """Whether step `step` (from 1) ends with a round of clone, split and prune."""
    return cfg.start < step < cfg.until and step % cfg.every == 0


def resets(cfg: DensityConfig, step: int) -> bool:
    """Whether step `step` (from 1) ends with a reset of the opacities."""
    return gathers(cfg, step) and cfg.reset_every > 0 and step % cfg.reset_every == 0


def rules(cfg: DensityConfig, step: int) -> DensityRules:
    """Thresholds at step `step` (from 1)."""
    return DensityRules(
        grad_threshold=cfg.grad_threshold,
        clone_scale=cfg.clone_scale,
        prune_opacity=cfg.prune_opacity,
        prune_scale=cfg.prune_scale if step > cfg.prune_scale_after else None,
    )


def relocation_rules(cfg: DensityConfig, step: int, first: int, capacity: int) -> RelocationRules:
    """Budget of the round after step `step` (from 1), for a cloud that began with `first` Gaussians."""
    progress = (step - cfg.start) / max(cfg.until - 1 - cfg.start, 1)
    return RelocationRules(budget(first, capacity, progress), cfg.growth, cfg.prune_opacity)
