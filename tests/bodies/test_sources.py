"""Bodies by name: the user's meshes, SMPL's files, and what is told where they cannot be used."""

from __future__ import annotations

import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree

import threestudio
import threestudio_lucid  # noqa: F401  (registers lucid-point-body)
from threestudio_lucid.bodies import smpl
from threestudio_lucid.bodies.mannequin import mannequin
from threestudio_lucid.bodies.parts import LIMBS
from threestudio_lucid.bodies.sources import body_from_config, make_body, split_model
from threestudio_lucid.errors import UserError
from threestudio_lucid.points.meshes import sample_surface


def save_mannequin(path, pose="standing", scale=2.5, shift=(0.3, -4.0, 10.0), turn=None):
    """The mannequin as somebody's file, in other axes, units and place."""
    body = mannequin(pose)
    vertices = body.vertices if turn is None else body.vertices @ np.asarray(turn, np.float32).T
    mesh = trimesh.Trimesh(scale * vertices + np.array(shift), body.faces, process=False)
    mesh.export(path)
    return path


# --- meshes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pose", ["standing", "walking", "t", "sitting"])
def test_a_mesh_stands_where_the_mannequin_does_and_has_its_parts(tmp_path, pose):
    path = save_mannequin(tmp_path / "body.obj", pose)
    body, guide = make_body(f"file:{path}", pose, 1.0), make_body("mannequin", pose, 1.0)
    assert np.allclose(body.vertices, guide.vertices, atol=1e-4)
    seen = ~guide.hidden
    assert (body.labels[seen] == guide.labels[seen]).mean() > 0.97
    assert np.abs(body.uv - guide.uv)[seen].mean() < 0.1 and 0 <= body.uv.min() <= body.uv.max() <= 1


def test_axes_of_files(tmp_path):
    """GLB is up +y, front +z; an OBJ in other axes is told so."""
    to_gltf = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    glb = save_mannequin(tmp_path / "body.glb", turn=to_gltf)
    guide = make_body("mannequin", height=1.2)
    assert np.allclose(make_body(str(glb), height=1.2).vertices, guide.vertices, atol=1e-4)
    obj = save_mannequin(tmp_path / "body.obj", turn=to_gltf)
    with pytest.raises(UserError, match=r"stands up.*body\.up=\+y"):
        make_body(f"file:{obj}", "t", height=1.2)
    told = make_body(f"file:{obj}", height=1.2, up="+y", front="+z")
    assert np.allclose(told.vertices, guide.vertices, atol=1e-4)


def test_meshes_that_are_no_bodies(tmp_path):
    (tmp_path / "points.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 1\n")
    trimesh.creation.box((1609.0, 1.0, 1.0)).export(tmp_path / "mile.obj")
    (tmp_path / "torn.glb").write_bytes(b"glTF" + bytes(40))
    for name, words in (
        ("points.obj", "no triangles"),
        ("mile.obj", "1.61e+03 wide and 1 tall"),
        ("torn.glb", "torn.glb"),
        ("nobody.obj", "There is no file"),
        ("body.fbx", "must end in .obj, .glb or .gltf"),
    ):
        with pytest.raises(UserError) as caught:
            make_body(f"file:{tmp_path / name}")
        assert words in str(caught.value)


# --- SMPL ---------------------------------------------------------------------------------------------------


def fake_smpl(kind: str) -> dict[str, np.ndarray]:
    """A model with SMPL's arrays, its surface a small ball round the middle of each bone's start."""
    joints = {"smpl": 24, "smplx": 55}[kind]
    parents = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19]
    at = np.zeros((joints, 3))  # y up, z to the front, x to the left
    steps = {1: (0.1, -0.1, 0), 3: (0, 0.12, 0), 4: (0, -0.4, 0), 6: (0, 0.12, 0), 7: (0, -0.4, 0)}
    steps |= {9: (0, 0.1, 0), 10: (0, -0.05, 0.15), 12: (0, 0.2, 0), 13: (0.08, 0.12, 0), 15: (0, 0.12, 0)}
    steps |= {16: (0.12, 0, 0), 18: (0.25, 0, 0), 20: (0.25, 0, 0)}
    for k in range(1, 22):
        step = np.array(steps[k] if k in steps else np.array(steps[k - 1]) * (-1, 1, 1), float)
        at[k] = at[parents[k]] + step
    rest = list(range(22, joints))
    if kind == "smpl":
        parents += [20, 21]
    else:
        parents += [15] * 3 + [20] * 15 + [21] * 15
    for k in rest:
        at[k] = at[parents[k]] + (0.05 * np.sign(at[parents[k]][0]), 0.0, 0.05)
    ball = trimesh.creation.icosphere(1, 0.06)
    n = len(ball.vertices)
    vertices = np.concatenate([ball.vertices + place for place in at])
    weights = np.repeat(np.eye(joints), n, axis=0)
    return {
        "v_template": vertices,
        "f": np.concatenate([ball.faces + k * n for k in range(joints)]),
        "shapedirs": np.stack([vertices, np.ones_like(vertices)], axis=-1)[..., :2] * 0.1,
        "posedirs": np.zeros((len(vertices), 3, 9 * (joints - 1))),
        "J_regressor": weights.T / n,
        "kintree_table": np.array([[2**32 - 1, *parents[1:]], list(range(joints))], np.int64),
        "weights": weights,
    }


