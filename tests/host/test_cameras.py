"""The random cameras: axes, matrices, schedules, and batches that depend on seed and step alone."""

from __future__ import annotations

import math

import pytest
import torch

import threestudio
from threestudio.data.uncond import RandomCameraIterableDataset, spherical_to_cartesian
from threestudio.utils.errors import UserError
from threestudio.utils.ops import (
    get_cam_info_gaussian,
    get_mvp_matrix,
    get_projection_matrix,
    get_ray_directions,
    get_rays,
    look_at_c2w,
)

EXACT = {"camera_perturb": 0.0, "center_perturb": 0.0, "up_perturb": 0.0}


def datamodule(stage="fit", **cfg):
    torch.manual_seed(0)
    module = threestudio.find("random-camera-datamodule")({"height": 6, "width": 8, **cfg})
    module.setup(stage)
    return module


def batches(module, n):
    loader = iter(module.train_dataloader())
    return [next(loader) for _ in range(n)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5])
def test_poses_are_rotations_at_every_batch_size(batch_size):
    for batch in batches(datamodule(batch_size=batch_size), 4):
        rotation = batch["c2w"][:, :3, :3]
        eye = torch.eye(3).expand(batch_size, 3, 3)
        torch.testing.assert_close(rotation @ rotation.transpose(1, 2), eye, atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.det(rotation), torch.ones(batch_size), atol=1e-5, rtol=0)


def test_keys_shapes_and_units():
    (batch,) = batches(datamodule(batch_size=3, fovy_range=[40, 70]), 1)
    assert {key: tuple(batch[key].shape) for key in batch if key not in ("height", "width")} == {
        "rays_o": (3, 6, 8, 3),
        "rays_d": (3, 6, 8, 3),
        "mvp_mtx": (3, 4, 4),
        "proj_mtx": (3, 4, 4),
        "c2w": (3, 4, 4),
        "camera_positions": (3, 3),
        "light_positions": (3, 3),
        "elevation": (3,),
        "azimuth": (3,),
        "camera_distances": (3,),
        "fovy": (3,),
    }
    assert (batch["height"], batch["width"]) == (6, 8)
    assert ((batch["fovy"] >= math.radians(40)) & (batch["fovy"] <= math.radians(70))).all()
    assert batch["elevation"].abs().max() > 1.6  # degrees


def test_positions_follow_elevation_and_azimuth():
    (batch,) = batches(datamodule(batch_size=8, **EXACT), 1)
    expected = spherical_to_cartesian(
        torch.deg2rad(batch["elevation"]), torch.deg2rad(batch["azimuth"]), batch["camera_distances"]
    )
    torch.testing.assert_close(batch["camera_positions"], expected)
    forward = -batch["c2w"][:, :3, 2]
    torch.testing.assert_close(forward, -torch.nn.functional.normalize(expected, dim=-1), atol=1e-6, rtol=0)
    assert (batch["c2w"][:, 2, 1] >= 0).all()  # up is up


@pytest.mark.parametrize(
    ("elevation", "azimuth", "position"),
    [
        (0, 0, (2, 0, 0)),
        (0, 90, (0, 2, 0)),
        (0, 180, (-2, 0, 0)),
        (90, 0, (0, 0, 2)),
        (30, 0, (3**0.5, 0, 1)),
    ],
)
def test_axes(elevation, azimuth, position):
    radians = [torch.tensor(math.radians(angle)) for angle in (elevation, azimuth)]
    torch.testing.assert_close(
        spherical_to_cartesian(*radians, torch.tensor(2.0)), torch.tensor(position).float(), atol=1e-6, rtol=0
    )


def test_a_point_above_the_origin_is_in_the_upper_half_of_the_image():
    """mvp negates y: row 0 of an image is its top.  And x grows to the right, seen from +x towards +y."""
    view = batches_of_eval(datamodule("test", n_test_views=5), 0)
    point = torch.tensor([0.0, 0.2, 0.3, 1.0])
    x, y, z, w = view["mvp_mtx"][0] @ point
    assert y / w < 0 and x / w > 0 and -1 < z / w < 1 and w > 0


def batches_of_eval(module, index):
    return list(module.test_dataloader())[index]


