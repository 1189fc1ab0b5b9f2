"""Maps of a body: the z-buffer against what geometry says, and against the Gaussians' rasterizer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from threestudio_lucid.bodies.body import Body
from threestudio_lucid.bodies.mannequin import mannequin, unit_sphere
from threestudio_lucid.bodies.maps import MAPS, draw_maps, see, silhouettes
from threestudio_lucid.bodies.zbuffer import draw_triangles
from threestudio_lucid.data.orbit import circle, opencv_cameras
from threestudio_lucid.errors import UserError
from threestudio_lucid.gaussians.cloud import gaussians_from_points, opacities, scales
from threestudio_lucid.points.meshes import sample_surface
from threestudio_lucid.rasterizer import rasterize


def cameras(n: int = 4, elevation: float = 0.0, distance: float = 3.0, fovy: float = 40.0):
    views = circle(n, elevation, distance, fovy)
    return views.c2w, torch.deg2rad(views.fovy)


def ball(radius: float, at=(0.0, 0.0, 0.0)) -> Body:
    unit, faces = unit_sphere(96, 48)
    labels, uv = np.full(len(faces), 1, np.uint8), np.zeros((len(faces), 3, 2), np.float32)
    vertices = (radius * unit + np.array(at)).astype(np.float32)
    return Body(vertices, faces, labels, uv, np.zeros(len(faces), bool))


def test_a_ball_has_the_silhouette_and_the_depth_of_a_ball():
    size, distance, radius = 129, 3.0, 0.7
    c2w, fovy = cameras(1, elevation=20.0, distance=distance)
    seen, _ = see(ball(radius), c2w, fovy, size, size)
    focal = 0.5 * size / math.tan(0.5 * fovy.item())
    rows, columns = np.mgrid[:size, :size] + 0.5 - 0.5 * size
    rays = np.stack([columns / focal, rows / focal, np.ones_like(rows)], axis=-1)
    along = rays[..., 2] * distance  # (ray . centre), the centre on the axis
    square = np.square(rays).sum(axis=-1)
    root = along**2 - square * (distance**2 - radius**2)
    true = root > 0
    found = seen.face[0] >= 0
    assert (true & found).sum() / (true | found).sum() > 0.99
    depth = (along - np.sqrt(np.maximum(root, 0))) / square
    both = true & found & (root > 0.3)
    assert np.abs(depth - seen.depth[0])[both].max() < 0.01
    assert seen.depth[0][size // 2, size // 2] == pytest.approx(distance - radius, abs=1e-3)


def test_weights_are_those_of_the_seen_place():
    c2w, fovy = cameras(3, elevation=15.0)
    body = mannequin("walking")
    seen, viewmats = see(body, c2w, fovy, 64, 64)
    there = seen.face >= 0
    assert np.allclose(seen.weights[there].sum(axis=-1), 1.0, atol=1e-5)
    places = seen.interpolate(body.corners)
    _, Ks = opencv_cameras(c2w, fovy, 64, 64)
    for view, matrix, k in zip(range(3), viewmats, Ks.numpy(), strict=True):
        local = places[view][there[view]] @ matrix[:3, :3].T + matrix[:3, 3]
        pixels = local @ k.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        rows, columns = np.nonzero(there[view])
        assert np.abs(pixels - np.stack([columns, rows], axis=1) - 0.5).max() < 0.01
        assert np.allclose(local[:, 2], seen.depth[view][there[view]], atol=1e-4)


def test_the_nearest_triangle_wins_whatever_the_order():
    near, far = ball(0.2, (1.0, 0.0, 0.0)), ball(0.6)
    c2w, fovy = cameras(1)
    viewmats, Ks = (t.numpy() for t in opencv_cameras(c2w, fovy, 65, 65))
    for first, second in ((near, far), (far, near)):
        vertices = np.concatenate([first.vertices, second.vertices])
        faces = np.concatenate([first.faces, second.faces + len(first.vertices)])
        seen = draw_triangles(vertices, faces, viewmats, Ks, 65, 65)
        assert seen.depth[0, 32, 32] == pytest.approx(1.8, abs=1e-3)


def test_what_is_behind_the_camera_is_not_drawn():
    c2w, fovy = cameras(1)
    assert not silhouettes(ball(0.5, (6.0, 0.0, 0.0)), c2w, fovy, 32, 32).any()


def test_azimuth_and_sides():
    """From the front the left hand is on the right of the picture; from azimuth 90 one sees the left side."""
    c2w, fovy = cameras(4)
    seen, _ = see(mannequin("t"), c2w, fovy, 96, 96)
    labels = np.where(seen.face >= 0, mannequin("t").labels[seen.face], 0)
    front, left, back, right = labels

    def column(view, number):
        return np.nonzero(view == number)[1].mean()

    assert column(front, 4) > 60 and column(front, 3) < 35
    assert column(back, 4) < 35 and column(back, 3) > 60
    assert (front == 2).sum() > 0 and (front == 1).sum() == 0
    assert (back == 1).sum() > 0 and (back == 2).sum() == 0
    assert (left == 4).any() and not (left == 3).any()
    assert (right == 3).any() and not (right == 4).any()
    # toes point to where the person looks: left of the middle, seen from its left side
    assert np.nonzero(left == 5)[1].mean() < 48 < np.nonzero(right == 6)[1].mean()
    rows = (
        np.nonzero(front == 23)[0].mean(),
        np.nonzero(front == 2)[0].mean(),
        np.nonzero(front == 6)[0].mean(),
    )
    assert rows[0] < rows[1] < rows[2]


def test_gaussians_on_the_body_are_drawn_where_the_maps_are():
    body, size = mannequin("walking"), 192
    corners = body.corners[~body.hidden].astype(np.float64)
    cloud = sample_surface(corners, np.full_like(corners, 0.5), 20_000, torch.Generator().manual_seed(0))
    g = gaussians_from_points(cloud, sh_degree=0, opacity=0.5, scale=0.3)
    c2w, fovy = cameras(3, elevation=15.0)
    viewmats, Ks = opencv_cameras(c2w, fovy, size, size)
    drawn = rasterize(
        g.means,
        g.quats,
        scales(g),
        opacities(g),
        colors=cloud.colors,
        viewmats=viewmats,
        Ks=Ks,
        width=size,
        height=size,
        eps2d=0.01,
        backend="cpu",
    )
    seen, _ = see(body, c2w, fovy, size, size)
    for view in range(3):
        there = torch.from_numpy(seen.face[view] >= 0)
        # a rim's pixel need not have its centre covered
        nearby = F.max_pool2d(there[None].float(), 3, 1, 1)[0] > 0
        # every Gaussian's middle lies on the map, and none before its surface
        columns, rows = drawn.info["means2d"][view].detach().floor().long().T
        assert nearby[rows, columns].all() and there[rows, columns].float().mean() > 0.9
        z = cloud.points @ viewmats[view, 2, :3] + viewmats[view, 2, 3]
        ahead = torch.from_numpy(seen.depth[view])[rows, columns] - z
        assert ahead[there[rows, columns]].quantile(0.95) < 0.03


@pytest.mark.parametrize("kind", MAPS)
def test_maps_are_pictures(kind):
    c2w, fovy = cameras(2, elevation=15.0)
    maps = draw_maps(mannequin("a"), c2w, fovy, 40, 48, kind)
    assert maps.shape == (2, 3, 40, 48) and maps.dtype == torch.float32
    assert maps.min() >= 0.0 and maps.max() <= 1.0
    inside = silhouettes(mannequin("a"), c2w, fovy, 40, 48)
    background = {"viridis": (0x44, 0x01, 0x54), "normal": (127.5, 127.5, 255)}.get(kind, (0, 0, 0))
    outside = maps.permute(0, 2, 3, 1)[~inside]
    assert torch.allclose(outside, torch.tensor(background) / 255, atol=1e-3)
    differs = (maps - torch.tensor(background)[:, None, None] / 255).abs().amax(1) > 0.01
    assert (differs == inside).float().mean() > 0.99


def test_colours_of_parts():
    """Part k has the colour map's colour at k/24: yellow for the left half of the head, from the front."""
    c2w, fovy = cameras(1)
    for kind, yellow in (("viridis", "fde725"), ("parula", "f9fb0e")):
        picture = draw_maps(mannequin("t"), c2w, fovy, 96, 96, kind)[0]
        seen, _ = see(mannequin("t"), c2w, fovy, 96, 96)
        head = mannequin("t").labels[seen.face[0]] == 24
        head &= seen.face[0] >= 0
        expected = torch.tensor([int(yellow[k : k + 2], 16) / 255 for k in (0, 2, 4)])
        assert torch.allclose(picture[:, torch.from_numpy(head)].T, expected.expand(head.sum(), 3))


def test_depth_is_white_where_it_is_near_and_normals_face_the_camera():
    c2w, fovy = cameras(1)
    depth = draw_maps(ball(0.7), c2w, fovy, 65, 65, "depth")[0, 0]
    assert depth[32, 32] == pytest.approx(1.0, abs=1e-3)
    assert 0.05 < depth[depth > 0].min() < 0.15
    normal = draw_maps(ball(0.7), c2w, fovy, 65, 65, "normal")[0]
    assert torch.allclose(normal[:, 32, 32], torch.tensor([0.5, 0.5, 1.0]), atol=0.02)
    radius = int((depth[32] > 0).sum()) // 2 - 2
    assert normal[0, 32, 32 + radius] > 0.85 and normal[0, 32, 32 - radius] < 0.15  # red: to the right
    assert normal[1, 32 - radius, 32] > 0.85 and normal[1, 32 + radius, 32] < 0.15  # green: up


def test_an_unknown_map_is_told():
    c2w, fovy = cameras(1)
    with pytest.raises(UserError, match="viridis, parula, iuv, depth, normal"):
        draw_maps(mannequin("t"), c2w, fovy, 8, 8, "jet")
