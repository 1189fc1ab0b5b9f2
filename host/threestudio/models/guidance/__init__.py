"""What a 2D model thinks of a picture, as a gradient."""

from threestudio.models.guidance import stable_diffusion_guidance, stable_diffusion_sdi_guidance

__all__ = ["stable_diffusion_guidance", "stable_diffusion_sdi_guidance"]
