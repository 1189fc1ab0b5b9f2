"""Assets as the grader sees them: from eight sides, on white."""

from __future__ import annotations

import torch

from threestudio_lucid.data.orbit import circle, opencv_cameras
from threestudio_lucid.gaussians.cloud import Gaussians, opacities, scales, sh_coefficients
from threestudio_lucid.rasterizer import rasterize
from toybox.likeness import Views
from toybox.runs import Camera

AZIMUTHS = [45.0 * k for k in range(8)]


@torch.no_grad()
def draw_gaussians(gaussians: Gaussians, camera: Camera, size: int) -> Views:
    """Gaussians on white, `size` pixels wide and high, seen from `AZIMUTHS`."""
    cameras = circle(len(AZIMUTHS), camera.elevation, camera.distance, camera.fovy)
    viewmats, Ks = opencv_cameras(cameras.c2w, torch.deg2rad(cameras.fovy), size, size)
    drawn = rasterize(
        gaussians.means,
        gaussians.quats,
        scales(gaussians),
        opacities(gaussians),
        colors=sh_coefficients(gaussians),
        sh_degree=gaussians.sh_degree,
        viewmats=viewmats,
        Ks=Ks,
        width=size,
        height=size,
    )
    rgb = (drawn.rgb + 1.0 - drawn.alpha).clamp(0.0, 1.0)
    return Views(rgb.numpy(), drawn.alpha[..., 0].clamp(0.0, 1.0).numpy())
