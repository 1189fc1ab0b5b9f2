"""Density fields."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import threestudio
from threestudio.models.geometry.density import blob_magic3d
from threestudio.models.geometry.implicit_volume import ImplicitVolume
from threestudio.models.geometry.volume_grid import VolumeGrid
from threestudio.utils.errors import ConfigValueError

GRID = {"otype": "HashGrid", "n_levels": 4, "log2_hashmap_size": 10, "base_resolution": 4}
PROGRESSIVE = GRID | {
    "otype": "ProgressiveBandHashGrid",
    "per_level_scale": 2.0,
    "start_level": 2,
    "start_step": 10,
    "update_steps": 10,
}
NORMAL_TYPES = ("analytic", "finite_difference", "finite_difference_laplacian", "pred")


def volume_of(seed: int = 0, **config) -> ImplicitVolume:
    """A small field with weights that say something."""
    torch.manual_seed(seed)
    volume = ImplicitVolume({"radius": 1.5, "pos_encoding_config": GRID} | config)
    for name, parameter in volume.named_parameters():
        if name.startswith("encoding"):
            nn.init.normal_(parameter, std=0.5)
    return volume


def points_of(*shape: int, radius: float = 1.4, seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)
    return (torch.rand(*shape, 3) * 2 - 1) * radius


def test_a_stock_config_gives_what_the_contract_says():
    volume = threestudio.find("implicit-volume")({"n_feature_dims": 5, "normal_type": "analytic"})
    assert sum(p.numel() for p in volume.parameters()) == 12599920 + 2 * 32 * 64 + 64 + 5 * 64
    points = points_of(2, 3, radius=0.9)
    out = volume(points, output_normal=True)
    assert {key: tuple(value.shape) for key, value in out.items()} == {
        "density": (2, 3, 1),
        "features": (2, 3, 5),
        "normal": (2, 3, 3),
        "shading_normal": (2, 3, 3),
    }
    torch.testing.assert_close(volume.forward_density(points), out["density"])
    torch.testing.assert_close(volume.export(points=points)["features"], out["features"])
    field, deformation = volume.forward_field(points)
    assert deformation is None
    torch.testing.assert_close(volume.forward_level(field, 25.0), 25.0 - out["density"])


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        ("blob_magic3d", lambda r: 10 * (1 - r / 0.5)),
        ("blob_dreamfusion", lambda r: 10 * math.exp(-0.5 * (r / 0.5) ** 2)),
        (-1.5, lambda r: -1.5),
        (2, lambda r: 2.0),
    ],
)
def test_density_bias_by_hand(bias, expected):
    volume = volume_of(density_bias=bias, density_activation="none")
    nn.init.zeros_(volume.encoding.encoding.encoding.params)
    for r in (0.0, 0.3, 1.0):
        assert volume.forward_density(torch.tensor([[0.0, r, 0.0]])).item() == pytest.approx(
            expected(r), abs=1e-4
        )


def test_blob_has_a_gradient_at_the_origin():
    points = torch.zeros(1, 3, requires_grad=True)
    blob_magic3d(points, 10.0, 0.5).sum().backward()
    assert points.grad.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("normal_type", NORMAL_TYPES[:3])
@pytest.mark.parametrize("bias", ["blob_magic3d", "blob_dreamfusion"])
def test_normals_of_a_blob_point_outwards(normal_type, bias):
    volume = volume_of(density_bias=bias, normal_type=normal_type, finite_difference_normal_eps=1e-3)
    nn.init.zeros_(volume.encoding.encoding.encoding.params)
    points = points_of(50)
    normal = volume(points, output_normal=True)["normal"]
    outwards = nn.functional.normalize(points, dim=-1)
    assert (normal * outwards).sum(dim=-1).min() > 0.999


@pytest.mark.parametrize(
    "encoding", [GRID | {"include_xyz": True}, {"otype": "Frequency", "n_frequencies": 3}]
)
@pytest.mark.parametrize("trains", [True, False])
def test_analytic_normals_are_autograds(encoding, trains):
    volume = volume_of(normal_type="analytic", pos_encoding_config=encoding, density_activation="none")
    points = points_of(3, 20)
    leaf = points.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(volume.forward_density(leaf).sum(), leaf)
    with torch.set_grad_enabled(trains):
        out = volume(points, output_normal=True)
    torch.testing.assert_close(out["normal"], nn.functional.normalize(-gradient, dim=-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(out["density"], volume.forward_density(points))
    assert out["normal"].requires_grad == trains
    assert out["density"].requires_grad == out["features"].requires_grad == trains
    assert not points.requires_grad


def test_analytic_normals_are_trained_as_autograd_would():
    """The gradient of a loss on the normals, on every parameter, against plain double differentiation."""
    volume = volume_of(normal_type="analytic", density_activation="exp", density_bias=0.0)
    points, wanted = points_of(40), points_of(40, seed=2)
    leaf = points.clone().requires_grad_()
    raw = volume.forward_density(leaf).log()
    (gradient,) = torch.autograd.grad(raw.sum(), leaf, create_graph=True)
    parts = (volume.encoding, volume.density_network)
    parameters = [p for part in parts for p in part.parameters()]
    expected = torch.autograd.grad((nn.functional.normalize(-gradient, dim=-1) * wanted).sum(), parameters)
    for asked in (points, leaf):
        normal = volume(asked, output_normal=True)["normal"]
        found = torch.autograd.grad((normal * wanted).sum(), parameters)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_finite_differences_approach_the_analytic_normal():
    points = points_of(200)
    exact = volume_of(normal_type="analytic")(points, output_normal=True)["normal"]
    for kind in ("finite_difference", "finite_difference_laplacian"):
        volume = volume_of(normal_type=kind, finite_difference_normal_eps=2e-3)
        close = (volume(points, output_normal=True)["normal"] * exact).sum(dim=-1)
        assert close.median() > 0.999, kind  # points near a cell's edge have two slopes to choose from


def test_frozen_volumes_have_normals():
    volume = volume_of(normal_type="analytic").requires_grad_(False)
    assert not volume(points_of(4), output_normal=True)["normal"].requires_grad


@pytest.mark.parametrize("kind", ["implicit-volume", "volume-grid"])
def test_normals_need_a_type(kind):
    geometry = threestudio.find(kind)({"normal_type": None})
    assert "normal" not in geometry(points_of(2))
    with pytest.raises(ConfigValueError, match="normal_type null"):
        geometry(points_of(2), output_normal=True)


def test_progressive_eps_is_a_cell():
    """Radius 1.5; two levels of 4 and 8 cells: 3 / 8; all four, the last of 32 cells: 3 / 32."""
    volume = volume_of(
        normal_type="finite_difference",
        pos_encoding_config=PROGRESSIVE,
        finite_difference_normal_eps="progressive",
    )
    assert volume.finite_difference_normal_eps == pytest.approx(3 / 8)
    volume.do_update_step(0, 30)
    assert volume.finite_difference_normal_eps == pytest.approx(3 / 32)
    assert volume(points_of(3), output_normal=True)["normal"].shape == (3, 3)


def test_blob_annealing():
    annealing = {"min_anneal_step": 10, "max_anneal_step": 20, "start_val": 0.5, "end_val": 1.0}
    volume = volume_of(anneal_density_blob_std_config=annealing)
    for step, std in ((0, 0.5), (15, 0.75), (99, 1.0)):
        volume.do_update_step(0, step)
        assert volume.density_blob_std == std


def test_create_from():
    old = volume_of(normal_type="pred")
    config = {"radius": 1.5, "pos_encoding_config": GRID, "normal_type": "pred"}
    points = points_of(5)
    new = ImplicitVolume.create_from(old, config, copy_net=True)
    for key, value in old(points, output_normal=True).items():
        torch.testing.assert_close(new(points, output_normal=True)[key], value)
    bare = ImplicitVolume.create_from(old, config | {"n_feature_dims": 2}, copy_net=False)
    torch.testing.assert_close(bare.forward_density(points), old.forward_density(points))
    with pytest.raises(TypeError, match="not from VolumeGrid"):
        ImplicitVolume.create_from(VolumeGrid({"grid_size": [4, 4, 4]}), config)


def test_without_features():
    volume = volume_of(n_feature_dims=0)
    assert [*volume(points_of(2))] == ["density"] and volume.export(points=points_of(2)) == {}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"normal_type": "analytical"}, "choose analytic, .*Did you mean 'analytic'"),
        ({"density_bias": "blob_magic"}, "number or one of blob_dreamfusion.*Did you mean 'blob_magic3d'"),
        ({"finite_difference_normal_eps": "progressive"}, "ProgressiveBandHashGrid"),
        ({"finite_difference_normal_eps": 0}, "above 0"),
        ({"radius": -1.0}, "radius must be above 0"),
        ({"anneal_density_blob_std_config": {"start_val": 1}}, "min_anneal_step"),
        ({"pos_encoding_config": {"otype": "HashGird"}}, "Did you mean 'HashGrid'"),
    ],
)
def test_mistakes(config, words):
    with pytest.raises(ConfigValueError, match=words):
        ImplicitVolume(config)


# ---- a grid ------------------------------------------------------------------------------------------------


def test_volume_grid_interpolates_between_its_values():
    """The feature is set to x's index: across the box of radius 1 it goes from 0 to 4."""
    grid = VolumeGrid({"grid_size": [3, 4, 5], "n_feature_dims": 1, "density_bias": 0.0})
    with torch.no_grad():
        grid.grid[0, 1] = torch.arange(5.0)
    points = torch.tensor([[-1.0, 0.2, 0.1], [0.25, -0.7, 1.0], [1.0, 1.0, -1.0]])
    assert grid(points)["features"][:, 0].tolist() == pytest.approx([0.0, 2.5, 4.0])
    assert grid(points)["density"][:, 0].tolist() == pytest.approx([math.log(2)] * 3)
    torch.testing.assert_close(grid.export(points=points)["features"], grid(points)["features"])


@pytest.mark.parametrize("normal_type", ["finite_difference", "finite_difference_laplacian", "pred"])
def test_volume_grid_has_normals_and_gradients(normal_type):
    grid = VolumeGrid({"grid_size": [4, 4, 4], "normal_type": normal_type})
    if normal_type == "pred":
        with torch.no_grad():
            grid.normal_grid[0, 2] = 3.0
    points = points_of(6, radius=0.9)
    out = grid(points, output_normal=True)
    outwards = nn.functional.normalize(points, dim=-1)
    expected = torch.tensor([0.0, 0.0, 1.0]).expand(6, 3) if normal_type == "pred" else outwards
    torch.testing.assert_close(out["normal"], expected, atol=5e-3, rtol=0)
    torch.testing.assert_close(grid.forward_density(points), out["density"])
    (out["density"].sum() + out["features"].sum() + out["normal"].sum()).backward()
    assert grid.grid.grad.isfinite().all() and (grid.grid.grad != 0).any()


def test_volume_grid_mistakes():
    with pytest.raises(ConfigValueError, match="three whole numbers"):
        VolumeGrid({"grid_size": [4, 4]})
    with pytest.raises(ConfigValueError, match="one of blob"):
        VolumeGrid({"density_bias": "blob_magic3d"})
