"""What there is to know of a triangle mesh before printing it."""

from __future__ import annotations

from typing import Any

import numpy as np


def open_edges(t_pos_idx: np.ndarray) -> np.ndarray:
    """The sides [Ne, 2] of triangles [Nf, 3] that no second triangle shares: the rims of holes."""
    sides = np.concatenate([t_pos_idx[:, [0, 1]], t_pos_idx[:, [1, 2]], t_pos_idx[:, [2, 0]]])
    edges, count = np.unique(np.sort(sides, axis=1), axis=0, return_counts=True)
    return edges[count == 1]


def count_groups(edges: np.ndarray, n: int) -> tuple[int, np.ndarray]:
    """Connected groups of the vertices that edges [Ne, 2] touch: how many, and each vertex' group [n].

    Vertices that no edge touches are groups of their own in the second, and not counted in the first.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(edges), dtype=bool), (edges[:, 0], edges[:, 1])), shape=(n, n))
    _, group = connected_components(graph, directed=False)
    return len(np.unique(group[edges[:, 0]])), group


def mesh_report(v_pos: np.ndarray, t_pos_idx: np.ndarray) -> dict[str, Any]:
    """Facts of a mesh, as plain values.

    Args:
        v_pos, t_pos_idx: vertices [Nv, 3], world units, and triangles [Nf, 3].

    Returns:
        vertices, triangles, parts: how many; watertight: whether every side belongs to two triangles; holes:
        rims of open sides (two that touch count once); area, and volume if watertight, else None; bounds.
    """
    rims = open_edges(t_pos_idx)
    sides = np.concatenate([t_pos_idx[:, [0, 1]], t_pos_idx[:, [1, 2]]])
    holes = count_groups(rims, len(v_pos))[0]
    a, b, c = (v_pos[t_pos_idx[:, corner]].astype(np.float64) for corner in range(3))
    area = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1).sum()
    volume = np.einsum("ij,ij->", a, np.cross(b, c)) / 6.0
    return {
        "vertices": len(v_pos),
        "triangles": len(t_pos_idx),
        "parts": count_groups(sides, len(v_pos))[0],
        "watertight": len(rims) == 0,
        "holes": holes,
        "area": float(area),
        "volume": None if len(rims) else float(volume),
        "bounds": [v_pos.min(axis=0).tolist(), v_pos.max(axis=0).tolist()],
    }


def describe_mesh(report: dict[str, Any]) -> str:
    """A report as one line: ``1,200 triangles, watertight``."""
    holes = report["holes"]
    state = "watertight" if report["watertight"] else f"{holes} hole{'' if holes == 1 else 's'}"
    parts = "" if report["parts"] == 1 else f", {report['parts']} parts"
    return f"{report['triangles']:,} triangles, {state}{parts}"
