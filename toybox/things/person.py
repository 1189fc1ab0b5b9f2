"""A person, built on a small skeleton.

The body faces +x with its left side at +y. At rest every joint's axes are the world's and the arms point
sideways; a pose turns joints, and forward kinematics carries the limbs along.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..parts import ball, box, cylinder, limb, rotation
from ..thing import DARK, LIGHT, contrast, darker, shade, thing, vary

# Joint: (its parent, its place relative to the parent at rest). Parents come before their children.
SKELETON: dict[str, tuple[str | None, tuple[float, float, float]]] = {
    "pelvis": (None, (0.0, 0.0, -0.14)),
    "chest": ("pelvis", (0.0, 0.0, 0.26)),
    "neck": ("chest", (0.0, 0.0, 0.28)),
    "head": ("neck", (0.0, 0.0, 0.26)),
    "left shoulder": ("chest", (0.0, 0.21, 0.20)),
    "left elbow": ("left shoulder", (0.0, 0.22, 0.0)),
    "left wrist": ("left elbow", (0.0, 0.20, 0.0)),
    "left hand": ("left wrist", (0.0, 0.06, 0.0)),
    "right shoulder": ("chest", (0.0, -0.21, 0.20)),
    "right elbow": ("right shoulder", (0.0, -0.22, 0.0)),
    "right wrist": ("right elbow", (0.0, -0.20, 0.0)),
    "right hand": ("right wrist", (0.0, -0.06, 0.0)),
    "left hip": ("pelvis", (0.0, 0.12, -0.04)),
    "left knee": ("left hip", (0.0, 0.01, -0.32)),
    "left ankle": ("left knee", (0.0, 0.0, -0.30)),
    "left toe": ("left ankle", (0.15, 0.0, -0.07)),
    "right hip": ("pelvis", (0.0, -0.12, -0.04)),
    "right knee": ("right hip", (0.0, -0.01, -0.32)),
    "right ankle": ("right knee", (0.0, 0.0, -0.30)),
    "right toe": ("right ankle", (0.15, 0.0, -0.07)),
}

Turn = tuple[float, float, float]  # roll, pitch, yaw in degrees, as ``parts.rotation``

# A roll of a left joint lifts the arm (of a right joint, lowers it); a negative pitch swings a hanging limb
# forward.
POSES: dict[str, dict[str, Turn]] = {
    "standing": {
        "left shoulder": (-62, 0, 0),
        "right shoulder": (62, 0, 0),
        "left elbow": (-8, 0, -12),
        "right elbow": (8, 0, 12),
    },
    "arms out": {},
    "arms up": {
        "left shoulder": (62, 0, 0),
        "right shoulder": (-62, 0, 0),
        "left elbow": (10, 0, 0),
        "right elbow": (-10, 0, 0),
    },
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
}


Pose = str | Mapping[str, Turn]  # one of ``POSES``, or turns of joints


def frames(pose: Pose = "standing") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each joint's place ``[3]`` and orientation ``[3, 3]`` (columns: its axes in the world) in a pose."""
    turns = POSES[pose] if isinstance(pose, str) else pose
    out: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, (parent, offset) in SKELETON.items():
        at, turn = out[parent] if parent else (np.zeros(3), np.eye(3))
        out[name] = at + turn @ np.array(offset), turn @ rotation(*turns.get(name, (0.0, 0.0, 0.0)))
    return out


def joints(pose: Pose = "standing") -> dict[str, np.ndarray]:
    """Each joint's place ``[3]`` in a pose."""
    return {name: at for name, (at, _turn) in frames(pose).items()}


@thing("person", "red", part_option="trousers", default_part="blue")
def person(shirt, trousers, rng, pose="standing"):
    """Shirt with buttons, trousers, shoes; brown hair, and a face on the front only."""
    frame = frames(pose)
    at = joints(pose)
    chunky = vary(rng, 0.04)
    skin = shade((0.93, 0.70, 0.54), rng, 0.03)
    hair, shoe = shade((0.30, 0.17, 0.08), rng, 0.02), (0.16, 0.13, 0.13)

    def on(joint: str, *offset: float) -> np.ndarray:
        """A place given in the axes of a joint."""
        place, turn = frame[joint]
        return place + turn @ np.array(offset)

    chest, head = frame["chest"][1], frame["head"][1]
    rows = [
        # Trunk.
        box((0.155, 0.20, 0.12), on("pelvis", 0, 0, -0.02), trousers, turn=frame["pelvis"][1], round=0.09),
        box((0.165 * chunky, 0.225, 0.25), on("chest", 0, 0, 0.03), shirt, turn=chest, round=0.11),
        box((0.172 * chunky, 0.215, 0.032), on("chest", 0, 0, -0.20), DARK, turn=chest, round=0.03),
        limb(on("neck", 0, 0, -0.03), at["head"], 0.08, skin),
        # Head: the face shows where the skin lies in front of the hair.
        ball((0.20, 0.19, 0.215), at["head"], skin, turn=head),
        ball((0.215, 0.225, 0.205), on("head", -0.055, 0, 0.055), hair, turn=head),
        ball((0.045, 0.13, 0.045), on("head", 0.115, 0.04, 0.175), hair, turn=head @ rotation(roll=-12)),
        ball((0.045, 0.035, 0.035), on("head", 0.205, 0, -0.025), darker(skin, 0.85), turn=head),
        limb(on("head", 0.168, -0.06, -0.10), on("head", 0.18, 0, -0.115), 0.022, (0.75, 0.16, 0.16)),
        limb(on("head", 0.168, 0.06, -0.10), on("head", 0.18, 0, -0.115), 0.022, (0.75, 0.16, 0.16)),
    ]
    for z in (0.18, 0.07, -0.04, -0.14):
        rows.append(ball(0.028, on("chest", 0.163 * chunky, 0, z), contrast(shirt), turn=chest))
    for side, s in (("left", 1), ("right", -1)):
        hand, foot = frame[f"{side} hand"][1], frame[f"{side} ankle"][1]
        rows += [
            ball((0.038, 0.06, 0.06), on("head", 0.165, s * 0.085, 0.025), LIGHT, turn=head),
            ball((0.03, 0.036, 0.038), on("head", 0.188, s * 0.085, 0.025), DARK, turn=head),
            limb(on("head", 0.18, s * 0.045, 0.09), on("head", 0.16, s * 0.12, 0.09), 0.016, hair),
            ball((0.04, 0.03, 0.055), on("head", 0.02, s * 0.205, -0.01), skin, turn=head),
            limb(
                on(f"{side} shoulder", 0, -s * 0.05, -0.01),
                at[f"{side} elbow"],
                0.098,
                shirt,
                end_radius=0.085,
            ),
            limb(at[f"{side} elbow"], at[f"{side} wrist"], 0.085, shirt, end_radius=0.078),
            cylinder(0.084, 0.022, at[f"{side} wrist"], darker(shirt, 0.7), turn=hand @ rotation(roll=90)),
            ball((0.06, 0.085, 0.08), on(f"{side} hand", 0, s * 0.02, 0), skin, turn=hand),
            limb(at[f"{side} hip"], at[f"{side} knee"], 0.118, trousers, end_radius=0.10),
            limb(at[f"{side} knee"], on(f"{side} ankle", 0, 0, 0.03), 0.10, trousers, end_radius=0.09),
            ball((0.16, 0.095, 0.07), on(f"{side} ankle", 0.06, 0, -0.04), shoe, turn=foot),
            box((0.135, 0.075, 0.022), on(f"{side} ankle", 0.06, 0, -0.092), (0.55, 0.52, 0.50), turn=foot),
        ]
    return rows
