"""Pictures in a row as MP4 or GIF."""

from __future__ import annotations

import os
from collections.abc import Iterable

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
from PIL import Image

from threestudio.utils.files import atomic_path

FORMATS = ("mp4", "gif")


def write_video(
    path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float = 30, save_format: str = "mp4"
) -> None:
    """Write uint8 ``frames`` [H, W, 3], whole or not at all.

    Raises:
        ValueError: another format than mp4 or gif, or no frames.
        OutputError: the file cannot be written.
    """
    if save_format not in FORMATS:
        raise ValueError(f"Unknown video format {save_format!r}: choose one of {', '.join(FORMATS)}.")
    with atomic_path(path) as temporary:
        count = (_write_mp4 if save_format == "mp4" else _write_gif)(temporary, frames, fps)
        if count == 0:
            raise ValueError(f"No frames for {path}.")
        if save_format == "mp4":
            _check_film(temporary)


def _write_mp4(path: str, frames: Iterable[np.ndarray], fps: float) -> int:
    """The number of frames written."""
    count = 0
    # Without macro_block_size=1 imageio would resize to multiples of 16.
    options = {"fps": fps, "macro_block_size": 1, "quality": 8, "ffmpeg_log_level": "fatal"}
    with imageio.get_writer(path, format="MP4", **options) as writer:
        for frame in frames:
            writer.append_data(_even(frame))
            count += 1
    return count


def _write_gif(path: str, frames: Iterable[np.ndarray], fps: float) -> int:
    pictures = [Image.fromarray(frame) for frame in frames]
    if pictures:
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 / fps, loop=0)
    return len(pictures)


def _check_film(path: str) -> None:
    """Raise OSError unless the film has its index, which ffmpeg writes last; imageio never asks."""
    reader = imageio_ffmpeg.read_frames(path)
    try:
        next(reader)
    finally:
        reader.close()


def _even(frame: np.ndarray) -> np.ndarray:
    """H.264 players want even sides."""
    return np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
