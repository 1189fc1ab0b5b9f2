"""People in poses, the ControlNet's training, and the grader of avatars."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from threestudio_lucid.bodies.mannequin import POSES, SKELETON, frames, mannequin
from threestudio_lucid.bodies.maps import silhouettes
from threestudio_lucid.data.orbit import circle
from toybox import people, sdf
from toybox.captions import COLORS
from toybox.grade.avatar import SIZE, VIEWS, measure, nearest_color
from toybox.objects import OBJECTS
from toybox.things import person as toy


def views(n: int = VIEWS, elevation: float = 15.0):
    around = circle(n, elevation, 3.0, 40.0)
    return around.c2w, torch.deg2rad(around.fovy)


def paint(pose, color="blue", trousers="red", size=128, n=VIEWS):
    """The toybox's person from all sides: RGB on white [n, H, W, 3] and opacity [n, H, W]."""
    parts = OBJECTS["person"].build(color, np.random.default_rng(3), trousers, pose=pose)
    rgba = (
        np.stack([sdf.render(parts, c2w, 40.0, size) for c2w in views(n)[0].numpy()]).astype(np.float32) / 255
    )
    return rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:], rgba[..., 3]


@pytest.mark.parametrize("pose", sorted(POSES))
def test_the_mannequin_is_the_toyboxs_person_undressed(pose):
    """Same joints, and the same silhouettes but for a belt, hair and cuffs."""
    for name, (place, turn) in frames(pose).items():
        theirs = toy.frames(POSES[pose])[name]
        assert np.allclose(place, theirs[0]) and np.allclose(turn, theirs[1])
    c2w, fovy = views(4)
    ours, (_, alpha) = silhouettes(mannequin(pose), c2w, fovy, 128, 128).numpy(), paint(POSES[pose], n=4)
    theirs = alpha > 0.5
    assert ((ours & theirs).sum((1, 2)) / (ours | theirs).sum((1, 2))).min() > 0.9


def test_poses_of_both_that_have_one_name():
    for ours, theirs in people.WORDS.items():
        turns = toy.POSES[theirs]
        assert all(
            np.allclose(POSES[ours].get(joint, (0, 0, 0)), turns.get(joint, (0, 0, 0))) for joint in SKELETON
        )


def test_random_poses_are_poses_and_mirrors_mirror():
    rng = np.random.default_rng(0)
    drawn = [people.random_pose(rng) for _ in range(60)]
    assert {words for _, words in drawn} == {"", *people.WORDS.values()}
    for turns, _ in drawn[:5]:
        there, back = mannequin(turns), mannequin(people.mirrored(people.mirrored(turns)))
        assert np.allclose(there.vertices, back.vertices)
        mirror = mannequin(people.mirrored(turns)).vertices * (1, -1, 1)
        far = [np.linalg.norm(there.vertices - point, axis=1).min() for point in mirror[::31]]
        assert max(far) < 1e-4


def test_a_shard_is_a_function_of_its_number_and_fits_its_maps():
    images, maps, labels = people.render_shard(7, n=4, size=64)
    again = people.render_shard(7, n=4, size=64)
    assert all(np.array_equal(a, b) for a, b in zip((images, maps, labels), again, strict=True))
    there, shown = images[..., 3] > 127, maps.any(axis=-1)
    assert ((there & shown).sum((1, 2)) / (there | shown).sum((1, 2))).min() > 0.85
    assert set(labels["object"]) == {"person"}


# --- the grader of avatars ----------------------------------------------------------------------------------


def test_the_true_person_passes():
    pictures, alpha = paint("walking", size=SIZE)
    score = measure(pictures, alpha, mannequin("walking"), *views(), ("blue", "red"))
    assert score.passes, score.text()
    assert min(score.overlaps) > 0.9
    assert "ok" in score.text() and "BELOW" not in score.text()


def test_what_is_wrong_is_told():
    pictures, alpha = paint("walking", size=SIZE)
    other_pose = measure(pictures, alpha, mannequin("t"), *views(), ("blue", "red"))
    assert not other_pose.pose_is_right and "BELOW" in other_pose.text()
    other_clothes = measure(pictures, alpha, mannequin("walking"), *views(), ("red", "blue"))
    assert not other_clothes.colors_are_right and other_clothes.pose_is_right
    # a face behind as well: the front's picture from everywhere
    janus = measure(np.repeat(pictures[:1], VIEWS, 0), alpha, mannequin("walking"), *views(), ("blue", "red"))
    assert not janus.face_is_right
    turned = measure(
        np.roll(pictures, 4, 0), np.roll(alpha, 4, 0), mannequin("walking"), *views(), ("blue", "red")
    )
    assert not turned.face_is_right


@pytest.mark.parametrize("name", COLORS)
def test_colours_in_any_shade(name):
    for shade in (0.65, 0.8, 1.0):
        assert nearest_color(shade * np.array(COLORS[name])) == name
