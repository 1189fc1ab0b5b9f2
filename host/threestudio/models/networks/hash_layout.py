"""Where a multiresolution hash grid keeps its features: the layout of tiny-cuda-nn (Instant NGP, 2022).

Level l is a grid of ``resolution`` corners a side over the unit cube.  A point x has the grid position
``scale x + 1/2``; its cell is the whole part of that.  A level whose corners all fit into 2^log2_hashmap_size
rows has a row for each corner (x fastest); a finer level hashes the corner's coordinates into that many rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from threestudio.utils.errors import ConfigValueError, UnknownKeyError, did_you_mean

HASH_PRIMES = (1, 2654435761, 805459861, 3674653429)
"""One a dimension; the first is 1 so that neighbours along x stay neighbours in memory."""

DEFAULTS: dict[str, Any] = {
    "n_levels": 16,
    "n_features_per_level": 2,
    "log2_hashmap_size": 19,
    "base_resolution": 16,
    "per_level_scale": 2.0,
}
OTHER_KEYS = ("otype", "type", "hash", "interpolation", "include_xyz")


@dataclass(frozen=True)
class Level:
    """One resolution of a grid."""

    scale: float
    """Grid units along the unit cube's side."""
    resolution: int
    """Corners a side."""
    offset: int
    """First row in the table."""
    rows: int
    """Rows in the table."""
    hashed: bool
    """Whether rows are found by hashing."""


@dataclass(frozen=True)
class Layout:
    """All levels, coarse to fine."""

    n_dims: int
    n_features: int
    """Features a level."""
    levels: tuple[Level, ...]

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return self.levels[-1].offset + self.levels[-1].rows

    @property
    def n_output_dims(self) -> int:
        """Features of a point."""
        return len(self.levels) * self.n_features


def layout_of(n_dims: int, config: dict[str, Any]) -> Layout:
    """The layout that a config asks for.

    Args:
        config: n_levels, n_features_per_level, log2_hashmap_size, base_resolution, per_level_scale, each
            with tiny-cuda-nn's default; interpolation may only be Linear, hash only CoherentPrime.

    Raises:
        UnknownKeyError: a key that a hash grid does not have.
        ConfigValueError: a value out of range.
    """
    known = (*DEFAULTS, *OTHER_KEYS)
    for key in config:
        if key not in known:
            raise UnknownKeyError(
                f"Unknown key {key!r} of a hash grid.{did_you_mean(key, known)} "
                f"Its keys: {', '.join(DEFAULTS)}."
            )
    for key, only in (("interpolation", "Linear"), ("hash", "CoherentPrime"), ("type", "Hash")):
        if str(config.get(key, only)).lower() != only.lower():
            raise ConfigValueError(
                f"{key} of a hash grid is {config[key]!r}: without tiny-cuda-nn, only {only}."
            )
    if not 1 <= n_dims <= len(HASH_PRIMES):
        raise ConfigValueError(
            f"A hash grid takes 1 to {len(HASH_PRIMES)} coordinates a point, not {n_dims}."
        )
    values = DEFAULTS | {key: config[key] for key in DEFAULTS if key in config}
    for key, low, high in (
        ("n_levels", 1, 64),
        ("n_features_per_level", 1, 8),
        ("log2_hashmap_size", 1, 30),
        ("base_resolution", 1, 2**16),
        ("per_level_scale", 1.0, 16.0),
    ):
        value = values[key]
        whole = isinstance(low, int)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigValueError(f"{key} of a hash grid must be {low} to {high}, got {value!r}.")
        if whole and value != int(value):
            raise ConfigValueError(f"{key} of a hash grid must be a whole number, got {value!r}.")
    return Layout(n_dims, int(values["n_features_per_level"]), _levels(n_dims, values))


def _levels(n_dims: int, values: dict[str, Any]) -> tuple[Level, ...]:
    most = 2 ** int(values["log2_hashmap_size"])
    # float32, as tiny-cuda-nn computes it: a resolution that is rounded up is where the digits show
    growth = np.log2(np.float32(values["per_level_scale"]))
    levels: list[Level] = []
    offset = 0
    for index in range(int(values["n_levels"])):
        scale = np.exp2(np.float32(index) * growth) * np.float32(values["base_resolution"]) - np.float32(1)
        resolution = int(np.ceil(scale)) + 1
        corners = resolution**n_dims
        rows = min(-(-corners // 8) * 8, most)
        levels.append(Level(float(scale), resolution, offset, rows, corners > rows))
        offset += rows
    return tuple(levels)
