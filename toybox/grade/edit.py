"""Grading edits: is the new attribute there, and has what was to stay stayed?

    python -m toybox.grade edit outputs/edit-3d/a_blue_mug@...
    python -m toybox.grade edit outputs/edit-2d/a_blue_mug@...

Where the edit is, the toybox knows: true objects of the two prompts are drawn, and where they differ, and a
little around it, is the edit. All other pixels are to stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from scipy import ndimage

from threestudio_lucid.gaussians.ply import read_ply
from toybox import captions, runs
from toybox.grade.drawing import AZIMUTHS, draw_gaussians
from toybox.grade.grader import Grade, Grader
from toybox.likeness import psnr
from toybox.measures import object_mask
from toybox.truth import true_views

SIZE = 128  # of the pictures that are compared
INSTANCES = 3  # true objects, since they vary
DIFFERENT = 0.1  # how much a true colour changes where the edit is
AROUND = 0.04  # what counts as the edit around it, in shares of the picture's width
BAR = 7 / 8  # of the views show object and colour that were asked for


@dataclass(frozen=True)
class EditScore:
    """What an edit came to.

    right: views on which the grader names object and colour of the target prompt; of `views`.
    psnr: of the pixels outside the edit, before against after, in decibels; inf where they are equal, None
        where nobody knows what was edited.
    psnr_object: the same of those pixels outside the edit that show the object; None where there are few.
    iou: of the silhouettes before and after, mean over the views.
    same: Gaussians that are what they were to the last bit, of how many; None for pictures.
    """

    right: int
    views: int
    psnr: float | None
    psnr_object: float | None
    iou: float
    same: tuple[int, int] | None

    @property
    def good(self) -> bool:
        return self.right >= BAR * self.views

    def text(self) -> str:
        lines = [f"object and colour right in {self.right} of {self.views} views"]
        for name, value in (("", self.psnr), (", on the object", self.psnr_object)):
            if value is not None:
                lines.append(f"PSNR outside the edit{name} {value:.1f} dB")
        lines.append(f"silhouettes before and after: IoU {self.iou:.3f}")
        if self.same is not None:
            lines.append(f"Gaussians unchanged to the bit: {self.same[0]} of {self.same[1]}")
        return "\n".join(lines)


def grade_edit(grader: Grader, run: Path) -> tuple[EditScore, list[Grade]]:
    """Grade a finished run of configs/edit-3d.yaml or configs/edit-2d.yaml.

    Raises:
        FileNotFoundError: it is no such run, or not finished.
        ValueError: its prompt names nothing of the toybox.
    """
    parsed = run / "configs" / "parsed.yaml"
    if not parsed.is_file():
        raise FileNotFoundError(f"no run in {run}: there is no {parsed}")
    prompts = yaml.safe_load(parsed.read_text(encoding="utf-8"))["system"]["prompt_processor"]
    target = captions.parse(prompts["prompt"])
    source = captions.parse(prompts["source_prompt"]) if prompts.get("source_prompt") else None
    if clouds := _latest(run, ".ply"):
        camera = runs.camera_of(run)
        old, new = (draw_gaussians(read_ply(path), camera, SIZE) for path in clouds)
        before, after = old.rgb, new.rgb
        masks, masks_after = old.alpha > 0.5, new.alpha > 0.5
        same = unchanged(*clouds)
        edit = None if source is None else edited_region(source, target, camera)
    else:
        pictures = _latest(run, ".png")
        if pictures is None:
            raise FileNotFoundError(
                f"no finished edit in {run}: expected save/itSTEP-before.ply or -before.png"
            )
        before, after = (_square(path)[None] for path in pictures)
        masks, masks_after = (np.stack([object_mask(view) for view in views]) for views in (before, after))
        same, edit = None, masks  # from where it is seen nobody knows, so the whole object may change
    grades = grader(torch.from_numpy(after).permute(0, 3, 1, 2).float())
    right = sum(g.object == target.object and g.color == target.color for g in grades)
    outside = None if edit is None else ~_dilated(edit)
    on_object = None if outside is None else outside & masks
    score = EditScore(
        right,
        len(grades),
        None if outside is None else psnr(before, after, outside),
        None if on_object is None or on_object.sum() < 50 else psnr(before, after, on_object),
        float(np.mean([_iou(a, b) for a, b in zip(masks, masks_after, strict=True)])),
        same,
    )
    return score, grades


def edited_region(source: captions.Spec, target: captions.Spec, camera: runs.Camera) -> np.ndarray:
    """Where true objects of two prompts differ, [8, SIZE, SIZE] bool, seen from `AZIMUTHS`."""
    look = {"elevation": camera.elevation, "distance": camera.distance, "fovy": camera.fovy, "size": SIZE}
    region = np.zeros((len(AZIMUTHS), SIZE, SIZE), dtype=bool)
    for seed in range(INSTANCES):
        a, b = (true_views(spec, AZIMUTHS, seed=seed, **look) for spec in (source, target))
        region |= np.abs(a - b).max(axis=-1) > DIFFERENT
    return region


def unchanged(before: Path, after: Path) -> tuple[int, int]:
    """How many Gaussians of one file are in another to the last bit, and how many there are."""

    def rows(path: Path) -> list[bytes]:
        g = read_ply(path)
        parts = [g.means, g.quats, g.log_scales, g.logit_opacities[:, None], g.sh_dc.flatten(1)]
        return [row.tobytes() for row in torch.cat([*parts, g.sh_rest.flatten(1)], dim=1).numpy()]

    old, new = rows(before), set(rows(after))
    return sum(row in new for row in old), len(old)


def _latest(run: Path, suffix: str) -> tuple[Path, Path] | None:
    """The files before and after of the last step; None if there are none."""
    found, edited = {}, "" if suffix == ".ply" else "-edited"
    for path in (run / "save").glob(f"it*-before{suffix}"):
        step = path.stem.removeprefix("it").removesuffix("-before")
        after = path.with_name(f"it{step}{edited}{suffix}")
        if step.isdecimal() and after.is_file():
            found[int(step)] = (path, after)
    return found[max(found)] if found else None


def _square(path: Path) -> np.ndarray:
    """A picture, its border gone on to a square, [SIZE, SIZE, 3] in [0, 1]."""
    from threestudio_lucid.data.picture import Framing, read_picture

    picture = read_picture(path, str(path))
    return Framing(*picture.shape[:2]).to_square(picture, SIZE).clamp(0.0, 1.0).numpy()


def _dilated(masks: np.ndarray) -> np.ndarray:
    steps = max(round(AROUND * masks.shape[-1]), 1)
    return np.stack([ndimage.binary_dilation(mask, iterations=steps) for mask in masks])


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0
