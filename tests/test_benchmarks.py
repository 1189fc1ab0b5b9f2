"""What the benchmarks count and measure, on scenes of no size; never how fast it is."""

from __future__ import annotations

import json
import re

import pytest
import torch

from benchmarks import rasterizer as benchmark
from benchmarks import step
from threestudio_lucid.rasterizer import rasterize
from toybox import page

TINY = (200, 48, 2, 0.03)


def test_every_pair_is_looked_at():
    scene = benchmark.make_scene(*TINY)
    render = rasterize(**scene, backend="cpu")
    pairs, visited = benchmark.count_pairs(scene, render), benchmark.count_visited(scene, render)
    assert 0 < pairs <= visited < 5 * pairs


def test_pairs_are_those_of_the_formula():
    """alpha of every Gaussian at every pixel, without an ellipse."""
    scene = benchmark.make_scene(*TINY)
    info = rasterize(**scene, backend="cpu").info
    size = scene["width"]
    x = torch.arange(size).double() + 0.5
    expected = 0
    for means2d, conics in zip(info["means2d"].double(), info["conics"].double(), strict=True):
        dx, dy = (x[None, :] - means2d[:, i, None] for i in (0, 1))
        a, b, c = (conics[:, i, None, None] for i in range(3))
        power = (a * dx[:, None] ** 2 + c * dy[:, :, None] ** 2) / 2 + b * dx[:, None] * dy[:, :, None]
        alpha = scene["opacities"].double()[:, None, None] * (-power).exp()
        expected += int(((alpha >= 1 / 255) & (a > 0)).sum())
    assert abs(benchmark.count_pairs(scene, rasterize(**scene, backend="cpu")) - expected) <= 2


def test_the_rasterizers_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "SHORT", [TINY])
    monkeypatch.setattr(benchmark, "REFERENCE_SHORT", TINY)
    monkeypatch.setattr(benchmark, "roofline", lambda whole=benchmark.roofline: whole(batches=1))
    whole = benchmark.median_time
    monkeypatch.setattr(benchmark, "median_time", lambda call, seconds, least=3: whole(call, 0.0, 1))
    monkeypatch.setattr("sys.argv", ["rasterizer", "--out", str(tmp_path / "table.json")])
    benchmark.main()
    report = json.loads((tmp_path / "table.json").read_text())
    assert report["roofline_pairs_per_s"] > 0
    (row,), reference = report["cpu"], report["reference"]
    assert row["gaussians"] == reference["gaussians"] == TINY[0] and 0 < row["pairs"] <= row["visited"]
    assert {"make_records", "fill_tiles", "sort_tiles", "composite_forward"} <= set(row["forward_stages_ms"])
    assert {"composite_backward", "reduce_pairs", "project_backward"} <= set(row["backward_stages_ms"])
    assert reference["ratio"] == pytest.approx(reference["reference_ms"] / reference["cpu_ms"])
    assert "48^2" in capsys.readouterr().out


def test_bars_are_as_long_as_their_parts():
    chart = page.bar_chart("a & b", {"one": {"x": 1.0, "y": 3.0}, "two": {"y": 2.0}}, "ms")
    x, y, other = (float(w) for w in re.findall(r'width="([\d.]+)" height="20"', chart))
    assert y == pytest.approx(3 * x, abs=0.2) and other == pytest.approx(2 * x, abs=0.2)
    assert "a &amp; b" in chart and ">4 ms<" in chart and chart.count('height="10"') == 2


def test_the_steps_page(tmp_path):
    seconds = {"step": 0.2, "render": 0.05, "unet": 0.15}
    result = {"prior": "mini", "seconds": seconds, "floor_seconds": 0.03}
    step.draw(result, tmp_path / "step.html")
    text = (tmp_path / "step.html").read_text()
    assert "A step with mini" in text and "unet: 150 ms" in text and "model calls: 30 ms" in text
