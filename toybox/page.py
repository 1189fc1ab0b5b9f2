"""Pieces of a web page that needs nothing beside it: pictures and videos inside, charts as SVG."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from PIL import Image

from threestudio_lucid.files import atomic_path

COLORS = ("#c2410c", "#7c3aed", "#0369a1", "#15803d", "#be185d", "#a16207", "#0f766e", "#4b5563")

STYLE = """
:root { color-scheme: light dark; --ink: #1c1917; --faint: #78716c; --line: #d6d3d1; --paper: #fafaf9;
  --card: #fff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e5e4; --faint: #a8a29e; --line: #44403c; --paper: #1c1917; --card: #292524 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1180px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem }
p.note { color: var(--faint); max-width: 48rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line) }
th { font-weight: 600; vertical-align: bottom } th:first-child, td:first-child { text-align: left }
.row { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)) }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem;
  min-width: 0 }
.card h3 { font-size: .95rem; margin: 0 0 .4rem } .card small { color: var(--faint) }
.card video, .card img { width: 100%; display: block; border-radius: 4px }
.failed { border-color: #dc2626 } .failed h3 { color: #dc2626 }
pre { font-size: 11px; white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0 0 }
.charts { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)) }
svg text { font: 11px system-ui, sans-serif; fill: var(--faint) }
"""


def picture_uri(picture: np.ndarray, quality: int = 88) -> str:
    """A picture [H, W, 3] in [0, 1] as a data URI (JPEG)."""
    file = io.BytesIO()
    Image.fromarray(np.uint8(picture.clip(0, 1) * 255 + 0.5)).save(file, "JPEG", quality=quality)
    return _uri("image/jpeg", file.getvalue())


def write_video(path: Path, frames: np.ndarray, fps: int = 30) -> None:
    """Write frames [N, H, W, 3] in [0, 1] as MP4 (H.264, which browsers play), whole or not at all."""
    height, width = (side - side % 2 for side in frames.shape[1:3])  # H.264 wants even sides
    options = {"format": "FFMPEG", "fps": fps, "macro_block_size": 1, "quality": 7}
    with atomic_path(path) as temporary, imageio.get_writer(temporary, **options) as video:
        for frame in frames:
            video.append_data(np.uint8(frame[:height, :width].clip(0, 1) * 255 + 0.5))


def video_uri(path: Path) -> str:
    """An MP4 file as a data URI."""
    return _uri("video/mp4", path.read_bytes())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of text."""
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in header) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "\n".join(lines) + "</table>"


def line_chart(
    title: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
) -> str:
    """Curves of points (x, y) as an SVG with a legend.

    Args:
        low, high: ends of the y axis; None: of the data.
        log: a logarithmic y axis; points that are not above 0 are left out.
    """
    width, height, left, right, top, bottom = 460, 240, 52, 10, 26, 50
    curves = {
        name: [(x, math.log10(y) if log else y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]
        for name, points in curves.items()
    }
    xs = [x for points in curves.values() for x, _ in points] or [0.0, 1.0]
    ys = [y for points in curves.values() for _, y in points] or [0.0, 1.0]
    x0, x1 = min(xs), max(max(xs), min(xs) + 1e-9)
    y0, y1 = min(ys) if low is None else low, max(ys) if high is None else high
    y1 = max(y1, y0 + 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (x - x0) / (x1 - x0) * (width - left - right)
        return across, top + (y1 - min(max(y, y0), y1)) / (y1 - y0) * (height - top - bottom)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">']
    parts.append(f'<text x="{left}" y="16" style="font-weight:600">{html.escape(title)}</text>')
    for k in range(5):
        value = y0 + (y1 - y0) * k / 4
        _, y = place(x0, value)
        value = 10**value if log else value
        shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
        )
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>')
    for k, anchor in enumerate(("start", "middle", "end")):
        value = x0 + (x1 - x0) * k / 2
        x, _ = place(value, y0)
        parts.append(
            f'<text x="{x:.1f}" y="{height - bottom + 15}" text-anchor="{anchor}">{value:.0f}</text>'
        )
    for k, (name, points) in enumerate(curves.items()):
        color = COLORS[k % len(COLORS)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in sorted(points)))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{color}"/>'
            for x, y in (place(*point) for point in points)
            if len(points) <= 20
        ]
        across, down = left + (k % 3) * 135, height - 20 + (k // 3) * 14
        parts.append(f'<rect x="{across}" y="{down - 8}" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{across + 14}" y="{down + 1}">{html.escape(name)}</text>')
    return "".join(parts) + "</svg>"


def bar_chart(title: str, bars: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """Horizontal bars, each of parts that add up, as an SVG with a legend.

    Args:
        bars: by the bar's name, its parts by their names, all at least 0.
    """
    width, left, right, top, step = 460, 84, 70, 26, 30
    names = list(dict.fromkeys(name for parts in bars.values() for name in parts))
    scale = (width - left - right) / max([sum(parts.values()) for parts in bars.values()] + [1e-9])
    height = top + step * len(bars) + 18 * (1 + (len(names) - 1) // 4) + 8
    svg = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">']
    svg.append(f'<text x="{left}" y="16" style="font-weight:600">{html.escape(title)}</text>')
    for row, (bar, parts) in enumerate(bars.items()):
        x, y = float(left), top + step * row
        svg.append(f'<text x="{left - 6}" y="{y + 15}" text-anchor="end">{html.escape(bar)}</text>')
        for name, value in parts.items():
            color = COLORS[names.index(name) % len(COLORS)]
            svg.append(
                f'<rect x="{x:.1f}" y="{y}" width="{value * scale:.1f}" height="20" fill="{color}">'
                f"<title>{html.escape(name)}: {value:.3g} {unit}</title></rect>"
            )
            x += value * scale
        svg.append(f'<text x="{x + 6:.1f}" y="{y + 15}">{sum(parts.values()):.3g} {unit}</text>')
    for k, name in enumerate(names):
        across, down = left + (k % 4) * 94, top + step * len(bars) + 14 + (k // 4) * 18
        color = COLORS[k % len(COLORS)]
        svg.append(f'<rect x="{across}" y="{down - 8}" width="10" height="10" fill="{color}"/>')
        svg.append(f'<text x="{across + 14}" y="{down + 1}">{html.escape(name)}</text>')
    return "".join(svg) + "</svg>"


def page(title: str, body: Sequence[str]) -> str:
    """A whole page around pieces of HTML."""
    inner = "\n".join(body)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f"<body>\n<h1>{html.escape(title)}</h1>\n{inner}\n</body></html>\n"
    )
