"""From a scene to images."""

from threestudio.models.renderers import base, nerf_volume_renderer

__all__ = ["base", "nerf_volume_renderer"]
