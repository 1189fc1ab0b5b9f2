"""Training cameras: where they stand, how ranges relax, and that a step always sees the same."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import threestudio
from threestudio_lucid.data.orbit import (
    Orbit,
    Relaxation,
    circle,
    look_at,
    opencv_cameras,
    positions_on_sphere,
    sample_cameras,
)
from threestudio_lucid.errors import UserError

CONFIG = {
    "batch_size": 4,
    "height": 8,
    "width": 8,
    "camera_distance_range": [5.2, 5.5],
    "fovy_range": [18.0, 34.0],
    "elevation_range": [-15, 45],
    "camera_perturb": 0.02,
    "center_perturb": 0.05,
    "up_perturb": 0.01,
}


def dataset(**changes):
    module = threestudio.find("lucid-camera-datamodule")(CONFIG | changes)
    module.setup("fit")
    return module.train_dataset


@given(st.floats(-90, 90), st.floats(-180, 180), st.floats(0.5, 9))
def test_matrices_are_rotations_that_look_at_the_origin(elevation, azimuth, distance):
    e, a, d = (torch.tensor([v], dtype=torch.float64) for v in (elevation, azimuth, distance))
    position = positions_on_sphere(e, a, d)
    c2w = look_at(position, torch.zeros(1, 3).double(), torch.tensor([[0.0, 0.0, 1.0]]).double())
    rotation = c2w[0, :3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3).double(), atol=1e-9, rtol=0)
    assert torch.det(rotation) == pytest.approx(1.0)
    viewmats, _ = opencv_cameras(c2w, torch.tensor([0.7]).double(), 10, 10)
    origin = viewmats[0] @ torch.tensor([0.0, 0.0, 0.0, 1.0]).double()
    torch.testing.assert_close(origin[:3], torch.tensor([0.0, 0.0, distance]).double(), atol=1e-6, rtol=0)


def test_axes_of_the_picture():
    """From the front (+x): +y is right, +z is up, i.e. towards smaller y in OpenCV."""
    viewmats, Ks = opencv_cameras(circle(1, 0.0, 2.0, 60.0).c2w, torch.tensor([math.radians(60)]), 20, 40)
    right, up = (
        viewmats[0, :3, :3] @ torch.tensor([0.0, 1.0, 0.0]),
        viewmats[0, :3, :3] @ torch.tensor([0.0, 0.0, 1.0]),
    )
    torch.testing.assert_close(right, torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(up, torch.tensor([0.0, -1.0, 0.0]))
    focal = 10 / math.tan(math.radians(30))
    torch.testing.assert_close(Ks[0], torch.tensor([[focal, 0, 20.0], [0, focal, 10.0], [0, 0, 1.0]]))


def test_agrees_with_the_hosts_evaluation_views():
    module = threestudio.find("random-camera-datamodule")({"n_val_views": 4, "eval_camera_distance": 2.0})
    module.setup("fit")
    theirs = torch.stack([module.val_dataset[i]["c2w"] for i in range(4)])
    torch.testing.assert_close(circle(4, 15.0, 2.0, 70.0).c2w, theirs, atol=1e-6, rtol=1e-5)


def test_samples_stay_in_their_ranges_and_cover_them():
    orbit = Orbit((-10.0, 60.0), (-180.0, 180.0), (2.0, 3.0), (30.0, 40.0))
    cameras = [sample_cameras(orbit, 4, torch.Generator().manual_seed(k)) for k in range(200)]
    for name in ("elevation", "distance", "fovy"):
        low, high = getattr(orbit, name)
        values = torch.cat([getattr(c, name) for c in cameras])
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high
    azimuth = torch.stack([c.azimuth for c in cameras])
    assert ((azimuth // 90) == torch.tensor([-2.0, -1.0, 0.0, 1.0])).all()  # one in each quarter


@pytest.mark.parametrize(
    ("step", "distance", "fovy"),
    [
        (0, (5.2, 5.5), (18.335, 34.377)),
        (499, (5.2, 5.5), (18.335, 34.377)),
        (500, (4.94, 5.225), (13.751, 34.377)),
        (1000, (4.693, 5.0), (10.313, 34.377)),
        (3999, (3.631, 5.0), (9.167, 34.377)),
        (4000, (3.5, 5.0), (9.167, 34.377)),
    ],
)
def test_ranges_relax_as_published(step, distance, fovy):
    factors = {"camera_distance": (0.95, 0.95), "fovy": (0.75, 1.1)}
    limits = {"camera_distance": (3.5, 5.0), "fovy": (9.167, 34.377)}
    relaxation = Relaxation(500, factors, limits)
    assert relaxation.at("camera_distance", (5.2, 5.5), step) == pytest.approx(distance, abs=1e-3)
    assert relaxation.at("fovy", (18.335, 34.377), step) == pytest.approx(fovy, abs=1e-3)
    assert relaxation.at("elevation", (-15, 45), step) == (-15, 45)


def test_azimuth_opens_from_the_front():
    relaxation = Relaxation(500, {"azimuth": (1.5, 1.5)}, {"azimuth": (-180, 180)})
    ranges = [relaxation.at("azimuth", (-80, 80), step) for step in (0, 500, 1000, 5000)]
    assert ranges == [(-80, 80), (-120, 120), (-180, 180), (-180, 180)]


def test_a_step_always_sees_the_same_cameras():
    a, b = dataset(), dataset()
    later = iter(dataset())
    for _ in range(3):
        batch = next(later)
    for name in ("c2w", "rays_d", "fovy", "light_positions"):
        assert torch.equal(a.batch(2)[name], b.batch(2)[name])
        assert torch.equal(a.batch(2)[name], batch[name])
        assert not torch.equal(a.batch(2)[name], a.batch(3)[name])
    assert not torch.equal(dataset(seed=1).batch(2)["c2w"], batch["c2w"])


def test_batches_have_the_keys_of_the_hosts():
    module = threestudio.find("random-camera-datamodule")({"batch_size": 4, "height": 8, "width": 8})
    module.setup("fit")
    theirs = module.train_dataset.collate({})
    ours = dataset().batch(0)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert type(ours[name]) is type(value), name
        if torch.is_tensor(value):
            assert (ours[name].shape, ours[name].dtype) == (value.shape, value.dtype), name


def test_rays_hit_what_the_matrices_say():
    """The ray through a pixel, unprojected by the intrinsics, is the same."""
    batch = dataset().batch(0)
    viewmats, Ks = opencv_cameras(batch["c2w"], batch["fovy"], 8, 8)
    point = batch["rays_o"] + 3.0 * batch["rays_d"]
    camera = torch.einsum("bij,bhwj->bhwi", viewmats[:, :3, :3], point) + viewmats[:, None, None, :3, 3]
    pixel = torch.einsum("bij,bhwj->bhwi", Ks, camera)
    pixel = pixel[..., :2] / pixel[..., 2:]
    y, x = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    torch.testing.assert_close(pixel, torch.stack([x, y], -1).expand(4, 8, 8, 2), atol=1e-3, rtol=0)


def test_resolution_may_grow():
    cameras = dataset(height=[8, 16], width=[8, 16], batch_size=[4, 2], resolution_milestones=[10])
    assert cameras.batch(9)["rays_d"].shape == (4, 8, 8, 3)
    assert cameras.batch(10)["rays_d"].shape == (2, 16, 16, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relax": {"radius": [1, 1]}, "relax_every": 5}, "relax names 'radius'"),
        ({"relax": {"fovy": [1, 1]}, "relax_every": 5}, "relax_limits lacks fovy"),
        ({"relax": {"fovy": [1]}, "relax_limits": {"fovy": [1, 2]}}, r"relax.fovy is \[1\]"),
        ({"progressive_until": 5}, "relax_every and relax"),
        ({"relax_every": -1}, "relax_every is -1"),
        ({"relax_every": "often"}, "relax_every is 'often'; it must be a number"),
        ({"relax": 3}, "relax is 3; it must be a mapping"),
        ({"relax": {"fovy": 3}}, "relax.fovy is 3; it must be two numbers"),
        ({"relax": {"fovy": [1, "wide"]}}, r"relax.fovy is \[1, 'wide'\]"),
        ({"relax_limits": {"fovy": 3}}, "relax_limits.fovy is 3; it must be two numbers"),
        ({"relax_limits": {"camera_distance": [0, 1]}}, "relax_limits.camera_distance is 0"),
        ({"camera_distance_range": [0, 0]}, r"camera_distance_range is \[0, 0\]; distances must be above 0"),
        ({"eval_camera_distance": -1}, "eval_camera_distance is -1"),
    ],
)
def test_mistakes_are_told(change, message):
    with pytest.raises(UserError, match=message):
        dataset(**change)


def test_in_a_trainer_rays_are_added_on_its_device():
    module = threestudio.find("lucid-camera-datamodule")(CONFIG | {"rays_d_normalize": False})
    module.trainer = SimpleNamespace()
    module.setup("fit")
    batch = module.train_dataset.batch(3)
    assert "rays_d" not in batch and "rays_o" not in batch
    added = module.on_after_batch_transfer(batch, 0)
    expected = dataset(rays_d_normalize=False).batch(3)
    assert added.keys() == expected.keys()
    for name in ("rays_o", "rays_d", "c2w"):
        assert torch.equal(added[name], expected[name])
    assert module.on_after_batch_transfer(added, 0) is added  # as those of validation, which have theirs
