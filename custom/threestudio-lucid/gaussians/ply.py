"""Gaussians as PLY files, in the layout of the original 3D Gaussian splatting, which every viewer reads.

One float32 property each, little endian, in this order:

    x y z  nx ny nz  f_dc_0..2  f_rest_0..M-1  opacity  scale_0..2  rot_0..3

Raw values: opacity is a logit, scale a logarithm, rot a quaternion wxyz, normals are zero and unused. M is
0, 9, 24 or 45 for SH degree 0 to 3; f_rest lists all coefficients of red, then of green, then of blue.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData, PlyElement
from torch import Tensor

from ..errors import UserError
from ..files import atomic_path
from ..guidance.cards import announce
from ..points.files import columns, read_vertices
from ..points.limits import MAX_COORDINATE, check_coordinates
from .cloud import Gaussians, sh_degree_of

_POSITION, _NORMAL = ("x", "y", "z"), ("nx", "ny", "nz")
_DC = ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALE, _ROT = ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")

MAX_LOGIT = 15.0  # of an opacity of 1 - 3e-7


def layout(sh_degree: int) -> list[str]:
    """Property names in file order."""
    rest = [f"f_rest_{i}" for i in range(3 * ((sh_degree + 1) ** 2 - 1))]
    return [*_POSITION, *_NORMAL, *_DC, *rest, "opacity", *_SCALE, *_ROT]


def write_ply(path: str | Path, gaussians: Gaussians) -> Path:
    """Writes Gaussians; the file appears under its name only when it is complete. Returns the path.

    Raises:
        OutputError: it cannot be written; a file of that name stays as it was.
    """
    g = gaussians
    n, rest = len(g), g.sh_rest.transpose(1, 2).flatten(1)
    columns = [g.means, torch.zeros_like(g.means), g.sh_dc[:, 0], rest]
    columns += [g.logit_opacities[:, None], g.log_scales, g.quats]
    table = torch.cat([c.detach().cpu().float() for c in columns], dim=1).numpy()
    dtype = np.dtype([(name, "<f4") for name in layout(g.sh_degree)])
    rows = np.ascontiguousarray(table).view(dtype).reshape(n)
    ply = PlyData([PlyElement.describe(rows, "vertex")], byte_order="<")
    with atomic_path(path, durable=True) as temporary, open(temporary, "wb") as file:
        ply.write(file)
    return Path(path)


def read_ply(path: str | Path) -> Gaussians:
    """Reads what `write_ply`, 3DGS and most editors write: SH degree 0 to 3, properties in any order.

    SuperSplat's compressed files are unpacked. What cannot be seen (a scale or a rotation of length 0) is
    left out, and opacities of exactly 0 and 1, whose logits are infinite, become finite; either is said.

    Raises:
        UserError: missing file, no PLY, another layout, truncated, too large, or values that are not finite
            or beyond all measure.
    """
    rows = read_vertices(path)
    missing = [name for name in (*_POSITION, *_DC, "opacity", *_SCALE, *_ROT) if name not in rows.dtype.names]
    if missing:
        raise UserError(
            f"{path} is not a Gaussian splat: it lacks {', '.join(missing)}. "
            f"It has {', '.join(rows.dtype.names)}."
        )
    rest = [name for name in rows.dtype.names if name.startswith("f_rest_")]
    try:
        degree = sh_degree_of(1 + len(rest) / 3)
    except ValueError:
        raise UserError(
            f"{path} has {len(rest)} f_rest properties; 0, 9, 24 or 45 make SH degree 0 to 3."
        ) from None
    rows = _visible(path, rows)
    means, log_scales = columns(path, rows, _POSITION), columns(path, rows, _SCALE)
    check_coordinates(path, means.numpy())
    if (largest := float(log_scales.max())) > math.log(MAX_COORDINATE):
        raise UserError(
            f"{path} has a splat of size exp({largest:.3g}); at most {MAX_COORDINATE:g} is read. Is it "
            "damaged?"
        )
    sh_rest = columns(path, rows, [f"f_rest_{i}" for i in range(len(rest))])
    return Gaussians(
        means=means,
        quats=_unit_where_extreme(columns(path, rows, _ROT)),
        log_scales=log_scales,
        logit_opacities=columns(path, _finite_opacities(path, rows), ["opacity"])[:, 0],
        sh_dc=columns(path, rows, _DC)[:, None, :],
        sh_rest=sh_rest.reshape(len(rows), 3, (degree + 1) ** 2 - 1).transpose(1, 2).contiguous(),
    )


def _visible(path: str | Path, rows: np.ndarray) -> np.ndarray:
    """The rows with an extent: those whose scale is exp(-inf), or whose quaternion is 0, are left out.

    Raises:
        UserError: none is left.
    """
    invisible = np.any([rows[name] == -np.inf for name in _SCALE], axis=0)
    invisible |= np.all([rows[name] == 0.0 for name in _ROT], axis=0)
    if not invisible.any():
        return rows
    if invisible.all():
        raise UserError(
            f"{path} holds nothing to see: all its splats have a scale or a rotation of length 0."
        )
    announce(
        f"{path}: {int(invisible.sum())} of {len(rows)} splats are left out, for their scales or rotations "
        f"have length 0 (the first is row {int(np.argmax(invisible))}); the others are counted anew."
    )
    return rows[~invisible]


def _finite_opacities(path: str | Path, rows: np.ndarray) -> np.ndarray:
    """The column of opacities, infinite logits replaced by `MAX_LOGIT`."""
    endless = np.isinf(rows["opacity"])
    if not endless.any():
        return rows[["opacity"]]
    announce(
        f"{path}: {int(endless.sum())} of {len(rows)} opacities are infinite logits; they are taken as "
        f"{MAX_LOGIT:g} or -{MAX_LOGIT:g}."
    )
    finite = np.empty(len(rows), [("opacity", "f4")])
    finite["opacity"] = np.where(endless, np.sign(rows["opacity"]) * MAX_LOGIT, rows["opacity"])
    return finite


def _unit_where_extreme(quats: Tensor) -> Tensor:
    """Quaternions [N, 4] whose squared length float32 can hold; others are divided by their length."""
    length = quats.double().norm(dim=1, keepdim=True)
    extreme = (length < 1e-9) | (length > 1e9)
    return torch.where(extreme, (quats.double() / length).float(), quats)
