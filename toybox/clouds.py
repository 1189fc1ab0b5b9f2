"""Point clouds of the toybox: its objects' visible surfaces with their colours, sampled evenly, on disk.

A cache folder holds shards, each with clouds of one object:

    mug-0003.points.npy   float16 [n, points, 3]
    mug-0003.colors.npy   uint8 [n, points, 3], lit as on the pictures
    mug-0003.things.npy   structured array [n], see `THING`

A shard is a pure function of the object's name and its number; its points come last, so a shard whose points
are there is complete.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toybox import parallel, sdf
from toybox.captions import COLORS, caption
from toybox.dataset import save_array
from toybox.objects import OBJECTS, POSES
from toybox.progress import Progress

POINTS = 2048  # of a stored cloud
SHARD_SIZE = 120  # clouds
REACH = 1.1  # radius of a ball that holds every object

THING = np.dtype([("object", "U24"), ("color", "U12"), ("part_color", "U12"), ("pose", "U24")])


def sample_surface(parts: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points of an object's surface that can be seen from outside, and their colours.

    They are where random straight lines meet the object first. Lines that are uniform in direction and
    position meet every patch in proportion to its area (Crofton), times the share of directions from which it
    can be seen: a convex object is sampled evenly, the inside of a mug less than its outside, and what is
    hidden not at all.

    Returns:
        points [n, 3] (z up, front +x) and colours [n, 3] in [0, 1], float32.
    """
    points, colors, found = [], [], 0
    while found < n:
        directions = rng.standard_normal((4 * n, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        # uniform in the disc across the direction: uniform in the ball's shadow
        across = rng.standard_normal((4 * n, 3))
        across -= np.sum(across * directions, axis=1, keepdims=True) * directions
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        origins = REACH * (np.sqrt(rng.random((4 * n, 1))) * across - directions)
        lengths, shades = sdf.first_hits(parts, origins, directions)
        hit = lengths >= 0
        points.append((origins + lengths[:, None] * directions)[hit].astype(np.float32))
        colors.append(shades[hit])
        found += int(hit.sum())
    return np.concatenate(points)[:n], np.concatenate(colors)[:n]


# --- shards -------------------------------------------------------------------------------------------------


def make_shard(
    name: str, number: int, n: int = SHARD_SIZE, points: int = POINTS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, colours and `THING`s of shard `number` of the object `name`."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), number, 1])  # not those of the pictures
    thing = OBJECTS[name]
    deck = np.array([*COLORS, thing.default_color])  # only its own colour may go without a word
    deck = rng.permutation(np.tile(deck, -(-n // len(deck))))[:n]
    xyz, rgb = np.empty((n, points, 3), np.float16), np.empty((n, points, 3), np.uint8)
    things = np.zeros(n, THING)
    for i, color in enumerate(deck):
        part_color = str(rng.choice(list(COLORS))) if thing.part_option and rng.random() < 0.5 else ""
        pose = str(rng.choice(list(POSES))) if name == "person" and rng.random() < 0.5 else ""
        options = {"pose": pose} if pose else {}
        parts = thing.build(str(color), rng, part_color=part_color or None, decoration=thing.own, **options)
        where, shades = sample_surface(parts, points, rng)
        xyz[i], rgb[i] = where, np.round(255 * shades)
        things[i] = (name, color, part_color, pose)
    return xyz, rgb, things


def build(cache: Path, clouds: int, workers: int = 1) -> None:
    """Make shards until the cache holds about `clouds` clouds, spread evenly over the objects.

    It can be killed at any time and run again.

    Args:
        workers: processes that share the work.
    """
    cache.mkdir(parents=True, exist_ok=True)
    numbers = range(-(-clouds // (len(OBJECTS) * SHARD_SIZE)))
    jobs = [
        (cache, name, k) for k in numbers for name in OBJECTS if not _path(cache, name, k, "points").exists()
    ]
    if not jobs:
        return
    made = map(_make, jobs) if workers == 1 else parallel.each(_make, jobs, workers)
    with Progress("clouds", len(jobs)) as progress:
        for done, _ in enumerate(made, start=1):
            progress.update(done, clouds=done * SHARD_SIZE)


def _make(job: tuple[Path, str, int]) -> None:
    cache, name, number = job
    xyz, rgb, things = make_shard(name, number)
    for kind, array in (("things", things), ("colors", rgb), ("points", xyz)):
        save_array(_path(cache, name, number, kind), array)


def _path(cache: Path, name: str, number: int, kind: str) -> Path:
    return cache / f"{name.replace(' ', '_')}-{number:04d}.{kind}.npy"


@dataclass(frozen=True)
class Clouds:
    """All clouds of a cache in memory: xyz float16 [n, P, 3], rgb uint8 [n, P, 3], things [n]."""

    xyz: np.ndarray
    rgb: np.ndarray
    things: np.ndarray

    @classmethod
    def load(cls, cache: Path) -> Clouds:
        """Raises FileNotFoundError: there are none."""
        paths = sorted(cache.glob("*.points.npy"))
        if not paths:
            raise FileNotFoundError(f"no clouds in {cache}: make them with  python -m toybox.train_points")
        return cls(
            *(
                np.concatenate([np.load(str(p).replace(".points.", f".{kind}.")) for p in paths])
                for kind in ("points", "colors", "things")
            )
        )

    def __len__(self) -> int:
        return len(self.things)

    def draw(self, rows: np.ndarray, points: int, rng: np.random.Generator) -> np.ndarray:
        """`points` of each of the clouds `rows` [n], xyz and rgb to 255: float32 [n, 6, points]."""
        total = self.xyz.shape[1]
        # they lie in random order, so any stretch is a random choice
        columns = (rng.integers(total, size=(len(rows), 1)) + np.arange(points)) % total
        picked = [a[rows[:, None], columns].astype(np.float32) for a in (self.xyz, self.rgb)]
        return np.concatenate(picked, axis=2).transpose(0, 2, 1)


def cloud_caption(thing: np.void, rng: np.random.Generator, drop_color: float = 0.4) -> str:
    """A caption of a cloud; without the colour at times, where it is the object's own."""
    name, color = str(thing["object"]), str(thing["color"])
    own = color == OBJECTS[name].default_color
    return caption(
        name,
        color,
        part_color=str(thing["part_color"]) or None,
        drop_color=bool(own and rng.random() < drop_color),
        pose=str(thing["pose"]) or None,
    )
