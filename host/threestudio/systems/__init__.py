"""Training loops."""

from threestudio.systems import base, dreamfusion

__all__ = ["base", "dreamfusion"]
