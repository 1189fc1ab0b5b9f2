"""The CUDA back ends: against the reference where there is CUDA; the inria adapter's own work anywhere."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from splat_scenes import (
    GRADIENTS,
    assert_close,
    cotangents,
    one_gaussian,
    random_scene,
    render_and_gradients,
    scales_of_each_view,
)
from torch import nn

from threestudio_lucid.errors import UserError
from threestudio_lucid.rasterizer import api, gsplat_adapter, inria_adapter
from threestudio_lucid.rasterizer.projection import quats_to_rotations
from threestudio_lucid.rasterizer.reference import composite_pixels

ADAPTERS = {"gsplat": gsplat_adapter, "inria": inria_adapter}
BOTH = pytest.mark.parametrize("backend", ADAPTERS)


def centred(scene):
    """The scene with the principal point in the middle, where 3DGS has it."""
    Ks = scene.Ks.clone()
    Ks[:, 0, 2], Ks[:, 1, 2] = scene.width / 2, scene.height / 2
    return replace(scene, Ks=Ks)


SCENES = {
    "ordinary": lambda: random_scene(80, opacity=(0.05, 0.9)),  # clear of the caps on alpha, which differ
    "centred": lambda: centred(random_scene(80, opacity=(0.05, 0.9), seed=1)),
    "sh 2": lambda: random_scene(60, seed=2, sh_degree=2, opacity=(0.05, 0.9)),
    "scales of each view": lambda: scales_of_each_view(seed=4, opacity=(0.05, 0.9)),
    "sh and scales of each view": lambda: scales_of_each_view(seed=5, opacity=(0.05, 0.9), sh_degree=1),
    "background of all views": lambda: replace(
        random_scene(40, seed=3), background=torch.tensor([1.0, 0, 0.5])
    ),
}


# ---- with CUDA ---------------------------------------------------------------------------------------------


@pytest.mark.cuda
@BOTH
@pytest.mark.parametrize("name", SCENES)
def test_agrees_with_the_reference(backend, name):
    if not (torch.cuda.is_available() and ADAPTERS[backend].is_installed()):
        pytest.skip(f"needs CUDA and {backend}")
    scene = SCENES[name]()
    expected, expected_gradients = render_and_gradients(scene.to(torch.float64), "reference")
    actual, gradients = render_and_gradients(scene.to("cuda"), backend)
    picture, gradient = CLOSE[backend]
    for output in ("rgb", "alpha", "depth"):
        assert_close(output, getattr(actual, output), getattr(expected, output), *picture)
    for key, value in gradients.items():
        assert_close(f"gradient of {key}", value, expected_gradients[key], *gradient)
    shown = expected.info["radii"] > 0
    assert (actual.info["radii"].cpu() > 0)[shown].float().mean() > 0.95
    assert actual.info["backend"] == backend


# inria ends a Gaussian at three deviations, where an opaque one still has an alpha of 0.011
CLOSE = {"gsplat": ((1e-3, 1e-2), (1e-2, 1e-2)), "inria": ((1e-2, 3e-2), (3e-2, 5e-2))}


@pytest.mark.cuda
@BOTH
@pytest.mark.parametrize("num", [0, 1])
def test_few_gaussians(backend, num):
    if not (torch.cuda.is_available() and ADAPTERS[backend].is_installed()):
        pytest.skip(f"needs CUDA and {backend}")
    scene = random_scene(num)
    expected, actual = scene.render("reference"), scene.to("cuda").render(backend)
    assert_close("rgb", actual.rgb, expected.rgb, 1e-2, 2e-2)


# ---- without -----------------------------------------------------------------------------------------------


@BOTH
def test_not_installed_says_how_to_get_it(backend, monkeypatch):
    monkeypatch.setattr(ADAPTERS[backend], "is_installed", lambda: False)
    with pytest.raises(UserError, match=r"install"):
        one_gaussian().render(backend)


@BOTH
def test_needs_cuda_tensors(backend, monkeypatch):
    monkeypatch.setattr(ADAPTERS[backend], "is_installed", lambda: True)
    with pytest.raises(UserError, match=r"needs CUDA tensors.*backend='cpu'"):
        one_gaussian().render(backend)


def test_an_old_gsplat_is_named():
    gsplat_adapter._check_version("1.5.3")
    with pytest.raises(UserError, match=r"gsplat 1\.5\.2 is installed.*pip install -U gsplat"):
        gsplat_adapter._check_version("1.5.2")


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [(("gsplat", "inria"), "gsplat"), (("inria",), "inria"), ((), "cpu")],
)
def test_what_auto_chooses_for_cuda_tensors(installed, chosen, monkeypatch):
    for name, adapter in ADAPTERS.items():
        monkeypatch.setattr(adapter, "is_installed", lambda name=name: name in installed)
    assert api._choose("auto", torch.empty(0, device="meta")) == "cpu"

    class OnCuda:
        device = torch.device("cuda")

    assert api._choose("auto", OnCuda()) == chosen


def inria_package(returns: int) -> ModuleType:
    """diff-gaussian-rasterization's interface with the original's conventions, in plain PyTorch.

    As in its kernels: row vectors, [-1, 1] across the picture, integer pixel centres, focal lengths from the
    fields of view, and a gradient of the 2D means that their values have no part in.
    """

    class GaussianRasterizationSettings(NamedTuple):
        image_height: int
        image_width: int
        tanfovx: float
        tanfovy: float
        bg: torch.Tensor
        scale_modifier: float
        viewmatrix: torch.Tensor
        projmatrix: torch.Tensor
        sh_degree: int
        campos: torch.Tensor
        prefiltered: bool

    class GaussianRasterizer(nn.Module):
        def __init__(self, raster_settings):
            super().__init__()
            self.to = raster_settings

        def forward(self, means3D, means2D, opacities, colors_precomp, scales, rotations):
            s = self.to
            homogeneous = torch.cat([means3D, torch.ones_like(means3D[:, :1])], dim=1)
            view, clip = homogeneous @ s.viewmatrix, homogeneous @ s.projmatrix
            ndc = clip[:, :2] / clip[:, 3:] + means2D[:, :2] - means2D[:, :2].detach()
            size = torch.tensor([s.image_width, s.image_height])
            pixels = ((ndc + 1) * size - 1) / 2

            x, y, z = view[:, :3].unbind(1)
            fx, fy = s.image_width / (2 * s.tanfovx), s.image_height / (2 * s.tanfovy)
            zero = torch.zeros_like(z)
            jacobian = torch.stack(
                [
                    torch.stack([fx / z, zero, -fx * x / z**2], dim=1),
                    torch.stack([zero, fy / z, -fy * y / z**2], dim=1),
                ],
                dim=1,
            )
            # the kernels take the length of a quaternion for granted
            assert torch.allclose(rotations.norm(dim=1), torch.ones(len(rotations)))
            root = jacobian @ s.viewmatrix[:3, :3].T @ (quats_to_rotations(rotations) * scales[:, None])
            conics = torch.linalg.inv(root @ root.mT + 0.3 * torch.eye(2))
            order = z.argsort()
            seen = order[z[order] > 0.2]

            rows, columns = torch.meshgrid(
                torch.arange(s.image_height), torch.arange(s.image_width), indexing="ij"
            )
            grid = torch.stack([columns, rows], dim=-1).reshape(-1, 2).float()
            sums, left = composite_pixels(
                grid,
                pixels[seen],
                torch.stack([conics[:, 0, 0], conics[:, 0, 1], conics[:, 1, 1]], dim=1)[seen],
                opacities[seen, 0],
                colors_precomp[seen],
            )
            image = (sums + left[:, None] * s.bg).T.unflatten(1, (s.image_height, s.image_width))
            radii = (z > 0.2).int()
            extra = torch.full_like(
                image[:1], 7.0
            )  # depth, transmittance, ...: each fork means another thing
            return {2: (image, radii), 3: (image, radii, extra), 4: (image, radii, extra, extra)}[returns]

    package = ModuleType(inria_adapter.PACKAGE)
    package.GaussianRasterizationSettings = GaussianRasterizationSettings
    package.GaussianRasterizer = GaussianRasterizer
    return package


@pytest.fixture
def on_this_device(monkeypatch):
    """The adapter's `rasterize` where there is no CUDA; the package's stand-in needs none."""
    monkeypatch.setattr(inria_adapter, "_check", lambda device, eps2d: None)

    def call(*arguments):
        *arguments, sh_degree, backgrounds, near = arguments
        options = {"sh_degree": sh_degree, "backgrounds": backgrounds, "near": near, "eps2d": 0.3}
        return inria_adapter.rasterize(*arguments, **options)

    return call


@pytest.mark.parametrize("returns", [2, 3, 4])
@pytest.mark.parametrize("name", SCENES)
def test_inria_adapter_speaks_the_packages_language(returns, name, on_this_device, monkeypatch):
    monkeypatch.setitem(sys.modules, inria_adapter.PACKAGE, inria_package(returns))
    scene = SCENES[name]()
    expected, expected_gradients = render_and_gradients(scene, "reference")

    leaves = {key: getattr(scene, key).clone().requires_grad_() for key in GRADIENTS}
    background = leaves["background"].expand(len(scene.viewmats), 3)
    *splats, _ = leaves.values()
    views = scene.viewmats, scene.Ks, scene.width, scene.height
    *outputs, info = on_this_device(*splats, *views, scene.sh_degree, background, 0.2)
    sum(
        (output * cotangent).sum() for output, cotangent in zip(outputs, cotangents(scene), strict=True)
    ).backward()

    for output, key in zip(outputs, ("rgb", "alpha", "depth"), strict=True):
        assert_close(key, output, getattr(expected, key), 1e-4, 5e-3)
    actual = {key: leaf.grad for key, leaf in leaves.items()} | {"means2d": info["means2d"].grad}
    for key, gradient in actual.items():
        assert_close(f"gradient of {key}", gradient, expected_gradients[key], 1e-3, 5e-3)


def test_inria_adapter_draws_nothing_nearer_than_near(on_this_device, monkeypatch):
    monkeypatch.setitem(sys.modules, inria_adapter.PACKAGE, inria_package(2))
    scene = one_gaussian()  # 2 units away

    def alpha(near):
        splats = scene.means, scene.quats, scene.scales, scene.opacities, scene.colors
        views = scene.viewmats, scene.Ks, scene.width, scene.height
        return on_this_device(*splats, *views, None, torch.zeros(1, 3), near)[1].max()

    assert alpha(1.9) > 0.7 and alpha(2.1) == 0


def test_inria_with_a_setting_nobody_knows(monkeypatch):
    package = inria_package(2)

    class GaussianRasterizationSettings(NamedTuple):
        image_height: int
        moonphase: float

    package.GaussianRasterizationSettings = GaussianRasterizationSettings
    monkeypatch.setitem(sys.modules, inria_adapter.PACKAGE, package)
    scene = one_gaussian()
    with pytest.raises(UserError, match="moonphase"):
        inria_adapter._View(scene.viewmats[0], scene.Ks[0].tolist(), 9, 9).draw(
            scene.means, torch.zeros(1, 3), scene.opacities, scene.scales, scene.quats, scene.colors
        )
