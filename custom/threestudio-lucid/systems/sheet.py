"""Several views on one picture, with captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..texts import cut_to_fit, one_line

PAPER, INK, FAINT = (255, 255, 255), (30, 30, 30), (120, 120, 120)


def azimuth_label(azimuth: float) -> str:
    """ "front, 0°", "45°", "side, 90°", ..."""
    names = {0: "front", 90: "side", 180: "back", 270: "side"}
    degrees = round(azimuth) % 360
    return f"{names[degrees]}, {degrees}°" if degrees in names else f"{degrees}°"


def contact_sheet(views: Tensor, labels: Sequence[str], title: str = "", columns: int = 4) -> np.ndarray:
    """Views on white paper, each above its label, the title on top; uint8 [H, W, 3].

    Args:
        views: [N, h, w, 3] in [0, 1].
        labels: one for each view.
    """
    pictures = (views.detach().cpu().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).numpy()
    n, h, w, _ = pictures.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    gap, text = max(4, w // 32), max(11, w // 16)
    label_height, head = text + gap, (2 * text + gap) if title else 0
    size = (gap + columns * (w + gap), head + gap + rows * (h + label_height + gap))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    font, bold = ImageFont.load_default(text), ImageFont.load_default(round(1.3 * text))
    if title:
        line = _shortened(draw, one_line(title), bold, size[0] - 2 * gap)
        draw.text((gap + 1, gap + text // 2), line, fill=INK, font=bold)
    for k in range(n):
        x = gap + (k % columns) * (w + gap)
        y = head + gap + (k // columns) * (h + label_height + gap)
        sheet.paste(Image.fromarray(pictures[k]), (x, y))
        draw.rectangle((x - 1, y - 1, x + w, y + h), outline=(225, 225, 225))
        draw.text((x + w // 2, y + h + gap // 2), labels[k], fill=FAINT, font=font, anchor="ma")
    return np.asarray(sheet)


def _shortened(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, or as much of it as fits the width and an ellipsis."""
    if len(text) <= width and draw.textlength(text, font=font) <= width:
        return text
    text = text[: width + 1]  # no letter is narrower than a pixel
    return cut_to_fit(text, lambda cut: draw.textlength(cut + " …", font=font) <= width) + " …"
