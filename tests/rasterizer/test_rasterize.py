"""The public function: its arguments, its edges, its determinism."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from splat_scenes import GRADIENTS, one_gaussian, random_scene, render_and_gradients

from threestudio_lucid.errors import UserError
from threestudio_lucid.rasterizer import BACKENDS, Render, api, rasterize

BOTH = pytest.mark.parametrize("backend", ["reference", "cpu"])


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_types(backend, dtype):
    render, gradients = render_and_gradients(
        random_scene(10, views=3, width=20, height=17).to(dtype), backend
    )
    assert isinstance(render, Render)
    assert [tuple(output.shape) for output in render[:3]] == [(3, 17, 20, 3), (3, 17, 20, 1), (3, 17, 20, 1)]
    assert all(output.dtype == dtype for output in render[:3])
    assert all(gradient.dtype == dtype for gradient in gradients.values())
    assert render.info["means2d"].shape == (3, 10, 2)
    assert render.info["radii"].shape == (3, 10) and render.info["radii"].dtype == torch.int32
    assert render.info["backend"] == backend


@BOTH
def test_empty_cloud_shows_the_background(backend):
    render, gradients = render_and_gradients(random_scene(0, views=2, width=40, height=20), backend)
    background = random_scene(0, views=2).background
    assert torch.equal(render.rgb, background[:, None, None].expand(2, 20, 40, 3))
    assert (render.alpha == 0).all() and (render.depth == 0).all()
    assert gradients["background"].abs().min() > 0
    assert all(len(gradients[name]) == 0 for name in GRADIENTS[:-1])


@BOTH
def test_everything_behind_the_camera(backend):
    scene = random_scene(20)
    scene.means[:] = -10 * torch.linalg.inv(scene.viewmats[0])[:3, 2]
    scene = replace(scene, viewmats=scene.viewmats[:1], Ks=scene.Ks[:1], background=scene.background[0])
    render, gradients = render_and_gradients(scene, backend)
    assert (render.alpha == 0).all() and (render.info["radii"] == 0).all()
    for name in GRADIENTS[:-1]:
        assert (gradients[name] == 0).all(), name


@BOTH
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e3, 1e6])
def test_extreme_sizes_stay_finite(backend, scale):
    scene = random_scene(20, seed=30)
    scene.scales[:10] = scale
    render, gradients = render_and_gradients(scene, backend)
    assert all(torch.isfinite(output).all() for output in render[:3])
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


@BOTH
def test_no_gradients_wanted(backend):
    scene = random_scene(10)
    assert not scene.render(backend).rgb.requires_grad
    scene.means.requires_grad_()
    with torch.no_grad():
        assert not scene.render(backend).info["means2d"].requires_grad


def test_one_background_for_all_views_and_black_by_default():
    scene = random_scene(10)
    same = replace(scene, background=scene.background[0]).render("cpu").rgb
    each = replace(scene, background=scene.background[:1].expand(2, 3)).render("cpu").rgb
    assert torch.equal(same, each)
    black = replace(scene, background=None).render("cpu").rgb
    assert torch.equal(black, replace(scene, background=torch.zeros(3)).render("cpu").rgb)


def test_the_example_of_the_documentation():
    results = doctest.testmod(api)
    assert results.attempted > 0 and results.failed == 0


def test_auto_is_cpu_without_cuda():
    assert one_gaussian().render("auto").info["backend"] == "cpu"


def test_views_do_not_influence_each_other():
    scene = random_scene(50, views=3, seed=31)
    together = scene.render("cpu").rgb
    for v in range(3):
        alone = replace(
            scene, viewmats=scene.viewmats[v : v + 1], Ks=scene.Ks[v : v + 1], background=scene.background[v]
        )
        assert torch.equal(alone.render("cpu").rgb[0], together[v])


@pytest.mark.parametrize("sh_degree", [None, 2])
def test_bit_identical_from_run_to_run_and_for_any_number_of_threads(sh_degree):
    scene = random_scene(3000, width=100, height=70, seed=32, scale=(0.01, 0.05), sh_degree=sh_degree)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (2, 2, 1, 5):
            torch.set_num_threads(count)
            results.append(render_and_gradients(scene, "cpu"))
    finally:
        torch.set_num_threads(threads)
    first, first_gradients = results[0]
    for render, gradients in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(render[:3], first[:3], strict=True))
        assert all(torch.equal(gradients[name], first_gradients[name]) for name in gradients)


def test_gradients_add_up_over_two_backward_passes():
    scene = random_scene(50)
    scene.means.requires_grad_()
    for _ in range(2):
        render = scene.render("cpu")
        render.rgb.sum().backward()
    once = random_scene(50)
    once.means.requires_grad_()
    once.render("cpu").rgb.sum().backward()
    torch.testing.assert_close(scene.means.grad, 2 * once.means.grad)


def test_changing_a_parameter_before_the_backward_pass_is_noticed():
    scene = random_scene(10)
    scene.means.requires_grad_()
    render = scene.render("cpu")
    with torch.no_grad():
        scene.means += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        render.rgb.sum().backward()


def _nan(scene):
    scene.scales[3, 1] = float("nan")
    return scene


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: replace(s, means=s.means[:, :2]), r"means must have the shape \[any, 3\], got \[10, 2\]"),
        (lambda s: replace(s, quats=s.quats[:9]), r"quats must have the shape \[10, 4\], got \[9, 4\]"),
        (lambda s: replace(s, opacities=s.opacities[:, None]), r"opacities must have the shape \[10\]"),
        (lambda s: replace(s, Ks=s.Ks[:1]), r"Ks must have the shape \[2, 3, 3\]"),
        (lambda s: replace(s, viewmats=s.viewmats[:0]), "viewmats must hold at least one camera"),
        (
            lambda s: replace(s, background=torch.zeros(4)),
            r"background must have the shape \[3\] or \[2, 3\]",
        ),
        (lambda s: replace(s, means=s.means.int()), "means must be a tensor of floating point.*int32"),
        (lambda s: replace(s, sh_degree=4), "sh_degree must be 0 to 3 or None, got 4"),
        (lambda s: replace(s, sh_degree=1), r"colors \(with sh_degree\) must have the shape"),
        (
            lambda s: replace(s, sh_degree=2, colors=torch.zeros(10, 4, 3)),
            "at least 9 coefficients per Gaussian for sh_degree=2, got 4",
        ),
        (lambda s: replace(s, width=0), "width must be a whole number of pixels, at least 1, got 0"),
        (_nan, "scales must be finite, got 1 infinities or NaNs"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        change(random_scene(10)).render("cpu")


@pytest.mark.parametrize(("name", "value"), [("near", 0.0), ("eps2d", -0.1), ("near", float("nan"))])
def test_wrong_numbers_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        random_scene(10).render("cpu", **{name: value})


def test_unknown_back_end_lists_the_known_ones():
    with pytest.raises(UserError, match="'opengl'.*" + ", ".join(BACKENDS)):
        one_gaussian().render("opengl")


def test_kernels_compile_where_nothing_can_be_cached(monkeypatch):
    """Where neither the package's nor the user's folder can be written to, numba has no place for a cache."""
    caching = pytest.importorskip("numba.core.caching")
    from threestudio_lucid.rasterizer import kernels

    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    twice = kernels._kernel("i8(i8)")(_twice)
    assert twice(21) == 42 and twice.stats.cache_path is None


def _twice(x):
    return 2 * x


def test_importing_needs_neither_numba_nor_threestudio():
    code = (
        "import sys, types; sys.modules['numba'] = sys.modules['threestudio'] = None;"
        f"package = types.ModuleType('threestudio_lucid'); package.__path__ = [{str(_package())!r}];"
        "sys.modules['threestudio_lucid'] = package;"
        "import threestudio_lucid.rasterizer as r; print(r.BACKENDS)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(BACKENDS)


def _package():
    return os.path.dirname(os.path.dirname(sys.modules[rasterize.__module__].__file__))
