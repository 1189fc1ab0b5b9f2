"""Shapes."""

from threestudio.models.geometry import base

__all__ = ["base"]
