"""How fast the CPU rasterizer is, against the plain back end and against what the machine can do.

    python -m benchmarks.rasterizer                # 15 seconds
    python -m benchmarks.rasterizer --full         # the large scenes too, some minutes
    python -m benchmarks.rasterizer --threads 1 --out somewhere.json

A pair is a pixel and a Gaussian whose alpha there is at least 1/255: what has to be computed, whoever
computes it (compositing may stop before the last ones). The roofline is the same arithmetic, exp and
blending, in a tight loop with everything in registers, with no tiles, windows or sorting around it. All
numbers of a table come from one run; times are medians, those of single kernels of one pass.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numba import njit
from torch import Tensor

from benchmarks.report import FOLDER, print_machine, write
from threestudio.utils.memory import keep_freed_memory
from threestudio_lucid import simd
from threestudio_lucid.files import write_text
from threestudio_lucid.rasterizer import Render, cpu, kernels, rasterize, threads
from toybox import page

f32 = np.float32

# Gaussians, pixels of a side, views, deviation in world units
SHORT = [(4_000, 128, 4, 0.02), (20_000, 256, 1, 0.012)]
FULL = [
    *((5_000, 128, views, 0.02) for views in (1, 4)),
    *((20_000, 256, views, 0.012) for views in (1, 4)),
    (20_000, 256, 1, 0.03),  # the same picture from larger ones
    *((100_000, 512, views, 0.006) for views in (1, 4)),
]
CURVE = [1_000, 2_000, 5_000, 10_000, 20_000, 50_000]  # Gaussians, at 256 pixels
REFERENCE_SHORT = (1_000, 128, 1, 0.03)
REFERENCE_FULL = (20_000, 256, 1, 0.012)
CROP = 4  # the plain back end, whose cost is pixels times Gaussians, draws 1 / CROP of either side's middle


def _compiled(signature: str) -> Callable:
    """Without numba's cache, which does not see when the kernels change that these are made of."""
    return njit(signature, nogil=True, fastmath=kernels.FAST_MATH, error_model="numpy")


@_compiled("void(i8, i8, i8, f4[:,::1])")
def _tight_loop(start, stop, batches, out):
    """The forward pass's innermost loop and nothing else: a block in registers, entries out of thin air."""
    step = f32(0.25)
    for piece in range(start, stop):
        T, nothing = simd.spread(f32(1)), simd.spread(f32(0))
        sum_r, sum_g, sum_b, sum_z = nothing, nothing, nothing, nothing
        dy = simd.numbers()
        for _ in range(batches):
            dx = simd.numbers() - f32(12)
            for _ in range(kernels.BATCH):
                t = f32(-6) - dx * (f32(1e-2) * dx) - dy * (f32(1e-3) * dx + f32(1e-3) * dy)
                a = simd.minimum(simd.exp2(t), kernels.F_ALPHA_MAX)
                a = simd.select(t >= kernels.F_LOG2_ALPHA_MIN, a, f32(0))
                after = T * (f32(1) - a)
                w = simd.select(after >= kernels.F_T_MIN, a * T, f32(0))
                T = simd.maximum(after, kernels.F_T_STOPPED)
                sum_r += w * f32(0.5)
                sum_g += w * f32(0.4)
                sum_b += w * f32(0.3)
                sum_z += w * f32(0.2)
                dx = dx + step
        simd.store(out[piece], 0, sum_r + sum_g + sum_b + sum_z + T)


@_compiled("void(i8, i8, f4[:,::1], f4[:,::1], f4[::1], i8, i8, i8[::1])")
def _count_pairs(start, stop, means2d, conics, opacities, width, height, counts):
    """counts[g]: pixels where alpha >= 1/255, row by row."""
    for g in range(start, stop):
        counts[g] = 0
        a, b, c = np.float64(conics[g, 0]), np.float64(conics[g, 1]), np.float64(conics[g, 2])
        reach = 2 * math.log(max(opacities[g % opacities.shape[0]] * 255, 1.0))
        if not (a > 0 and reach > 0):
            continue
        half_h = math.sqrt(reach * a / (a * c - b * b))
        first = max(math.ceil(means2d[g, 1] - half_h - 0.5), 0)
        last = min(math.floor(means2d[g, 1] + half_h - 0.5), height - 1)
        for row in range(first, last + 1):
            dy = row + 0.5 - means2d[g, 1]
            half = math.sqrt(max(reach / a - (a * c - b * b) / (a * a) * dy * dy, 0.0))
            centre = means2d[g, 0] - b / a * dy - 0.5
            left, right = max(math.ceil(centre - half), 0), min(math.floor(centre + half), width - 1)
            counts[g] += max(right - left + 1, 0)


