"""SMPL and SMPL-X (Loper et al. 2015, Pavlakos et al. 2019), from files that the user has the licence for.

They cannot be bundled: register at https://smpl.is.tue.mpg.de or https://smpl-x.is.tue.mpg.de and download
them. SMPL-X comes as .npz. SMPL comes as .pkl, which is not read, for unpickling runs what a file says;
whoever trusts it converts it once:

    import numpy as np, pickle                       # and pip install chumpy, which old files need
    data = pickle.load(open("SMPL_NEUTRAL.pkl", "rb"), encoding="latin1")
    dense = lambda x: np.asarray(x.todense() if hasattr(x, "todense") else x)
    keys = ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "kintree_table", "weights")
    np.savez("SMPL_NEUTRAL.npz", **{key: dense(data[key]) for key in keys})

The skinning is the `smplx` package's (pip install smplx).
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from ..damaged import reading
from ..errors import UserError, check_choice
from ..points.frame import GLTF
from ..points.npz import read_array
from .body import Body
from .mannequin import Pose, find_pose, rotation
from .parts import NAMES, label_faces

GENDERS = ("neutral", "female", "male")
# SMPL has 6,890 vertices, 24 joints and up to 300 shapes, SMPL-X 10,475, 55 and 400.
MAX_VERTICES, MAX_JOINTS, MAX_SHAPES = 16_384, 64, 512
MAX_NUMBER = 1e4  # in metres: whatever is larger is no body
# Our joints, by their numbers in both models. (We have no collars and two of the four joints of the back.)
_JOINTS = {
    "pelvis": 0,
    "left hip": 1,
    "right hip": 2,
    "chest": 6,
    "left knee": 4,
    "right knee": 5,
    "left ankle": 7,
    "right ankle": 8,
    "neck": 12,
    "head": 15,
    "left shoulder": 16,
    "right shoulder": 17,
    "left elbow": 18,
    "right elbow": 19,
    "left wrist": 20,
    "right wrist": 21,
}
# Limbs of the first 22 joints, which both models share; SMPL-X adds jaw, eyes and 15 joints of each hand.
_LIMBS = (
    *("torso", "left upper leg", "right upper leg", "torso", "left lower leg", "right lower leg", "torso"),
    *("left foot", "right foot", "torso", "left foot", "right foot", "head", "torso", "torso", "head"),
    *("left upper arm", "right upper arm", "left lower arm", "right lower arm", "left hand", "right hand"),
)
_KEYS = ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "kintree_table", "weights")
_HELP = (
    "SMPL's files cannot be bundled: download them from https://smpl-x.is.tue.mpg.de (SMPL-X, .npz) or "
    "https://smpl.is.tue.mpg.de, and give the folder or file: system.body.model=smplx:FOLDER. Without them: "
    "system.body.model=mannequin."
)


def smpl_body(
    path: str | Path,
    pose: str | Pose,
    height: float,
    *,
    kind: str,
    shape: np.ndarray,
    gender: str = "neutral",
) -> Body:
    """An SMPL or SMPL-X body in one of our poses, standing where the mannequin does.

    Args:
        path: an .npz file, or a folder that holds it, as `SMPLX_NEUTRAL.npz` or in `smplx/`.
        height: when standing, world units.
        kind: "smpl" or "smplx".
        shape: the first betas, [n].

    Raises:
        UserError: no `smplx` package; files missing, pickled or damaged; an unknown pose.
    """
    turns = find_pose(pose)
    check_choice("system.body.gender", gender, GENDERS)
    lbs = _skinning()
    file = find_file(Path(path).expanduser(), kind, gender)
    data = read_model(file)
    if len(shape) > data["shapedirs"].shape[-1]:
        raise UserError(
            f"system.body.shape has {len(shape)} numbers; {file} takes {data['shapedirs'].shape[-1]}."
        )

    rest = _skin(lbs, data, shape, {})
    posed = _skin(lbs, data, shape, turns)
    size = float(np.ptp(rest[0][:, 2]))
    if not (0.0 < size < MAX_NUMBER and np.isfinite(posed[0]).all()):
        raise UserError(
            f"{file} makes no body with system.body.shape {shape.tolist()}: it is {size:.3g} tall."
        )
    faces = np.asarray(data["f"]).astype(np.int32)
    labels, uv = label_faces(rest[0][faces], _limb_of_faces(data, faces), _axes(*rest))
    scale = height / size
    # as the mannequin: the pelvis above the origin, half of the standing body below it
    low, high = rest[0][:, 2].min(), rest[0][:, 2].max()
    middle = np.array([*rest[1][0, :2], 0.5 * (low + high)])
    vertices = ((posed[0] - middle) * scale).astype(np.float32)
    return Body(vertices, faces, labels, uv, np.zeros(len(faces), bool))


def _skinning():
    try:
        from smplx.lbs import lbs
    except ImportError as error:
        raise UserError(f"SMPL needs the package smplx ({error}): pip install smplx. {_HELP}") from None
    return lbs


def find_file(path: Path, kind: str, gender: str) -> Path:
    """The .npz file of a model.

    Raises:
        UserError: there is none; told apart from one that is pickled.
    """
    stem = f"{kind.upper()}_{gender.upper()}"
    is_file = bool(path.suffix) and not path.is_dir()
    candidates = [path] if is_file else [path / f"{stem}.npz", path / kind / f"{stem}.npz"]
    if is_file and path.suffix == ".pkl":
        candidates = []
    found = next((file for file in candidates if file.is_file() and file.suffix == ".npz"), None)
    if found is not None:
        return found
    pickled = [path] if not candidates else [file.with_suffix(".pkl") for file in candidates]
    if there := [file for file in pickled if file.is_file()]:
        raise UserError(
            f"{there[0]} is pickled, and pickles are not loaded, for they can run code. If you trust it, "
            "convert it to .npz: the lines at the top of custom/threestudio-lucid/bodies/smpl.py do it."
        )
    raise UserError(f"There is no {' or '.join(map(str, candidates or [path]))}. {_HELP}")


def read_model(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a model.

    Raises:
        UserError: damaged, pickled inside, larger than a body model is, or of other shapes.
    """
    with reading(file, "a body model", _HELP), zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if missing := [key for key in _KEYS if key not in members]:
            raise UserError(f"{file} lacks {', '.join(missing)}: it is no SMPL or SMPL-X model. {_HELP}")
        most = {key: 8 * int(np.prod(shape)) for key, shape in _shapes(MAX_VERTICES, MAX_JOINTS).items()}
        data = {key: read_array(file, archive, members[key], most[key]) for key in _KEYS}
        _check_model(file, data)
    return data


