"""What leaves the house."""

from threestudio.models.exporters import base

__all__ = ["base"]