def test_rays_agree_with_the_projection():
    """A point along the ray of a pixel projects to the centre of that pixel."""
    (batch,) = batches(datamodule(batch_size=3), 1)
    points = batch["rays_o"] + 1.7 * batch["rays_d"]
    clip = torch.einsum(
        "bij,bhwj->bhwi", batch["mvp_mtx"], torch.nn.functional.pad(points, (0, 1), value=1.0)
    )
    x = (clip[..., 0] / clip[..., 3] + 1) / 2 * 8
    y = (clip[..., 1] / clip[..., 3] + 1) / 2 * 6
    rows, columns = torch.meshgrid(torch.arange(6) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    torch.testing.assert_close(x, columns.expand(3, 6, 8), atol=2e-4, rtol=0)
    torch.testing.assert_close(y, rows.expand(3, 6, 8), atol=2e-4, rtol=0)


@pytest.mark.parametrize("normalize", [True, False])
def test_ray_lengths(normalize):
    (batch,) = batches(datamodule(batch_size=2, rays_d_normalize=normalize), 1)
    depth = -(batch["rays_d"] * batch["c2w"][:, None, None, :3, 2]).sum(-1)
    if normalize:
        torch.testing.assert_close(batch["rays_d"].norm(dim=-1), torch.ones(2, 6, 8))
    else:
        torch.testing.assert_close(depth, torch.ones(2, 6, 8))


def test_looking_straight_down_is_a_rotation_and_the_limit_of_azimuth_zero():
    up = torch.tensor([[0.0, 0.0, 1.0]])
    c2w = look_at_c2w(torch.tensor([[0.0, 0.0, 2.0]]), torch.zeros(1, 3), up)
    near = look_at_c2w(torch.tensor([[1e-3, 0.0, 2.0]]), torch.zeros(1, 3), up)
    torch.testing.assert_close(c2w[:, :3, :3], near[:, :3, :3], atol=1e-3, rtol=0)


def test_evaluation_views():
    module = datamodule("fit", n_val_views=4, n_test_views=5, eval_elevation_deg=20.0)
    module.setup("test")
    azimuths = [batch["azimuth"].item() for batch in module.val_dataloader()]
    assert azimuths == pytest.approx([0, 90, 180, 270])
    views = list(module.test_dataloader())
    assert [view["azimuth"].item() for view in views] == pytest.approx([0, 90, 180, 270, 360])
    assert [view["index"].tolist() for view in views] == [[0], [1], [2], [3], [4]]
    assert views[0]["elevation"].item() == 20.0
    assert isinstance(views[0]["height"], int) and views[0]["rays_o"].shape == (1, 512, 512, 3)
    torch.testing.assert_close(views[0]["light_positions"], views[0]["camera_positions"])


@pytest.mark.parametrize("views", [1, 3])
def test_any_number_of_evaluation_views(views):
    module = datamodule("test", n_test_views=views, eval_height=4, eval_width=4)
    rotations = torch.cat([view["c2w"][:, :3, :3] for view in module.test_dataloader()])
    torch.testing.assert_close(torch.det(rotations), torch.ones(views))


# ---- determinism ----


def same(a, b):
    return all(torch.equal(a[key], b[key]) if torch.is_tensor(a[key]) else a[key] == b[key] for key in a)


def test_a_batch_depends_on_seed_and_step_alone():
    module = datamodule(batch_size=2)
    straight = batches(module, 6)
    torch.randn(100)
    again = batches(module, 6)
    assert all(same(a, b) for a, b in zip(straight, again, strict=True))
    assert not same(straight[0], straight[1])

    cfg = module.cfg
    resumed = RandomCameraIterableDataset(cfg, seed=module.train_dataset.seed, first_step=lambda: 3)
    iterator = iter(resumed)
    assert same(resumed.collate(next(iterator)), straight[3])
    other = RandomCameraIterableDataset(cfg, seed=module.train_dataset.seed + 1)
    iterator = iter(other)
    assert not same(other.collate(next(iterator)), straight[0])


# ---- ranges ----


def test_ranges_are_kept():
    module = datamodule(
        batch_size=64, elevation_range=[-5, 30], azimuth_range=[10, 50], camera_distance_range=[2, 3], **EXACT
    )
    for batch in batches(module, 6):
        assert batch["elevation"].min() >= -5 - 1e-4 and batch["elevation"].max() <= 30 + 1e-4
        assert batch["azimuth"].min() >= 10 and batch["azimuth"].max() <= 50
        assert batch["camera_distances"].min() >= 2 and batch["camera_distances"].max() <= 3


def test_uniform_azimuths_fall_one_into_each_part():
    (batch,) = batches(datamodule(batch_size=4), 1)
    assert torch.floor((batch["azimuth"] + 180) / 90).tolist() == [0, 1, 2, 3]


def test_progressive_ranges():
    dataset = datamodule(batch_size=1, progressive_until=99, eval_elevation_deg=15.0).train_dataset
    for step, r in ((0, 0.0), (50, 0.5), (100, 1.0), (1000, 1.0)):
        dataset.update_step(0, step)
        assert dataset.azimuth_range == pytest.approx([-180 * r, 180 * r])
        assert dataset.elevation_range == pytest.approx([15 * (1 - r) - 10 * r, 15 * (1 - r) + 90 * r])
    wide = datamodule(batch_size=1).train_dataset
    wide.update_step(0, 0)
    assert wide.azimuth_range == [-180, 180]


def test_resolution_milestones():
    module = datamodule(height=[4, 8], width=[4, 8], batch_size=[3, 1], resolution_milestones=[2])
    shapes = [tuple(batch["rays_o"].shape[:3]) for batch in batches(module, 4)]
    assert shapes == [(3, 4, 4), (3, 4, 4), (1, 8, 8), (1, 8, 8)]


@pytest.mark.parametrize(
    "cfg",
    [
        {"height": 0},
        {"height": [4, 8]},
        {"height": 4.5},
        {"fovy_range": [70, 40]},
        {"fovy_range": [0, 40]},
        {"eval_fovy_deg": 180},
        {"azimuth_range": 30},
        {"light_sample_strategy": "sun"},
        {"n_test_views": 0},
    ],
)
def test_mistakes(cfg):
    with pytest.raises(UserError, match=next(iter(cfg))):
        datamodule(**cfg)


def test_lights():
    (batch,) = batches(datamodule(batch_size=64, light_distance_range=[0.8, 1.5]), 1)
    distance = batch["light_positions"].norm(dim=-1)
    assert distance.min() >= 0.8 - 1e-5 and distance.max() <= 1.5 + 1e-5
    (batch,) = batches(datamodule(batch_size=64, light_sample_strategy="magic3d", **EXACT), 1)
    cosine = torch.nn.functional.cosine_similarity(batch["light_positions"], batch["camera_positions"])
    assert cosine.min() >= 0.5 - 1e-5  # within 60 degrees of the camera


# ---- matrices ----


def test_projection_by_hand():
    """fovy 90 degrees: tan(45) = 1, so x scales by 1/aspect and y by -1; near and far map to -1 and 1."""
    proj = get_projection_matrix(torch.tensor([math.pi / 2]), 2.0, 1.0, 3.0)[0]
    assert proj[0, 0] == pytest.approx(0.5) and proj[1, 1] == pytest.approx(-1.0)
    for z, expected in ((-1.0, -1.0), (-3.0, 1.0)):
        clip = proj @ torch.tensor([0.0, 0.0, z, 1.0])
        assert (clip[2] / clip[3]).item() == pytest.approx(expected)


def test_mvp_is_projection_times_inverse_pose():
    c2w = look_at_c2w(torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]))
    proj = get_projection_matrix(torch.tensor([0.7]), 1.0, 0.1, 10.0)
    torch.testing.assert_close(get_mvp_matrix(c2w, proj), proj @ torch.inverse(c2w), atol=1e-5, rtol=0)


