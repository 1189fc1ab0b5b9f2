"""Points of PLY and NPZ files, good ones and bad ones."""

import struct
import zipfile

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from threestudio_lucid.errors import UserError
from threestudio_lucid.gaussians.cloud import Gaussians, base_colors
from threestudio_lucid.gaussians.ply import read_ply, write_ply
from threestudio_lucid.points import ball, read_file, read_points
from threestudio_lucid.points.ply_mesh import read_ply_mesh

XYZ = np.random.default_rng(0).uniform(-0.5, 0.5, (6, 3))
RGB = np.array([[255, 0, 51]] * 6, np.uint8)


def read(path, **options):
    return read_file(path, 10, torch.Generator().manual_seed(0), **options)


def write_points(path, columns, text=False):
    """A PLY of named columns, in their order."""
    rows = np.empty(6, dtype=[(name, values.dtype.str) for name, values in columns.items()])
    for name, values in columns.items():
        rows[name] = values
    PlyData([PlyElement.describe(rows, "vertex")], text=text).write(path)
    return path


def xyz(kind="f4"):
    return {name: XYZ[:, k].astype(kind) for k, name in enumerate("xyz")}


# ---- PLY ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("kind", ["u1", "f4", "i4"])
def test_properties_in_any_order_and_type(tmp_path, kind, text):
    colors = {name: RGB[:, k].astype(kind) for k, name in enumerate(("red", "green", "blue"))}
    columns = {"blue": colors["blue"], "z": xyz("f8")["z"], "confidence": XYZ[:, 0].astype("f4")}
    columns |= {"red": colors["red"], **{k: v for k, v in xyz("f8").items() if k != "z"}}
    cloud = read(write_points(tmp_path / "a.ply", columns | {"green": colors["green"]}, text))
    torch.testing.assert_close(cloud.points, torch.from_numpy(XYZ).float())
    torch.testing.assert_close(cloud.colors, torch.tensor([[1.0, 0.0, 0.2]] * 6))


def test_without_colours_grey_and_with_normals_of_unit_length(tmp_path):
    normals = {f"n{axis}": np.full(6, 2.0, "f4") for axis in "xyz"}
    cloud = read(write_points(tmp_path / "a.ply", xyz() | normals))
    assert (cloud.colors == 0.5).all()
    torch.testing.assert_close(cloud.normals.norm(dim=1), torch.ones(6))


def test_gaussians_as_points_have_their_base_colours(tmp_path):
    draw = torch.Generator().manual_seed(0)
    shapes = [(5, 3), (5, 4), (5, 3), (5,), (5, 1, 3), (5, 15, 3)]
    gaussians = Gaussians(*(torch.randn(shape, generator=draw) for shape in shapes))
    cloud = read(write_ply(tmp_path / "a.ply", gaussians))
    torch.testing.assert_close(cloud.points, gaussians.means)
    torch.testing.assert_close(cloud.colors, base_colors(gaussians).clamp(max=1.0))
    assert len(read_ply(tmp_path / "a.ply")) == 5


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d[:-5], "cut short"),
        (lambda d: d.replace(b"vertex 6", b"vertex 6000000"), "promises at least 18,000,000 bytes"),
        (lambda d: d.replace(b"vertex 6", b"vertex 7"), "cut short"),
        (lambda d: d.replace(b"vertex 6", b"vertex 0"), "no points"),
        (lambda d: d.replace(b"float x", b"float u"), "lacks x. It has u, y, z"),
        (lambda d: d.replace(b"float z", b"float y"), "cannot be read as PLY"),
        (lambda d: d.replace(b"float x", b"flout x"), "cannot be read as PLY"),
        (lambda d: d[:-4] + b"\x00\x00\xc0\x7f", "not finite: 1 of 6 rows, first row 5"),
        (lambda d: d[:-4] + b"\x00\x00\x80\xff", "not finite"),
        (lambda d: d[:-4] + struct.pack("<f", -3e38), r"3e\+38 units away, 1 of 6, first row 5"),
        (lambda d: b"", "is not a PLY file"),
    ],
)
def test_bad_ply_files_are_told(tmp_path, edit, message):
    path = write_points(tmp_path / "a.ply", xyz())
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        read(path)


def test_faces_are_cut_into_triangles(tmp_path):
    header = "ply\nformat ascii 1.0\nelement vertex 4\n" + "".join(f"property float {c}\n" for c in "xyz")
    header += "element face 2\nproperty list uchar int vertex_indices\nend_header\n"
    path = tmp_path / "a.ply"
    path.write_text(header + "0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n3 2 1 0\n")
    (part,) = read_ply_mesh(path)
    assert sorted(part.triangles.tolist()) == [[0, 1, 2], [0, 2, 3], [2, 1, 0]]
    cloud = read(path, fit=False)
    assert len(cloud) == 10 and (cloud.points[:, 2] == 0).all() and len(cloud.points.unique(dim=0)) == 10
    path.write_text(header + "0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n3 2 1 9\n")
    with pytest.raises(UserError, match="vertices that are not in the file"):
        read(path)
    path.write_text(header + "0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n4000000000 2 1\n")
    with pytest.raises(UserError, match="cannot be read as PLY"):
        read(path)


