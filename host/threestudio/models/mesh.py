"""Triangle meshes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.unwrap import unwrap


class Mesh:
    """Vertices and triangles, with what follows from them computed when first asked for.

    Args:
        v_pos: vertices [Nv, 3].
        t_pos_idx: triangles [Nf, 3], counter-clockwise seen from outside.
        kwargs: anything else to keep, see `add_extra`.
    """

    def __init__(self, v_pos: Tensor, t_pos_idx: Tensor, **kwargs: Any) -> None:
        self.v_pos = v_pos
        self.t_pos_idx = t_pos_idx
        self._v_nrm: Tensor | None = None
        self._v_tng: Tensor | None = None
        self._v_tex: Tensor | None = None
        self._t_tex_idx: Tensor | None = None
        self._v_rgb: Tensor | None = None
        self._edges: Tensor | None = None
        self.extras: dict[str, Any] = {}
        for key, value in kwargs.items():
            self.add_extra(key, value)

    def add_extra(self, key: str, value: Any) -> None:
        """Keep something with the mesh, under ``mesh.extras[key]``."""
        self.extras[key] = value

    @property
    def requires_grad(self) -> bool:
        """Whether the vertices do."""
        return self.v_pos.requires_grad

    @property
    def v_nrm(self) -> Tensor:
        """Unit normals of the vertices [Nv, 3]: of the triangles around each, weighted by their areas.

        A vertex without area around it gets +z.
        """
        if self._v_nrm is None:
            a, b, c = (self.v_pos[self.t_pos_idx[:, corner]] for corner in range(3))
            face_normals = torch.cross(b - a, c - a, dim=-1)
            normals = torch.zeros_like(self.v_pos)
            for corner in range(3):
                normals = normals.index_add(0, self.t_pos_idx[:, corner], face_normals)
            up = torch.tensor([0.0, 0.0, 1.0]).to(normals)
            has_area = (normals * normals).sum(dim=-1, keepdim=True) > 1e-20
            self._v_nrm = F.normalize(torch.where(has_area, normals, up), dim=-1)
        return self._v_nrm

    @property
    def v_tex(self) -> Tensor:
        """Texture coordinates [Nt, 2] in [0, 1], v up; `unwrap_uv` makes them when first asked for."""
        if self._v_tex is None:
            self.unwrap_uv()
        return self._v_tex

    @property
    def t_tex_idx(self) -> Tensor:
        """Triangles [Nf, 3] of `v_tex`, in the order of `t_pos_idx`."""
        if self._t_tex_idx is None:
            self.unwrap_uv()
        return self._t_tex_idx

    def unwrap_uv(
        self,
        xatlas_chart_options: Mapping[str, Any] | None = None,
        xatlas_pack_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Lay the surface out on the unit square with xatlas: sets `v_tex` and `t_tex_idx`.

        Args:
            xatlas_chart_options, xatlas_pack_options: attributes of xatlas.ChartOptions and .PackOptions.

        Raises:
            ConfigValueError: xatlas is not installed, or has no such option.
        """
        v_tex, t_tex_idx = unwrap(
            self.v_pos.detach().cpu().numpy(),
            self.t_pos_idx.cpu().numpy(),
            xatlas_chart_options or {},
            xatlas_pack_options or {},
        )
        self._v_tex = torch.from_numpy(v_tex).to(self.v_pos)
        self._t_tex_idx = torch.from_numpy(t_tex_idx).to(self.t_pos_idx)
        self._v_tng = None

    @property
    def v_tng(self) -> Tensor:
        """Unit tangents of the vertices [Nv, 3]: where u grows, at right angles to `v_nrm`.

        At a seam, and where the texture has no area, the tangent is one of many.
        """
        if self._v_tng is None:
            corners, coordinates = self.v_pos[self.t_pos_idx], self.v_tex[self.t_tex_idx]
            side, side_uv = corners[:, 1:] - corners[:, :1], coordinates[:, 1:] - coordinates[:, :1]
            # side_k = du_k T + dv_k B for k = 1, 2, solved for T up to its length
            tangent = side[:, 0] * side_uv[:, 1, 1:] - side[:, 1] * side_uv[:, 0, 1:]
            mirrored = side_uv[:, 0, :1] * side_uv[:, 1, 1:] < side_uv[:, 1, :1] * side_uv[:, 0, 1:]
            tangent = torch.where(mirrored, -tangent, tangent)
            total = torch.zeros_like(self.v_pos)
            for corner in range(3):
                total = total.index_add(0, self.t_pos_idx[:, corner], tangent)
            total = total - (total * self.v_nrm).sum(dim=-1, keepdim=True) * self.v_nrm
            has_tangent = total.norm(dim=-1, keepdim=True) > 1e-12
            self._v_tng = F.normalize(torch.where(has_tangent, total, self._across()), dim=-1)
        return self._v_tng

    def _across(self) -> Tensor:
        """Some vector at right angles to each normal: the cross product with the axis furthest from it."""
        axis = F.one_hot(self.v_nrm.abs().argmin(dim=-1), 3).to(self.v_nrm)
        return torch.cross(self.v_nrm, axis, dim=-1)

    @property
    def v_rgb(self) -> Tensor | None:
        """Colours of the vertices [Nv, 3] in [0, 1], if they were set."""
        return self._v_rgb

    def set_vertex_color(self, v_rgb: Tensor) -> None:
        """Set `v_rgb` [Nv, 3]."""
        if len(v_rgb) != len(self.v_pos):
            raise ValueError(f"{len(v_rgb)} colours for {len(self.v_pos)} vertices.")
        self._v_rgb = v_rgb

    @property
    def edges(self) -> Tensor:
        """The pairs [Ne, 2] of vertices that share a triangle's side, each once, the smaller index first."""
        if self._edges is None:
            sides = torch.cat(
                [self.t_pos_idx[:, [0, 1]], self.t_pos_idx[:, [1, 2]], self.t_pos_idx[:, [2, 0]]]
            )
            self._edges = torch.unique(sides.sort(dim=-1).values, dim=0)
        return self._edges

    def normal_consistency(self) -> Tensor:
        """Mean over the edges of 1 - cosine of the normals at its ends: 0 is flat."""
        normals = self.v_nrm[self.edges]
        return (1.0 - F.cosine_similarity(normals[:, 0], normals[:, 1], dim=-1)).mean()

    def laplacian(self) -> Tensor:
        """Mean over the vertices of the distance to the mean of their neighbours."""
        first, second = self.edges.unbind(dim=-1)
        total = torch.zeros_like(self.v_pos).index_add(0, first, self.v_pos[second])
        total = total.index_add(0, second, self.v_pos[first])
        count = torch.bincount(self.edges.flatten(), minlength=len(self.v_pos)).clamp(min=1)
        used = torch.bincount(self.edges.flatten(), minlength=len(self.v_pos)) > 0
        offset = total / count[:, None] - self.v_pos
        return offset[used].norm(dim=-1).mean()

    def remove_outlier(self, outlier_n_faces_threshold: int | float) -> Mesh:
        """The mesh without its small connected parts.

        Args:
            outlier_n_faces_threshold: a part stays with at least so many triangles (int), or at least this
                fraction of those of the largest part (float).

        Returns:
            A new mesh without extras, or this one when it requires gradients (which would be lost).
        """
        if self.requires_grad:
            threestudio.debug("The mesh requires gradients; its small parts stay.")
            return self
        import trimesh

        whole = trimesh.Trimesh(
            vertices=self.v_pos.detach().cpu().numpy(), faces=self.t_pos_idx.cpu().numpy(), process=False
        )
        parts = whole.split(only_watertight=False)
        if len(parts) == 0:
            raise ConfigValueError(
                "The mesh is empty: the surface lies outside of the box, or there is none yet."
            )
        least = outlier_n_faces_threshold
        if isinstance(least, float):
            least = max(len(part.faces) for part in parts) * least
        kept = trimesh.util.concatenate([part for part in parts if len(part.faces) >= least])
        return Mesh(
            torch.from_numpy(kept.vertices.copy()).to(self.v_pos),
            torch.from_numpy(kept.faces.copy()).to(self.t_pos_idx),
        )
