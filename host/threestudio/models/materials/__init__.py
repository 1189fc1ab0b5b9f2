"""How surfaces look."""

from threestudio.models.materials import base, no_material

__all__ = ["base", "no_material"]
