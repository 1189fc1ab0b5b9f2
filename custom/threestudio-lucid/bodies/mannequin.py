"""The bundled mannequin: ellipsoids, rounded boxes and tapering rods on a skeleton.

Its proportions are those of the person that the bundled prior paints: 1.83 units from sole to crown, the
pelvis a little below the origin. At rest it stands with its arms out (T), facing +x, its left side at +y,
and every joint's axes are the world's. A pose turns joints, and forward kinematics carries along what hangs
on them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError, closest
from .body import Body
from .parts import NAMES, label_faces

# Joint: (its parent, its place relative to the parent at rest). Parents come before their children.
SKELETON: dict[str, tuple[str | None, tuple[float, float, float]]] = {
    "pelvis": (None, (0.0, 0.0, -0.14)),
    "chest": ("pelvis", (0.0, 0.0, 0.26)),
    "neck": ("chest", (0.0, 0.0, 0.28)),
    "head": ("neck", (0.0, 0.0, 0.26)),
    "left shoulder": ("chest", (0.0, 0.21, 0.20)),
    "left elbow": ("left shoulder", (0.0, 0.22, 0.0)),
    "left wrist": ("left elbow", (0.0, 0.20, 0.0)),
    "right shoulder": ("chest", (0.0, -0.21, 0.20)),
    "right elbow": ("right shoulder", (0.0, -0.22, 0.0)),
    "right wrist": ("right elbow", (0.0, -0.20, 0.0)),
    "left hip": ("pelvis", (0.0, 0.12, -0.04)),
    "left knee": ("left hip", (0.0, 0.01, -0.32)),
    "left ankle": ("left knee", (0.0, 0.0, -0.30)),
    "right hip": ("pelvis", (0.0, -0.12, -0.04)),
    "right knee": ("right hip", (0.0, -0.01, -0.32)),
    "right ankle": ("right knee", (0.0, 0.0, -0.30)),
}
JOINTS = tuple(SKELETON)

Turn = tuple[float, float, float]  # roll about x, then pitch about y, then yaw about z; degrees
Pose = Mapping[str, Sequence[float]]


def _both(joint: str, roll: float, pitch: float = 0.0, yaw: float = 0.0) -> dict[str, Turn]:
    """A turn of the left joint, and its mirror image of the right one."""
    return {f"left {joint}": (roll, pitch, yaw), f"right {joint}": (-roll, pitch, -yaw)}


# A roll lifts the left arm (and lowers the right one); a negative pitch swings a hanging limb forward.
POSES: dict[str, dict[str, Turn]] = {
    "standing": _both("shoulder", -62) | _both("elbow", -8, 0, -12),
    "t": {},
    "a": _both("shoulder", -40),
    "arms up": _both("shoulder", 62) | _both("elbow", 10),
    "walking": {
        "left shoulder": (-74, 38, 0),
        "right shoulder": (74, -38, 0),
        "left elbow": (0, 0, -30),
        "right elbow": (0, 0, 40),
        "left hip": (0, -22, 0),
        "left knee": (0, 8, 0),
        "right hip": (0, 23, 0),
        "right knee": (0, 22, 0),
        "right ankle": (0, 12, 0),
    },
    "waving": {
        "left shoulder": (12, 0, 0),
        "left elbow": (66, 0, 0),
        "right shoulder": (62, 0, 0),
        "right elbow": (8, 0, 12),
    },
    "sitting": _both("shoulder", -70, -30) | _both("hip", 0, -85) | _both("knee", 0, 85),
}


def find_pose(pose: str | Pose) -> Pose:
    """A pose by its name, or one given as turns of joints: {"left shoulder": [-62, 0, 0]}.

    Raises:
        UserError: no such pose or joint, or a turn that is not three numbers; lists what there is.
    """
    if isinstance(pose, str):
        if pose.lower() in POSES:
            return POSES[pose.lower()]
        near = closest(pose, POSES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"There is no pose {pose!r}.{hint} There are: {', '.join(POSES)}; or give turns of joints in "
            "degrees, such as {left shoulder: [-62, 0, 0]}."
        )
    if not isinstance(pose, Mapping):
        raise UserError(f"A pose is a name or turns of joints, not {pose!r}. Names: {', '.join(POSES)}.")
    for joint, turn in pose.items():
        if joint not in SKELETON:
            near = closest(str(joint), SKELETON, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"There is no joint {joint!r}.{hint} Joints: {', '.join(SKELETON)}.")
        numbers = list(turn) if isinstance(turn, Sequence) and not isinstance(turn, str) else []
        if len(numbers) != 3 or not all(isinstance(n, int | float) and np.isfinite(n) for n in numbers):
            raise UserError(f"The turn of {joint!r} is {turn!r}; it must be [roll, pitch, yaw] in degrees.")
    return pose


def rotation(roll: float = 0.0, pitch: float = 0.0, yaw: float = 0.0) -> np.ndarray:
    """[3, 3] that rolls about x, then pitches about y, then yaws about z (degrees)."""
    r, p, y = np.radians([roll, pitch, yaw])
    about_x = np.array([[1, 0, 0], [0, np.cos(r), -np.sin(r)], [0, np.sin(r), np.cos(r)]])
    about_y = np.array([[np.cos(p), 0, np.sin(p)], [0, 1, 0], [-np.sin(p), 0, np.cos(p)]])
    about_z = np.array([[np.cos(y), -np.sin(y), 0], [np.sin(y), np.cos(y), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def frames(pose: str | Pose) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each joint's place [3] and orientation [3, 3] (columns: its axes in the world) in a pose."""
    turns = find_pose(pose)
    out: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, (parent, offset) in SKELETON.items():
        at, turn = out[parent] if parent else (np.zeros(3), np.eye(3))
        out[name] = at + turn @ np.array(offset), turn @ rotation(*turns.get(name, (0.0, 0.0, 0.0)))
    return out


