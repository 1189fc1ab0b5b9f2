"""How surfaces look."""

from threestudio.models.materials import (
    base,
    diffuse_with_point_light_material,
    neural_radiance_material,
    no_material,
    sd_latent_adapter_material,
)

__all__ = [
    "base",
    "diffuse_with_point_light_material",
    "neural_radiance_material",
    "no_material",
    "sd_latent_adapter_material",
]