@pytest.mark.parametrize("kind", ["smpl", "smplx"])
def test_smpl_takes_our_poses_and_parts(tmp_path, kind):
    pytest.importorskip("smplx")
    np.savez(tmp_path / f"{kind.upper()}_NEUTRAL.npz", **fake_smpl(kind))
    bodies = {pose: make_body(f"{kind}:{tmp_path}", pose, 1.7) for pose in ("t", "arms up", "walking")}

    def middle(pose, *numbers):
        body = bodies[pose]
        return body.corners[np.isin(body.labels, numbers)].mean(axis=(0, 1))

    rest = bodies["t"]
    assert rest.height == pytest.approx(1.7, abs=1e-4)
    assert set(rest.labels) == set(range(1, 25))
    assert middle("t", 4)[1] > 0.4 and middle("t", 3)[1] < -0.4  # left hand at +y
    assert middle("t", 5)[0] > 0.02 and middle("t", 5)[1] > 0.05  # left toes forwards
    assert middle("t", 2)[0] > middle("t", 1)[0]
    assert middle("t", *LIMBS["head"])[2] > 0.5
    assert middle("arms up", 4)[2] > middle("t", 4)[2] + 0.3
    assert middle("walking", 12, 14)[0] > 0.03 > -0.03 > middle("walking", 11, 13)[0]
    larger = body_from_config({"model": f"{kind}:{tmp_path}", "shape": [0, 1]}, "x")
    assert larger.vertices.shape == rest.vertices.shape
    with pytest.raises(UserError, match="shape has 3 numbers"):
        make_body(f"{kind}:{tmp_path}", shape=[0, 0, 0])


def test_smpl_files_that_are_missing_pickled_or_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(smpl, "_skinning", lambda: None)

    def told(path="", kind="smplx", **kwargs):
        with pytest.raises(UserError) as caught:
            make_body(f"{kind}:{tmp_path / path}", **kwargs)
        return str(caught.value)

    message = told()
    assert "SMPLX_NEUTRAL.npz" in message and "https://smpl-x.is.tue.mpg.de" in message
    assert "SMPLX_FEMALE.npz" in told(gender="female")
    assert "neutral, female, male" in told(gender="other")
    (tmp_path / "SMPL_NEUTRAL.pkl").write_bytes(pickle.dumps({}))
    for path in ("", "SMPL_NEUTRAL.pkl"):
        assert "pickles are not loaded" in told(path, "smpl")
    file = tmp_path / "SMPLX_NEUTRAL.npz"
    file.write_bytes(b"no archive")
    assert "cannot be read as a body model" in told()
    model = fake_smpl("smplx")
    np.savez(file, **{k: v for k, v in model.items() if k != "weights"})
    assert "lacks weights" in told()
    np.savez(file, **model | {"weights": model["weights"][:-1]})
    assert "do not fit together" in told()
    np.savez(file, **model | {"weights": np.array([{}], dtype=object)})
    assert "weights.npy is pickled" in told()


SPOILT_SMPL = {
    "a joint before its parent": ("kintree_table", lambda a: a[:, ::-1], "are no tree"),
    "a face of no vertices": ("f", lambda a: a + 9_999, "are not of its 2310 vertices"),
    "faces that are no integers": ("f", lambda a: a + 0.5, "are not of its"),
    "not finite": ("v_template", lambda a: a * np.nan, "not finite, or very large"),
    "infinite weights": ("weights", lambda a: a / 0.0, "not finite, or very large"),
    "as large as a planet": ("v_template", lambda a: a * 1e7, "not finite, or very large"),
    "of words": ("shapedirs", lambda a: a.astype("U8"), "numbers are expected"),
    "too many vertices": ("v_template", lambda a: np.zeros((20_000, 3)), "at most 393,216 are read"),
    "too many shapes": ("shapedirs", lambda a: np.zeros((2310, 3, 3700)), "at most 201,326,592 are read"),
    "other poses": ("posedirs", lambda a: a[..., :9], r"do not fit together \(posedirs\)"),
    "no faces": ("f", lambda a: a[:0], "0 faces"),
    "one number": ("weights", lambda a: a[0, 0], "cannot be read as a body model"),
}


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize(("key", "spoil", "message"), SPOILT_SMPL.values(), ids=SPOILT_SMPL)
def test_smpl_files_of_another_size_than_bodies(tmp_path, key, spoil, message):
    model = fake_smpl("smplx")
    np.savez_compressed(tmp_path / "SMPLX_NEUTRAL.npz", **model | {key: spoil(model[key])})
    with pytest.raises(UserError, match=message):
        smpl.read_model(tmp_path / "SMPLX_NEUTRAL.npz")


