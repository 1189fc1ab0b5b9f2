"""nvdiffrast, for extensions that rasterize meshes with it: it needs CUDA, and is not part of this host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from threestudio.utils.errors import ConfigValueError


class NVDiffRasterizerContext:
    """A context of nvdiffrast, and its operations on it.

    Args:
        context_type: gl or cuda.
        device: of the tensors.

    Raises:
        ConfigValueError: nvdiffrast is not installed, or another type.
    """

    def __init__(self, context_type: str, device: torch.device) -> None:
        try:
            import nvdiffrast.torch as library
        except ImportError as error:
            raise ConfigValueError(
                "This needs nvdiffrast (github.com/NVlabs/nvdiffrast), which rasterizes meshes on NVIDIA "
                "GPUs, and it is not installed."
            ) from error
        contexts = {"gl": library.RasterizeGLContext, "cuda": library.RasterizeCudaContext}
        if context_type not in contexts:
            raise ConfigValueError(f"context_type is {context_type!r}: choose one of {', '.join(contexts)}.")
        self.device = device
        self.library = library
        self.ctx = contexts[context_type](device=device)

    def vertex_transform(self, verts: Tensor, mvp_mtx: Tensor) -> Tensor:
        """Vertices [Nv, 3] in clip space [B, Nv, 4]."""
        homogeneous = torch.nn.functional.pad(verts, (0, 1), value=1.0)
        return homogeneous @ mvp_mtx.transpose(1, 2)

    def rasterize(self, pos: Tensor, tri: Tensor, resolution: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What each pixel shows [B, H, W, 4], and its derivatives, of vertices [B, Nv, 4] in clip space."""
        return self.library.rasterize(self.ctx, pos.float(), tri.int(), resolution, grad_db=True)

    def rasterize_one(self, pos: Tensor, tri: Tensor, resolution: int | tuple[int, int]) -> tuple[Any, Any]:
        """The same for one view, vertices [Nv, 4]."""
        rast, derivatives = self.rasterize(pos[None], tri, resolution)
        return rast[0], derivatives[0]

    def antialias(self, color: Tensor, rast: Tensor, pos: Tensor, tri: Tensor) -> Tensor:
        """Colours [B, H, W, C] with smooth outlines."""
        return self.library.antialias(color.float(), rast, pos.float(), tri.int())

    def interpolate(
        self, attr: Tensor, rast: Tensor, tri: Tensor, rast_db: Any = None, diff_attrs: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Attributes [B, Nv, C] at the pixels."""
        return self.library.interpolate(attr.float(), rast, tri.int(), rast_db=rast_db, diff_attrs=diff_attrs)

    def interpolate_one(
        self, attr: Tensor, rast: Tensor, tri: Tensor, rast_db: Any = None, diff_attrs: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Attributes [Nv, C] that all views share."""
        return self.interpolate(attr[None], rast, tri, rast_db, diff_attrs)
