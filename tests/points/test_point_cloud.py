"""Clouds: densified, turned, fitted; axes and colours as files have them."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from threestudio_lucid.errors import UserError
from threestudio_lucid.points import PointCloud, ball
from threestudio_lucid.points.colors import from_stored, linear_to_srgb, srgb_to_linear
from threestudio_lucid.points.frame import AXES, GLTF, OPENAI, OURS, Frame

EXACT = "donot_use_mm_for_euclid_dist"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 200), st.floats(0.0, 0.5))
def test_densified_clouds_have_the_size_and_stay_near(few, n, reach):
    cloud = ball(few, 1.0, seeded())
    dense = cloud.densify(n, reach, seeded(1))
    assert len(dense) == n
    nearest = torch.cdist(dense.points, cloud.points, compute_mode=EXACT).min(dim=1).values
    assert nearest.max() <= reach + 1e-5
    if n <= few:
        assert nearest.max() == 0.0 and len(dense.points.unique(dim=0)) == n


def test_point_e_becomes_100000_as_in_lucid_dreamer():
    """Whole copies of 4096 points, each moved by one offset of at most 0.05."""
    cloud = ball(4096, 0.5, seeded())
    dense = cloud.densify(100_000, 0.05, seeded(1)).points
    assert torch.equal(dense[:4096], cloud.points)
    offsets = dense[: 24 * 4096].reshape(24, 4096, 3) - cloud.points
    assert (offsets - offsets[:, :1]).abs().max() < 1e-6
    lengths = offsets[:, 0].norm(dim=1)
    assert 0.03 < lengths.max() <= 0.05 and len(lengths.round(decimals=6).unique()) == 24


def test_axes_become_ours():
    for up, front in product(AXES, AXES):
        if up[1] == front[1]:
            with pytest.raises(UserError, match="no direction across"):
                OURS.changed(up, front)
            continue
        turn = Frame(up, front).to_world()
        assert torch.linalg.det(turn) == 1.0  # no mirror image
        assert (turn @ torch.tensor(AXES[up])).tolist() == [0, 0, 1]
        assert (turn @ torch.tensor(AXES[front])).tolist() == [1, 0, 0]


def test_conventions_of_the_files():
    """docs/conventions.md: our (x, y, z) of glTF's (x, y, z), and of OpenAI's."""
    cloud = PointCloud(torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]]))
    assert cloud.turned(OURS).points.tolist() == [[1, 2, 3]]
    assert cloud.turned(GLTF).points.tolist() == [[3, 1, 2]]
    assert cloud.turned(OPENAI).points.tolist() == [[-2, 1, 3]]
    assert cloud.turned(GLTF).normals.tolist() == [[0, 1, 0]]


def test_up_alone_brings_the_usual_front():
    assert OURS.changed(up="+y") == GLTF == OURS.changed(up="+y", front="+z")
    assert GLTF.changed(up="+z") == OURS and OURS.changed() == OURS
    with pytest.raises(UserError, match=r"up is 'y'; it must be one of: \+x, -x"):
        OURS.changed(up="y")


def test_fitted_clouds_fill_the_box():
    cloud = PointCloud(torch.tensor([[5.0, 0, 0], [9, 1, 0], [7, 0, 2]]), torch.zeros(3, 3)).fitted(0.5)
    low, high = cloud.points.aminmax(dim=0)
    torch.testing.assert_close(high, -low)
    torch.testing.assert_close(high, torch.tensor([0.5, 0.125, 0.25]))
    same = PointCloud(torch.ones(2, 3), torch.zeros(2, 3)).fitted(0.5).points
    assert same.tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (np.array([0, 51, 255], np.uint8), [0, 0.2, 1]),
        (np.array([0, 13107, 65535], np.uint16), [0, 0.2, 1]),
        (np.array([0, 51, 255], np.int32), [0, 0.2, 1]),
        (np.array([0.0, 51.0, 255.0]), [0, 0.2, 1]),
        (np.array([0.0, 0.2, 1.0]), [0, 0.2, 1]),
        (np.array([0.0, -0.5, 0.3]), [0, 0, 0.3]),
    ],
)
def test_what_numbers_mean_as_colours(stored, shown):
    assert from_stored(stored).tolist() == pytest.approx(shown)


def test_light_and_colours_as_shown():
    shown = np.linspace(0, 1, 100)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(shown)), shown, atol=1e-9)
    assert srgb_to_linear(np.array([0.5]))[0] == pytest.approx(0.21404, abs=1e-5)
    assert not math.isnan(linear_to_srgb(np.array([-1.0]))[0])
