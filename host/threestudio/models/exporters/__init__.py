"""What leaves the house."""

from threestudio.models.exporters import base, mesh_exporter

__all__ = ["base", "mesh_exporter"]