def test_points_keep_their_place_unless_they_are_to_fit(tmp_path, caplog):
    columns = {name: 100 * values for name, values in xyz().items()}
    path = write_points(tmp_path / "a.ply", columns)
    with caplog.at_level("INFO", logger="pytorch_lightning"):
        assert read(path).points.abs().max() > 40
    assert read(path, fit=True, radius=0.6).points.abs().max() == pytest.approx(0.6)


def test_a_million_points(tmp_path):
    many = ball(1_000_000, 1.0, torch.Generator().manual_seed(0)).points.numpy()
    np.savez(tmp_path / "a.npz", points=many)
    assert len(read(tmp_path / "a.npz").densify(4096, 0.1, torch.Generator())) == 4096


# ---- NPZ ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("points", "colors"), ("xyz", "rgb"), ("coords", "colors")])
def test_archives(tmp_path, names):
    np.savez(tmp_path / "a.npz", **{names[0]: XYZ, names[1]: RGB})
    cloud = read(tmp_path / "a.npz")
    torch.testing.assert_close(cloud.points, torch.from_numpy(XYZ).float())
    torch.testing.assert_close(cloud.colors, torch.tensor([[1.0, 0.0, 0.2]] * 6))
    np.savez_compressed(tmp_path / "b.npz", points=np.asfortranarray(XYZ.astype("f2")))
    assert (read(tmp_path / "b.npz").colors == 0.5).all()


def test_point_es_own_archives_are_turned(tmp_path):
    channels = {name: np.full(6, value, "f4") for name, value in (("R", 1.0), ("G", 0.0), ("B", 0.2))}
    np.savez(tmp_path / "a.npz", coords=XYZ.astype("f4"), **channels)
    cloud = read(tmp_path / "a.npz")
    torch.testing.assert_close(
        cloud.points, torch.from_numpy(np.stack([-XYZ[:, 1], XYZ[:, 0], XYZ[:, 2]], 1)).float()
    )
    torch.testing.assert_close(cloud.colors, torch.tensor([[1.0, 0.0, 0.2]] * 6))


def lying_archive(path, header):
    """An archive whose one array says in its header what it likes."""
    text = header.encode() + b" " * (117 - len(header)) + b"\n"
    start = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("points.npy", start + text + XYZ.tobytes())
    return path


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"points": np.array([{}, {}])}, "pickled, which is not read"),
        ({"points": np.array(["a"])}, "numbers are expected"),
        ({"points": np.zeros((0, 3))}, "no points"),
        ({"points": np.zeros((4, 2))}, r"points has shape \[4, 2\]; \[P, 3\] is expected"),
        ({"points": XYZ, "colors": RGB[:3]}, r"colors has shape \[3, 3\]; \[6, 3\] is expected"),
        ({"points": np.full((4, 3), np.nan)}, "not finite: 4 of 4 rows"),
        ({"points": np.full((4, 3), 1e300)}, "not finite"),
        ({"coords": XYZ, "R": RGB[:2, 0], "G": RGB[:, 1], "B": RGB[:, 2]}, "one number for each of 6"),
        ({"vertices": XYZ}, "one of points, xyz, coords is expected. It has vertices"),
        ({}, "It has nothing"),
    ],
)
def test_bad_archives_are_told(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 3), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (7, 3), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 3), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (6, 3), }",
        "{'descr': '<f8', 'fortran_order': False}",
        "{'descr': '<f8', 'fortran_order': (",
        "__import__('os').getpid()",
    ],
)
def test_headers_that_lie_are_told(tmp_path, header):
    with pytest.raises(UserError, match=r"a\.npz"):
        read(lying_archive(tmp_path / "a.npz", header))


# ---- any file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.ply", "a.npz", "a.obj", "a.glb", "a.gltf"])
def test_missing_files(tmp_path, name):
    with pytest.raises(UserError, match=f"There is no file .*{name}"):
        read(tmp_path / name)


def test_other_endings_are_told(tmp_path):
    with pytest.raises(UserError, match=r"must end in \.ply, \.npz, \.obj, \.glb, \.gltf"):
        read(tmp_path / "a.stl")


def test_names_in_archives_that_are_no_text_are_told(tmp_path):
    np.savez(tmp_path / "a.npz", points=XYZ)
    data = (tmp_path / "a.npz").read_bytes()
    flag = data.rindex(b"PK\x01\x02") + 8  # says that names are UTF-8
    spoilt = data[: flag + 1] + b"\x08" + data[flag + 2 :]
    (tmp_path / "a.npz").write_bytes(spoilt.replace(b"points", b"\xff\xfeints"))
    with pytest.raises(UserError, match=r"a\.npz cannot be read as \.npz: 'utf-8'"):
        read(tmp_path / "a.npz")


def test_comments_of_ply_files_may_have_any_letters(tmp_path):
    for text in (False, True):
        data = write_points(tmp_path / "a.ply", xyz(), text).read_bytes()
        (tmp_path / "b.ply").write_bytes(
            data.replace(b"\nelement", "\ncomment Ünïcode ☕\nelement".encode(), 1)
        )
        torch.testing.assert_close(read(tmp_path / "b.ply").points, torch.from_numpy(XYZ).float())


def test_read_points_alone(tmp_path):
    assert len(read_points(write_points(tmp_path / "a.ply", xyz()))) == 6
