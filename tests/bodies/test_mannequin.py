"""The mannequin: its poses move it, it is closed and symmetric, its parts are where they should be."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from threestudio_lucid.bodies.mannequin import POSES, SKELETON, find_pose, frames, mannequin, unit_sphere
from threestudio_lucid.bodies.parts import LIMBS
from threestudio_lucid.errors import UserError


@pytest.mark.parametrize("pose", POSES)
def test_every_solid_is_closed_and_its_triangles_look_outwards(pose):
    body = mannequin(pose)
    pieces = trimesh.Trimesh(body.vertices, body.faces, process=False).split(only_watertight=False)
    assert len(pieces) == 22
    assert all(piece.is_watertight and piece.volume > 0 for piece in pieces)


def test_its_height_and_its_place():
    body = mannequin("t")
    assert body.height == pytest.approx(1.834, abs=1e-3)
    assert abs(body.vertices[:, 2].max()) == pytest.approx(abs(body.vertices[:, 2].min()), abs=0.02)
    assert body.vertices[:, 1].max() == pytest.approx(
        0.21 + 0.22 + 0.20 + 0.08 + 0.085, abs=1e-3
    )  # fingertips
    assert mannequin("standing").scaled(0.5).height == pytest.approx(0.5 * mannequin("standing").height)


@pytest.mark.parametrize("pose", ["standing", "t", "a", "arms up", "sitting"])
def test_symmetric_poses_are_symmetric(pose):
    vertices = mannequin(pose).vertices
    mirrored = vertices * np.array([1, -1, 1], np.float32)
    far = [np.linalg.norm(vertices - point, axis=1).min() for point in mirrored[::17]]
    assert max(far) < 1e-4


def test_poses_differ_and_keep_the_lengths_of_limbs():
    places = {pose: frames(pose) for pose in POSES}
    for pose, joints in places.items():
        for name, (parent, offset) in SKELETON.items():
            if parent:
                length = np.linalg.norm(joints[name][0] - joints[parent][0])
                assert length == pytest.approx(np.linalg.norm(offset)), (pose, name)
    hands = {pose: joints["left wrist"][0] for pose, joints in places.items()}
    assert hands["arms up"][2] > places["arms up"]["neck"][0][2]
    assert hands["standing"][2] < hands["a"][2] < hands["t"][2] < hands["arms up"][2]
    assert places["walking"]["left knee"][0][0] > 0.05 > -0.05 > places["walking"]["right knee"][0][0]
    assert places["sitting"]["left knee"][0][0] > 0.25


def test_parts_are_where_they_should_be():
    body = mannequin("t")
    centres = body.corners.mean(axis=1)

    def middle(*numbers):
        return centres[np.isin(body.labels, numbers) & ~body.hidden].mean(axis=0)

    assert set(body.labels) == set(range(1, 25))
    assert middle(2)[0] > 0.1 and middle(1)[0] < -0.1  # torso: front and back
    assert middle(3)[1] < -0.6 and middle(4)[1] > 0.6  # right and left hand
    assert middle(5)[1] > 0.05 and middle(6)[1] < -0.05  # left and right foot
    assert middle(23)[1] < -0.02 and middle(24)[1] > 0.02  # right and left half of the head
    for back, front in LIMBS.values():
        if back != front and back != 23:
            assert middle(front)[0] > middle(back)[0] + 0.04
    order = [middle(*LIMBS[f"left {limb}"])[1] for limb in ("upper arm", "lower arm", "hand")]
    assert order == sorted(order)


def test_charts_run_along_the_limb_and_around_it():
    body = mannequin("t")
    corners, there = body.corners, np.isin(body.labels, (1, 2)) & ~body.hidden
    assert body.uv.min() >= 0.0 and body.uv.max() <= 1.0
    heights, v = corners[there][..., 2].ravel(), body.uv[there][..., 1].ravel()
    assert np.corrcoef(heights, v)[0, 1] > 0.999
    u, y = body.uv[there][..., 0], corners[there][..., 1]
    front = corners[there][..., 0] > 0.12
    assert np.corrcoef(u[front], y[front])[0, 1] > 0.9  # towards the left
    # no triangle spans the seam
    assert np.ptp(body.uv[..., 0], axis=1).max() <= 0.5


def test_what_lies_inside_is_told():
    body = mannequin("standing")
    assert 0.2 < body.hidden.mean() < 0.6
    # the ends of the upper legs are in the pelvis, its front is not
    pelvis = np.array([0.155, 0.0, -0.2])
    nearest = np.linalg.norm(body.corners.mean(axis=1) - pelvis, axis=1).argmin()
    assert not body.hidden[nearest]
    inside = np.linalg.norm(body.corners.mean(axis=1) - (0.0, 0.12, -0.10), axis=1).argmin()
    assert body.hidden[inside]


def test_turns_of_joints_are_a_pose():
    body = mannequin({"left shoulder": [90, 0, 0]})
    hand = body.vertices[body.faces[body.labels == 4]].reshape(-1, 3).mean(axis=0)
    assert hand[2] > 0.8 and abs(hand[1] - 0.21) < 0.02
    assert np.allclose(mannequin(dict(POSES["walking"])).vertices, mannequin("walking").vertices)


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.floats(-180, 180)] * 3), st.sampled_from(sorted(SKELETON)))
def test_any_turn_is_rigid(turn, joint):
    body, rest = mannequin({joint: turn}), mannequin("t")
    sides = [np.linalg.norm(b.corners[:, 1] - b.corners[:, 0], axis=1) for b in (body, rest)]
    assert np.allclose(*sides, atol=1e-5)
    assert np.isfinite(body.vertices).all()


@pytest.mark.parametrize(
    ("pose", "words"),
    [
        ("arms upp", ("'arms upp'", "'arms up'", "walking")),
        ({"left sholder": [0, 0, 0]}, ("'left sholder'", "'left shoulder'")),
        ({"left shoulder": [0, 0]}, ("left shoulder", "[roll, pitch, yaw]")),
        ({"left shoulder": [0, 0, float("nan")]}, ("left shoulder", "[roll, pitch, yaw]")),
        (3, ("3", "walking")),
    ],
)
def test_mistakes_in_poses(pose, words):
    with pytest.raises(UserError) as caught:
        find_pose(pose)
    assert all(word in str(caught.value) for word in words)


def test_the_sphere_is_one():
    vertices, faces = unit_sphere()
    assert np.allclose(np.linalg.norm(vertices, axis=1), 1.0)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight and mesh.volume == pytest.approx(4 / 3 * np.pi, rel=0.04)
