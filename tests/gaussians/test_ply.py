"""3DGS files: the layout others read, round trips, and files that are not what they say."""

import math
import resource
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plyfile import PlyData, PlyElement

from tests.fuzzing.shapes import bounds, packed_ply
from threestudio_lucid.errors import UserError
from threestudio_lucid.files import OutputError
from threestudio_lucid.gaussians.cloud import PARAMETERS, Gaussians, base_colors, opacities
from threestudio_lucid.gaussians.ply import layout, read_ply, write_ply
from threestudio_lucid.points.files import is_gaussian_ply, read_points


def some_gaussians(n=5, degree=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    k = (degree + 1) ** 2 - 1
    shapes = [(n, 3), (n, 4), (n, 3), (n,), (n, 1, 3), (n, k, 3)]
    return Gaussians(*(torch.randn(shape, generator=g) for shape in shapes))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(0, 3), st.integers(0, 99))
def test_round_trip_is_exact(tmp_path_factory, n, degree, seed):
    path = tmp_path_factory.mktemp("ply") / "a.ply"
    before = some_gaussians(n, degree, seed)
    after = read_ply(write_ply(path, before))
    for name in PARAMETERS:
        assert torch.equal(getattr(before, name), getattr(after, name)), name


def test_bytes_are_the_layout_of_3dgs(tmp_path):
    g = some_gaussians(1, 1)
    data = write_ply(tmp_path / "a.ply", g).read_bytes()
    header, body = data.split(b"end_header\n")
    names = [line.split()[2].decode() for line in header.splitlines() if line.startswith(b"property float ")]
    assert names == [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
        *(f"f_rest_{i}" for i in range(9)),
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]
    assert b"format binary_little_endian 1.0" in header
    red, green, blue = g.sh_rest[0].T.tolist()
    expected = [*g.means[0].tolist(), 0, 0, 0, *g.sh_dc[0, 0].tolist(), *red, *green, *blue]
    expected += [g.logit_opacities[0].item(), *g.log_scales[0].tolist(), *g.quats[0].tolist()]
    assert body == struct.pack(f"<{len(expected)}f", *expected)


def test_same_gaussians_same_bytes(tmp_path):
    a, b = (write_ply(tmp_path / name, some_gaussians()).read_bytes() for name in ("a.ply", "b.ply"))
    assert a == b
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ply", "b.ply"]  # no temporary file left


def test_number_of_rest_properties_is_what_3dgs_asserts():
    for degree in range(4):
        extra = [name for name in layout(degree) if name.startswith("f_rest_")]
        assert len(extra) == 3 * (degree + 1) ** 2 - 3


def test_reads_other_orders_and_ascii(tmp_path):
    g = some_gaussians(3, 0)
    ply = PlyData.read(write_ply(tmp_path / "a.ply", g))
    rows = ply["vertex"].data
    shuffled = rows[list(reversed(rows.dtype.names))]
    repacked = np.array([tuple(r) for r in shuffled], dtype=[(n, "f8") for n in shuffled.dtype.names])
    PlyData([PlyElement.describe(repacked, "vertex")], text=True).write(tmp_path / "b.ply")
    other = read_ply(tmp_path / "b.ply")
    for name in PARAMETERS:
        torch.testing.assert_close(getattr(other, name), getattr(g, name))


