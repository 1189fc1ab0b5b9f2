"""The classifier as a judge: what object, in what colour, from which side, with what decoration?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from threestudio_lucid.files import atomic_path, write_text
from toybox.classifier import Classifier, to_input
from toybox.objects import OBJECTS

KEYS = ("object", "color", "view", "decoration")  # what the classifier names, in the order of its outputs
NO_DECORATION = ""
WEIGHTS = Path(__file__).parents[1] / "weights" / "grader"


@dataclass(frozen=True)
class Grade:
    """What the grader sees on a picture.

    decoration: the likeliest of those that the object can have; "" where it can have none.
    probabilities: a table of names for each of `KEYS`.
    """

    object: str
    color: str
    view: str
    decoration: str
    probabilities: dict[str, dict[str, float]]

    def view_is(self, view: str, name: str | None = None) -> bool:
        """Whether the view is `view`, or looks like it on the object `name` (default: the object seen)."""
        return view in OBJECTS[name or self.object].group(self.view)


class Grader:
    """The classifier with its labels. `Grader.load()` gives the bundled one; call it with pictures."""

    def __init__(self, model: Classifier, labels: dict[str, list[str]], report: dict | None = None):
        self.model, self.labels, self.report = model.eval(), labels, report or {}

    @classmethod
    def load(cls, folder: Path = WEIGHTS) -> Grader:
        """Read `grader.json` and `grader.safetensors`.

        Raises:
            FileNotFoundError: they are not in `folder`.
        """
        try:
            description = json.loads((folder / "grader.json").read_text())
            weights = load_file(folder / "grader.safetensors")
        except FileNotFoundError as error:
            hint = "python -m toybox.grade train"
            raise FileNotFoundError(f"no grader in {folder}: train one with  {hint}") from error
        labels = description["labels"]
        # graders that were trained before there were decorations name none
        model = Classifier(*(len(labels.get(key, ())) for key in KEYS))
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        return cls(model, labels, description["held_out"])

    def save(self, folder: Path = WEIGHTS) -> None:
        """Write float16 weights and their description."""
        half = {k: v.half() if v.is_floating_point() else v for k, v in self.model.state_dict().items()}
        with atomic_path(folder / "grader.safetensors") as temporary:
            save_file({k: v.contiguous() for k, v in half.items()}, temporary)
        description = {"labels": self.labels, "held_out": self.report}
        write_text(folder / "grader.json", json.dumps(description, indent=1) + "\n")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Grade]:
        """Grade pictures.

        Args:
            images: [n, 3, h, w] in [0, 1], any size; square, as the toybox draws them.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"pictures must be [n, 3, h, w], not {list(images.shape)}")
        logits = [self.model(part) for part in to_input(images).split(64)]
        tables = [torch.cat(head).softmax(1) for head in zip(*logits, strict=True)]
        return [self._grade(*rows) for rows in zip(*tables, strict=True)]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The classifier's features [n, 192] of pictures [n, 3, h, w] in [0, 1]."""
        return torch.cat([self.model.features(part) for part in to_input(images).split(64)])

    def _grade(self, *rows: Tensor) -> Grade:
        probabilities = {
            key: dict(zip(self.labels.get(key, ()), p.tolist(), strict=True))
            for key, p in zip(KEYS, rows, strict=True)
        }
        name = max(probabilities["object"], key=probabilities["object"].get)
        color = max(probabilities["color"], key=probabilities["color"].get)
        # Directions that look alike share their probability: the likeliest group first, then the likeliest of
        # it.
        p = probabilities["view"]
        group = max(OBJECTS[name].view_groups, key=lambda group: sum(p[v] for v in group))
        decorations = OBJECTS[name].decorations or (NO_DECORATION,)
        decoration = max(decorations, key=lambda word: probabilities["decoration"].get(word, 0.0))
        return Grade(name, color, max(group, key=p.get), decoration, probabilities)
