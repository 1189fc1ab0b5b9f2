"""All the things of the toybox, by name."""

from __future__ import annotations

from .thing import OBJECTS, Thing
from .things import buildings, creatures, food, home, person, vehicles  # noqa: F401 - each enters its things
from .things.person import POSES

__all__ = ["OBJECTS", "POSES", "Thing"]
