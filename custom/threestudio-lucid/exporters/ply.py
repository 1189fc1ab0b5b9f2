"""`lucid-ply-exporter`: the Gaussians as a 3DGS PLY file, with any system."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import threestudio
from threestudio.models.exporters.base import Exporter, ExporterOutput

from ..errors import UserError
from ..gaussians.ply import write_ply


@threestudio.register("lucid-ply-exporter")
class LucidPLYExporter(Exporter):
    """Exports `lucid-gaussian-splatting` for viewers and editors of 3DGS files."""

    @dataclass
    class Config(Exporter.Config):
        save_name: str = "asset"
        """Name of the file, without .ply."""

    cfg: Config

    def __call__(self) -> list[ExporterOutput]:
        gaussians = getattr(self.geometry, "gaussians", None)
        if gaussians is None:
            raise UserError(
                f"lucid-ply-exporter writes Gaussians, but {type(self.geometry).__name__} has none. "
                "For a surface take system.exporter_type=mesh-exporter."
            )
        # Every system can copy a file (save_file), not every one knows how to write a splat.
        self._folder = tempfile.TemporaryDirectory(prefix="lucid-ply-")
        path = write_ply(Path(self._folder.name) / f"{self.cfg.save_name}.ply", gaussians)
        return [ExporterOutput(path.name, "file", {"src_path": str(path)})]
