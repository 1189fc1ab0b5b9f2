"""Training of the grader, on the pictures of the cache over all kinds of backgrounds."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from toybox import captions
from toybox.classifier import Classifier, allowed_views, augment, group_nll, shrink
from toybox.dataset import Pictures, random_backgrounds
from toybox.grade.grader import KEYS, NO_DECORATION, Grader
from toybox.muon import MuonWithAdamW
from toybox.objects import OBJECTS
from toybox.progress import Progress
from toybox.training import Run, in_bfloat16, warm_cosine

PEAK_RATE, MUON_RATE = 1e-3, 0.02
HEADS = ("objects.", "colors.", "views.", "decorations.")


@dataclass
class GraderData:
    """Pictures at the classifier's size in memory, uint8 [n, 4, 64, 64] premultiplied, and their classes."""

    images: Tensor
    objects: Tensor
    colors: Tensor
    views_allowed: Tensor
    decorations: Tensor
    train: np.ndarray
    held_out: np.ndarray
    labels: dict[str, list[str]]


def load_data(cache: Path) -> GraderData:
    """Shrink all pictures of the cache (about 0.4 GB for 26,000)."""
    pictures = Pictures(cache)
    images = torch.empty(len(pictures), 4, 64, 64, dtype=torch.uint8)
    with Progress("shrink", len(pictures)) as progress:
        for indices in pictures.batches(np.arange(len(pictures)), 120):
            images[indices] = shrink(torch.from_numpy(pictures.read(indices)))
            progress.update(int(indices[-1]) + 1)
    rows = pictures.labels
    labels = {
        "object": sorted({str(name) for name in rows["object"]}),
        "color": list(captions.COLORS),
        "view": list(captions.VIEWS),
        "decoration": [NO_DECORATION, *captions.decorations()],
    }
    views = [captions.direction(float(r["elevation"]), float(r["azimuth"])) for r in rows]
    allowed = [
        allowed_views(OBJECTS[str(r["object"])].view_groups, view, captions.VIEWS)
        for r, view in zip(rows, views, strict=True)
    ]
    return GraderData(
        images,
        torch.tensor([labels["object"].index(str(name)) for name in rows["object"]]),
        torch.tensor([labels["color"].index(str(color)) for color in rows["color"]]),
        torch.tensor(allowed),
        torch.tensor([labels["decoration"].index(str(word)) for word in rows["decoration"]]),
        pictures.train,
        pictures.held_out,
        labels,
    )


def train_grader(
    data: GraderData,
    checkpoint: Path,
    minutes: float,
    batch: int = 128,
    steps: int | None = None,
    stop_after: int | None = None,
    seed: int = 0,
    start: Path | None = None,
) -> Grader:
    """Train, or go on training, the classifier; returns the grader with its held-out accuracy.

    Args:
        start: a finished grader's folder, whose weights a new run begins with as far as they fit.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Classifier(*(len(data.labels[key]) for key in KEYS))
    if start is not None:
        _take_weights(model, start)
    model.to(memory_format=torch.channels_last).train()
    optimizer = MuonWithAdamW(model, MUON_RATE, PEAK_RATE, plain=("stem.", *HEADS))
    parts = {"model": model, "optimizer": optimizer}
    run = Run("grader", checkpoint, parts, rng, minutes, steps, stop_after)
    for _ in run:
        optimizer.set_rate(warm_cosine(run.fraction, warm=0.03))
        rows = torch.from_numpy(rng.choice(data.train, size=batch))
        backgrounds = torch.from_numpy(random_backgrounds(batch, rng))
        x = augment(data.images[rows], backgrounds, torch.default_generator)
        with in_bfloat16():
            objects, colors, views, decorations = model(x.contiguous(memory_format=torch.channels_last))
        loss = (
            F.cross_entropy(objects.float(), data.objects[rows], label_smoothing=0.02)
            + F.cross_entropy(colors.float(), data.colors[rows], label_smoothing=0.02)
            + group_nll(views.float(), data.views_allowed[rows]).mean()
            + F.cross_entropy(decorations.float(), data.decorations[rows], label_smoothing=0.02)
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        right = (objects.argmax(1) == data.objects[rows]).float().mean()
        run.report(loss=loss.item(), object=right.item())
    grader = Grader(model, data.labels)
    grader.report = held_out_accuracy(grader, data)
    return grader


def _take_weights(model: Classifier, folder: Path) -> None:
    """The weights of a finished classifier, but for outputs of other classes."""
    mine, theirs = model.state_dict(), load_file(folder / "grader.safetensors")
    fitting = {k: v.to(mine[k].dtype) for k, v in theirs.items() if k in mine and v.shape == mine[k].shape}
    model.load_state_dict(mine | fitting)


@torch.no_grad()
def held_out_accuracy(grader: Grader, data: GraderData, seed: int = 1) -> dict[str, float]:
    """Accuracy on held-out pictures: the mean over pictures as drawn and augmented as in training."""
    right = defaultdict(list)
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    for strength in (0.0, 1.0):
        for rows in np.array_split(data.held_out, -(-len(data.held_out) // 128)):
            backgrounds = torch.from_numpy(random_backgrounds(len(rows), rng))
            grades = grader(augment(data.images[rows], backgrounds, generator, strength))
            for grade, row in zip(grades, rows, strict=True):
                right["object"].append(grade.object == data.labels["object"][data.objects[row]])
                right["color"].append(grade.color == data.labels["color"][data.colors[row]])
                seen = data.labels["decoration"].index(grade.decoration)
                if data.decorations[row] > 0:  # of those that have one
                    right["decoration"].append(seen == data.decorations[row])
                right["view"].append(bool(data.views_allowed[row][data.labels["view"].index(grade.view)]))
    return {key: round(float(np.mean(values)), 4) for key, values in right.items()}