def mannequin(pose: str | Pose = "standing") -> Body:
    """The mannequin in a pose, in its own size.

    Raises:
        UserError: see `find_pose`.
    """
    rest, now = frames("t"), frames(pose)
    vertices = np.empty_like(_at_rest().vertices)
    body = _at_rest()
    for k, joint in enumerate(JOINTS):
        mine = body.joint == k
        vertices[mine] = (body.vertices[mine] - rest[joint][0]) @ now[joint][1].T + now[joint][0]
    posed = Body(
        vertices.astype(np.float32), body.faces, body.labels, body.uv, np.zeros(len(body.faces), bool)
    )
    inside = _inside(posed.corners.mean(axis=1), body.solid, now)
    return Body(posed.vertices, posed.faces, posed.labels, posed.uv, inside)


# --- solids -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Solid:
    """A unit sphere, blown up to radii, cut through the middle and pulled apart.

    Where x > 0 its points move by the first of `shift`, where x < 0 back by as much; likewise y and z. So
    radii alone are an ellipsoid, equal ones with shifts a rounded box; a rod has a shift along z and
    another radius there.

    joint: what it hangs on. limb: see `parts.NAMES`.
    at, turn: its middle and its axes (columns) at rest.
    """

    joint: str
    limb: str
    at: np.ndarray
    radii: np.ndarray
    shift: np.ndarray
    turn: np.ndarray
    top: float | None = None  # radius where z > 0, if another

    def place(self, unit: np.ndarray) -> np.ndarray:
        """Points of the unit sphere [n, 3] on the solid's surface, at rest."""
        radii = self.radii
        if self.top is not None:
            z = unit[:, 2:]
            middle = 0.5 * (self.radii + self.top)
            radii = np.where(z > 1e-9, self.top, np.where(z < -1e-9, self.radii, middle))
        local = radii * unit + np.where(np.abs(unit) > 1e-9, np.sign(unit), 0.0) * self.shift
        return self.at + local @ self.turn.T

    def contains(self, local: np.ndarray) -> np.ndarray:
        """Whether points [n, 3] in its own axes, from its middle, lie well inside."""
        moved = np.sign(local) * np.maximum(np.abs(local) - self.shift, 0.0)
        radii = self.radii if self.top is None else np.full(3, min(self.top, self.radii.min()))
        return (np.square(moved / radii).sum(axis=1)) < 0.95


def _ball(joint: str, limb: str, radii: Sequence[float], offset: Sequence[float]) -> Solid:
    at = frames("t")[joint][0] + np.array(offset)
    return Solid(joint, limb, at, np.array(radii), np.zeros(3), np.eye(3))


def _box(joint: str, limb: str, half: Sequence[float], offset: Sequence[float], round: float) -> Solid:
    at = frames("t")[joint][0] + np.array(offset)
    return Solid(joint, limb, at, np.full(3, round), np.array(half) - round, np.eye(3))


def _rod(joint: str, limb: str, start: np.ndarray, end: np.ndarray, radius: float, top: float) -> Solid:
    z = (end - start) / np.linalg.norm(end - start)
    x = np.array([1.0, 0.0, 0.0])  # no limb points forwards at rest
    x = x - (x @ z) * z
    x /= np.linalg.norm(x)
    turn = np.stack([x, np.cross(z, x), z], axis=1)
    shift = np.array([0.0, 0.0, 0.5 * np.linalg.norm(end - start)])
    return Solid(joint, limb, 0.5 * (start + end), np.full(3, radius), shift, turn, top)


