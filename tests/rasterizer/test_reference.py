"""The plain back end against numbers worked out by hand, finite differences and properties."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from splat_scenes import assert_close, cotangents, one_gaussian, random_scene, render_and_gradients

from threestudio_lucid.rasterizer import reference
from threestudio_lucid.rasterizer.projection import Projection, project

BOTH = pytest.mark.parametrize("backend", ["reference", "cpu"])


@BOTH
def test_one_gaussian_by_hand(backend):
    """Deviation on the image: 20 x 0.1 / 2 = 1 pixel, variance 1 + 0.3. At the centre alpha is the opacity
    0.8; one pixel aside 0.8 exp(-1 / 2.6); depth is alpha x 2; and white shows alpha over black."""
    render = one_gaussian().render(backend)
    aside = 0.8 * math.exp(-1 / 2.6)
    assert render.alpha[0, 4, 4].item() == pytest.approx(0.8, rel=1e-6)
    for y, x in ((4, 5), (4, 3), (5, 4), (3, 4)):
        assert render.alpha[0, y, x].item() == pytest.approx(aside, rel=1e-6)
    assert render.rgb[0, 4, 5].tolist() == pytest.approx([aside] * 3, rel=1e-6)
    assert render.depth[0, 4, 5].item() == pytest.approx(2 * aside, rel=1e-6)
    assert render.info["means2d"][0, 0].tolist() == pytest.approx([4.5, 4.5])
    # 0.8 exp(-r^2 / 2.6) >= 1/255 up to r = sqrt(2.6 ln 204) = 3.72
    assert render.info["radii"].tolist() == [[4]]
    assert render.alpha[0, 4, 8].item() == 0  # 4 pixels aside
    assert render.alpha[0, 4, 7].item() == pytest.approx(0.8 * math.exp(-9 / 2.6), rel=1e-5)


@BOTH
def test_alpha_is_capped(backend):
    render = one_gaussian(opacities=torch.ones(1)).render(backend)
    assert render.alpha[0, 4, 4].item() == pytest.approx(0.99, rel=1e-6)


@BOTH
def test_compositing_stops_before_transmittance_falls_below_the_limit(backend):
    """Alphas of 0.9 leave T = 0.1, 0.01, 0.001, 0.0001 (just below or above in binary), so take 0.95: 0.05,
    0.0025, 1.25e-4; the fourth would leave 6e-6 and is not drawn, nor is anything behind it."""
    stack = 6
    scene = one_gaussian()
    scene = replace(
        scene,
        means=torch.stack([torch.tensor([0, 0, 0.1 * i]) for i in range(stack)]),
        quats=scene.quats.repeat(stack, 1),
        scales=scene.scales.repeat(stack, 1),
        opacities=torch.full((stack,), 0.95),
        colors=torch.eye(3).repeat(2, 1),
    )
    scene.colors[3:] = 100  # would be seen
    render = scene.render(backend)
    assert render.alpha[0, 4, 4].item() == pytest.approx(1 - 0.05**3, rel=1e-6)
    assert render.rgb[0, 4, 4].tolist() == pytest.approx([0.95, 0.95 * 0.05, 0.95 * 0.05**2], rel=1e-4)


@BOTH
@pytest.mark.parametrize("front", [0, 1])
def test_the_nearer_one_hides_the_other(backend, front):
    """Red of alpha 0.8 and blue of alpha 0.8: the front has weight 0.8, the back 0.16."""
    scene = one_gaussian()
    means = torch.zeros(2, 3)
    means[1 - front, 2] = 0.01
    scene = replace(
        scene, means=means, quats=scene.quats.repeat(2, 1), scales=scene.scales.repeat(2, 1),
        opacities=scene.opacities.repeat(2), colors=torch.tensor([[1.0, 0, 0], [0, 0, 1]]),
    )  # fmt: skip
    weights = [0.8, 0.16] if front == 0 else [0.16, 0.8]
    assert scene.render(backend).rgb[0, 4, 4].tolist() == pytest.approx([weights[0], 0, weights[1]], rel=1e-5)


@BOTH
def test_the_order_of_the_gaussians_does_not_matter(backend):
    scene = random_scene(60, seed=20)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    shuffled = replace(
        scene,
        **{name: getattr(scene, name)[order] for name in ("means", "quats", "scales", "opacities", "colors")},
    )
    first, first_gradients = render_and_gradients(scene, backend)
    second, second_gradients = render_and_gradients(shuffled, backend)
    # the same Gaussians in the same depth order; only the plain back end's matrix product may sum differently
    assert_close("rgb", second.rgb, first.rgb, 1e-6, 1e-6)
    assert_close("means", second_gradients["means"], first_gradients["means"][order], 1e-5, 1e-5)


@BOTH
def test_the_background_shows_through_what_is_left(backend):
    scene = random_scene(60, seed=21)
    black = replace(scene, background=torch.zeros(3)).render(backend)
    over = scene.render(backend)
    assert_close("rgb", over.rgb, black.rgb + (1 - black.alpha) * scene.background[:, None, None], 1e-6, 1e-5)
    assert torch.equal(over.alpha, black.alpha) and torch.equal(over.depth, black.depth)


@BOTH
def test_rotations_are_the_same_for_q_and_minus_q_of_any_length(backend):
    scene = random_scene(40, seed=22)
    other = replace(scene, quats=-3 * scene.quats)
    assert_close("rgb", other.render(backend).rgb, scene.render(backend).rgb, 1e-5, 5e-3)


def test_weights_bound_the_depth():
    scene = random_scene(60, seed=23)
    render = scene.render("reference")
    nearest, furthest = render.info["depths"].amin(), render.info["depths"].amax()
    assert (render.alpha >= 0).all() and (render.alpha <= 1).all()
    assert (render.depth >= nearest * render.alpha - 1e-4).all()
    assert (render.depth <= furthest * render.alpha + 1e-4).all()


def _smooth_scene():
    """Three Gaussians that cover a picture of 4 x 3: no alpha near 1/255 or 0.99, no pixel stopped, no
    clamped Jacobian, distinct depths. Off these seams the function is smooth, so finite differences mean
    something."""
    scene = random_scene(
        3, views=1, width=4, height=3, seed=24, spread=0.1, scale=(0.5, 0.9), opacity=(0.3, 0.7)
    )
    return scene.to(torch.float64)


@pytest.mark.parametrize("sh_degree", [None, 3])
def test_gradients_of_the_reference_by_finite_differences(sh_degree):
    scene = _smooth_scene()
    if sh_degree is not None:
        generator = torch.Generator().manual_seed(25)
        scene.colors = 0.1 * torch.randn(
            3, 16, 3, generator=generator, dtype=torch.float64
        )  # clear of the clamp
        scene.sh_degree = sh_degree
    names = ("means", "quats", "scales", "opacities", "colors", "background")

    def outputs(*tensors):
        return replace(scene, **dict(zip(names, tensors, strict=True))).render("reference")[:3]

    # with spherical harmonics along random directions only: there are 400 numbers to shift
    torch.autograd.gradcheck(
        outputs, [getattr(scene, name).requires_grad_() for name in names], fast_mode=sh_degree is not None
    )


@BOTH
def test_screen_space_gradient_is_the_derivative_by_the_centre_in_pixels(backend):
    scene = _smooth_scene()
    _, gradients = render_and_gradients(
        scene.to(torch.float32 if backend == "cpu" else torch.float64), backend
    )
    projection = project(
        scene.means, scene.quats, scene.scales, scene.viewmats, scene.Ks, scene.width, scene.height
    )
    weights = [w.double() for w in cotangents(scene)]

    def loss(means2d):
        moved = Projection(means2d, projection.depths, projection.conics)
        outputs = reference.composite(
            moved, scene.opacities, scene.colors[None], scene.background, scene.width, scene.height
        )
        return sum((output * w).sum() for output, w in zip(outputs, weights, strict=True)).item()

    step = 1e-5
    expected = torch.zeros_like(projection.means2d)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in expected.shape)):
        at, shift = tuple(index), torch.zeros_like(expected)
        shift[at] = step
        expected[at] = (loss(projection.means2d + shift) - loss(projection.means2d - shift)) / (2 * step)
    assert_close("means2d", gradients["means2d"], expected, 1e-5, 1e-5)


def test_blocks_of_pixels_change_nothing(monkeypatch):
    scene = random_scene(30, seed=26)
    whole, whole_gradients = render_and_gradients(scene, "reference")
    monkeypatch.setattr(reference, "PAIRS_AT_ONCE", 1000)
    parts, part_gradients = render_and_gradients(scene, "reference")
    assert_close("rgb", parts.rgb, whole.rgb, 1e-6, 1e-6)
    assert_close("means", part_gradients["means"], whole_gradients["means"], 1e-5, 1e-5)