def test_gaussian_cameras_see_a_point_where_the_pinhole_does():
    c2w = look_at_c2w(torch.tensor([[2.0, 1.0, 0.5]]), torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]))[0]
    fovy = torch.tensor([0.8])
    world_view, full_proj, centre = get_cam_info_gaussian(c2w, fovy, fovy, 0.1, 100.0)
    torch.testing.assert_close(centre, torch.tensor([2.0, 1.0, 0.5]))
    point = torch.tensor([0.1, -0.2, 0.3, 1.0])
    theirs = point @ full_proj
    ours = get_mvp_matrix(c2w[None], get_projection_matrix(fovy, 1.0, 0.1, 100.0))[0] @ point
    torch.testing.assert_close((theirs / theirs[3])[:2], (ours / ours[3])[:2], atol=1e-5, rtol=0)
    assert (point @ world_view)[2] > 0  # z forward


def test_rays_of_one_camera_and_of_many_agree():
    directions = get_ray_directions(3, 5, 2.0)
    c2w = look_at_c2w(torch.randn(2, 3), torch.zeros(2, 3), torch.tensor([[0.0, 0.0, 1.0]]).expand(2, 3))
    many_o, many_d = get_rays(directions.expand(2, -1, -1, -1), c2w, keepdim=True)
    one_o, one_d = get_rays(directions, c2w[1])
    torch.testing.assert_close(many_o[1].reshape(-1, 3), one_o)
    torch.testing.assert_close(many_d[1].reshape(-1, 3), one_d)
    flat_o, flat_d = get_rays(directions.reshape(-1, 3), c2w[1].expand(15, 4, 4))
    torch.testing.assert_close(flat_d, one_d)
    torch.testing.assert_close(flat_o, one_o)
    stacked_o, stacked_d = get_rays(directions[None], c2w, keepdim=True)  # of each camera
    torch.testing.assert_close(stacked_o, many_o)
    torch.testing.assert_close(stacked_d, many_d)
    shared_o, shared_d = get_rays(directions.expand(2, -1, -1, -1), c2w[1], keepdim=True)
    torch.testing.assert_close(shared_o, many_o[1].expand(2, -1, -1, -1))
    torch.testing.assert_close(shared_d, many_d[1].expand(2, -1, -1, -1))
