"""How much a file of others may ask for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import UserError

MAX_BYTES = 256 * 1024**2  # of a mesh's file
MAX_TRIANGLES = 4_000_000  # of all instances together
# Coordinates beyond this are no place but damage, or another unit's: squares of them overflow in float32.
MAX_COORDINATE = 1e9


def check_size(path: Path) -> None:
    """Raises UserError unless there is such a file, and it is not too large."""
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise UserError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are read. Simplify it first.")


def check_counts(path: Path, triangles: int, vertices: int) -> None:
    """Raises UserError for more triangles, or more vertices, than are read."""
    counts = ((triangles, "triangles", MAX_TRIANGLES), (vertices, "vertices", 3 * MAX_TRIANGLES))
    for count, name, most in counts:
        if count > most:
            raise UserError(f"{path} has {count:,} {name}; at most {most:,} are read. Simplify it first.")


def check_coordinates(path: str | Path, points: np.ndarray) -> None:
    """Raises UserError unless coordinates [N, 3] are finite, and of at most `MAX_COORDINATE`."""
    size = np.abs(points)
    if (bad := np.flatnonzero(~np.isfinite(size).all(axis=1))).size:
        raise UserError(
            f"{path} holds values that are not finite: {len(bad)} of {len(points)} rows, first row {bad[0]}."
        )
    if (far := np.flatnonzero((size > MAX_COORDINATE).any(axis=1))).size:
        raise UserError(
            f"{path} holds points {size[far].max():.3g} units away, {len(far)} of {len(points)}, first row "
            f"{far[0]}; at most {MAX_COORDINATE:g} is read. Is it damaged?"
        )
