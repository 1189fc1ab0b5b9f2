"""Training loops."""

from threestudio.systems import base, dreamfusion, eff_dreamfusion, latentnerf, magic3d, sdi, sjc

__all__ = ["base", "dreamfusion", "eff_dreamfusion", "latentnerf", "magic3d", "sdi", "sjc"]
