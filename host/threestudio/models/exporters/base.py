"""Base of exporters: what ``--export`` makes of a trained system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import threestudio
from threestudio.models.parts import SubModules
from threestudio.utils.base import BaseObject


@dataclass
class ExporterOutput:
    """One file, or group of files, to write."""

    save_name: str
    """File name, below it<step>-export/."""
    save_type: str
    """The system's method save_<save_type> writes it."""
    params: dict[str, Any]
    """That method's other arguments."""


class Exporter(BaseObject):
    """Called without arguments once the system is loaded; returns a list of `ExporterOutput`."""

    @dataclass
    class Config(BaseObject.Config):
        save_video: bool = False
        """Also render the test views into a video."""

    cfg: Config

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        self.sub_modules = SubModules(geometry, material, background)

    @property
    def geometry(self) -> Any:
        return self.sub_modules.geometry

    @property
    def material(self) -> Any:
        return self.sub_modules.material

    @property
    def background(self) -> Any:
        return self.sub_modules.background

    def __call__(self, *args: Any, **kwargs: Any) -> list[ExporterOutput]:
        raise NotImplementedError(f"{type(self).__name__} exports nothing.")


@threestudio.register("dummy-exporter")
class DummyExporter(Exporter):
    """Exports nothing; with ``save_video`` the test video is still made."""

    def __call__(self, *args: Any, **kwargs: Any) -> list[ExporterOutput]:
        return []
