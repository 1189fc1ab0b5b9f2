"""Encodings and small networks."""

from __future__ import annotations

import math

import pytest
import torch
from omegaconf import OmegaConf
from scipy.special import sph_harm_y
from torch import nn

from threestudio.models.networks import (
    HashGrid,
    ProgressiveBandFrequency,
    create_network_with_input_encoding,
    get_encoding,
    get_mlp,
    with_slope,
)
from threestudio.models.networks.hash_layout import layout_of
from threestudio.models.networks.hash_reference import encode_reference, rows_of
from threestudio.utils.errors import ConfigValueError, UnknownKeyError

# Two dense levels (3^3 and 5^3 corners) and two that do not fit into 256 rows.
SMALL = {"n_levels": 4, "log2_hashmap_size": 8, "base_resolution": 3, "per_level_scale": 1.6}
PROGRESSIVE = SMALL | {
    "otype": "ProgressiveBandHashGrid",
    "n_features_per_level": 2,
    "start_level": 1,
    "start_step": 10,
    "update_steps": 5,
}


def grid_of(seed: int = 0, n_dims: int = 3, **config) -> HashGrid:
    torch.manual_seed(seed)
    grid = HashGrid(n_dims, SMALL | config)
    nn.init.normal_(grid.params)
    return grid


# ---- the hash grid -----------------------------------------------------------------------------------------


def test_layout_is_tiny_cuda_nns():
    """Instant NGP reports 12196240 parameters for its standard grid."""
    assert layout_of(3, {"per_level_scale": 1.3819}).rows * 2 == 12196240
    layout = layout_of(3, {"per_level_scale": 1.447269237440378})
    assert [level.resolution for level in layout.levels[:6]] == [16, 24, 34, 49, 71, 102]
    assert [level.hashed for level in layout.levels] == [False] * 5 + [True] * 11
    assert layout.levels[2].rows == 39304 and layout.levels[3].rows == 117656  # 49^3, up to a multiple of 8
    assert layout.n_output_dims == 32


def test_a_point_on_a_corner_has_that_corners_features():
    """Corner (1, 2, 1) of the coarse level, at scale 2: x = (corner - 1/2) / 2; row 1 + 2 * 3 + 1 * 9."""
    grid = grid_of()
    x = (torch.tensor([[1.0, 2.0, 1.0]]) - 0.5) / 2
    assert grid(x)[0, :2].tolist() == pytest.approx(grid._table[1 + 2 * 3 + 1 * 9].tolist())


def test_hashing_by_hand():
    """(3, 5, 7) -> 3 ^ 5 * 2654435761 ^ 7 * 805459861, modulo 256."""
    level = layout_of(3, SMALL).levels[-1]
    expected = (3 ^ (5 * 2654435761) ^ (7 * 805459861)) % 256
    assert level.hashed
    assert rows_of(torch.tensor([[3, 5, 7]]), level).item() == level.offset + expected


@pytest.mark.parametrize("n_features", [1, 2, 4])
@pytest.mark.parametrize("n_points", [0, 1, 3, 5000])
def test_kernels_agree_with_the_twin(n_features, n_points):
    grid = grid_of(n_features_per_level=n_features)
    x = torch.rand(n_points, 3)
    x[:1] = 1.0  # the far corner, whose neighbours wrap around
    x.requires_grad_()
    table = grid._table.detach().clone().requires_grad_()
    y = grid(x)
    twin = encode_reference(x, table, grid.layout, 4)
    g = torch.randn_like(y)
    torch.testing.assert_close(y, twin)
    v_x, v_params = torch.autograd.grad(y, (x, grid.params), g)
    t_x, t_table = torch.autograd.grad(twin, (x, table), g)
    torch.testing.assert_close(v_x, t_x, atol=1e-4, rtol=1e-4)  # sums of 4 levels of slopes up to 20
    torch.testing.assert_close(v_params, t_table.flatten(), atol=1e-4, rtol=1e-4)


def test_gradients_of_the_slope_agree_with_the_twin():
    """What a loss on analytic normals needs: the gradient of d(g y)/dx on x, g and the table."""
    grid = grid_of()
    x, g, h = torch.rand(300, 3), torch.randn(300, 8), torch.randn(300, 3)

    def second_order(encode, table):
        leaves = [x.clone().requires_grad_(), g.clone().requires_grad_(), table]
        (slope,) = torch.autograd.grad(encode(leaves[0]), leaves[0], leaves[1], create_graph=True)
        return torch.autograd.grad(slope, leaves, h)

    table = grid._table.detach().clone().requires_grad_()
    ours = second_order(grid, grid.params)
    twin = second_order(lambda x: encode_reference(x, table, grid.layout, 4), table)
    for name, a, b in zip(("x", "g", "table"), ours, twin, strict=True):
        torch.testing.assert_close(a.flatten(), b.flatten(), atol=1e-3, rtol=1e-3, msg=name)


