"""References from one part of a system to others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class SubModules:
    """Geometry, material and background as a renderer or exporter sees them.

    A plain object: modules kept in it are not registered again; their weights stay under the system's names.
    """

    geometry: Any
    material: Any
    background: Any