def damaged(tmp_path, edit):
    path = write_ply(tmp_path / "a.ply", some_gaussians(4, 0))
    path.write_bytes(edit(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d[:-10], "damaged or cut short"),
        (lambda d: b"obj" + d[3:], "is not a PLY file"),
        (lambda d: b"", "is not a PLY file"),
        (lambda d: d.replace(b"end_header", b"end_hesder"), "is not a PLY file"),
        (lambda d: d.replace(b"float rot_3", b"float rut_3"), "not a Gaussian splat: it lacks rot_3"),
        (lambda d: d.replace(b"float nx", b"float f_rest_0"), "has 1 f_rest properties"),
        (lambda d: d.replace(b"vertex 4", b"vertex 99999999999"), "at most 10000000 are read"),
        (lambda d: d.replace(b"vertex 4", b"vertex -4"), "says it has -4 rows"),
        (lambda d: d.replace(b"element vertex", b"element vertxx"), "cannot be read as PLY"),
        (lambda d: d[:-4] + struct.pack("<f", math.nan), "not finite: 1 of 4 rows, first row 3"),
        (lambda d: d[:-28] + struct.pack("<f", 88.0) + d[-24:], r"a splat of size exp\(88\)"),
        (lambda d: d[:-28] + struct.pack("<f", math.inf) + d[-24:], "not finite: 1 of 4 rows, first row 3"),
        (lambda d: d[:-68] + struct.pack("<f", 3e38) + d[-64:], r"3e\+38 units away, 1 of 4, first row 3"),
        (lambda d: d.replace(b"vertex 4", b"vertex 0"), "holds no points"),
        (lambda d: d.replace(b"property float rot_3", b"property list uchar float rot_3"), "lists|cut short"),
    ],
)
def test_damaged_files_are_told_in_one_message(tmp_path, edit, message):
    with pytest.raises(UserError, match=message):
        read_ply(damaged(tmp_path, edit))


def rewritten(path, **columns):
    """A splat file, some of whose columns have other values in some rows: name={row: value}."""
    rows = np.array(PlyData.read(path)["vertex"].data)
    for name, values in columns.items():
        for row, value in values.items():
            rows[name][row] = value
    PlyData([PlyElement.describe(rows, "vertex")], byte_order="<").write(path)
    return path


def test_infinite_opacities_become_finite_and_are_told(tmp_path, told):
    path = rewritten(write_ply(tmp_path / "a.ply", g := some_gaussians()), opacity={1: np.inf, 3: -np.inf})
    read = read_ply(path)
    torch.testing.assert_close(read.logit_opacities[[0, 2, 4]], g.logit_opacities[[0, 2, 4]], rtol=0, atol=0)
    assert torch.equal(opacities(read)[[1, 3]] > 0.999, torch.tensor([True, False]))
    assert opacities(read)[3] < 0.001 and read.logit_opacities.isfinite().all()
    (said,) = told
    assert "2 of 5 opacities are infinite" in said


def test_splats_without_extent_are_left_out_and_told(tmp_path, told):
    zero = {f"rot_{k}": {2: 0.0} for k in range(4)}
    path = rewritten(write_ply(tmp_path / "a.ply", g := some_gaussians()), scale_1={1: -np.inf}, **zero)
    read = read_ply(path)
    for name in PARAMETERS:
        assert torch.equal(getattr(read, name), getattr(g, name)[[0, 3, 4]]), name
    (said,) = told
    assert "2 of 5 splats are left out" in said and "row 1" in said
    rewritten(path, scale_0=dict.fromkeys(range(5), -np.inf))
    with pytest.raises(UserError, match="nothing to see"):
        read_ply(path)


def test_quaternions_of_any_length_have_one_that_float32_can_square(tmp_path):
    path = write_ply(tmp_path / "a.ply", g := some_gaussians())
    long = {f"rot_{k}": {0: 1e30 * float(g.quats[0, k]), 1: 1e-30 * float(g.quats[1, k])} for k in range(4)}
    read = read_ply(rewritten(path, **long))
    unit = torch.nn.functional.normalize(g.quats[:2], dim=1)
    torch.testing.assert_close(read.quats[:2], unit)
    assert torch.equal(read.quats[2:], g.quats[2:])


# ---- SuperSplat's compressed layout ------------------------------------------------------------------------


def word(*fields):
    """Bits of a word from the highest down: (value, how many bits)."""
    out = 0
    for value, bits in fields:
        out = out << bits | value
    return out


