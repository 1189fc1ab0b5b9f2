"""Where a cloud comes from, as configs write it: "shape:ball", "file:points.ply"."""

from __future__ import annotations

import torch

from ..errors import UserError
from .cloud import PointCloud
from .files import read_points
from .shapes import SHAPES

KINDS = ("shape", "file")


def split_source(source: str) -> tuple[str, str]:
    """ "shape:ball" -> ("shape", "ball").

    Raises:
        UserError: no such kind of source, or no such shape.
    """
    kind, _, value = source.partition(":")
    if kind not in KINDS or not value:
        raise UserError(
            f"{source!r} is no source of points; write shape:{'|'.join(SHAPES)} or file:PATH.ply."
        )
    if kind == "shape" and value not in SHAPES:
        raise UserError(f"There is no shape {value!r}; there is: {', '.join(SHAPES)}.")
    return kind, value


def load_points(source: str, n: int, radius: float, generator: torch.Generator) -> PointCloud:
    """`n` points of a source; a file keeps its own size, a shape has `radius`.

    Raises:
        UserError: see `split_source` and `read_points`.
    """
    kind, value = split_source(source)
    if kind == "file":
        return read_points(value).sample(n, generator)
    return SHAPES[value](n, radius, generator)
