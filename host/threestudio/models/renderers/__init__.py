"""From a scene to images."""

from threestudio.models.renderers import base

__all__ = ["base"]