def test_compressed_splats_are_unpacked(tmp_path):
    """By hand: ends and middles of each field, the largest component of each rotation left out in turn."""
    place = word((2047, 11), (0, 10), (2047, 11))
    size = word((0, 11), (1023, 10), (0, 11))
    color = word((255, 8), (0, 8), (51, 8), (204, 8))
    turns = [word((k, 2), (1023, 10), (0, 10), (512, 10)) for k in range(4)]
    words = np.array([(place, turn, size, color) for turn in turns])
    sh = np.tile(np.array([0, 255, 127, 128, 64, 192, 1, 254, 2], "u1"), (4, 1))
    path = packed_ply(tmp_path / "a.ply", words, bounds(min_x=2.0, max_x=4.0, max_scale_y=-1.0), sh)
    assert is_gaussian_ply(path)
    read = read_ply(path)
    torch.testing.assert_close(read.means, torch.tensor([[4.0, -1.0, 1.0]] * 4))
    torch.testing.assert_close(read.log_scales, torch.tensor([[-4.0, -1.0, -4.0]] * 4))
    torch.testing.assert_close(base_colors(read), torch.tensor([[1.0, 0.0, 0.2]] * 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(opacities(read), torch.full((4,), 0.8))
    a, b, c = 0.5**0.5, -(0.5**0.5), 2**0.5 * (512 / 1023 - 0.5)
    left_out = [[0, a, b, c], [a, 0, b, c], [a, b, 0, c], [a, b, c, 0]]
    torch.testing.assert_close(read.quats, torch.tensor(left_out), atol=1e-6, rtol=0)
    expected = [-4, 4, 8 * (127.5 / 256 - 0.5), 8 * (128.5 / 256 - 0.5)]
    torch.testing.assert_close(read.sh_rest[0].T.flatten()[:4], torch.tensor(expected))
    assert read.sh_rest.shape == (4, 3, 3)
    cloud = read_points(path)
    torch.testing.assert_close(cloud.points, read.means)
    torch.testing.assert_close(cloud.colors, torch.tensor([[1.0, 0.0, 0.2]] * 4), atol=1e-6, rtol=0)


def test_compressed_splats_have_chunks_of_256_and_colours_between_bounds(tmp_path):
    words = np.zeros((300, 4), np.int64)
    words[:, 3] = word((255, 8), (0, 8), (0, 8), (255, 8))
    edges = bounds(min_r=0.0, min_g=0.25, min_b=0.5, max_r=0.5, max_g=1.0, max_b=1.0)
    with pytest.raises(UserError, match="1 chunks for 300 splats"):
        read_ply(packed_ply(tmp_path / "a.ply", words, edges))
    read = read_ply(packed_ply(tmp_path / "a.ply", words[:256], edges))
    torch.testing.assert_close(base_colors(read)[0], torch.tensor([0.5, 0.25, 0.5]))
    assert read.logit_opacities.isfinite().all() and (opacities(read) > 0.998).all()


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        read_ply(tmp_path / "none.ply")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_ply(tmp_path / "a.ply", some_gaussians())
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # stands for a full disk
    try:
        with pytest.raises(OutputError, match=r"a\.ply cannot be written"):
            write_ply(path, some_gaussians(900))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


def test_tells_splats_from_point_clouds(tmp_path):
    rows = np.array(
        [(0, 0, 1, 255, 0, 51)],
        dtype=[*((c, "f4") for c in "xyz"), *((c, "u1") for c in ("red", "green", "blue"))],
    )
    PlyData([PlyElement.describe(rows, "vertex")]).write(tmp_path / "p.ply")
    assert not is_gaussian_ply(tmp_path / "p.ply")
    assert is_gaussian_ply(write_ply(tmp_path / "g.ply", some_gaussians()))
    cloud = read_points(tmp_path / "p.ply")
    torch.testing.assert_close(cloud.colors, torch.tensor([[1.0, 0.0, 0.2]]))
    assert cloud.normals is None
    assert cloud.points.tolist() == [[0.0, 0.0, 1.0]]
