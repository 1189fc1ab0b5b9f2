"""Which way things face: from a file's axes to ours, z up and front +x."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError, check_choice

AXES = {
    sign + axis: tuple((1.0 if sign == "+" else -1.0) * (k == "xyz".index(axis)) for k in range(3))
    for axis in "xyz"
    for sign in "+-"
}
# Where things face whose upward axis is told and nothing else: as in Blender's and threestudio's exports.
_FRONT = {"x": "+z", "y": "+z", "z": "+x"}


@dataclass(frozen=True)
class Frame:
    """The axes of some points: `up` and `front`, each one of +x, -x, +y, -y, +z, -z."""

    up: str = "+z"
    front: str = "+x"

    def changed(self, up: str = "", front: str = "") -> Frame:
        """With the axes that are given; a new `up` alone brings its usual front.

        Raises:
            UserError: no such axis, or both the same.
        """
        for name, value in (("up", up), ("front", front)):
            if value:
                check_choice(name, value, AXES)
        new = Frame(up or self.up, front or (_FRONT[up[1]] if up else self.front))
        if new.up[1] == new.front[1]:
            raise UserError(f"front is {new.front}, which is no direction across up, {new.up}.")
        return new

    def to_world(self) -> Tensor:
        """The rotation R [3, 3] with world = R @ ours: up becomes +z, front +x.

        >>> Frame(up="+y", front="+z").to_world() @ torch.tensor([1.0, 2.0, 3.0])
        tensor([3., 1., 2.])
        """
        up, front = (torch.tensor(AXES[axis]) for axis in (self.up, self.front))
        return torch.stack([front, torch.linalg.cross(up, front), up])


OURS = Frame()
GLTF = Frame(up="+y", front="+z")
GLTF_SUFFIXES = (".glb", ".gltf")
OPENAI = Frame(up="+z", front="-y")  # of Point-E and Shap-E, whose training renders were Blender's