def test_an_smpl_body_of_no_height(tmp_path):
    pytest.importorskip("smplx")
    model = fake_smpl("smplx")
    np.savez(tmp_path / "SMPLX_NEUTRAL.npz", **model | {"v_template": model["v_template"] * [1, 0, 1]})
    with pytest.raises(UserError, match="makes no body"):
        make_body(f"smplx:{tmp_path}")


def test_an_smpl_file_that_promises_more_than_there_is_asks_for_no_memory(tmp_path):
    """Its header says 11 GB; the archive has 40 bytes."""
    file, model = tmp_path / "SMPL_NEUTRAL.npz", fake_smpl("smpl")
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in model.items():
            with archive.open(f"{name}.npy", "w") as member:
                if name == "shapedirs":
                    header = {"descr": "<f8", "fortran_order": False, "shape": (10_475, 3, 45_000)}
                    np.lib.format.write_array_header_1_0(member, header)
                    member.write(bytes(40))
                else:
                    np.lib.format.write_array(member, array)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"shapedirs\.npy says it is 10475 x 3 x 45000"):
        smpl.read_model(file)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        # of the archive's list: another way of packing, and a password
        lambda data: _with_bytes(data, b"PK\x01\x02", 10, b"\x63\x00"),
        lambda data: _with_bytes(data, b"PK\x01\x02", 8, b"\x01\x00"),
        lambda data: data.replace(b"\x93NUMPY", b"\x93NUMPX"),
    ],
    ids=["cut", "packing", "password", "magic"],
)
def test_damaged_smpl_archives(tmp_path, spoil):
    file = tmp_path / "SMPL_NEUTRAL.npz"
    np.savez(file, **fake_smpl("smpl"))
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(UserError, match="cannot be read"):
        smpl.read_model(file)


def _with_bytes(data: bytes, mark: bytes, offset: int, new: bytes) -> bytes:
    """With other bytes so far behind the first mark."""
    at = data.index(mark) + offset
    return data[:at] + new + data[at + len(new) :]


def test_without_the_package_it_says_which(tmp_path, monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("smplx"):
            raise ImportError("No module named 'smplx'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install smplx"):
        make_body(f"smplx:{tmp_path}")


# --- names and blocks ---------------------------------------------------------------------------------------


def test_names():
    assert split_model("mannequin") == ("mannequin", "")
    assert split_model("smplx:models/x") == ("smplx", "models/x")
    assert split_model("a/b.GLB") == ("file", "a/b.GLB")
    with pytest.raises(UserError, match=r"Did you mean 'mannequin'.*smplx:FOLDER.*file:PATH"):
        split_model("manequin")
    with pytest.raises(UserError, match="names no file"):
        split_model("smpl:")


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("mannequin", "mapping"),
        ({"poze": "t"}, "'pose'"),
        ({"model": "mannequin", "gender": "male"}, "smpl and smplx"),
        ({"model": "mannequin", "up": "+y"}, "up is of file"),
        ({"height": 0.0}, "above 0"),
        ({"height": "tall"}, "number"),
        ({"pose": "lying"}, "There are: standing"),
    ],
)
def test_mistakes_in_a_block(block, words):
    with pytest.raises(UserError) as caught:
        body_from_config(block, "system.body")
    assert words in str(caught.value)


def test_points_on_a_body():
    kind = threestudio.find("lucid-point-body")
    config = {"value": "mannequin", "num_points": 3000, "pose": "walking", "height": 1.0, "seed": 1}
    cloud = kind(config)()
    assert len(cloud) == 3000 and torch.equal(cloud.points, kind(config)().points)
    body = make_body("mannequin", "walking", 1.0)
    low, high = body.vertices.min(axis=0), body.vertices.max(axis=0)
    assert np.allclose(cloud.points.amin(0), low, atol=0.02) and np.allclose(
        cloud.points.amax(0), high, atol=0.02
    )
    # on the surface, and none in the middle of the trunk
    corners = body.corners[~body.hidden].astype(np.float64)
    dense = sample_surface(corners, np.zeros_like(corners), 100_000, torch.Generator().manual_seed(9))
    assert cKDTree(dense.points.numpy()).query(cloud.points.numpy())[0].max() < 0.02
    chest = mannequin("walking").scaled(1.0 / mannequin("t").height).corners[mannequin("t").labels <= 2]
    middle = torch.from_numpy(chest.mean(axis=(0, 1))).float()
    assert (cloud.points - middle).norm(dim=1).min() > 0.05
    assert kind(config | {"fit": True, "radius": 0.3})().points.abs().amax().item() == pytest.approx(
        0.3, abs=1e-4
    )
    block = {"model": "mannequin", "pose": "walking", "height": 1.0}
    told = kind({"block": block, "num_points": 3000, "seed": 1})()
    assert torch.equal(told.points, cloud.points)
    for wrong, words in (
        ({"value": "", "pose": "t"}, "names none"),
        ({"block": block, "value": "mannequin"}, "tells the body already"),
        ({"block": block, "pose": "t"}, "tells the body already"),
    ):
        with pytest.raises(UserError, match=words):
            kind({"num_points": 10} | wrong)
    with pytest.raises(UserError, match="walking"):
        kind(config | {"pose": "flying"})