def _solids() -> list[Solid]:
    at = {name: place for name, (place, _turn) in frames("t").items()}
    solids = [
        _box("pelvis", "torso", (0.155, 0.20, 0.12), (0, 0, -0.02), 0.09),
        _box("chest", "torso", (0.165, 0.225, 0.25), (0, 0, 0.03), 0.11),
        _rod("neck", "head", at["neck"] - (0, 0, 0.03), at["head"], 0.08, 0.08),
        _ball("head", "head", (0.20, 0.19, 0.215), (0, 0, 0)),
        _ball("head", "head", (0.215, 0.225, 0.205), (-0.055, 0, 0.055)),  # the back of the head, with hair
        _ball("head", "head", (0.045, 0.035, 0.035), (0.205, 0, -0.025)),  # nose
    ]
    for side, s in (("left", 1), ("right", -1)):
        shoulder, elbow, wrist = (at[f"{side} {joint}"] for joint in ("shoulder", "elbow", "wrist"))
        hip, knee, ankle = (at[f"{side} {joint}"] for joint in ("hip", "knee", "ankle"))
        start = shoulder - (0, 0.05 * s, 0.01)
        solids += [
            _ball("head", "head", (0.04, 0.03, 0.055), (0.02, 0.205 * s, -0.01)),  # ear
            _rod(f"{side} shoulder", f"{side} upper arm", start, elbow, 0.098, 0.085),
            _rod(f"{side} elbow", f"{side} lower arm", elbow, wrist, 0.085, 0.078),
            _ball(f"{side} wrist", f"{side} hand", (0.06, 0.085, 0.08), (0, 0.08 * s, 0)),
            _rod(f"{side} hip", f"{side} upper leg", hip, knee, 0.118, 0.10),
            _rod(f"{side} knee", f"{side} lower leg", knee, ankle + np.array([0, 0, 0.03]), 0.10, 0.09),
            _ball(f"{side} ankle", f"{side} foot", (0.16, 0.095, 0.07), (0.06, 0, -0.04)),
            _box(f"{side} ankle", f"{side} foot", (0.135, 0.075, 0.022), (0.06, 0, -0.092), 0.02),
        ]
    return solids


def _limb_axes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    at = {name: place for name, (place, _turn) in frames("t").items()}
    axes = {
        "torso": (at["pelvis"] - (0, 0, 0.14), at["neck"]),
        "head": (at["neck"], at["head"] + (0, 0, 0.26)),
    }
    for side, s in (("left", 1), ("right", -1)):
        joints = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
        shoulder, elbow, wrist, hip, knee, ankle = (at[f"{side} {joint}"] for joint in joints)
        axes |= {
            f"{side} upper arm": (shoulder, elbow),
            f"{side} lower arm": (elbow, wrist),
            f"{side} hand": (wrist, wrist + np.array([0, 0.16 * s, 0])),
            f"{side} upper leg": (hip, knee),
            f"{side} lower leg": (knee, ankle),
            f"{side} foot": (ankle - (0.1, 0, 0.06), ankle + np.array([0.2, 0, -0.06])),
        }
    return axes


@dataclass(frozen=True)
class _Rest:
    """The mannequin at rest; `joint` [V] and `solid` [F] say what belongs to what."""

    vertices: np.ndarray
    faces: np.ndarray
    labels: np.ndarray
    uv: np.ndarray
    joint: np.ndarray
    solid: np.ndarray


@functools.cache
def _at_rest() -> _Rest:
    unit, triangles = unit_sphere()
    vertices, faces, joint, limb, solid = [], [], [], [], []
    for k, part in enumerate(_solids()):
        faces.append(triangles + k * len(unit))
        vertices.append(part.place(unit))
        joint.append(np.full(len(unit), JOINTS.index(part.joint)))
        limb.append(np.full(len(triangles), NAMES.index(part.limb)))
        solid.append(np.full(len(triangles), k))
    vertices, faces, limb = np.concatenate(vertices), np.concatenate(faces), np.concatenate(limb)
    labels, uv = label_faces(vertices[faces], limb, _limb_axes())
    return _Rest(vertices, faces, labels, uv, np.concatenate(joint), np.concatenate(solid))


def unit_sphere(around: int = 24, rings: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and triangles int32 [F, 3] of a unit sphere, with poles at z = 1 and -1."""
    polar = np.pi * np.arange(1, rings) / rings
    turn = 2 * np.pi * np.arange(around) / around
    ring = np.stack(
        [
            np.outer(np.sin(polar), np.cos(turn)),
            np.outer(np.sin(polar), np.sin(turn)),
            np.outer(np.cos(polar), np.ones(around)),
        ],
        axis=-1,
    ).reshape(-1, 3)
    vertices = np.concatenate([[[0.0, 0.0, 1.0]], ring, [[0.0, 0.0, -1.0]]])
    k, n = np.arange(around), (np.arange(around) + 1) % around
    last = len(vertices) - 1
    faces = [np.stack([np.zeros_like(k), 1 + k, 1 + n], axis=1)]
    for row in range(rings - 2):
        a, b = 1 + row * around, 1 + (row + 1) * around
        faces += [np.stack([a + k, b + k, b + n], axis=1), np.stack([a + k, b + n, a + n], axis=1)]
    a = 1 + (rings - 2) * around
    faces.append(np.stack([a + k, np.full_like(k, last), a + n], axis=1))
    return vertices, np.concatenate(faces).astype(np.int32)


def _inside(
    points: np.ndarray, owner: np.ndarray, now: dict[str, tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Whether points [n, 3] on the posed surface lie inside a solid that is not their own."""
    rest = frames("t")
    out = np.zeros(len(points), bool)
    for k, solid in enumerate(_solids()):
        at, turn = now[solid.joint]
        local = ((points - at) @ turn + rest[solid.joint][0] - solid.at) @ solid.turn
        out |= solid.contains(local) & (owner != k)
    return out
