"""Datamodules."""

from threestudio.data import uncond, uncond_eff

__all__ = ["uncond", "uncond_eff"]
