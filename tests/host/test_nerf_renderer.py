"""Volume rendering of density fields."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from omegaconf import OmegaConf

import threestudio
from threestudio.data.uncond import RandomCameraDataModuleConfig, RandomCameraIterableDataset
from threestudio.models.background.solid_color_background import SolidColorBackground
from threestudio.models.geometry.base import BaseImplicitGeometry
from threestudio.models.geometry.implicit_volume import ImplicitVolume
from threestudio.models.materials.diffuse_with_point_light_material import DiffuseWithPointLightMaterial
from threestudio.models.materials.no_material import NoMaterial
from threestudio.models.renderers import nerf_volume_renderer
from threestudio.models.renderers.nerf_volume_renderer import NeRFVolumeRenderer
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.ops import get_ray_directions, get_rays, look_at_c2w


class Ball(BaseImplicitGeometry):
    """A ball of radius 0.5 and constant density, red inside, with its exact normals."""

    @dataclass
    class Config(BaseImplicitGeometry.Config):
        density: float = 3.0

    def forward(self, points, output_normal=False):
        red = torch.tensor([1.0, 0.0, 0.0]).expand(points.shape)
        out = {"density": self.forward_density(points), "features": red}
        if output_normal:
            normal = torch.nn.functional.normalize(points, dim=-1)
            out |= {"normal": normal, "shading_normal": normal}
        return out

    def forward_density(self, points):
        return self.cfg.density * (points.norm(dim=-1, keepdim=True) < 0.5).float()


class Glass(BaseImplicitGeometry):
    """Constant density everywhere in the box."""

    def forward(self, points, output_normal=False):
        return {"density": self.forward_density(points), "features": torch.zeros_like(points)}

    def forward_density(self, points):
        return torch.full_like(points[..., :1], 0.7)


def batch_of(n: int, size: int = 8, distance: float = 2.5) -> dict:
    """n cameras around the origin, with some of a datamodule's other keys."""
    azimuth = torch.arange(n) * 1.3
    positions = distance * torch.stack([azimuth.cos(), azimuth.sin(), torch.full_like(azimuth, 0.2)], -1)
    c2w = look_at_c2w(positions, torch.zeros(n, 3), torch.tensor([0.0, 0.0, 1.0]).expand(n, 3))
    directions = get_ray_directions(size, size, 1.5 * size).expand(n, -1, -1, -1)
    rays_o, rays_d = get_rays(directions, c2w, keepdim=True)
    return {
        "rays_o": rays_o,
        "rays_d": rays_d,
        "light_positions": positions,
        "camera_positions": positions,
        "c2w": c2w,
        "elevation": torch.zeros(n),
        "height": size,
        "width": size,
    }


def renderer_of(geometry, material=None, color=(0.0, 1.0, 0.0), **config) -> NeRFVolumeRenderer:
    material = material or NoMaterial({"color_activation": "none"})
    background = SolidColorBackground({"color": list(color)})
    return NeRFVolumeRenderer(config, geometry=geometry, material=material, background=background)


def chords(batch: dict) -> torch.Tensor:
    """Length of each ray's way through the ball [B, H, W]."""
    along = -(batch["rays_o"] * batch["rays_d"]).sum(-1)
    distance = (batch["rays_o"] + along[..., None] * batch["rays_d"]).norm(dim=-1)
    return 2 * (0.25 - distance**2).clamp(min=0).sqrt()


def test_what_comes_out_is_what_the_contract_says():
    geometry = ImplicitVolume(
        {"pos_encoding_config": {"otype": "HashGrid", "n_levels": 2}, "n_feature_dims": 5}
    )
    renderer = renderer_of(
        geometry,
        DiffuseWithPointLightMaterial({}),
        num_samples_per_ray=32,
        return_comp_normal=True,
        return_normal_perturb=True,
    ).train()
    for b in (1, 2, 3):
        out = renderer(**batch_of(b))
        n = len(out["weights"])
        image, sample = (b, 8, 8), (n,)
        assert {key: tuple(value.shape) for key, value in out.items()} == {
            **dict.fromkeys(("comp_rgb", "comp_rgb_fg", "comp_rgb_bg", "comp_normal"), (*image, 3)),
            **dict.fromkeys(("opacity", "depth", "z_variance"), (*image, 1)),
            **dict.fromkeys(("weights", "t_points", "t_intervals", "density"), (*sample, 1)),
            **dict.fromkeys(("t_dirs", "points", "normal", "shading_normal", "normal_perturb"), (*sample, 3)),
            "features": (n, 5),
            "ray_indices": sample,
        }
        assert out["comp_normal"].min() >= 0 and out["comp_normal"].max() <= 1
        evaluated = renderer.eval()(**batch_of(b))
        renderer.train()
        assert set(evaluated) == {
            *("comp_rgb", "comp_rgb_fg", "comp_rgb_bg", "comp_normal", "opacity", "depth", "z_variance")
        }