def _shapes(vertices: int, joints: int, shapes: int = MAX_SHAPES) -> dict[str, tuple[int, ...]]:
    return {
        "v_template": (vertices, 3),
        "f": (3 * vertices, 3),
        "shapedirs": (vertices, 3, shapes),
        "posedirs": (vertices, 3, 9 * (joints - 1)),
        "J_regressor": (joints, vertices),
        "kintree_table": (2, joints),
        "weights": (vertices, joints),
    }


def _check_model(file: Path, data: dict[str, np.ndarray]) -> None:
    """Raises UserError unless the arrays are those of one body, standing, whose skeleton is a tree."""
    vertices, joints = len(data["v_template"]), data["weights"].shape[-1]
    shapes, faces, kintree = data["shapedirs"].shape[-1], data["f"], data["kintree_table"]
    wanted = _shapes(vertices, joints, shapes) | {"f": (len(faces), 3)}
    wrong = [key for key, shape in wanted.items() if data[key].shape != shape]
    if wrong or joints < 24 or not shapes or not len(faces):
        told = (
            f" ({', '.join(wrong)})" if wrong else f": {joints} joints, {shapes} shapes, {len(faces)} faces"
        )
        raise UserError(f"{file} is no SMPL or SMPL-X model: its arrays do not fit together{told}.")
    parents = kintree[0, 1:].astype(np.int64)
    if not ((parents >= 0) & (parents < np.arange(1, joints))).all():
        raise UserError(f"{file} is no SMPL or SMPL-X model: its joints (kintree_table) are no tree.")
    if faces.dtype.kind == "f" or faces.min() < 0 or faces.max() >= vertices:
        raise UserError(
            f"{file} is no SMPL or SMPL-X model: its faces (f) are not of its {vertices} vertices."
        )
    for key, array in data.items():
        if key not in ("f", "kintree_table") and not (np.abs(array) < MAX_NUMBER).all():
            raise UserError(f"{file} is damaged: {key} holds numbers that are not finite, or very large.")