def test_the_twin_agrees_with_finite_differences():
    layout = layout_of(3, {"n_levels": 2, "log2_hashmap_size": 5, "base_resolution": 3})
    torch.manual_seed(1)
    table = torch.randn(layout.rows, 2, dtype=torch.float64, requires_grad=True)
    x = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, t: encode_reference(x, t, layout, 2), (x, table))
    assert torch.autograd.gradgradcheck(lambda x: encode_reference(x, table, layout, 2), (x,))


def test_with_slope_is_what_autograd_says():
    grid = grid_of()
    x, g = torch.rand(50, 3), torch.randn(50, 8)
    y, slope = with_slope(grid, x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(slope(g), torch.autograd.grad(grid(leaf), leaf, g)[0])
    torch.testing.assert_close(y, grid(x))


def test_any_number_of_threads_gives_the_same_bits():
    grid = grid_of()
    x, g = torch.rand(9000, 3), torch.randn(9000, 8)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf = x.clone().requires_grad_()
            y = grid(leaf)
            results.append([y, *torch.autograd.grad(y, (leaf, grid.params), g)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_outside_is_the_nearest_inside():
    grid = grid_of()
    x = torch.tensor([[-0.3, 0.5, 1.7]])
    assert torch.equal(grid(x), grid(x.clamp(0, 1)))


@pytest.mark.parametrize("n_dims", [1, 2, 4])
def test_other_dimensions(n_dims):
    x = torch.rand(7, n_dims)
    y = grid_of(n_dims=n_dims)(x)
    assert y.shape == (7, 8) and y.isfinite().all() and y.requires_grad


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"n_levles": 3}, "n_levles.*Did you mean 'n_levels'"),
        ({"n_levels": 0}, "n_levels.*1 to 64, got 0"),
        ({"n_levels": 2.5}, "whole number"),
        ({"base_resolution": "16"}, "base_resolution"),
        ({"interpolation": "Smoothstep"}, "only Linear"),
        ({"type": "Tiled"}, "only Hash"),
    ],
)
def test_mistakes_in_a_hash_grid(config, words):
    with pytest.raises((ConfigValueError, UnknownKeyError), match=words):
        get_encoding(3, {"otype": "HashGrid"} | config)
    with pytest.raises(ConfigValueError, match="1 to 4 coordinates"):
        get_encoding(5, {"otype": "HashGrid"})


# ---- progressive bands -------------------------------------------------------------------------------------


def test_levels_come_in_one_by_one():
    encoding = get_encoding(3, OmegaConf.create(PROGRESSIVE))
    nn.init.ones_(encoding.encoding.encoding.params)
    x = torch.rand(5, 3)
    for step, levels in ((0, 1), (14, 1), (15, 2), (24, 3), (25, 4), (10**6, 4)):
        encoding.do_update_step(0, step)
        expected = torch.tensor([1.0] * 2 * levels + [0.0] * 2 * (4 - levels)).expand(5, 8)
        torch.testing.assert_close(encoding(x), expected)
        torch.testing.assert_close(with_slope(encoding, x)[0], expected)
        (g,) = torch.autograd.grad(encoding(x).sum(), encoding.encoding.encoding.params)
        assert (g.view(-1, 2)[encoding.encoding.encoding.layout.levels[levels - 1].offset :] > 0).any()


def test_names_in_a_checkpoint_are_threestudios():
    assert [*get_encoding(3, PROGRESSIVE).state_dict()] == ["encoding.encoding.params"]
    assert [*get_encoding(3, {"otype": "HashGrid"} | SMALL).state_dict()] == ["encoding.encoding.params"]


def test_progressive_frequencies():
    """At half of the masking steps, half of the four bands are in; the next comes half way at 5/8."""
    encoding = get_encoding(
        2, {"otype": "ProgressiveBandFrequency", "n_frequencies": 4, "n_masking_step": 80}
    )
    bands: ProgressiveBandFrequency = encoding.encoding
    x = torch.rand(3, 2)
    full = torch.cat([f(2.0**k * x) for k in range(4) for f in (torch.sin, torch.cos)], dim=-1)
    torch.testing.assert_close(encoding(x), full)
    for step, mask in ((40, [1, 1, 0, 0]), (50, [1, 1, 0.5, 0]), (80, [1, 1, 1, 1])):
        bands.do_update_step(0, step)
        mask = torch.tensor(mask, dtype=torch.float32).repeat_interleave(4)
        torch.testing.assert_close(encoding(x), full * mask)


@pytest.mark.parametrize(
    ("config", "words"),
    [({"start_level": -1}, "start_level must be"), ({"update_steps": 0}, "update_steps"), ({}, None)],
)
def test_mistakes_in_progressive_bands(config, words):
    if words is None:
        with pytest.raises(ConfigValueError, match="needs start_level and start_step and update_steps"):
            get_encoding(3, {"otype": "ProgressiveBandHashGrid"})
        return
    with pytest.raises(ConfigValueError, match=words):
        get_encoding(3, PROGRESSIVE | config)


# ---- other encodings ---------------------------------------------------------------------------------------


