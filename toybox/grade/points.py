"""How good a point prior is: is the nearest thing the one asked for, and is the colour right?"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree

from threestudio_lucid.points import PointCloud
from threestudio_lucid.points.pointe import TextToPointCloud
from toybox.captions import COLORS, caption
from toybox.clouds import sample_surface
from toybox.objects import OBJECTS
from toybox.pictures import write_sheet
from toybox.progress import Progress

INSTANCES = 3  # of each thing, to compare with
COMPARED = 1024  # points of a cloud
BAR = 0.9


def normalise(points: np.ndarray) -> np.ndarray:
    """Points [P, 3] about their centre, with a mean squared distance of 1 from it."""
    points = points - points.mean(axis=0)
    return points / np.sqrt(np.square(points).sum(axis=1).mean())


def chamfer(a: np.ndarray, b: np.ndarray) -> float:
    """Mean distance of a point of [P, 3] to the nearest of the other cloud [Q, 3], averaged over both ways.

    >>> chamfer(np.zeros((1, 3)), np.array([[0.0, 0, 0], [2, 0, 0]]))
    0.5
    """
    return float(0.5 * (cKDTree(b).query(a)[0].mean() + cKDTree(a).query(b)[0].mean()))


class Truth:
    """Clouds of all things, in all colours, as the toybox has them."""

    def __init__(self, instances: int = INSTANCES, points: int = COMPARED, seed: int = 0):
        rng = np.random.default_rng([seed, 2])  # not the instances that the prior was trained on
        self.shapes: dict[str, list[np.ndarray]] = {name: [] for name in OBJECTS}
        self.colors: dict[tuple[str, str], np.ndarray] = {}
        for name, thing in OBJECTS.items():
            for color in COLORS:
                tables = [thing.build(color, rng, decoration=thing.own) for _ in range(instances)]
                drawn = [sample_surface(parts, points // 2, rng) for parts in tables]
                self.colors[name, color] = np.mean([rgb.mean(axis=0) for _, rgb in drawn], axis=0)
            tables = [thing.build(thing.default_color, rng, decoration=thing.own) for _ in range(instances)]
            self.shapes[name] = [normalise(sample_surface(parts, points, rng)[0]) for parts in tables]

    def nearest_object(self, points: np.ndarray) -> tuple[str, dict[str, float]]:
        """The thing whose shape is nearest to points [P, 3], and the distances to all, sizes apart."""
        points = normalise(points)
        distances = {
            name: min(chamfer(points, shape) for shape in shapes) for name, shapes in self.shapes.items()
        }
        return min(distances, key=distances.get), distances

    def nearest_color(self, name: str, mean: np.ndarray) -> str:
        """The colour in which the thing `name` has a mean colour most like `mean` [3]."""
        return min(COLORS, key=lambda color: float(np.linalg.norm(self.colors[name, color] - mean)))


@dataclass
class PointScore:
    """Shares of the clouds of which something is right.

    `distance`: mean Chamfer distance to the thing asked for. `seconds`: per cloud. `mistakes`: what was asked
    for and what it was taken for.
    """

    n: int
    object: float
    color: float
    both: float
    distance: float
    seconds: float
    mistakes: Counter = field(default_factory=Counter)

    def text(self) -> str:
        return (
            f"{self.n} clouds: object {100 * self.object:.1f} %, colour {100 * self.color:.1f} %, both "
            f"{100 * self.both:.1f} %; Chamfer distance {self.distance:.3f}; {self.seconds:.1f} s a cloud"
        )


def grade_clouds(
    clouds: list[PointCloud], wanted: list[tuple[str, str]], truth: Truth, seconds: float = 0.0
) -> PointScore:
    """Grade clouds against the (object, colour) that each should be.

    Args:
        seconds: that all of them took.
    """
    right, distances, mistakes = [], [], Counter()
    for cloud, (name, color) in zip(clouds, wanted, strict=True):
        seen, table = truth.nearest_object(cloud.points.numpy()[:COMPARED])
        shade = truth.nearest_color(name, cloud.colors.numpy().mean(axis=0))
        right.append((seen == name, shade == color))
        distances.append(table[name])
        if seen != name:
            mistakes[f"{name} taken for {seen}"] += 1
        if shade != color:
            mistakes[f"{color} taken for {shade}"] += 1
    objects, colors = np.array(right).T
    return PointScore(
        len(clouds),
        float(objects.mean()),
        float(colors.mean()),
        float((objects & colors).mean()),
        float(np.mean(distances)),
        seconds / len(clouds),
        mistakes,
    )


def grade_points(
    prior: TextToPointCloud, n: int | None = None, seed: int = 0, sheet: Path | None = None, batch: int = 5
) -> PointScore:
    """Draw a cloud for every object and colour, and grade them.

    Args:
        n: only so many of them, spread evenly.
        sheet: PNG of up to 80 of the clouds, from the front and a little above.
        batch: clouds drawn at a time.
    """
    wanted = [(name, color) for name in OBJECTS for color in COLORS]
    if n is not None:
        if n < 1:
            raise ValueError(f"-n is {n}: at least one cloud is needed")
        wanted = [wanted[i] for i in np.linspace(0, len(wanted) - 1, min(n, len(wanted))).round().astype(int)]
    generator = torch.Generator().manual_seed(seed)
    clouds, start = [], time.monotonic()
    with Progress("points", len(wanted)) as progress:
        for first in range(0, len(wanted), batch):
            prompts = [caption(name, color) for name, color in wanted[first : first + batch]]
            clouds += prior(prompts, generator)
            progress.update(len(clouds))
    seconds = time.monotonic() - start
    if sheet is not None:
        shown = clouds[:: -(-len(clouds) // 80)]
        write_sheet(sheet, torch.stack([draw(cloud) for cloud in shown]), columns=10)
    return grade_clouds(clouds, wanted, Truth(), seconds)


def draw(cloud: PointCloud, size: int = 128) -> torch.Tensor:
    """A picture [3, size, size] of a cloud as dots on white: from the front, the left and above."""
    azimuth, elevation = np.radians((30.0, 20.0))
    forward = np.array(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    )
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    up = np.cross(forward, right)
    points = cloud.points.numpy()
    order = np.argsort(points @ forward)  # far ones first
    column = (0.5 + 0.42 * points @ right) * size
    row = (0.5 - 0.42 * points @ up) * size
    image = np.ones((size, size, 3), np.float32)
    for dr in (0, 1):
        for dc in (0, 1):
            r, c = (np.clip(x.astype(int) + d, 0, size - 1) for x, d in ((row, dr), (column, dc)))
            image[r[order], c[order]] = cloud.colors.numpy()[order]
    return torch.from_numpy(image).permute(2, 0, 1)
