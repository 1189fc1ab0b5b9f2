"""Pictures of a posed body for a ControlNet: DensePose's parts, depth, normals.

Published ControlNets differ in how the parts are coloured:

    viridis   part k of 24 at k/24 of the colour map, the background its violet start (as MagicAnimate's)
    parula    the same with OpenCV's parula, on black
    iuv       red is part/24, green and blue the place on the part's chart, on black
    depth     near is white, far is dark, the background black; each view by itself, as with MiDaS
    normal    in the camera's axes: red to the right, green up, blue towards the camera
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..data.orbit import opencv_cameras
from ..errors import check_choice
from .body import Body
from .parts import COUNT
from .zbuffer import Fragments, draw_triangles

# Colours of k/24 for k from 0 to 24: matplotlib's viridis (CC0) and OpenCV's parula.
_VIRIDIS = (
    "440154 471063 481f70 472c7a 443983 404688 3b518b 365d8d 31688e 2c718e 287c8e 25858e 21908d "
    "1f9a8a 20a386 27ad81 35b779 46c06f 5cc863 73d056 8ed645 aadc32 c5e021 e2e418 fde725"
)
_PARULA = (
    "000000 253ca3 1450c2 0461df 086edd 0e7ad8 1484d4 0f90d0 0b9ccb 06a6c6 16adb9 26b3ac 37b99f "
    "56bb90 72bd82 91bf74 aabd69 c0bc60 d8ba56 e4c04a f0c73c fcce2e fbdc24 faeb19 f9fb0e"
)


def _table(colors: str) -> np.ndarray:
    return np.array([list(bytes.fromhex(color)) for color in colors.split()], np.float32) / 255


def _parts(colors: np.ndarray) -> Callable[[Body, Fragments, np.ndarray], np.ndarray]:
    def draw(body: Body, seen: Fragments, viewmats: np.ndarray) -> np.ndarray:
        return colors[_part_numbers(body, seen)]

    return draw


def _iuv(body: Body, seen: Fragments, viewmats: np.ndarray) -> np.ndarray:
    part = _part_numbers(body, seen)[..., None] / np.float32(COUNT)
    return np.concatenate([part, seen.interpolate(body.uv)], axis=-1)


def _depth(body: Body, seen: Fragments, viewmats: np.ndarray) -> np.ndarray:
    """Inverse depth, each view's farthest point at 0.1 and its nearest at 1: all of the body shows."""
    out = np.zeros((*seen.depth.shape, 1), np.float32)
    for picture, face, depth in zip(out, seen.face, seen.depth, strict=True):
        there = face >= 0
        if there.any():
            near = 1.0 / depth[there]
            low, high = near.min(), near.max()
            picture[there, 0] = 0.1 + 0.9 * (near - low) / max(high - low, 1e-9)
    return np.repeat(out, 3, axis=-1)


def _normals(body: Body, seen: Fragments, viewmats: np.ndarray) -> np.ndarray:
    """(n + 1) / 2; the background is flat and faces the camera."""
    world = seen.interpolate(body.normals()[body.faces])
    camera = np.einsum("bij,bhwj->bhwi", viewmats[:, :3, :3], world) * np.array([1, -1, -1], np.float32)
    length = np.linalg.norm(camera, axis=-1, keepdims=True)
    flat = np.array([0.0, 0.0, 1.0], np.float32)
    return 0.5 + 0.5 * np.where(seen.face[..., None] >= 0, camera / np.maximum(length, 1e-9), flat)


def _part_numbers(body: Body, seen: Fragments) -> np.ndarray:
    return np.where(seen.face >= 0, body.labels[np.maximum(seen.face, 0)], 0)


MAPS: dict[str, Callable[[Body, Fragments, np.ndarray], np.ndarray]] = {
    "viridis": _parts(_table(_VIRIDIS)),
    "parula": _parts(_table(_PARULA)),
    "iuv": _iuv,
    "depth": _depth,
    "normal": _normals,
}


def check_map(name: str, where: str = "map") -> None:
    """Raises UserError unless it is one of `MAPS`; lists them."""
    check_choice(where, name, MAPS)


def see(body: Body, c2w: Tensor, fovy: Tensor, height: int, width: int) -> tuple[Fragments, np.ndarray]:
    """What B views see of a body, and their viewmats [B, 4, 4]; arguments as in `draw_maps`."""
    viewmats, Ks = (
        t.cpu().numpy() for t in opencv_cameras(c2w.detach().float(), fovy.float(), height, width)
    )
    return draw_triangles(body.vertices, body.faces, viewmats, Ks, width, height), viewmats


def draw_maps(body: Body, c2w: Tensor, fovy: Tensor, height: int, width: int, kind: str) -> Tensor:
    """A body as B views see it.

    Args:
        c2w: [B, 4, 4] OpenGL, as in threestudio's batches.
        fovy: [B], vertical, RADIANS.
        kind: one of `MAPS`.

    Returns:
        float32 [B, 3, H, W] in [0, 1] on the device of `c2w`.

    Raises:
        UserError: no such map.
    """
    check_map(kind)
    seen, viewmats = see(body, c2w, fovy, height, width)
    pictures = np.ascontiguousarray(MAPS[kind](body, seen, viewmats), np.float32)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).to(c2w.device)


def silhouettes(body: Body, c2w: Tensor, fovy: Tensor, height: int, width: int) -> Tensor:
    """Where the body is, bool [B, H, W]; arguments as in `draw_maps`."""
    seen, _ = see(body, c2w, fovy, height, width)
    return torch.from_numpy(seen.face >= 0).to(c2w.device)
