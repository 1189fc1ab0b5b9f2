"""Latents of the pictures, encoded once with a few backgrounds each.

Beside the shards of pictures, in a folder named after the autoencoder's weights:

    latents-1a2b3c4d/mug-0003.npy    float16 [n, copies, 16, 16, 16]

so that another autoencoder never meets latents that are not its own.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny

from toybox.dataset import composite, random_backgrounds, save_array
from toybox.progress import Progress

COPIES = 2  # backgrounds per picture


def fingerprint(vae: AutoencoderTiny) -> str:
    """Eight hexadecimal digits that stand for the encoder's weights."""
    digest = hashlib.sha256()
    for value in vae.encoder.state_dict().values():
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


@torch.no_grad()
def encode_shard(
    vae: AutoencoderTiny, rgba: np.ndarray, copies: int, seed: list[int], at_once: int = 16
) -> np.ndarray:
    """Latents of RGBA pictures [n, h, w, 4] on random backgrounds, float16 [n, copies, c, h/8, w/8]."""
    rng = np.random.default_rng(seed)
    out = []
    for start in range(0, len(rgba), at_once):
        part = rgba[start : start + at_once]
        backgrounds = random_backgrounds(len(part) * copies, rng)
        images = composite(np.repeat(part, copies, axis=0), backgrounds)
        x = torch.from_numpy(images).to(vae.device).permute(0, 3, 1, 2) * 2 - 1
        z = vae.encoder(x).contiguous().cpu().numpy().astype(np.float16)
        out.append(z.reshape(len(part), copies, *z.shape[1:]))
    return np.concatenate(out)


def latents_folder(cache: Path, vae: AutoencoderTiny) -> Path:
    """Where the latents of this autoencoder are."""
    return cache / f"latents-{fingerprint(vae)}"


def encode_all(
    cache: Path,
    vae: AutoencoderTiny,
    copies: int = COPIES,
    deadline: Callable[[], bool] | None = None,
    device: str = "cpu",
) -> Path:
    """Encode every shard of `cache` that has no latents yet; returns their folder."""
    folder = latents_folder(cache, vae)
    folder.mkdir(parents=True, exist_ok=True)
    vae = vae.eval().to(device, memory_format=torch.channels_last)
    names = [path.name.removesuffix(".images.npy") for path in sorted(cache.glob("*.images.npy"))]
    missing = [name for name in names if not (folder / f"{name}.npy").exists()]
    # Shard numbers take turns, so that whatever is done is spread over the objects.
    missing.sort(key=lambda name: (name.rsplit("-", 1)[1], name))
    with Progress("latents", max(len(missing), 1)) as progress:
        for done, name in enumerate(missing, start=1):
            rgba = np.load(cache / f"{name}.images.npy", mmap_mode="r")
            z = encode_shard(vae, rgba, copies, [zlib.crc32(name.encode()), 1])
            save_array(folder / f"{name}.npy", z)
            progress.update(done, shards=done)
            if deadline is not None and deadline():
                break
    return folder


def load_all(cache: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """All latents of `folder` in memory, float16 [n, copies, c, h, w], and the labels of their pictures [n].

    Raises:
        FileNotFoundError: there are none.
    """
    paths = sorted(folder.glob("*.npy"))
    if not paths:
        raise FileNotFoundError(
            f"no latents in {folder}: make them with  python -m toybox.train_prior --stage latents"
        )
    labels = np.concatenate([np.load(cache / f"{path.stem}.labels.npy") for path in paths])
    first = np.load(paths[0], mmap_mode="r")
    latents = np.empty((len(labels), *first.shape[1:]), np.float16)
    start = 0
    for path in paths:
        part = np.load(path)
        latents[start : start + len(part)] = part
        start += len(part)
    return latents, labels
