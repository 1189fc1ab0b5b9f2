"""`lucid-mesh-exporter`: a closed, coloured triangle mesh of the Gaussians, with any system."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import threestudio
from threestudio.models.exporters.base import Exporter, ExporterOutput

from ..errors import UserError, check_choice, check_range
from ..gaussians.surface import ColoredMesh, mesh_of, mesh_report, write_mesh

FORMATS = ("glb", "obj", "ply")


@threestudio.register("lucid-mesh-exporter")
class LucidMeshExporter(Exporter):
    """Exports `lucid-gaussian-splatting` for editors, game engines and printers.

    A watertight surface with vertex colours (gaussians/surface.py says how it is found), and its size and
    volume beside it as JSON.
    """

    @dataclass
    class Config(Exporter.Config):
        fmt: Any = "glb"
        """glb (y up, for viewers and engines), obj or ply (z up, our axes); or a list of them."""
        save_name: str = "mesh"
        """Name of the files, without suffix."""
        resolution: int = 192
        """Cells along the longest side of the object; time and memory grow with its cube."""
        threshold: float = 0.5
        """Share of the light, in (0, 1), that is gone at the surface; lower is fatter."""
        smooth: float = 0.7
        """Blur before the surface is cut, standard deviation in cells; 0 for none."""
        smallest_part: float = 0.02
        """Loose parts smaller than this share of the largest are dropped."""

        def __post_init__(self) -> None:
            getattr(super(), "__post_init__", lambda: None)()
            for fmt in formats_of(self.fmt):
                check_choice("fmt", fmt, FORMATS)
            check_range("resolution", self.resolution, 8, 1024)
            check_range("threshold", self.threshold, 0.01, 0.99)
            check_range("smooth", self.smooth, 0.0)
            check_range("smallest_part", self.smallest_part, 0.0, 1.0)

    cfg: Config

    def __call__(self) -> list[ExporterOutput]:
        gaussians = getattr(self.geometry, "gaussians", None)
        if gaussians is None:
            raise UserError(
                f"lucid-mesh-exporter meshes Gaussians, but {type(self.geometry).__name__} has none. "
                "For the surface of a field take system.exporter_type=mesh-exporter."
            )
        cfg = self.cfg
        mesh = mesh_of(gaussians, cfg.resolution, cfg.threshold, cfg.smooth, cfg.smallest_part)
        report = mesh_report(mesh)
        threestudio.info(
            f"Mesh: {report['triangles']:,} triangles, "
            f"{'watertight' if report['watertight'] else 'not watertight'}."
        )
        return [*self._files(mesh), ExporterOutput(f"{cfg.save_name}.json", "json", {"payload": report})]

    def _files(self, mesh: ColoredMesh) -> list[ExporterOutput]:
        # Every system can copy a file (save_file), not every one knows how to write this one.
        self._folder = tempfile.TemporaryDirectory(prefix="lucid-mesh-")
        paths = [
            write_mesh(Path(self._folder.name) / f"{self.cfg.save_name}.{fmt}", mesh)
            for fmt in formats_of(self.cfg.fmt)
        ]
        return [ExporterOutput(path.name, "file", {"src_path": str(path)}) for path in paths]


def formats_of(fmt: Any) -> list[Any]:
    """One format, or a list of them, as a list without repetitions."""
    return list(dict.fromkeys([fmt] if isinstance(fmt, str) or not isinstance(fmt, Sequence) else fmt))
