"""The renderer: cameras, backgrounds, augmentations, disparity."""

import math

import pytest
import torch

import threestudio
from threestudio_lucid.data.cameras import view_batch
from threestudio_lucid.data.orbit import circle
from threestudio_lucid.renderers.disparity import normalized_disparity
from threestudio_lucid.seeding import generator


def make(renderer=None, **geometry):
    """Renderer over a cloud on white, everything small."""
    geometry = threestudio.find("lucid-gaussian-splatting")(
        {"num_points": 200, "init_opacity": 0.9} | geometry
    )
    material = threestudio.find("no-material")({"n_output_dims": 0})
    background = threestudio.find("solid-color-background")({})
    cls = threestudio.find("lucid-gaussian-renderer")
    return cls(renderer or {}, geometry=geometry, material=material, background=background)


def views(n=4, size=32):
    return view_batch(circle(n, 15.0, 3.0, 40.0), size, size)


def test_outputs_have_the_shapes_of_the_contract():
    out = make().eval()(**views(3, 20))
    for name, channels in (("comp_rgb", 3), ("opacity", 1), ("depth", 1), ("disparity", 1)):
        assert out[name].shape == (3, 20, 20, channels), name
        assert torch.isfinite(out[name]).all(), name


def test_a_point_is_drawn_where_the_camera_sees_it():
    """A small Gaussian at (0, 0.3, 0.2): from +x it is right of the middle and above it."""
    renderer = make(num_points=1).eval()
    renderer.geometry.start()
    with torch.no_grad():
        renderer.geometry.cloud.means[0] = torch.tensor([0.0, 0.3, 0.2])
        renderer.geometry.cloud.log_scales[0] = math.log(0.02)
    alpha = renderer(**view_batch(circle(1, 0.0, 3.0, 40.0), 64, 64))["opacity"][0, :, :, 0]
    row, column = divmod(int(alpha.argmax()), 64)
    focal = 32 / math.tan(math.radians(20))
    assert column + 0.5 == pytest.approx(32 + focal * 0.3 / 3, abs=1)
    assert row + 0.5 == pytest.approx(32 - focal * 0.2 / 3, abs=1)


def test_evaluation_is_undisturbed_and_on_white():
    renderer = make().eval()
    first, second = renderer(**views()), renderer(**views())
    assert torch.equal(first["comp_rgb"], second["comp_rgb"])
    assert (first["comp_rgb"][:, 0, 0] == 1).all()


def test_training_disturbs_by_seed_and_step():
    renderer = make()
    batch = views()
    same = [renderer(**batch, generator=generator(0, "a", 1))["comp_rgb"] for _ in range(2)]
    other = renderer(**batch, generator=generator(0, "a", 2))["comp_rgb"]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], other)
    renderer.do_update_step(0, 5)
    of_step = renderer(**batch)["comp_rgb"]
    renderer.do_update_step(0, 6)
    assert not torch.equal(of_step, renderer(**batch)["comp_rgb"])
    renderer.do_update_step(0, 5)
    assert torch.equal(of_step, renderer(**batch)["comp_rgb"])


def test_backgrounds_come_in_their_shares():
    """34 % white, 33 % black, 33 % coloured at a ratio of 0.66."""
    renderer = make()
    batch = views(1, 4)
    corners = [renderer(**batch, generator=generator(0, k))["comp_rgb_bg"].flatten() for k in range(600)]
    white = sum(bool((c == 1).all()) for c in corners) / 600
    black = sum(bool((c == 0).all()) for c in corners) / 600
    # standard error 0.02
    assert white == pytest.approx(0.34, abs=0.06)
    assert black == pytest.approx(0.33, abs=0.06)


def test_scale_noise_has_its_size_and_differs_between_views():
    renderer = make()
    s = renderer(**views(4))["scales"]
    ratio = s / renderer.geometry.gaussians.log_scales.exp()
    assert s.shape == (4, 200, 3)
    assert ratio.std().item() == pytest.approx(0.1118, rel=0.1)
    assert ratio.mean().item() == pytest.approx(1.0, abs=0.01)
    assert not torch.equal(s[0], s[1])


def test_gradients_reach_every_parameter_and_the_screen():
    renderer = make({"sh_drop_ratio": 0.0}, sh_degree=1, sh_degree_every=0)
    renderer.do_update_step(0, 1)
    out = renderer(**views(2), generator=generator(0, "grad"))
    (out["comp_rgb"].square().sum() + out["disparity"].sum()).backward()
    for name, p in renderer.geometry.cloud.params.items():
        assert p.grad is not None, name
        assert p.grad[:200].any(), name
        assert not p.grad[200:].any(), name
    means2d, radii = out["screen"]
    assert means2d.grad.shape == (2, 200, 2)
    assert radii.shape == (2, 200)


def test_harmonics_take_part_when_their_step_has_come():
    renderer = make(sh_degree=2, sh_degree_every=10)
    degrees = []
    for step in (0, 9, 10, 25, 99):
        renderer.geometry.do_update_step(0, step)
        degrees.append(renderer.geometry.active_sh_degree)
    assert degrees == [0, 0, 1, 2, 2]


def test_background_can_be_given():
    out = make().eval()(**views(2), bg_color=torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(out["comp_rgb"][:, 0, 0], torch.tensor([[0.0, 0.5, 1.0]] * 2))


def test_disparity_by_hand():
    """Two opaque pixels at depth 1 and 2, two empty ones: f cancels, 1/1 -> 1, 1/2 -> 0, nothing -> 0."""
    depth = torch.tensor([1.0, 2.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
    alpha = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
    disparity = normalized_disparity(depth, alpha, torch.tensor([0.7]))
    torch.testing.assert_close(disparity.flatten(), torch.tensor([1.0, 0.0, 0.0, 0.0]), atol=1e-4, rtol=0)


def test_disparity_of_nothing_is_finite_with_finite_gradients():
    depth = torch.zeros(1, 3, 3, 1, requires_grad=True)
    alpha = torch.zeros(1, 3, 3, 1, requires_grad=True)
    disparity = normalized_disparity(depth, alpha, torch.tensor([0.7]))
    disparity.sum().backward()
    assert not disparity.any()
    assert torch.isfinite(depth.grad).all()
    assert torch.isfinite(alpha.grad).all()
