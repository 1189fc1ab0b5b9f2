"""Arrays as pictures (uint8 RGB [H, W, 3]): scaling to bytes, colour maps, grids with captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

# Anchor colours, evenly spaced: matplotlib's magma, and ColorBrewer's Spectral (11 classes).
_ANCHORS = {
    "magma": "000004 1c1044 4f127b 812581 b5367a e55064 fb8761 fec287 fcfdbf",
    "spectral": "9e0142 d53e4f f46d43 fdae61 fee08b ffffbf e6f598 abdda4 66c2a5 3288bd 5e4fa2",
}
COLORMAPS = ("jet", *_ANCHORS)


def to_numpy(data: Any) -> Any:
    """Tensors (alone, or in lists and dicts) as float32 or integer numpy arrays; other things as they are.

    Raises:
        TypeError: something that is neither an array, a number nor a container of them.
    """
    if data is None or isinstance(data, (int, float, np.ndarray)):
        return data
    if isinstance(data, torch.Tensor):
        data = data.detach().cpu()
        return (data.float() if data.dtype in (torch.float16, torch.bfloat16) else data).numpy()
    if isinstance(data, (list, tuple)):
        return [to_numpy(item) for item in data]
    if isinstance(data, dict):
        return {key: to_numpy(value) for key, value in data.items()}
    raise TypeError(f"Expected a tensor, an array, or a list or dict of them, got {type(data).__name__}.")


def rescale(img: np.ndarray, data_range: Sequence[float]) -> np.ndarray:
    """``data_range`` to [0, 1], clipped; NaN becomes 0."""
    low, high = (float(bound) for bound in data_range)
    scaled = (np.asarray(img, dtype=np.float32) - low) / max(high - low, 1e-12)
    return np.nan_to_num(scaled.clip(0.0, 1.0), nan=0.0)


def to_bytes(img: np.ndarray) -> np.ndarray:
    """[0, 1] to the nearest of 0..255."""
    return (img * 255.0 + 0.5).astype(np.uint8)


def rgb_image(img: Any, data_format: str = "HWC", data_range: Sequence[float] = (0, 1)) -> np.ndarray:
    """A picture of [H, W, C] ("HWC") or [C, H, W] ("CHW") values.

    Channels beyond three are shown three at a time, side by side; missing ones of the last three are black.

    Raises:
        ValueError: not three-dimensional, or another ``data_format``.
    """
    img = np.asarray(to_numpy(img))
    if img.ndim != 3 or data_format not in ("HWC", "CHW"):
        raise ValueError(
            f"An RGB image is [H, W, C] 'HWC' or [C, H, W] 'CHW', got {img.shape} {data_format!r}."
        )
    if data_format == "CHW":
        img = img.transpose(1, 2, 0)
    img = to_bytes(rescale(img, data_range))
    img = np.pad(img, ((0, 0), (0, 0), (0, -img.shape[2] % 3)))
    return np.concatenate(np.split(img, img.shape[2] // 3, axis=2), axis=1)


def grayscale_image(
    img: Any, data_range: Sequence[float] | None = None, cmap: str | None = "jet"
) -> np.ndarray:
    """A picture of [H, W] values in false colours; ``data_range`` None is from the least to the largest.

    Raises:
        ValueError: not two-dimensional, or an unknown ``cmap``.
    """
    img = np.nan_to_num(np.asarray(to_numpy(img), dtype=np.float32))
    if img.ndim != 2:
        raise ValueError(f"A grayscale image is [H, W], got {img.shape}.")
    if data_range is None:
        data_range = (img.min(), img.max())
    return to_bytes(apply_colormap(rescale(img, data_range), cmap))


def apply_colormap(values: np.ndarray, cmap: str | None) -> np.ndarray:
    """[0, 1] values [...] as RGB [..., 3] in [0, 1]; ``cmap`` None is gray.

    Raises:
        ValueError: an unknown ``cmap``.
    """
    if cmap is None:
        return np.repeat(values[..., None], 3, axis=-1)
    if cmap == "jet":
        return np.stack([1.5 - np.abs(4.0 * values - centre) for centre in (3.0, 2.0, 1.0)], axis=-1).clip(
            0.0, 1.0
        )
    if cmap not in _ANCHORS:
        raise ValueError(f"Unknown cmap {cmap!r}: choose one of {', '.join(COLORMAPS)}, or None for gray.")
    anchors = np.array([list(bytes.fromhex(color)) for color in _ANCHORS[cmap].split()]) / 255.0
    positions = np.linspace(0.0, 1.0, len(anchors))
    return np.stack([np.interp(values, positions, anchors[:, channel]) for channel in range(3)], axis=-1)


def uv_image(
    img: Any, data_format: str = "HWC", data_range: Sequence[float] = (0, 1), cmap: str = "checkerboard"
) -> np.ndarray:
    """A picture of texture coordinates [H, W, 2]: 64 by 64 checks, or u as red and v as green ("color").

    Raises:
        ValueError: an unknown ``cmap``, or not two channels.
    """
    uv = np.asarray(to_numpy(img))
    if data_format == "CHW":
        uv = uv.transpose(1, 2, 0)
    if uv.ndim != 3 or uv.shape[2] != 2:
        raise ValueError(f"A UV image has two channels, got {uv.shape} {data_format!r}.")
    uv = rescale(uv, data_range)
    if cmap == "color":
        return to_bytes(np.concatenate([uv, np.zeros_like(uv[..., :1])], axis=-1))
    if cmap != "checkerboard":
        raise ValueError(f"Unknown cmap {cmap!r}: choose 'checkerboard' or 'color'.")
    odd = (uv * 64).astype(np.int64).sum(axis=-1, keepdims=True) % 2
    return np.where(odd == 1, np.uint8([[[255, 0, 255]]]), np.uint8([[[255, 255, 255]]]))


_KINDS = {"rgb": rgb_image, "grayscale": grayscale_image, "uv": uv_image}


def grid_image(imgs: list[Any], align: Any = "max", texts: Sequence[str] | None = None) -> np.ndarray:
    """One picture of many.

    Args:
        imgs: ``{"type": "rgb" | "grayscale" | "uv", "img": ..., "kwargs": {...}}``, a list (one row) or a
            list of rows.
        align: the size of each cell: "max" or "min" of all, an int, or (height, width).
        texts: lines written into the upper left corner.

    Raises:
        ValueError: an unknown type or ``align``, or no images.
    """
    rows = imgs if imgs and isinstance(imgs[0], list) else [imgs]
    pictures = [[_picture(spec) for spec in row] for row in rows if row]
    if not pictures:
        raise ValueError("A grid needs at least one image.")
    size = _cell_size([picture.shape[:2] for row in pictures for picture in row], align)
    resized = [np.concatenate([resize(picture, size) for picture in row], axis=1) for row in pictures]
    width = max(row.shape[1] for row in resized)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in resized]
    grid = np.concatenate(padded, axis=0)
    return write_lines(grid, texts) if texts else grid


def _picture(spec: dict[str, Any]) -> np.ndarray:
    if spec["type"] not in _KINDS:
        raise ValueError(f"Unknown image type {spec['type']!r}: choose one of {', '.join(_KINDS)}.")
    return _KINDS[spec["type"]](spec["img"], **(spec.get("kwargs") or {}))


def _cell_size(shapes: list[tuple[int, int]], align: Any) -> tuple[int, int]:
    if align in ("max", "min"):
        pick = max if align == "max" else min
        return pick(h for h, _ in shapes), pick(w for _, w in shapes)
    if isinstance(align, int):
        return align, align
    if isinstance(align, (tuple, list)) and len(align) == 2:
        return int(align[0]), int(align[1])
    raise ValueError(f"align is 'max', 'min', an int or (height, width), not {align!r}.")


def resize(img: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``img`` as ``size`` = (height, width), bilinear."""
    if img.shape[:2] == tuple(size):
        return img
    return np.asarray(Image.fromarray(img).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def write_lines(img: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """``img`` with ``texts`` one below the other from the upper left corner, black edged with white."""
    picture = Image.fromarray(img)
    draw = ImageDraw.Draw(picture)
    for line, text in enumerate(texts):
        draw.text((4, 2 + 12 * line), str(text), fill=(0, 0, 0), stroke_width=1, stroke_fill=(255, 255, 255))
    return np.asarray(picture)
