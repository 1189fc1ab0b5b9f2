"""Pictures of the toybox on disk: rendered once as RGBA, given their backgrounds when they are read.

A cache folder holds *shards*, each with pictures of one object:

    mug-0003.images.npy   uint8 [n, 128, 128, 4], straight alpha
    mug-0003.labels.npy   structured array [n], see `LABEL`

A shard is a pure function of the object's name and its number (they seed the random generator), it is written
under a temporary name and renamed, and its images come last: a shard whose images are there is complete. So a
build can be killed at any time and run again, and an object that has changed is renewed by deleting its
shards.

    python -m toybox.dataset --images 24000
"""

from __future__ import annotations

import argparse
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from threestudio_lucid.files import atomic_path

IMAGE_SIZE = 128
SHARD_SIZE = 120  # pictures: 7.5 MiB, a few seconds of work
# Outside of the project: pictures, latents and checkpoints cost hours and outlive a checkout.
DEFAULT_CACHE = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "threestudio-lucid" / "toybox"
)

# One row per picture. `part_color` and `pose` are "" where the caption names none, `decoration` where the
# thing has none (captions may name it or not). Angles in degrees, `distance` in world units.
LABEL = np.dtype(
    [
        ("object", "U24"),
        ("color", "U12"),
        ("part_color", "U12"),
        ("pose", "U24"),
        ("decoration", "U12"),
        ("azimuth", "f4"),
        ("elevation", "f4"),
        ("distance", "f4"),
        ("fovy", "f4"),
    ]
)

# Probability of each kind of background; "color" is uniform in RGB.
BACKGROUNDS = {"white": 0.30, "black": 0.15, "grey": 0.10, "color": 0.45}


# ---------------------------------------------------------------------------------------------- backgrounds


def random_backgrounds(n: int, rng: np.random.Generator) -> np.ndarray:
    """Solid backgrounds in the proportions of `BACKGROUNDS`.

    Returns:
        RGB in [0, 1], float32 [n, 3].
    """
    kinds = rng.choice(len(BACKGROUNDS), size=n, p=list(BACKGROUNDS.values()))
    rgb = rng.random((n, 3), dtype=np.float32)
    names = list(BACKGROUNDS)
    rgb[kinds == names.index("grey")] = rgb[kinds == names.index("grey"), :1]
    rgb[kinds == names.index("white")] = 1.0
    rgb[kinds == names.index("black")] = 0.0
    return rgb


