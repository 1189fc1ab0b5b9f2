"""Scenes of Gaussians, and what the tests of the rasterizer do with them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from threestudio_lucid.rasterizer import Render, rasterize

GRADIENTS = ("means", "quats", "scales", "opacities", "colors", "background")


@dataclass
class Scene:
    """The arguments of `rasterize`."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    viewmats: Tensor
    Ks: Tensor
    background: Tensor
    width: int
    height: int
    sh_degree: int | None = None

    def render(self, backend: str, **options: object) -> Render:
        arguments = {field.name: getattr(self, field.name) for field in fields(self)}
        return rasterize(**arguments, backend=backend, **options)

    def to(self, where: torch.dtype | str) -> Scene:
        """The scene in another dtype or on another device, free of any graph."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.type == "Tensor"}
        return replace(self, **{name: tensor.detach().to(where) for name, tensor in tensors.items()})


def look_at_origin(azimuth: float, elevation: float, distance: float) -> Tensor:
    """World-to-camera matrix [4, 4] (x right, y down, z forward) of a camera that looks at the origin;
    degrees."""
    a, e = math.radians(azimuth), math.radians(elevation)
    position = distance * torch.tensor([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    forward = -position / position.norm()
    right = torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0]))
    right = right / right.norm()
    viewmat = torch.eye(4)
    viewmat[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
    viewmat[:3, 3] = -viewmat[:3, :3] @ position
    return viewmat


def intrinsics(width: int, height: int, fovy: float = 40.0) -> Tensor:
    """Pinhole [3, 3] with a principal point a little off the centre; `fovy` in degrees."""
    focal = height / 2 / math.tan(math.radians(fovy) / 2)
    return torch.tensor([[focal, 0, width / 2 + 0.7], [0, 1.1 * focal, height / 2 - 0.4], [0, 0, 1]])


def random_scene(
    num: int = 100,
    views: int = 2,
    width: int = 61,
    height: int = 45,
    *,
    seed: int = 0,
    spread: float = 0.4,
    scale: tuple[float, float] = (0.02, 0.12),
    opacity: tuple[float, float] = (0.05, 0.95),
    distance: float = 3.0,
    sh_degree: int | None = None,
) -> Scene:
    """A cloud around the origin, seen from all around. Neither side is a whole number of tiles."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    log_scales = uniform(math.log(scale[0]), math.log(scale[1]), num, 3)
    colors = uniform(0, 1, num, 3)
    if sh_degree is not None:
        colors = torch.randn(num, (sh_degree + 1) ** 2, 3, generator=generator) / 2
    return Scene(
        means=spread * torch.randn(num, 3, generator=generator),
        quats=torch.randn(num, 4, generator=generator),
        scales=log_scales.exp(),
        opacities=uniform(*opacity, num),
        colors=colors,
        viewmats=torch.stack([look_at_origin(360 * v / views + 20, 25, distance) for v in range(views)]),
        Ks=intrinsics(width, height).expand(views, 3, 3).clone(),
        background=uniform(0, 1, views, 3),
        width=width,
        height=height,
        sh_degree=sh_degree,
    )


def scales_of_each_view(**options) -> Scene:
    """A random scene whose Gaussians have other sizes in each view."""
    scene = random_scene(80, **options)
    factors = torch.tensor([1.0, 0.6, 1.5, 0.8])[: len(scene.viewmats), None, None]
    noise = 1 + 0.1 * torch.randn(factors.shape[0], 80, 3, generator=torch.Generator().manual_seed(12))
    return replace(scene, scales=scene.scales * factors * noise)


def one_gaussian(**changes: Tensor) -> Scene:
    """A white round Gaussian of deviation 0.1, 2 units in front of a camera of focal length 20, on a pixel's
    centre."""
    viewmat = torch.eye(4)
    viewmat[2, 3] = 2
    scene = Scene(
        means=torch.zeros(1, 3),
        quats=torch.tensor([[1.0, 0, 0, 0]]),
        scales=torch.full((1, 3), 0.1),
        opacities=torch.tensor([0.8]),
        colors=torch.ones(1, 3),
        viewmats=viewmat[None],
        Ks=torch.tensor([[[20.0, 0, 4.5], [0, 20, 4.5], [0, 0, 1]]]),
        background=torch.zeros(3),
        width=9,
        height=9,
    )
    return replace(scene, **changes)


def cotangents(scene: Scene, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """A random gradient for each of rgb, alpha and depth."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(scene.viewmats), scene.height, scene.width)
    return tuple(torch.randn(*shape, channels, generator=generator) for channels in (3, 1, 1))


def render_and_gradients(scene: Scene, backend: str, seed: int = 1) -> tuple[Render, dict[str, Tensor]]:
    """A render, and the gradients of sum(rgb u) + sum(alpha v) + sum(depth w) for random u, v, w."""
    scene = scene.to(scene.means.dtype)
    for name in GRADIENTS:
        getattr(scene, name).requires_grad_()
    render = scene.render(backend)
    loss = sum(
        (output * cotangent.to(output)).sum()
        for output, cotangent in zip(render[:3], cotangents(scene, seed), strict=True)
    )
    loss.backward()
    gradients = {name: getattr(scene, name).grad for name in GRADIENTS}
    gradients["means2d"] = render.info["means2d"].grad
    return render, gradients


def assert_close(name: str, actual: Tensor, expected: Tensor, relative: float, worst: float) -> None:
    """Compares two tensors as vectors, then their worst element against the largest of the expected ones.

    Raises:
        AssertionError: names the tensor, the numbers and the index of the worst element.
    """
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    assert actual.shape == expected.shape, f"{name}: shapes {list(actual.shape)} and {list(expected.shape)}"
    assert torch.isfinite(actual).all(), f"{name}: not finite"
    norm = expected.norm()
    difference = (actual - expected).abs()
    if norm == 0:
        assert difference.max() == 0, f"{name}: expected 0 everywhere, got up to {difference.max():.3g}"
        return
    at = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
    message = (
        f"{name}: relative L2 {difference.norm() / norm:.2e} (at most {relative:.0e}), "
        f"worst {difference.max() / expected.abs().max():.2e} of the largest (at most {worst:.0e}), "
        f"at {at}: {actual[at]:.6g}, expected {expected[at]:.6g}"
    )
    assert difference.norm() <= relative * norm, message
    assert difference.max() <= worst * expected.abs().max(), message
    cosine = torch.nn.functional.cosine_similarity(actual.flatten(), expected.flatten(), dim=0)
    assert cosine >= 1 - relative, f"{name}: cosine 1 - {1 - cosine:.2e}"
