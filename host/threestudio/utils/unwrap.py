"""Texture coordinates for triangle meshes, by xatlas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from threestudio.utils.errors import ConfigValueError, did_you_mean


def unwrap(
    v_pos: np.ndarray,
    t_pos_idx: np.ndarray,
    chart_options: Mapping[str, Any] | None = None,
    pack_options: Mapping[str, Any] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Lay a surface out on the unit square, in charts that do not overlap.

    Args:
        v_pos, t_pos_idx: vertices [Nv, 3] and triangles [Nf, 3].
        chart_options, pack_options: attributes of xatlas.ChartOptions and xatlas.PackOptions.

    Returns:
        texture coordinates [Nt, 2] float32 in [0, 1], and their triangles [Nf, 3] int64 in the order of
        ``t_pos_idx``.

    Raises:
        ConfigValueError: xatlas is not installed, or has no such option.
    """
    try:
        import xatlas
    except ModuleNotFoundError as error:
        raise ConfigValueError(
            "Texture coordinates need xatlas: pip install xatlas, or export vertex colours instead "
            "(system.exporter.save_uv=false)."
        ) from error
    atlas = xatlas.Atlas()
    atlas.add_mesh(v_pos.astype(np.float32), t_pos_idx.astype(np.uint32))
    chart = _with(xatlas.ChartOptions(), chart_options or {}, "xatlas_chart_options")
    pack = _with(xatlas.PackOptions(), pack_options or {}, "xatlas_pack_options")
    atlas.generate(chart, pack)
    _, triangles, coordinates = atlas.get_mesh(0)
    return coordinates.astype(np.float32), triangles.astype(np.int64)


def _with(options: Any, given: Mapping[str, Any], name: str) -> Any:
    """xatlas' options with some of them set."""
    known = [key for key in dir(options) if not key.startswith("_")]
    for key, value in given.items():
        if key not in known:
            raise ConfigValueError(
                f"{name} has no {key!r}.{did_you_mean(key, known)} Its keys: {', '.join(known)}."
            )
        setattr(options, key, value)
    return options
