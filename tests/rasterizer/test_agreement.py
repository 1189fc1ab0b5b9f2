"""The compiled back end against the plain one: pictures, then gradients for random cotangents."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from splat_scenes import (
    assert_close,
    intrinsics,
    one_gaussian,
    random_scene,
    render_and_gradients,
    scales_of_each_view,
)

from threestudio_lucid.rasterizer.kernels import BATCH


def _needles():
    """Long and thin, at all angles: ellipses much tighter than their boxes."""
    scene = random_scene(60, seed=2)
    scene.scales = torch.tensor([0.5, 0.004, 0.004]).expand(60, 3).clone()
    return scene


def _opaque():
    """Many layers of nearly opaque Gaussians: alpha at its cap, and compositing that stops early."""
    return random_scene(150, seed=3, spread=0.3, scale=(0.1, 0.3), opacity=(0.9, 1.0))


def _around_the_camera():
    """Cameras inside of the cloud: Gaussians behind, beside (clamped Jacobian), and larger than the
    picture."""
    return random_scene(150, seed=4, spread=1.0, scale=(0.05, 0.6), distance=0.8)


def _equal_depths():
    """Gaussians on one plane parallel to the image: ties keep the order of the Gaussians."""
    scene = one_gaussian()
    grid = torch.linspace(-0.4, 0.4, 5)
    means = torch.stack([*torch.meshgrid(grid, grid, indexing="ij"), torch.zeros(5, 5)], dim=-1).reshape(
        -1, 3
    )
    colors = torch.rand(25, 3, generator=torch.Generator().manual_seed(5))
    return replace(
        scene,
        means=means,
        quats=scene.quats.repeat(25, 1),
        scales=torch.tensor([[0.06, 0.1, 0.2]]).repeat(25, 1),
        opacities=scene.opacities.repeat(25),
        colors=colors,
    )


def _wide_angle():
    """One view of 130 degrees, so that the Jacobian varies a lot over the picture."""
    scene = random_scene(100, views=1, seed=6, distance=1.5)
    scene.Ks = intrinsics(scene.width, scene.height, fovy=130)[None]
    return scene


def _of_one_tile(num: int):
    """So many Gaussians on a picture of one tile, all faint, so that all of them show."""
    return random_scene(num, 1, 32, 16, seed=14, spread=0.2, scale=(0.1, 0.3), opacity=(0.01, 0.05))


SCENES = {
    "ordinary": random_scene,
    "needles": _needles,
    "opaque": _opaque,
    "around the camera": _around_the_camera,
    "equal depths": _equal_depths,
    "wide angle": _wide_angle,
    "tiny": lambda: random_scene(200, seed=7, scale=(1e-6, 1e-3)),
    "sh 0": lambda: random_scene(80, seed=8, sh_degree=0),
    "sh 1": lambda: random_scene(80, seed=9, sh_degree=1),
    "sh 2": lambda: random_scene(80, seed=10, sh_degree=2),
    "sh 3": lambda: random_scene(80, seed=11, sh_degree=3),
    "tall": lambda: random_scene(40, 1, 70, 150, seed=13, scale=(0.02, 0.6)),
    "one less than a batch": lambda: _of_one_tile(BATCH - 1),
    "a batch": lambda: _of_one_tile(BATCH),
    "one more than a batch": lambda: _of_one_tile(BATCH + 1),
    "scales of each view": lambda: scales_of_each_view(views=3, seed=12),
}

# (relative L2, worst element) of float32 kernels against the float64 reference on the same float32 numbers.
# Rounding alone gives 1e-6. A pixel whose alpha is 1/255 to within rounding may fall on either side of the
# cut, which moves it by 1/255 of a Gaussian: allowed in the worst element of pictures. Needles cancel: power
# = a dx^2 + ... adds numbers thousands of times larger than their sum.
PICTURE = {"needles": (1e-3, 5e-3)}
GRADIENT = {"needles": (5e-3, 1e-2)}


@pytest.mark.parametrize("name", SCENES)
def test_cpu_agrees_with_reference(name):
    scene = SCENES[name]()
    expected, expected_gradients = render_and_gradients(scene.to(torch.float64), "reference")
    actual, gradients = render_and_gradients(scene, "cpu")
    relative, worst = PICTURE.get(name, (1e-5, 5e-3))
    for output in ("rgb", "alpha", "depth"):
        assert_close(output, getattr(actual, output), getattr(expected, output), relative, worst)
    relative, worst = GRADIENT.get(name, (1e-4, 1e-3))
    for parameter, gradient in gradients.items():
        assert_close(f"gradient of {parameter}", gradient, expected_gradients[parameter], relative, worst)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_scales_of_each_view_are_as_rendering_them_one_by_one(backend):
    scene = scales_of_each_view(views=3)
    together = scene.render(backend)
    for v in range(3):
        alone = replace(
            scene,
            scales=scene.scales[v],
            viewmats=scene.viewmats[v : v + 1],
            Ks=scene.Ks[v : v + 1],
            background=scene.background[v],
        ).render(backend)
        for output in ("rgb", "alpha", "depth"):
            assert torch.equal(getattr(together, output)[v], getattr(alone, output)[0])


@pytest.mark.parametrize("name", ["ordinary", "around the camera", "tiny"])
def test_radii_agree(name):
    scene = SCENES[name]()
    expected = scene.to(torch.float64).render("reference").info["radii"]
    actual = scene.render("cpu").info["radii"]
    assert actual.dtype == torch.int32
    assert (actual > 0).any()
    difference = (actual - expected).abs()
    # rounding up may differ by one where the radius is a whole number to within float32
    assert difference.max() <= 1 and (difference > 0).float().mean() <= 0.01


def test_radii_are_zero_exactly_where_nothing_shows():
    scene = SCENES["around the camera"]()
    scene.opacities[::3] = 0.003  # below 1/255
    info = scene.render("cpu").info
    assert (info["radii"][:, ::3] == 0).all()
    assert (info["radii"][info["depths"] < 0.01] == 0).all()
    _, gradients = render_and_gradients(scene, "cpu")
    assert (gradients["means2d"][info["radii"] == 0] == 0).all()


def test_tiles_leave_no_seams():
    """One huge faint Gaussian, so wide that rows and columns of tiles end inside of it: equal to the
    formula."""
    scene = one_gaussian(scales=torch.full((1, 3), 3.0), opacities=torch.tensor([0.3]))
    scene = replace(scene, width=150, height=70)
    scene.Ks[0, 0, 2], scene.Ks[0, 1, 2] = 80.2, 31.9
    expected, _ = render_and_gradients(scene.to(torch.float64), "reference")
    actual, _ = render_and_gradients(scene, "cpu")
    assert_close("alpha", actual.alpha, expected.alpha, 1e-5, 5e-3)
