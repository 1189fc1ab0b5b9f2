"""`lucid-gaussian-renderer`: pictures of the Gaussian cloud, and LucidDreamer's augmentations in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.models.renderers.base import Rasterizer
from threestudio.utils.misc import get_rank

from ..data.orbit import opencv_cameras
from ..errors import check_choice, check_range
from ..gaussians.cloud import base_colors, opacities, scales, sh_coefficients
from ..rasterizer import BACKENDS, rasterize
from ..seeding import generator as seeded
from .disparity import normalized_disparity


@threestudio.register("lucid-gaussian-renderer")
class LucidGaussianRenderer(Rasterizer):
    """Rasterizes `lucid-gaussian-splatting` from threestudio's camera batches."""

    @dataclass
    class Config(Rasterizer.Config):
        backend: str = "auto"
        """auto (CUDA: gsplat, or inria if only that is there; else cpu), cpu, reference, gsplat or inria."""
        near: float = 0.2
        """Gaussians nearer to the camera plane than this are not drawn."""
        blur: float = 0.3
        """Variance in square pixels that every Gaussian is blurred with on screen (3DGS: 0.3)."""
        bg_aug_ratio: float = 0.66
        """Training: how often the background is replaced, half the time by a random colour, else by black."""
        scale_noise: float = 0.1118
        """Training: scales are multiplied by max(0, 1 + this * normal noise), anew for each axis and view."""
        sh_drop_ratio: float = 0.1
        """Training: how often only the view-independent colour is drawn."""
        background_depth: float = 10.0
        """Depth given to what shines through, where disparity is computed."""
        seed: int = 0
        """Seed of the augmentations, when no generator is passed in."""

        def __post_init__(self) -> None:
            getattr(super(), "__post_init__", lambda: None)()
            check_choice("backend", self.backend, BACKENDS)
            for name in ("bg_aug_ratio", "sh_drop_ratio"):
                check_range(name, getattr(self, name), 0.0, 1.0)
            for name in ("scale_noise", "blur"):
                check_range(name, getattr(self, name), 0.0)
            for name in ("near", "background_depth"):
                check_range(name, getattr(self, name), 0.0, above=True)

    cfg: Config

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        super().configure(geometry, material, background)
        self._step = 0

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self._step = global_step

    def forward(
        self,
        c2w: Tensor,
        fovy: Tensor,
        height: int,
        width: int,
        rays_d: Tensor | None = None,
        bg_color: Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Renders B views.

        Args:
            c2w: [B, 4, 4] OpenGL.
            fovy: [B] radians.
            height, width: pixels.
            rays_d: [B, H, W, 3] for backgrounds that depend on the direction.
            bg_color: [3], [B, 3] or [B, H, W, 3] instead of background and augmentation.
            generator: draws the augmentations, on the device of `c2w`; None: made from (seed, rank, step).

        Returns:
            comp_rgb, comp_rgb_fg [B, H, W, 3], the latter on black; comp_rgb_bg broadcastable to them;
            opacity, depth [B, H, W, 1], depth = sum of w_i z_i; disparity [B, H, W, 1] in [0, 1], near is 1;
            scales [N, 3] or [B, N, 3] as drawn; screen: (means2d [B, N, 2], radii [B, N]), where means2d.grad
            after the backward pass is dL/d(pixel position).
        """
        # a place on the screen needs more digits than mixed precision has
        with torch.autocast(c2w.device.type, enabled=False):
            return self._render(c2w, fovy, int(height), int(width), rays_d, bg_color, generator)

    def _render(
        self,
        c2w: Tensor,
        fovy: Tensor,
        height: int,
        width: int,
        rays_d: Tensor | None,
        bg_color: Tensor | None,
        generator: torch.Generator | None,
    ) -> dict[str, Any]:
        if generator is None:
            generator = seeded(self.cfg.seed, "augmentation", get_rank(), self._step, device=c2w.device)
        background = self._background(len(c2w), rays_d, bg_color, generator, c2w)
        viewmats, Ks = opencv_cameras(c2w, fovy, height, width)

        # 1. colours and shapes, as they are or disturbed
        g = self.geometry.gaussians
        color = self._color_arguments(g, generator)
        drawn = self._drawn_scales(scales(g), len(c2w), generator)

        # 2. all views at once
        rgb, alpha, depth, info = rasterize(
            g.means,
            g.quats,
            drawn,
            opacities(g),
            viewmats=viewmats,
            Ks=Ks,
            width=width,
            height=height,
            near=self.cfg.near,
            eps2d=self.cfg.blur,
            backend=self.cfg.backend,
            **color,
        )

        # 3. on the background
        return {
            "comp_rgb": rgb + (1.0 - alpha) * background,
            "comp_rgb_fg": rgb,
            "comp_rgb_bg": background,
            "opacity": alpha,
            "depth": depth,
            "disparity": normalized_disparity(depth, alpha, fovy, self.cfg.background_depth),
            "scales": drawn,
            "screen": (info["means2d"], info["radii"]),
        }

    def _background(
        self,
        n: int,
        rays_d: Tensor | None,
        bg_color: Tensor | None,
        generator: torch.Generator,
        like: Tensor,
    ) -> Tensor:
        """Colours behind the views, broadcastable to [B, H, W, 3]."""
        if bg_color is not None:
            return bg_color if bg_color.ndim == 4 else bg_color.expand(n, 3)[:, None, None]
        dirs = rays_d if rays_d is not None else torch.zeros(n, 1, 1, 3).to(like)
        background = self.background(dirs=dirs)
        if not self.training:
            return background
        draws = torch.rand(n, 5, generator=generator, device=like.device)
        replaced, colored, color = draws[:, 0], draws[:, 1], draws[:, 2:]
        replacement = torch.where(colored[:, None] < 0.5, color, torch.zeros_like(color))[:, None, None]
        return torch.where((replaced < self.cfg.bg_aug_ratio)[:, None, None, None], replacement, background)

    def _color_arguments(self, g: Any, generator: torch.Generator) -> dict[str, Any]:
        degree = self.geometry.active_sh_degree
        if degree > 0 and self.training:
            drop = torch.rand((), generator=generator, device=g.means.device) < self.cfg.sh_drop_ratio
            degree = 0 if bool(drop) else degree
        if degree == 0:
            return {"colors": base_colors(g)}
        return {"colors": sh_coefficients(g), "sh_degree": degree}

    def _drawn_scales(self, s: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Scales [N, 3] for all views, or [B, N, 3] when each view has noise of its own."""
        if not self.training or self.cfg.scale_noise == 0.0:
            return s
        noise = torch.randn(n, *s.shape, generator=generator, device=s.device, dtype=s.dtype)
        # The released code clamps at 0; a rasterizer wants scales above it. Nine sigma away by default.
        return s * (1.0 + self.cfg.scale_noise * noise).clamp_min(1e-3)