def make_scene(num: int, size: int, views: int, scale: float) -> dict[str, Tensor | int]:
    """A ball of Gaussians of random opacity, seen from all around."""
    generator = torch.Generator().manual_seed(0)
    viewmats = torch.eye(4).repeat(views, 1, 1)
    for v in range(views):
        angle = 2 * math.pi * v / views
        viewmats[v, 0, 0] = viewmats[v, 2, 2] = math.cos(angle)
        viewmats[v, 0, 2], viewmats[v, 2, 0] = math.sin(angle), -math.sin(angle)
        viewmats[v, 2, 3] = 3
    focal = size / 2 / math.tan(math.radians(20))
    Ks = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]).repeat(views, 1, 1)
    return {
        "means": 0.4 * torch.randn(num, 3, generator=generator),
        "quats": torch.randn(num, 4, generator=generator),
        "scales": scale * (0.3 + 1.4 * torch.rand(num, 3, generator=generator)),
        "opacities": 0.05 + 0.9 * torch.rand(num, generator=generator),
        "colors": torch.rand(num, 3, generator=generator),
        "viewmats": viewmats,
        "Ks": Ks,
        "width": size,
        "height": size,
        "background": torch.ones(3),
    }


@_compiled("void(i8, i8, i8[::1], i4[::1], f4[::1], i8, i8, i8[::1])")
def _count_visited(start, stop, tile_starts, entry_splats, records, tiles_x, tiles_y, counts):
    """counts[tile]: pixels that compositing looks at if nothing stops early."""
    batch = np.zeros(kernels.BATCH * kernels.RECORD, np.float32)
    columns = np.empty(kernels.BLOCK_ROWS * kernels.BATCH, np.uint8)
    shows = np.empty(kernels.TILE_BLOCKS * kernels.BATCH // 32, np.uint32)
    for tile in range(start, stop):
        counts[tile] = 0
        x0 = f32(tile % tiles_x * kernels.TILE_W)
        y0 = f32(tile // tiles_x % tiles_y * kernels.TILE_H)
        for entry in range(tile_starts[tile], tile_starts[tile + 1]):
            kernels._load_records(records, entry_splats, entry, entry + 1, entry, x0, y0, batch)
            kernels._find_blocks(batch, 1, columns, shows)
            for i in range(0, len(shows), kernels.BATCH // 32):
                counts[tile] += (shows[i] & 1) * kernels.LANES


def count_visited(scene: dict, render: Render) -> int:
    """Pixel-Gaussian pairs that the kernels evaluate to find those that count."""
    splats = (render.info[name].detach().numpy() for name in ("means2d", "depths", "conics"))
    colors = scene["colors"].detach().numpy()[None]
    bins = cpu._Bins(*splats, scene["opacities"].detach().numpy(), colors, scene["width"], scene["height"])
    counts = np.empty(bins.num_tiles, np.int64)
    _, _, tiles_x, tiles_y = bins.shape
    threads.run(
        _count_visited, bins.num_tiles, bins.tile_starts, bins.entry_splats, bins.records,
        tiles_x, tiles_y, counts,
    )  # fmt: skip
    return int(counts.sum())


def count_pairs(scene: dict, render: Render) -> int:
    """Pixel-Gaussian pairs of all views."""
    means2d, conics = (render.info[name].detach().flatten(0, 1).numpy() for name in ("means2d", "conics"))
    counts = np.empty(len(means2d), np.int64)
    threads.run(
        _count_pairs, len(counts), means2d, conics, scene["opacities"].detach().numpy(), scene["width"],
        scene["height"], counts, grain=1000,
    )  # fmt: skip
    return int(counts.sum())


def median_time(call: Callable[[], object], seconds: float, least: int = 3) -> float:
    """Median of as many calls as fit, at least `least` after one to warm up."""
    call()
    times: list[float] = []
    while len(times) < least or (sum(times) < seconds and len(times) < 200):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _wanting_gradients(scene: dict) -> dict:
    """The scene with copies of all tensors but the cameras that record gradients."""
    leaves = ("means", "quats", "scales", "opacities", "colors")
    return scene | {name: scene[name].clone().requires_grad_() for name in leaves}


def time_passes(scene: dict, backend: str, seconds: float) -> tuple[float, float]:
    """Median seconds of a forward and of a backward pass, all gradients wanted."""
    inputs = _wanting_gradients(scene)
    render = rasterize(**inputs, backend=backend)
    gradients = [torch.randn(output.shape) for output in render[:3]]

    def backward() -> None:
        torch.autograd.backward(list(render[:3]), gradients, retain_graph=True)

    return median_time(lambda: rasterize(**inputs, backend=backend), seconds), median_time(backward, seconds)


def time_both(scene: dict, backend: str, seconds: float, least: int) -> float:
    """Median seconds of a forward pass and its backward pass."""
    inputs = _wanting_gradients(scene)

    def both() -> None:
        render = rasterize(**inputs, backend=backend)
        torch.autograd.backward(list(render[:3]), [torch.ones_like(output) for output in render[:3]])

    return median_time(both, seconds, least)


def time_stages(scene: dict) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each kernel of a forward and of a backward pass."""
    inputs = _wanting_gradients(scene)
    for _ in range(2):  # the first to warm up
        render = None  # its memory is for the next
        with stages() as forward:
            render = rasterize(**inputs, backend="cpu")
        with stages() as backward:
            torch.autograd.backward(list(render[:3]), [torch.ones_like(output) for output in render[:3]])
    return forward, backward


@contextmanager
def stages() -> Iterator[dict[str, float]]:
    """Seconds spent in each kernel, all threads waited for, while the context is open."""
    spent: dict[str, float] = defaultdict(float)
    run = threads.run

    def timed(kernel, *args: object, **options: int) -> None:
        began = time.perf_counter()
        run(kernel, *args, **options)
        spent[kernel.py_func.__name__] += time.perf_counter() - began

    threads.run = timed
    try:
        yield spent
    finally:
        threads.run = run


def roofline(batches: int = 4000) -> float:
    """Exp-and-blend steps per second, all threads."""
    count = torch.get_num_threads()
    out = np.empty((count, kernels.LANES), np.float32)
    seconds = median_time(lambda: threads.run(_tight_loop, count, batches, out), 0.5)
    return count * batches * kernels.BATCH * kernels.LANES / seconds


def measure(shapes: list[tuple[int, int, int, float]], seconds: float) -> list[dict]:
    """One row of the table per shape."""
    rows = []
    for num, size, views, scale in shapes:
        scene = make_scene(num, size, views, scale)
        render = rasterize(**scene, backend="cpu")
        pairs, visited = count_pairs(scene, render), count_visited(scene, render)
        forward, backward = time_passes(scene, "cpu", seconds)
        forward_stages, backward_stages = time_stages(scene)
        rows.append(
            {
                "gaussians": num, "pixels": size, "views": views, "pairs": pairs, "visited": visited,
                "forward_ms": 1e3 * forward, "backward_ms": 1e3 * backward,
                "forward_pairs_per_s": pairs / forward, "backward_pairs_per_s": pairs / backward,
                "forward_stages_ms": {name: 1e3 * value for name, value in forward_stages.items()},
                "backward_stages_ms": {name: 1e3 * value for name, value in backward_stages.items()},
            }
        )  # fmt: skip
    return rows


def against_reference(shape: tuple[int, int, int, float], seconds: float) -> dict:
    """Forward and backward of both back ends on one scene; the plain one's for a part of the picture, times
    how many such parts there are."""
    scene = make_scene(*shape)
    side = shape[1] // CROP
    Ks = scene["Ks"].clone()
    Ks[:, :2, 2] -= (shape[1] - side) / 2
    plain = CROP**2 * time_both(scene | {"Ks": Ks, "width": side, "height": side}, "reference", 0, least=1)
    compiled = time_both(scene, "cpu", seconds, least=3)
    return {
        "gaussians": shape[0], "pixels": shape[1], "views": shape[2],
        "reference_ms": 1e3 * plain, "cpu_ms": 1e3 * compiled, "ratio": plain / compiled,
    }  # fmt: skip


def curve(seconds: float) -> list[dict]:
    """Time of both passes against pairs: more Gaussians of one size on a picture of one size."""
    return measure([(num, 256, 1, 0.012) for num in CURVE], seconds)


def draw_curve(rows: list[dict], path: Path) -> None:
    """A page with the curve."""
    series = {
        f"{name} ms": [(row["pairs"] / 1e6, row[f"{name}_ms"]) for row in rows]
        for name in ("forward", "backward")
    }
    chart = page.line_chart("milliseconds, by millions of pairs", series, low=0.0)
    write_text(path, page.page("The CPU rasterizer's cost", [chart]))


def print_tables(report: dict) -> None:
    print_machine()
    print(f"\nroofline: {report['roofline_pairs_per_s'] / 1e9:.2f} G exp-and-blend steps a second\n")
    print("of roof: pairs that count; in brackets all that are looked at to find them")
    columns = [f"{name:>8} ms  G pairs/s  of roof     " for name in ("forward", "backward")]
    print("Gaussians  pixels  views  M pairs | " + " | ".join(columns))
    for row in report["cpu"]:
        cells = []
        for name in ("forward", "backward"):
            speed = row[f"{name}_pairs_per_s"]
            share = speed / report["roofline_pairs_per_s"]
            all_looked_at = share * row["visited"] / row["pairs"]
            cells.append(
                f"{row[f'{name}_ms']:11.1f} {speed / 1e9:10.2f} {share:8.0%} {f'({all_looked_at:.0%})':>6}"
            )
        size = f"{row['pixels']}^2"
        print(
            f"{row['gaussians']:9d} {size:>7} {row['views']:6d} {row['pairs'] / 1e6:8.1f} |"
            + " |".join(cells)
        )
        print(f"           {row['visited'] / row['pairs']:.1f} pixels looked at for each pair")
        for name in ("forward", "backward"):
            parts = sorted(row[f"{name}_stages_ms"].items(), key=lambda item: -item[1])
            print(f"           {name} ms: " + ", ".join(f"{part} {value:.1f}" for part, value in parts))
    row = report["reference"]
    print(
        f"\nagainst the plain back end, {row['gaussians']} Gaussians, {row['pixels']}^2, both passes: "
        f"{row['reference_ms']:.0f} ms ({CROP**2} times its time for the middle) / {row['cpu_ms']:.1f} ms = "
        f"{row['ratio']:.0f} times faster"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="up to 100k Gaussians at 512x512; minutes")
    parser.add_argument("--threads", type=int, help="default: as many as torch takes")
    parser.add_argument("--out", type=Path, default=FOLDER / "rasterizer.json")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as every run on a CPU does

    seconds = 2.0 if arguments.full else 0.7
    report = {
        "roofline_pairs_per_s": roofline(),
        "cpu": measure(FULL if arguments.full else SHORT, seconds),
        "reference": against_reference(REFERENCE_FULL if arguments.full else REFERENCE_SHORT, seconds),
    }
    print_tables(report)
    if arguments.full:
        report["curve"] = curve(seconds)
        draw_curve(report["curve"], arguments.out.with_suffix(".html"))
        for row in report["curve"]:
            both = row["forward_ms"] + row["backward_ms"]
            pairs = row["pairs"] / 1e6
            print(f"  {pairs:6.2f} M pairs: {both:7.1f} ms, {both / pairs:.2f} ns a pair")
    write(report, arguments.out)


if __name__ == "__main__":
    main()
