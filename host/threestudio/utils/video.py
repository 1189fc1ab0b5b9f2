"""Pictures in a row as MP4 or GIF."""

from __future__ import annotations

import os
from collections.abc import Iterable

import imageio.v2 as imageio
import numpy as np

from threestudio.utils.files import atomic_path

FORMATS = ("mp4", "gif")


def write_video(
    path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float = 30, save_format: str = "mp4"
) -> None:
    """Write uint8 ``frames`` [H, W, 3], one at a time, whole or not at all.

    Raises:
        ValueError: another format than mp4 or gif, or no frames.
    """
    if save_format not in FORMATS:
        raise ValueError(f"Unknown video format {save_format!r}: choose one of {', '.join(FORMATS)}.")
    # H.264 players want even sides; without macro_block_size=1 imageio would resize to multiples of 16.
    options = (
        {"fps": fps, "macro_block_size": 1, "quality": 8}
        if save_format == "mp4"
        else {"duration": 1000 / fps}
    )
    if save_format == "gif":
        options["loop"] = 0
    count = 0
    with atomic_path(path) as temporary:
        with imageio.get_writer(temporary, format=save_format.upper(), **options) as writer:
            for frame in frames:
                writer.append_data(_even(frame) if save_format == "mp4" else frame)
                count += 1
        if count == 0:
            raise ValueError(f"No frames for {path}.")


def _even(frame: np.ndarray) -> np.ndarray:
    return np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