@pytest.mark.parametrize("estimator", ["occgrid", "importance"])
@pytest.mark.parametrize("b", [1, 2, 3])
def test_opacity_of_a_ball_is_known(estimator, b):
    """1 - exp(-density chord); up to half a step of 0.007 is lost or won at either end: 3 x 0.007 in all."""
    batch = batch_of(b)
    config = {"estimator": estimator, "far_plane": 5.0, "num_samples_per_ray": 512}
    renderer = renderer_of(Ball({}), **config).eval()
    out = renderer(**batch)
    expected = 1 - torch.exp(-3.0 * chords(batch))
    torch.testing.assert_close(out["opacity"][..., 0], expected, atol=0.02, rtol=0)
    assert expected.max() > 0.9 and expected.min() == 0
    red_over_green = torch.stack([out["opacity"][..., 0], 1 - out["opacity"][..., 0]], dim=-1)
    torch.testing.assert_close(out["comp_rgb"][..., :2], red_over_green)
    assert (out["comp_rgb"][..., 2] == 0).all()


def test_depth_and_its_variance_in_glass():
    """A ray along x through a box of length 2 from t = 1.5: density 0.7, light exp(-0.7 s) after s.

    opacity = 1 - e^-1.4; the mean of s is 1/0.7 - 2 e^-1.4 / opacity, depth = opacity (1.5 + mean).
    """
    batch = batch_of(1, size=1)
    batch["rays_o"] = torch.tensor([2.5, 0.01, 0.01]).view(1, 1, 1, 3)
    batch["rays_d"] = torch.tensor([-1.0, 0.0, 0.0]).view(1, 1, 1, 3)
    out = renderer_of(Glass({}), num_samples_per_ray=2000, grid_prune=False).eval()(**batch)
    opacity = 1 - math.exp(-1.4)
    mean = 1 / 0.7 - 2 * math.exp(-1.4) / opacity
    square = 2 / 0.49 - (4 + 2 * 2 / 0.7) * math.exp(-1.4) / opacity
    assert out["opacity"].item() == pytest.approx(opacity, abs=1e-3)
    assert out["depth"].item() == pytest.approx(opacity * (1.5 + mean), abs=2e-3)
    assert out["z_variance"].item() == pytest.approx(square - mean**2, abs=1e-3)


def test_normals_face_the_camera():
    """A ray along -x meets an opaque ball where the normal is +x, shown as (1, 0.5, 0.5)."""
    batch = batch_of(1, size=9)
    straight = torch.tensor([-1.0, 0.0, 0.0]).expand(1, 9, 9, 3)
    batch |= {"rays_o": torch.tensor([2.5, 0.0, 0.0]).expand(1, 9, 9, 3), "rays_d": straight}
    out = renderer_of(Ball({"density": 500.0}), DiffuseWithPointLightMaterial({})).eval()(**batch)
    torch.testing.assert_close(out["comp_normal"][0, 4, 4], torch.tensor([1.0, 0.5, 0.5]), atol=0.02, rtol=0)
    assert out["depth"][0, 4, 4].item() == pytest.approx(2.0, abs=0.02)


def test_colour_behind():
    batch = batch_of(2)
    renderer = renderer_of(Ball({})).eval()
    plain = renderer(**batch)
    for color in (torch.tensor([[0.0, 0, 1], [1, 1, 1]]), torch.rand(2, 8, 8, 3)):
        out = renderer(**batch, bg_color=color)
        expanded = color.view(2, *([1, 1] if color.ndim == 2 else [8, 8]), 3)
        torch.testing.assert_close(out["comp_rgb"], plain["comp_rgb_fg"] + expanded * (1 - plain["opacity"]))
        assert torch.equal(out["comp_rgb_bg"], plain["comp_rgb_bg"])
    with pytest.raises(ValueError, match=r"bg_color is \[B, C\]"):
        renderer(**batch, bg_color=torch.zeros(3))


def test_nothing_to_see_is_the_background():
    renderer = renderer_of(Ball({"density": 0.0})).train()
    renderer.estimator.binaries.fill_(False)
    batch = batch_of(2)
    out = renderer(**batch)
    assert torch.equal(out["comp_rgb"], out["comp_rgb_bg"]) and len(out["weights"]) == 1
    assert all(value.isfinite().all() for value in out.values())


def test_empty_space_is_skipped_and_the_picture_stays():
    batch = batch_of(2)
    config = {"num_samples_per_ray": 256, "randomized": False}
    every = renderer_of(Ball({}), grid_prune=False, **config).train()(**batch)
    pruning = renderer_of(Ball({}), **config).train()
    torch.manual_seed(0)
    for step in range(0, 400, 16):  # each looks at one point of a cell: edges of the ball take a while
        pruning.do_update_step(0, step)
    few = pruning(**batch)
    torch.testing.assert_close(few["comp_rgb"], every["comp_rgb"], atol=2e-3, rtol=0)
    assert len(few["weights"]) < 0.15 * len(every["weights"])
    assert (few["density"] > 0).all()


def test_evaluation_in_chunks_is_the_same(monkeypatch):
    batch = batch_of(1)
    material = DiffuseWithPointLightMaterial({}).eval()
    whole = renderer_of(Ball({}), material, eval_chunk_size=0).eval()(**batch)
    monkeypatch.setattr(nerf_volume_renderer, "_EVAL_RAYS", 10)
    parts = renderer_of(Ball({}), material, eval_chunk_size=100).eval()(**batch)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value)


