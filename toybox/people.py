"""People of the toybox in all poses, each with the map of the mannequin that stands as they do.

The training data of the bundled ControlNet. A folder holds shards of `SHARD_SIZE` pictures:

    0003.images.npy    uint8 [n, 128, 128, 4], straight alpha
    0003.maps.npy      uint8 [n, 128, 128, 3], what `draw_maps` draws of the mannequin from the same camera
    0003.labels.npy    structured array [n], `toybox.dataset.LABEL`; pose "" where captions have no word
    0003.latents.npy   float16 [n, copies, c, h, w], the pictures on random backgrounds, encoded

A shard is a function of its number and written under temporary names, the latents last, so a build can be
killed and goes on when it is started again. Shard 0 is held out for testing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from threestudio_lucid.bodies.mannequin import POSES, Pose, mannequin
from threestudio_lucid.bodies.maps import draw_maps
from toybox import cameras, captions, latents, parallel, sdf
from toybox import objects as toys
from toybox.dataset import IMAGE_SIZE, LABEL, save_array
from toybox.progress import Progress

MAP = "iuv"  # which of `draw_maps` the bundled ControlNet reads: it shows best what is in front
SHARD_SIZE = 100
COPIES = 3  # backgrounds of each picture
# The mannequin's names for poses that captions have words for.
WORDS = {
    "standing": "standing",
    "t": "arms out",
    "arms up": "arms up",
    "walking": "walking",
    "waving": "waving",
}


def random_pose(rng: np.random.Generator) -> tuple[Pose, str]:
    """A pose as turns of joints, and the words that captions have for it.

    Two thirds are a named pose, half of them a little off; the rest are free. Half of all are mirrored.
    """
    if rng.random() < 2 / 3:
        name = str(rng.choice(list(POSES)))
        spread = 10.0 if rng.random() < 0.5 else 0.0
        turns = {joint: tuple(turn) for joint, turn in POSES[name].items()}
        for joint in ("shoulder", "elbow", "hip"):
            for side in ("left", "right"):
                turn = np.array(turns.get(f"{side} {joint}", (0.0, 0.0, 0.0)))
                turns[f"{side} {joint}"] = tuple(turn + rng.normal(0.0, spread, 3) * (1.0, 1.0, 0.5))
        words = WORDS.get(name, "")
    else:
        turns, words = _free_pose(rng), ""
    turns["head"] = (rng.normal(0, 4), rng.normal(0, 6), rng.normal(0, 12)) if not words else (0.0, 0.0, 0.0)
    return (mirrored(turns) if rng.random() < 0.5 else turns), words


def _free_pose(rng: np.random.Generator) -> dict[str, tuple[float, float, float]]:
    turns = {}
    for side, s in (("left", 1), ("right", -1)):
        turns[f"{side} shoulder"] = (s * rng.uniform(-75, 75), rng.uniform(-45, 45), s * rng.uniform(-30, 30))
        turns[f"{side} elbow"] = (s * rng.uniform(-20, 80), 0.0, s * rng.uniform(-80, 10))
        turns[f"{side} hip"] = (s * rng.uniform(-4, 25), rng.triangular(-60, 0, 35), 0.0)
        turns[f"{side} knee"] = (0.0, rng.triangular(0, 0, 70), 0.0)
    turns["chest"] = (rng.normal(0, 4), rng.normal(0, 6), rng.normal(0, 8))
    return turns


def mirrored(turns: Pose) -> dict[str, tuple[float, float, float]]:
    """The pose as a mirror shows it, left for right."""
    swap = {"left": "right", "right": "left"}
    out = {}
    for joint, (roll, pitch, yaw) in turns.items():
        side, _, rest = joint.partition(" ")
        out[f"{swap[side]} {rest}" if side in swap else joint] = (-roll, pitch, -yaw)
    return out


def render_shard(number: int, n: int = SHARD_SIZE, size: int = IMAGE_SIZE) -> tuple[np.ndarray, ...]:
    """Images uint8 [n, size, size, 4], maps uint8 [n, size, size, 3] and labels [n] of a shard."""
    rng = np.random.default_rng([number, 20])
    person, colors = toys.OBJECTS["person"], list(captions.COLORS)
    images, maps = np.empty((n, size, size, 4), np.uint8), np.empty((n, size, size, 3), np.uint8)
    labels = np.zeros(n, LABEL)
    for i in range(n):
        turns, words = random_pose(rng)
        color, trousers = str(rng.choice(colors)), str(rng.choice(colors)) if rng.random() < 0.75 else None
        azimuth, elevation, distance, fovy = cameras.sample(rng)
        c2w = cameras.orbit(azimuth, elevation, distance)
        images[i] = sdf.render(person.build(color, rng, trousers, pose=turns), c2w, fovy, size)
        view = torch.from_numpy(c2w)[None], torch.tensor([np.radians(fovy)]).float()
        drawn = draw_maps(mannequin(turns), *view, size, size, MAP)[0].permute(1, 2, 0)
        maps[i] = np.uint8(255 * drawn.numpy() + 0.5)
        labels[i] = ("person", color, trousers or "", words, "", azimuth, elevation, distance, fovy)
    return images, maps, labels


_KINDS = ("images", "maps", "labels", "latents")


def _paths(folder: Path, number: int) -> dict[str, Path]:
    return {kind: folder / f"{number:04d}.{kind}.npy" for kind in _KINDS}


def _make_shard(job: tuple[int, str, str]) -> int:
    from diffusers import AutoencoderTiny

    number, folder, prior = job
    torch.set_num_threads(1)
    vae = AutoencoderTiny.from_pretrained(Path(prior) / "vae", torch_dtype=torch.float32).eval()
    images, maps, labels = render_shard(number)
    encoded = latents.encode_shard(vae, images, COPIES, [number, 21])
    for path, array in zip(
        _paths(Path(folder), number).values(), (images, maps, labels, encoded), strict=True
    ):
        save_array(path, array)
    return number


def build(folder: Path, images: int, prior: Path, workers: int = 2) -> None:
    """Make shards until there are `images` pictures, encoded by the prior in that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(-(-images // SHARD_SIZE) + 1)  # and the one held out
    jobs = [(k, str(folder), str(prior)) for k in numbers if not _paths(folder, k)["latents"].exists()]
    if not jobs:
        return
    with Progress("people", len(jobs)) as progress:
        for done, _ in enumerate(parallel.each(_make_shard, jobs, min(workers, len(jobs))), start=1):
            progress.update(done, pictures=done * SHARD_SIZE)


def load(folder: Path, held_out: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images, maps, labels and latents of the finished shards; see the top of this file.

    Args:
        held_out: shard 0 alone; else all others.

    Raises:
        FileNotFoundError: there are none.
    """
    done = sorted(path.name[:4] for path in folder.glob("*.latents.npy"))
    names = [name for name in done if (name == "0000") == held_out]
    if not names:
        raise FileNotFoundError(f"no people in {folder}: run  python -m toybox.train_control --stage data")
    return tuple(np.concatenate([np.load(folder / f"{n}.{kind}.npy") for n in names]) for kind in _KINDS)