def composite(rgba: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Lay pictures over solid backgrounds.

    Args:
        rgba: uint8 [..., h, w, 4], straight alpha.
        background: RGB in [0, 1], [..., 3] (one per picture) or [3].

    Returns:
        float32 [..., h, w, 3] in [0, 1].
    """
    image = rgba.astype(np.float32) * np.float32(1 / 255)
    alpha = image[..., 3:]
    background = np.asarray(background, np.float32)[..., None, None, :]
    return background + alpha * (image[..., :3] - background)


# ---------------------------------------------------------------------------------------------- making shards


def shard_paths(cache: Path, name: str, number: int) -> tuple[Path, Path]:
    """Files (images, labels) of one shard."""
    stem = f"{name.replace(' ', '_')}-{number:04d}"
    return cache / f"{stem}.images.npy", cache / f"{stem}.labels.npy"


def _color_deck(thing, colors: list[str], n: int, rng: np.random.Generator) -> list[str]:
    """`n` colours, equally many of each, but the object's own three times as often.

    Only pictures in the object's own colour may go without a colour word, so those must not be rare.
    """
    deck = colors + [thing.default_color] * 2
    repeats = -(-n // len(deck))
    return [str(c) for c in rng.permutation(np.array(deck * repeats))[:n]]


def render_shard(
    name: str, number: int, size: int = IMAGE_SIZE, n: int = SHARD_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Render shard `number` of the object `name`; the same arguments give the same pictures.

    Returns:
        images uint8 [n, size, size, 4] and labels [n] of dtype `LABEL`.
    """
    from toybox import cameras, captions, sdf
    from toybox.objects import OBJECTS, POSES

    rng = np.random.default_rng([zlib.crc32(name.encode()), number])
    thing = OBJECTS[name]
    colors = list(captions.COLORS)
    images = np.empty((n, size, size, 4), np.uint8)
    labels = np.zeros(n, LABEL)
    for i, color in enumerate(_color_deck(thing, colors, n, rng)):
        has_part = thing.part_option is not None and rng.random() < 0.5
        part_color = str(rng.choice(colors)) if has_part else None
        pose = str(rng.choice(list(POSES))) if name == "person" and rng.random() < 0.75 else None
        azimuth, elevation, distance, fovy = cameras.sample(rng)
        decoration = str(rng.choice(thing.decorations)) if thing.decorations else None
        options = {"pose": pose} if pose else {}
        parts = thing.build(color, rng, part_color=part_color, decoration=decoration, **options)
        images[i] = sdf.render(parts, cameras.orbit(azimuth, elevation, distance), fovy, size)
        words = (name, color, part_color or "", pose or "", decoration or "")
        labels[i] = (*words, azimuth, elevation, distance, fovy)
    return images, labels


def save_array(path: Path, array: np.ndarray) -> None:
    """`np.save`, whole or not at all."""
    with atomic_path(path) as temporary:
        np.save(temporary, array)


def _make_shard(job: tuple[str, int, str]) -> str:
    name, number, cache = job
    images_path, labels_path = shard_paths(Path(cache), name, number)
    images, labels = render_shard(name, number)
    save_array(labels_path, labels)
    save_array(images_path, images)
    return name


def _missing_shards(cache: Path, names: list[str], images: int) -> list[tuple[str, int, str]]:
    """Jobs still to do, all objects taking turns so that a part of them is balanced too."""
    per_object = -(-images // (len(names) * SHARD_SIZE))
    jobs = [(name, number, str(cache)) for number in range(per_object) for name in names]
    return [job for job in jobs if not shard_paths(cache, job[0], job[1])[0].exists()]


def build(cache: Path, images: int, workers: int = 2, names: list[str] | None = None, deadline=None) -> int:
    """Render until the cache holds about `images` pictures, spread evenly over the objects.

    Args:
        images: total number wanted; rounded up to whole shards of every object.
        workers: processes, each with one thread.
        names: objects, by default all of the toybox.
        deadline: a callable that says True when it is time to stop; the build can be continued later.

    Returns:
        number of shards that are still missing (0 unless the deadline came first).
    """
    from toybox import parallel
    from toybox.objects import OBJECTS
    from toybox.progress import Progress

    cache.mkdir(parents=True, exist_ok=True)
    jobs = _missing_shards(cache, names or list(OBJECTS), images)
    if not jobs:
        return 0
    done = 0
    with Progress("render", len(jobs)) as progress:
        for done, _ in enumerate(parallel.each(_make_shard, jobs, workers), start=1):
            progress.update(done, pictures=done * SHARD_SIZE)
            if deadline is not None and deadline():
                break
    return len(jobs) - done


# -------------------------------------------------------------------------------- reading shards


class Pictures:
    """The pictures of a cache folder, memory-mapped.

    `labels` is one structured array over all of them; `read` returns RGBA for any indices. Shard 0 of
    each object is held out: `train` and `held_out` are the indices of the two sets.
    """

    def __init__(self, cache: Path, limit: int | None = None):
        """Open the complete shards of `cache`.

        Raises:
            FileNotFoundError: there is none.
        """
        paths = sorted(Path(cache).glob("*.images.npy"))
        if not paths:
            raise FileNotFoundError(
                f"no pictures in {cache}: make them with  python -m toybox.dataset --cache {cache}"
            )
        self._shards = [np.load(path, mmap_mode="r") for path in paths]
        labels = [np.load(str(path).replace(".images.", ".labels.")) for path in paths]
        self.labels = np.concatenate(labels)
        self._shard_of = np.repeat(np.arange(len(paths)), [len(x) for x in labels])
        self._row_of = np.concatenate([np.arange(len(x)) for x in labels])
        # Number 0 exists for every object that exists at all, so it is the one kept for testing.
        held = np.array([path.name.endswith("-0000.images.npy") for path in paths])
        self.held_out = np.flatnonzero(held[self._shard_of])
        self.train = np.flatnonzero(~held[self._shard_of]) if not held.all() else self.held_out
        if limit is not None:
            self.held_out, self.train = self.held_out[:limit], self.train[:limit]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        """Width and height in pixels."""
        return self._shards[0].shape[1]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """RGBA uint8 [n, size, size, 4] of the pictures `indices` [n]."""
        return np.stack([self._shards[self._shard_of[i]][self._row_of[i]] for i in indices])

    def crops(self, indices: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
        """Random windows that show part of the object, RGBA uint8 [n, size, size, 4].

        The window's centre is put near a random opaque pixel, and the window kept inside the picture.
        """
        out = np.empty((len(indices), size, size, 4), np.uint8)
        room = self.size - size
        for k, i in enumerate(indices):
            image = self._shards[self._shard_of[i]][self._row_of[i]]
            opaque = np.flatnonzero(image[::4, ::4, 3] > 127)
            center = self.size // 2, self.size // 2
            if len(opaque):
                row, column = divmod(int(rng.choice(opaque)), -(-self.size // 4))
                center = 4 * row, 4 * column
            jitter = rng.integers(-size // 4, size // 4 + 1, size=2)
            top, left = (
                int(np.clip(c + j - size // 2, 0, room)) for c, j in zip(center, jitter, strict=True)
            )
            out[k] = image[top : top + size, left : left + size]
        return out

    def batches(self, indices: np.ndarray, batch: int) -> Iterator[np.ndarray]:
        """Index arrays of at most `batch`, in order."""
        for start in range(0, len(indices), batch):
            yield indices[start : start + batch]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m toybox.dataset", description="Render the pictures of the toybox."
    )
    parser.add_argument(
        "--cache", type=Path, default=DEFAULT_CACHE, help="folder of the shards (%(default)s)"
    )
    parser.add_argument("--images", type=int, default=24_000, help="pictures in all (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--objects", nargs="*", help="only these objects")
    options = parser.parse_args(arguments)
    build(options.cache, options.images, options.workers, options.objects)
    print(f"{len(Pictures(options.cache))} pictures in {options.cache}")


if __name__ == "__main__":
    main()
