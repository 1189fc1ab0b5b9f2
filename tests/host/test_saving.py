"""Files that systems write, read back."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from threestudio.utils import images
from threestudio.utils.files import atomic_path, write_text
from threestudio.utils.saving import SaverMixin


@pytest.fixture
def saver(tmp_path):
    saver = SaverMixin()
    saver.set_save_dir(str(tmp_path / "save"))
    return saver


def read(path):
    return np.asarray(Image.open(path))


def test_nothing_is_made_before_the_first_file(saver, tmp_path):
    assert not (tmp_path / "save").exists()
    assert saver.get_save_dir() == str(tmp_path / "save")
    with pytest.raises(ValueError, match="set_save_dir"):
        SaverMixin().get_save_dir()


@pytest.mark.parametrize("data_format", ["HWC", "CHW"])
def test_rgb_round_trip(saver, data_format):
    values = torch.randint(0, 256, (5, 7, 3))
    img = values / 255.0
    path = saver.save_rgb_image(
        "sub/x.png", img if data_format == "HWC" else img.permute(2, 0, 1), data_format=data_format
    )
    np.testing.assert_array_equal(read(path), values.numpy())


def test_rgb_range_is_clipped_and_scaled(saver):
    img = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).view(1, 5, 1).expand(1, 5, 3)
    assert read(saver.save_rgb_image("x.png", img, data_range=(-1, 1)))[0, :, 0].tolist() == [
        0,
        0,
        128,
        255,
        255,
    ]


def test_many_channels_lie_side_by_side(saver):
    img = torch.zeros(2, 2, 5)
    img[..., 4] = 1.0
    picture = read(saver.save_rgb_image("x.png", img))
    assert picture.shape == (2, 4, 3)
    assert picture[0, :, 1].tolist() == [0, 0, 255, 255] and picture[..., 2].max() == 0


def test_half_precision_and_gradients_are_taken(saver):
    saver.save_rgb_image("x.png", torch.rand(2, 2, 3, dtype=torch.bfloat16, requires_grad=True))


def test_grayscale_gray_and_range(saver):
    img = torch.tensor([[0.0, 1.0, 2.0]])
    assert read(saver.save_grayscale_image("x.png", img, cmap=None))[0, :, 0].tolist() == [0, 128, 255]
    picture = read(saver.save_grayscale_image("x.png", img, data_range=(0, 4), cmap=None))
    assert picture[0, :, 2].tolist() == [0, 64, 128]
    saver.save_grayscale_image("flat.png", torch.ones(2, 2))  # no range to divide by
    saver.save_grayscale_image("nan.png", torch.full((2, 2), float("nan")))


@pytest.mark.parametrize(
    ("cmap", "first", "last"), [("jet", (0, 0, 128), (128, 0, 0)), ("magma", (0, 0, 4), (252, 253, 191))]
)
def test_colormap_ends(cmap, first, last):
    colors = images.to_bytes(images.apply_colormap(np.array([0.0, 1.0]), cmap))
    assert tuple(colors[0]) == first and tuple(colors[1]) == last


def test_unknown_colormap_lists_them():
    with pytest.raises(ValueError, match="jet, magma, spectral"):
        images.grayscale_image(np.zeros((2, 2)), cmap="viridis")


def test_uv(saver):
    uv = torch.stack(torch.meshgrid(torch.linspace(0, 1, 4), torch.linspace(0, 1, 4), indexing="ij"), dim=-1)
    colors = read(saver.save_uv_image("x.png", uv, cmap="color"))
    assert colors[3, 0].tolist() == [255, 0, 0] and colors[0, 3].tolist() == [0, 255, 0]
    assert set(map(tuple, read(saver.save_uv_image("y.png", uv)).reshape(-1, 3))) <= {
        (255, 0, 255),
        (255, 255, 255),
    }


@pytest.mark.parametrize(("align", "size"), [("max", (6, 8)), ("min", (3, 4)), (5, (5, 5)), ((2, 9), (2, 9))])
def test_grid(saver, align, size):
    small, big = torch.rand(3, 4, 3), torch.rand(6, 8)
    rows = [
        [
            {"type": "rgb", "img": small, "kwargs": {"data_format": "HWC"}},
            {"type": "grayscale", "img": big, "kwargs": {}},
        ],
        [{"type": "uv", "img": torch.rand(3, 4, 2), "kwargs": {}}],
    ]
    picture = read(saver.save_image_grid("x.png", rows, align=align, texts=["a mug", "t = 3"]))
    assert picture.shape == (2 * size[0], 2 * size[1], 3)
    assert read(saver.save_image_grid("y.png", rows[0], align=align)).shape == (size[0], 2 * size[1], 3)


def test_grid_mistakes(saver):
    with pytest.raises(ValueError, match="align"):
        saver.save_image_grid(
            "x.png", [{"type": "rgb", "img": torch.rand(2, 2, 3), "kwargs": {}}], align="left"
        )
    with pytest.raises(ValueError, match="rgb, grayscale, uv"):
        saver.save_image_grid("x.png", [{"type": "depth", "img": torch.rand(2, 2), "kwargs": {}}])


def test_images_as_they_are(saver):
    deep = np.arange(6, dtype=np.uint16).reshape(2, 3) * 10000
    np.testing.assert_array_equal(read(saver.save_image("x.png", deep)), deep)
    rgba = np.random.default_rng(0).integers(0, 256, (2, 3, 4), dtype=np.uint8)
    np.testing.assert_array_equal(read(saver.save_image("y.png", rgba)), rgba)
    with pytest.raises(ValueError, match="float"):
        saver.save_image("z.png", np.zeros((2, 2), dtype=np.float32))


def test_cubemap_is_a_cross(saver):
    faces = torch.linspace(0.5, 1, 6).view(6, 1, 1, 1).expand(6, 2, 2, 3)
    picture = read(saver.save_cubemap("x.png", faces))
    assert picture.shape == (6, 8, 3)
    assert (picture[..., 0] > 0).sum() == 6 * 4


@pytest.mark.parametrize("save_format", ["mp4", "gif"])
def test_sequence_is_ordered_by_number(saver, save_format):
    for i in (10, 9, 2):
        saver.save_rgb_image(f"views/{i}.png", torch.full((17, 15, 3), i / 10))
    path = saver.save_img_sequence("turn", "views", r"(\d+)\.png", save_format=save_format, fps=10)
    assert path.endswith(f"turn.{save_format}")
    frames = [frame.astype(float).mean() for frame in imageio.mimread(path)]
    assert frames == pytest.approx([51, 230, 255], abs=6)  # 6: video colours have a smaller range


def test_sequence_without_pictures(saver):
    with pytest.raises(ValueError, match="matches"):
        saver.save_img_sequence("turn", "nowhere", r"(\d+)\.png")


def test_data(saver):
    path = saver.save_data("x", {"a": torch.arange(3), "b": [1, 2]})
    with np.load(path) as loaded:
        assert loaded["a"].tolist() == [0, 1, 2] and loaded["b"].tolist() == [1, 2]
    assert np.load(saver.save_data("y.npy", torch.ones(2))).tolist() == [1, 1]
    state = torch.load(saver.save_state_dict("z.pt", {"w": torch.ones(1)}), weights_only=True)
    assert state["w"].item() == 1
    assert json.loads(Path(saver.save_json("x.json", {"a": [1]})).read_text()) == {"a": [1]}
    copy = saver.save_file("copy.json", path.replace("x.npz", "x.json"))
    assert Path(copy).read_text() == Path(copy.replace("copy", "x")).read_text()


def test_mesh(saver):
    import trimesh

    v_pos, t_pos_idx = torch.eye(3), torch.tensor([[0, 1, 2]])
    mesh = trimesh.load(saver.save_mesh("x.ply", v_pos, t_pos_idx), process=False)
    np.testing.assert_allclose(mesh.vertices, np.eye(3))
    assert mesh.faces.tolist() == [[0, 1, 2]]


def test_obj_with_everything(saver, tmp_path):
    class Triangle:
        v_pos = torch.eye(3)
        v_nrm = torch.ones(3, 3) / 3**0.5
        v_rgb = torch.eye(3)
        v_tex = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        t_pos_idx = torch.tensor([[0, 1, 2]])
        t_tex_idx = torch.tensor([[2, 1, 0]])

    paths = saver.save_obj(
        "model",
        Triangle,
        save_mat=True,
        save_normal=True,
        save_uv=True,
        save_vertex_color=True,
        map_Kd=torch.rand(4, 4, 3),
        map_Pr=torch.rand(4, 4),
        map_format="png",
    )
    names = [path.removeprefix(str(tmp_path / "save") + "/") for path in paths]
    assert names == ["model.obj", "model.mtl", "texture_kd.png", "texture_pr.png"]
    lines = Path(paths[0]).read_text().splitlines()
    assert "f 1/3/1 2/2/2 3/1/3" in lines and "v 1 0 0 1 0 0" in lines and "mtllib model.mtl" in lines
    assert "map_Kd texture_kd.png" in Path(paths[1]).read_text()


def test_plain_obj_reads_back(saver):
    import trimesh

    class Triangle:
        v_pos = torch.eye(3)
        t_pos_idx = torch.tensor([[0, 1, 2]])

    (path,) = saver.save_obj("model.obj", Triangle)
    assert trimesh.load(path, process=False).faces.tolist() == [[0, 1, 2]]


def test_files_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "sub" / "x.txt"
    write_text(path, "before")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        Path(temporary).write_text("half")
        raise RuntimeError
    assert path.read_text() == "before" and list(path.parent.iterdir()) == [path]
