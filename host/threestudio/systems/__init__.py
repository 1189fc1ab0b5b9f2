"""Training loops."""

from threestudio.systems import base

__all__ = ["base"]