def _skin(lbs, data: dict[str, np.ndarray], shape: np.ndarray, turns: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and joints [J, 3] in our axes and the model's metres."""
    axes = GLTF.to_world().double().numpy()  # theirs: y up, z to the front
    joints = data["weights"].shape[-1]
    rotations = torch.eye(3).repeat(1, joints, 1, 1)
    for name, turn in turns.items():
        rotations[0, _JOINTS[name]] = torch.from_numpy(axes.T @ rotation(*turn) @ axes).float()
    betas = torch.zeros(1, data["shapedirs"].shape[-1])
    betas[0, : len(shape)] = torch.from_numpy(shape).float()
    tensor = {
        key: torch.from_numpy(np.asarray(data[key], np.float32)) for key in _KEYS if key != "kintree_table"
    }
    parents = torch.from_numpy(data["kintree_table"][0].astype(np.int64))
    parents[0] = -1
    posedirs = tensor["posedirs"].reshape(-1, tensor["posedirs"].shape[-1]).T
    vertices, places = lbs(
        betas,
        rotations,
        tensor["v_template"],
        tensor["shapedirs"],
        posedirs,
        tensor["J_regressor"],
        parents,
        tensor["weights"],
        pose2rot=False,
    )
    return vertices[0].double().numpy() @ axes.T, places[0].double().numpy() @ axes.T


def _limb_of_faces(data: dict[str, np.ndarray], faces: np.ndarray) -> np.ndarray:
    """[F], positions in `parts.NAMES`: of the joint that most of a face's weight is on."""
    joint = data["weights"][faces].sum(axis=1).argmax(axis=1)
    limbs = [*_LIMBS]
    rest = data["weights"].shape[-1] - len(limbs)
    if rest == 2:  # SMPL: the hands
        limbs += ["left hand", "right hand"]
    else:  # SMPL-X: jaw, eyes, fingers
        limbs += (
            ["head"] * 3 + ["left hand"] * ((rest - 3) // 2) + ["right hand"] * (rest - 3 - (rest - 3) // 2)
        )
    return np.array([NAMES.index(limb) for limb in limbs])[joint]


def _axes(vertices: np.ndarray, joints: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    at = {name: joints[k] for name, k in _JOINTS.items()}
    top = np.array([*at["head"][:2], vertices[:, 2].max()])
    axes = {"torso": (at["pelvis"], at["neck"]), "head": (at["neck"], top)}
    for side, toe in (("left", 10), ("right", 11)):
        joint = {j: at[f"{side} {j}"] for j in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")}
        axes |= {
            f"{side} upper arm": (joint["shoulder"], joint["elbow"]),
            f"{side} lower arm": (joint["elbow"], joint["wrist"]),
            f"{side} hand": (joint["wrist"], 1.5 * joint["wrist"] - 0.5 * joint["elbow"]),
            f"{side} upper leg": (joint["hip"], joint["knee"]),
            f"{side} lower leg": (joint["knee"], joint["ankle"]),
            f"{side} foot": (joint["ankle"], joints[toe]),
        }
    return axes
