"""A body as configs name it: "mannequin", "smplx:FOLDER", "smpl:FOLDER", "file:body.glb"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import UserError, check_range, closest
from .body import Body
from .files import read_body
from .mannequin import POSES, Pose, find_pose, mannequin
from .smpl import smpl_body

# The kinds there are, each with how it is written.
KINDS = {
    "mannequin": "mannequin",
    "smplx": "smplx:FOLDER or FILE.npz, the user's own",
    "smpl": "smpl:FILE.npz, likewise",
    "file": "file:PATH of .obj or .glb",
}
SUFFIXES = (".obj", ".glb")


def split_model(model: str) -> tuple[str, str]:
    """ "smplx:models" -> ("smplx", "models"); a path of a mesh may stand alone.

    Raises:
        UserError: no such kind of body, or nothing behind its colon; lists the kinds.
    """
    kind, _, value = str(model).partition(":")
    value = value.strip()
    if kind not in KINDS and str(model).lower().endswith(SUFFIXES):
        kind, value = "file", str(model)
    if kind not in KINDS:
        near = closest(kind, KINDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"There is no body {str(model)!r}.{hint} There is: {'; '.join(KINDS.values())}.")
    if kind != "mannequin" and not value:
        raise UserError(f"The body {str(model)!r} names no file: write {KINDS[kind]}.")
    return kind, value


def make_body(
    model: str = "mannequin",
    pose: str | Pose = "standing",
    height: float | None = None,
    *,
    up: str = "",
    front: str = "",
    shape: Any = (),
    gender: str = "neutral",
) -> Body:
    """A posed body.

    Args:
        model: see above.
        pose: one of `mannequin.POSES`, or turns of joints in degrees; of a file, the pose that it stands in.
        height: from sole to crown when standing, world units; None: the mannequin's, 1.83. Sitting down
            keeps the size, not the height.
        up, front: axes of a file, such as "+y"; empty: OBJ files stand along +z and face +x, GLB ones +y
            and +z.
        shape: SMPL's first shape coefficients (betas).
        gender: neutral, female or male, where a folder of SMPL files is given.

    Raises:
        UserError: an unknown model or pose, a height that is not above 0, missing or unusable files.
    """
    kind, value = split_model(model)
    natural = mannequin("t").height
    if height is not None:
        check_range("height", height, 0.0, above=True)
    if kind == "mannequin":
        body = mannequin(pose)
        return body if height is None else body.scaled(height / natural)
    height = natural if height is None else height
    if kind == "file":
        return read_body(value, pose, height, up=up, front=front)
    try:
        betas = np.asarray(shape, float).reshape(-1)
    except (TypeError, ValueError):
        raise UserError(
            f"system.body.shape is {shape!r}; it must be a list of numbers such as [0.5, -1]."
        ) from None
    return smpl_body(value, pose, height, kind=kind, shape=betas, gender=gender)


# What of `make_body` belongs to some kinds alone.
_OWN = {"up": ("file",), "front": ("file",), "shape": ("smpl", "smplx"), "gender": ("smpl", "smplx")}


def check_block(given: Any, where: str) -> dict[str, Any]:
    """The arguments of `make_body` in a block {model, pose, height, ...}; opens no file.

    Args:
        where: the block's name, for messages.

    Raises:
        UserError: no mapping, unknown keys, kinds or poses, a height that is not above 0.
    """
    if not isinstance(given, Mapping):
        raise UserError(
            f"{where} is {given!r}; it must be a mapping such as {{model: mannequin, pose: walking}}."
        )
    known = ("model", "pose", "height", *_OWN)
    for key in given:
        if key not in known:
            near = closest(str(key), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{where} has no key {key!r}.{hint} Keys: {', '.join(known)}.")
    kind, _ = split_model(given.get("model", "mannequin"))
    for key, kinds in _OWN.items():
        if given.get(key) and kind not in kinds:
            raise UserError(
                f"{where}.{key} is of {' and '.join(kinds)}, and the body is {given.get('model')!r}."
            )
    if given.get("height") is not None:
        check_range(f"{where}.height", given["height"], 0.0, above=True)
    find_pose(given.get("pose", "standing"))
    return {key: value for key, value in given.items() if value is not None}


def body_from_config(given: Any, where: str) -> Body:
    """A body from a block.

    Raises:
        UserError: see `check_block` and `make_body`.
    """
    return make_body(**check_block(given, where))


__all__ = ["KINDS", "POSES", "body_from_config", "check_block", "make_body", "split_model"]
