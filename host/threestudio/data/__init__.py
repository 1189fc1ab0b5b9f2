"""Datamodules."""

from threestudio.data import uncond

__all__ = ["uncond"]
