"""``mesh-exporter``: the surface of a geometry, with its colours in a texture or on its vertices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

import threestudio
from threestudio.models.exporters.base import Exporter, ExporterOutput
from threestudio.models.mesh import Mesh
from threestudio.utils.bake import rasterize_uv
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.mesh_report import describe_mesh, mesh_report

FORMATS = ("obj-mtl", "obj", "glb")
TEXTURE_FORMATS = ("jpg", "png")
# What a material may export: the name of the texture in .mtl files, and whether it has one channel.
MAPS = {
    "albedo": ("map_Kd", False),
    "metallic": ("map_Pm", True),
    "roughness": ("map_Pr", True),
    "bump": ("map_Bump", False),
}
# Points whose colour is asked for at once.
POINTS_AT_ONCE = 65536


@threestudio.register("mesh-exporter")
class MeshExporter(Exporter):
    """Exports what `geometry.isosurface()` cuts, and a report (holes, size) beside it as JSON.

    Colours are what ``material.export`` makes of ``geometry.export`` at the points of the surface (albedo,
    metallic, roughness, bump): baked into textures, or set on the vertices.
    """

    @dataclass
    class Config(Exporter.Config):
        fmt: str = "obj-mtl"
        """obj-mtl (.obj with material and textures), obj (vertex colours), or glb (textures in one file)."""
        save_name: str = "model"
        """Name of the files, without suffix."""
        save_normal: bool = False
        """Write normals of the vertices."""
        save_uv: bool = True
        """Lay the surface out for textures; false leaves vertex colours."""
        save_texture: bool = True
        """Bake textures; false leaves vertex colours."""
        texture_size: int = 1024
        """Width and height of the textures."""
        texture_format: str = "jpg"
        """Files of the textures of obj-mtl: jpg or png."""
        xatlas_chart_options: dict = field(default_factory=dict)
        """How to cut the surface into charts, see xatlas.ChartOptions."""
        xatlas_pack_options: dict = field(default_factory=dict)
        """How to pack the charts, see xatlas.PackOptions."""
        context_type: str = "gl"
        """Read for threestudio's configs; textures are baked on the CPU."""

        def __post_init__(self) -> None:
            for key, choices in (("fmt", FORMATS), ("texture_format", TEXTURE_FORMATS)):
                if getattr(self, key) not in choices:
                    raise ConfigValueError(
                        f"exporter.{key} is {getattr(self, key)!r}; it must be one of: {', '.join(choices)}."
                    )
            if isinstance(self.texture_size, (int, float)) and not 1 <= self.texture_size <= 16384:
                raise ConfigValueError(
                    f"exporter.texture_size must be from 1 to 16384, got {self.texture_size}."
                )

    cfg: Config

    def __call__(self, *args: Any, **kwargs: Any) -> list[ExporterOutput]:
        """The mesh and its report.

        Raises:
            ConfigValueError: the geometry has no surface, or an empty one.
        """
        if not hasattr(self.geometry, "isosurface"):
            names = sorted(name for name in threestudio.__modules__ if name.endswith("-exporter"))
            raise ConfigValueError(
                f"mesh-exporter cuts the surface of a field, and {type(self.geometry).__name__} is none. "
                f"Choose another system.exporter_type: {', '.join(names)}."
            )
        mesh = self.geometry.isosurface()
        report = mesh_report(mesh.v_pos.detach().cpu().numpy(), mesh.t_pos_idx.cpu().numpy())
        threestudio.info(f"Mesh: {describe_mesh(report)}.")
        outputs = [self._textured(mesh) if self._has_texture() else self._colored(mesh)]
        outputs.append(ExporterOutput(f"{self.cfg.save_name}.json", "json", {"payload": report}))
        return outputs

    def _has_texture(self) -> bool:
        return self.cfg.fmt != "obj" and self.cfg.save_uv and self.cfg.save_texture

    def _textured(self, mesh: Mesh) -> ExporterOutput:
        """Textures of the surface, baked texel by texel."""
        threestudio.info("Laying the surface out with xatlas ...")
        mesh.unwrap_uv(self.cfg.xatlas_chart_options, self.cfg.xatlas_pack_options)
        v_pos, triangles = mesh.v_pos.detach().cpu().numpy(), mesh.t_pos_idx.cpu().numpy()
        texels = rasterize_uv(mesh.v_tex.cpu().numpy(), mesh.t_tex_idx.cpu().numpy(), self.cfg.texture_size)
        points = torch.from_numpy(texels.interpolate(v_pos, triangles)).to(mesh.v_pos)
        maps = {}
        for name, values in self._look(points).items():
            key, gray = MAPS[name]
            texture = texels.picture(values.numpy())
            maps[key] = texture[..., 0] if gray else texture
        if "map_Kd" not in maps:
            threestudio.warn("The material exports no albedo: the mesh is white.")
        if self.cfg.fmt == "glb":
            maps.pop("map_Bump", None)  # glTF has normal maps, which are another thing
            return self._output("glb", mesh, save_normal=self.cfg.save_normal, **maps)
        return self._output(
            "obj",
            mesh,
            save_mat=True,
            save_normal=self.cfg.save_normal,
            save_uv=True,
            map_format=self.cfg.texture_format,
            **maps,
        )

    def _colored(self, mesh: Mesh) -> ExporterOutput:
        """Colours of the vertices."""
        albedo = self._look(mesh.v_pos).get("albedo")
        if albedo is None:
            threestudio.warn("The material exports no albedo: the mesh has no colours.")
        else:
            mesh.set_vertex_color(albedo.to(mesh.v_pos))
        options = {"save_normal": self.cfg.save_normal, "save_vertex_color": albedo is not None}
        if self.cfg.fmt == "glb":
            return self._output("glb", mesh, **options)
        if self.cfg.fmt == "obj-mtl":
            options["save_mat"] = True
        if self.cfg.save_uv:
            mesh.unwrap_uv(self.cfg.xatlas_chart_options, self.cfg.xatlas_pack_options)
        return self._output("obj", mesh, save_uv=self.cfg.save_uv, **options)

    def _output(self, kind: str, mesh: Mesh, **params: Any) -> ExporterOutput:
        return ExporterOutput(f"{self.cfg.save_name}.{kind}", kind, {"mesh": mesh, **params})

    @torch.no_grad()
    def _look(self, points: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the material says of points [N, 3] on the surface: some of `MAPS`, each [N, C], on the CPU."""
        parts: dict[str, list[torch.Tensor]] = {}
        for some in points.split(POINTS_AT_ONCE):
            known = self.geometry.export(points=some)
            look = self.material.export(points=some, **known) if "features" in known else {}
            for name in MAPS:
                if look.get(name) is not None:
                    value = look[name].reshape(len(some), -1)
                    parts.setdefault(name, []).append(value.float().clamp(0, 1).cpu())
        return {name: torch.cat(values) for name, values in parts.items()}