def test_samples_move_only_in_training():
    renderer = renderer_of(Ball({}), num_samples_per_ray=32)
    batch = batch_of(1)
    assert not torch.equal(renderer.train()(**batch)["comp_rgb"], renderer(**batch)["comp_rgb"])
    torch.manual_seed(3)
    first = renderer(**batch)["comp_rgb"]
    torch.manual_seed(3)
    assert torch.equal(renderer(**batch)["comp_rgb"], first)
    assert torch.equal(renderer.eval()(**batch)["comp_rgb"], renderer(**batch)["comp_rgb"])


@pytest.mark.parametrize("normal_type", ["analytic", "finite_difference", "pred"])
def test_a_tiny_nerf_learns_a_colour(normal_type):
    """Stock parts from the registry, the datamodule's own batch, two steps towards blue."""
    torch.manual_seed(0)
    geometry = threestudio.find("implicit-volume")(
        {
            "radius": 1.0,
            "normal_type": normal_type,
            "pos_encoding_config": {"otype": "HashGrid", "n_levels": 4, "log2_hashmap_size": 10},
        }
    )
    material = threestudio.find("diffuse-with-point-light-material")({"ambient_only_steps": 0})
    background = threestudio.find("neural-environment-map-background")({})
    renderer = threestudio.find("nerf-volume-renderer")(
        {"num_samples_per_ray": 48}, geometry=geometry, material=material, background=background
    ).train()
    cameras = RandomCameraDataModuleConfig(
        height=12, width=12, batch_size=2, camera_distance_range=(1.5, 2.0)
    )
    dataset = RandomCameraIterableDataset(cameras, seed=0)
    batch = dataset.collate([{}])
    parameters = [*geometry.parameters(), *background.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    losses = []
    for step in range(3):
        renderer.do_update_step(0, step)
        torch.manual_seed(7)
        out = renderer(**batch)
        off = (out["comp_rgb"] - torch.tensor([0.1, 0.1, 0.9])).square().mean()
        facing = (out["weights"].detach() * (out["normal"] * out["t_dirs"]).sum(-1, keepdim=True)).mean()
        losses.append(off.item())
        optimizer.zero_grad()
        (off + 0.1 * facing).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"estimator": "proposal"}, "'proposal': this host has occgrid and importance"),
        ({"estimator": "importance"}, "give far_plane"),
        ({"near_plane": 2.0, "far_plane": 1.0}, "0 <= near < far"),
        ({"num_samples_per_ray": 0}, "at least 2, got 0"),
    ],
)
def test_mistakes(config, words):
    with pytest.raises(ConfigValueError, match=words):
        renderer_of(Ball({}), **config)


def test_lit_materials_need_normals():
    geometry = ImplicitVolume({"normal_type": None})
    with pytest.raises(ConfigValueError, match=r"needs normals.*geometry\.normal_type"):
        renderer_of(geometry, DiffuseWithPointLightMaterial({}))
    renderer_of(geometry, NoMaterial({}))


STOCK = """
# geometry to renderer of threestudio's DreamFusion config, all keys and values
geometry:
  radius: 2.0
  normal_type: analytic
  density_bias: blob_magic3d
  density_activation: softplus
  density_blob_scale: 10.
  density_blob_std: 0.5
  pos_encoding_config:
    otype: ProgressiveBandHashGrid
    n_levels: 16
    n_features_per_level: 2
    log2_hashmap_size: 19
    base_resolution: 16
    per_level_scale: 1.447269237440378
    start_level: 8
    start_step: 2000
    update_steps: 500
material:
  ambient_only_steps: 2001
  albedo_activation: sigmoid
background:
  color_activation: sigmoid
renderer:
  radius: ${geometry.radius}
  num_samples_per_ray: 512
"""


def test_a_stock_config_draws_a_ball():
    """At first there is Magic3D's ball: radius 0.5, seen from 2.5, 28 % of the picture, with a soft rim."""
    torch.manual_seed(0)
    cfg = OmegaConf.create(STOCK)
    geometry = threestudio.find("implicit-volume")(cfg.geometry)
    material = threestudio.find("diffuse-with-point-light-material")(cfg.material)
    background = threestudio.find("neural-environment-map-background")(cfg.background)
    renderer = threestudio.find("nerf-volume-renderer")(
        cfg.renderer, geometry=geometry, material=material, background=background
    )
    for part in (renderer, geometry, material, background):
        part.eval()
    with torch.no_grad():
        out = renderer(**batch_of(1, size=24))
    opacity = out["opacity"][0, :, :, 0]
    assert opacity[12, 12] > 0.99 and opacity[0, 0] < 0.05
    assert 0.18 < (opacity > 0.5).float().mean() < 0.28
    # the rim is met at 2.05; behind it the density is 20 s, so light goes as exp(-10 s^2), 0.28 on average
    assert out["depth"][0, 12, 12].item() == pytest.approx(2.33, abs=0.1)
    assert not out["comp_normal"].requires_grad