def test_spherical_harmonics_agree_with_scipy():
    """scipy's are complex with the Condon-Shortley phase; the real ones are sqrt 2 times a part of them.

    Instant NGP keeps that phase: (-1)^m times the real harmonics without it.
    """
    torch.manual_seed(0)
    d = nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=-1)
    theta, phi = torch.arccos(d[:, 2]), torch.atan2(d[:, 1], d[:, 0])
    expected = []
    for band in range(4):
        for m in range(-band, band + 1):
            value = torch.tensor(sph_harm_y(band, abs(m), theta.numpy(), phi.numpy()))
            expected.append(value.real if m == 0 else math.sqrt(2) * (value.imag if m < 0 else value.real))
    ours = get_encoding(3, {"otype": "SphericalHarmonics", "degree": 4})((d + 1) / 2)
    torch.testing.assert_close(ours, torch.stack(expected, dim=-1))


def test_frequencies_by_hand():
    y = get_encoding(2, {"otype": "Frequency", "n_frequencies": 2})(torch.tensor([[0.5, 0.25]]))
    r = 0.5**0.5
    torch.testing.assert_close(
        y, torch.tensor([[1.0, 0, 0, -1, r, r, 1, 0]]), atol=1e-6, rtol=0
    )  # sin, cos of pi/2, pi, then of pi/4, pi/2


def test_coordinates_before_the_features():
    encoding = get_encoding(3, {"otype": "HashGrid", "include_xyz": True} | SMALL)
    x = torch.rand(6, 3)
    assert encoding.n_output_dims == 11
    torch.testing.assert_close(encoding(x)[:, :3], 2 * x - 1)
    g = torch.randn(6, 11)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(with_slope(encoding, x)[1](g), torch.autograd.grad(encoding(leaf), leaf, g)[0])
    identity = get_encoding(3, {"otype": "Identity", "scale": 2.0, "offset": -1.0})
    torch.testing.assert_close(identity(x), 2 * x - 1)
    torch.testing.assert_close(with_slope(identity, x)[1](g[:, :3]), 2 * g[:, :3])


# ---- networks ----------------------------------------------------------------------------------------------

LAYERS = {"n_neurons": 16, "n_hidden_layers": 2}


@pytest.mark.parametrize("otype", ["VanillaMLP", "FullyFusedMLP", "CutlassMLP"])
def test_mlps_are_products_of_matrices(otype):
    mlp = get_mlp(5, 3, OmegaConf.create({"otype": otype, "activation": "ReLU"} | LAYERS))
    x = torch.randn(4, 5)
    y = x
    weights = [layer.weight for layer in mlp.layers if isinstance(layer, nn.Linear)]
    assert [tuple(w.shape) for w in weights] == [(16, 5), (16, 16), (3, 16)] and mlp.n_output_dims == 3
    for index, weight in enumerate(weights):
        y = y @ weight.T
        y = y.relu() if index < 2 else y
    torch.testing.assert_close(mlp(x), y)


def test_sphere_initialisation_is_nearly_a_distance():
    torch.manual_seed(0)
    config = {"otype": "SphereInitVanillaMLP", "n_neurons": 256, "n_hidden_layers": 2}
    config |= {"sphere_init_radius": 0.5, "inside_out": False}
    x = nn.functional.normalize(torch.randn(100, 3), dim=-1) * torch.linspace(0.1, 1, 100)[:, None]
    encoded = torch.cat([x, torch.randn(100, 8)], dim=-1)
    distance = get_mlp(11, 1, config)(encoded)[:, 0]
    # how far off a random network of 256 neurons is; it would be exact with infinitely many
    torch.testing.assert_close(distance, x.norm(dim=-1) - 0.5, atol=0.25, rtol=0)
    inside_out = get_mlp(11, 1, config | {"inside_out": True})(encoded)[:, 0]
    assert inside_out[0] > 0 > inside_out[-1]


def test_network_with_encoding():
    model = create_network_with_input_encoding(
        3, 2, {"otype": "HashGrid"} | SMALL, {"otype": "VanillaMLP"} | LAYERS
    )
    x = torch.rand(4, 3)
    torch.testing.assert_close(model(x), model.network(model.encoding(x)))
    assert model.n_output_dims == 2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"otype": "VanilaMLP"}, "Did you mean 'VanillaMLP'"),
        ({"otype": "VanillaMLP"}, "needs n_neurons and n_hidden_layers"),
        ({"otype": "FullyFusedMLP", "activation": "Relu6"}, "activation of FullyFusedMLP"),
        ({"otype": "FullyFusedMLP", "sphere_init": True}, "SphereInitVanillaMLP"),
        ({"n_neurons": 3}, "mapping with otype"),
        (None, "mapping with otype"),
    ],
)
def test_mistakes_in_a_network(config, words):
    with pytest.raises(ConfigValueError, match=words):
        get_mlp(3, 3, config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"otype": "HashGird"}, "Did you mean 'HashGrid'.*tiny-cuda-nn"),
        ({"otype": "SphericalHarmonics", "degree": 9}, "degree 1 to 4"),
        ({"otype": "Frequency", "n_frequencies": -1}, "n_frequencies.*at least 1"),
    ],
)
def test_mistakes_in_an_encoding(config, words):
    with pytest.raises(ConfigValueError, match=words):
        get_encoding(3, config)
