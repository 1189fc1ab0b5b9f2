"""3D Gaussian splatting: one function, several back ends.

    from threestudio_lucid.rasterizer import rasterize

knows nothing of guidance, of threestudio or of training: tensors in, pictures and gradients out.
"""

from .api import BACKENDS, Render, rasterize

__all__ = ["rasterize", "Render", "BACKENDS"]
