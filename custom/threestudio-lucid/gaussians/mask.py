"""Which Gaussians an edit may change: by where they are, how opaque they are, or their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, check_pair, check_range
from .cloud import Gaussians, opacities

WHERE = "system.mask."
BOX = "two corners [[x0, y0, z0], [x1, y1, z1]], the low one first"
SPHERE = "[x, y, z, radius]"
# A file of indices may not be larger than this.
MAX_FILE_BYTES = 200_000_000


@dataclass
class MaskConfig:
    """All that is given must hold for a Gaussian to change. Nothing is given: all change."""

    box: Any = None
    """[[x0, y0, z0], [x1, y1, z1]]: its centre lies in the box; world units."""
    sphere: Any = None
    """[x, y, z, radius]: its centre lies in the sphere; world units."""
    opacity: Any = None
    """[low, high]: its opacity lies between."""
    indices: Any = None
    """It is one of these rows of the file, counted from 0: a list, or a text file of numbers."""
    outside: bool = False
    """Change the others instead."""

    def __post_init__(self) -> None:
        if self.box is not None:
            low, high = _corners(self.box)
            if any(a > b for a, b in zip(low, high, strict=True)):
                raise UserError(f"{WHERE}box is {_plain(self.box)}; it must be {BOX}.")
        if self.sphere is not None:
            *_, radius = _numbers("sphere", self.sphere, 4, SPHERE)
            check_range(WHERE + "sphere's radius", radius, 0.0, above=True)
        if self.opacity is not None:
            low, high = check_pair(WHERE + "opacity", self.opacity, "[low, high]")
            check_range(WHERE + "opacity's low end", low, 0.0, 1.0)
            check_range(WHERE + "opacity's high end", high, low, 1.0)
        if self.indices is not None:
            read_indices(self.indices)
        given = (self.box, self.sphere, self.opacity, self.indices)
        if self.outside and all(value is None for value in given):
            raise UserError(f"{WHERE}outside is true and there is no mask: give a box, a sphere, ...")


def editable(gaussians: Gaussians, mask: MaskConfig) -> Tensor:
    """Which of N Gaussians may change, [N] bool.

    Raises:
        UserError: none may; or an index that is not there.
    """
    n, means = len(gaussians), gaussians.means.detach()
    chosen = torch.ones(n, dtype=torch.bool, device=means.device)
    if mask.box is not None:
        low, high = (means.new_tensor(corner) for corner in _corners(mask.box))
        chosen &= ((means >= low) & (means <= high)).all(dim=1)
    if mask.sphere is not None:
        *centre, radius = _numbers("sphere", mask.sphere, 4, SPHERE)
        chosen &= (means - means.new_tensor(centre)).norm(dim=1) <= radius
    if mask.opacity is not None:
        low, high = mask.opacity
        opacity = opacities(gaussians).detach()
        chosen &= (opacity >= low) & (opacity <= high)
    if mask.indices is not None:
        listed = torch.zeros_like(chosen)
        listed[_checked(read_indices(mask.indices), n).to(chosen.device)] = True
        chosen &= listed
    chosen = ~chosen if mask.outside else chosen
    if not bool(chosen.any()):
        low, high = (_plain(corner.tolist()) for corner in means.aminmax(dim=0))
        raise UserError(
            f"The mask leaves none of {n} Gaussians to change. Their centres lie between {low} and {high}: "
            f"correct {WHERE}box, sphere, opacity, indices or outside."
        )
    return chosen


def read_indices(given: Any) -> Tensor:
    """Whole numbers [M], int64, of a list or of a text file with spaces, commas or new lines between them.

    Raises:
        UserError: no such file, one that is too large, or something that is no number of at least 0.
    """
    if isinstance(given, str | Path):
        path = Path(given).expanduser()
        if not path.is_file():
            raise UserError(f"{WHERE}indices: there is no file {path}.")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{WHERE}indices: {path} is larger than {MAX_FILE_BYTES:,} bytes.")
        words: Sequence[Any] = path.read_text(encoding="utf-8", errors="replace").replace(",", " ").split()
    elif isinstance(given, Sequence):
        words = given
    else:
        raise UserError(
            f"{WHERE}indices is {given!r}; it must be a list of whole numbers, or a file of them."
        )
    wrong = next((word for word in words if not _is_row(str(word))), None)
    if wrong is not None:
        raise UserError(f"{WHERE}indices: {repr(wrong)[:40]} is no whole number of at least 0, or too large.")
    return torch.tensor([int(word) for word in words], dtype=torch.int64)


def _is_row(word: str) -> bool:
    """Whether it is a whole number of at least 0 that int64 holds."""
    return word.isdecimal() and len(word) <= 18


def _checked(indices: Tensor, n: int) -> Tensor:
    if len(indices) and int(indices.max()) >= n:
        raise UserError(
            f"{WHERE}indices: {int(indices.max())} is too large; there are {n} Gaussians, from 0."
        )
    return indices


def _corners(box: Any) -> tuple[list[float], list[float]]:
    if not isinstance(box, Sequence) or isinstance(box, str) or len(box) != 2:
        raise UserError(f"{WHERE}box is {_plain(box)}; it must be {BOX}.")
    low, high = (_numbers("box", corner, 3, BOX) for corner in box)
    return low, high


def _numbers(name: str, value: Any, n: int, form: str) -> list[float]:
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(numbers) != n or not all(isinstance(v, int | float) and abs(v) < float("inf") for v in numbers):
        raise UserError(f"{WHERE}{name} is {_plain(value)}; it must be {form}.")
    return [float(v) for v in numbers]


def _plain(value: Any) -> str:
    """Short, for messages."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
