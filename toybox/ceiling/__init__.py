"""What a run's Gaussians could reach: the same ones, by the same steps and cameras, shown the truth itself.

    python -m toybox.ceiling --config RUN/configs/parsed.yaml --train system_type=toybox-truth-system

is `launch.py` with one more system, which follows pictures of a true object instead of a guidance.
"""

from toybox.ceiling.run import train_ceiling

__all__ = ["train_ceiling"]
