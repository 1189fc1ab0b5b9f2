"""Sheets of pictures as PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from threestudio_lucid.files import atomic_path


def write_sheet(path: Path, images: torch.Tensor, columns: int, gap: int = 2) -> None:
    """Write images [n, 3, h, w] in [0, 1] as one PNG, `columns` to a row, `gap` pixels of white between."""
    images = images.detach().float().clamp(0, 1)
    n, _, h, w = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        canvas[top : top + h, left : left + w] = (image.permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
    with atomic_path(path) as temporary:
        Image.fromarray(canvas).save(temporary)
