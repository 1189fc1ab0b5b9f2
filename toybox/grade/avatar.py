"""How good an avatar is: its silhouettes against the posed body's, the colours of its clothes, where its
face is.

All is measured on the Gaussians, drawn again from eight sides; the body's map tells which pixels should be
shirt, trousers or head.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor

from threestudio_lucid.bodies import Body
from threestudio_lucid.bodies.maps import see
from threestudio_lucid.bodies.sources import body_from_config
from threestudio_lucid.data.orbit import circle, opencv_cameras
from threestudio_lucid.gaussians.cloud import base_colors, opacities, scales
from threestudio_lucid.gaussians.ply import read_ply
from threestudio_lucid.rasterizer import rasterize
from toybox import captions, runs
from toybox.objects import OBJECTS

POSE_BAR = 0.8  # mean IoU of the silhouettes
FACE_BARS = (
    0.25,
    0.2,
)  # share of skin on the head: at least, from the front; at most, from behind (ears, neck)
VIEWS, SIZE = 8, 256
SKIN = (0.93, 0.70, 0.54)  # of the toybox's people
SHADES = np.linspace(0.6, 1.0, 9)  # how bright a colour may be shown
# DensePose's parts that a piece of clothing covers.
SHIRT, TROUSERS, HEAD = (1, 2, 15, 16, 17, 18, 19, 20, 21, 22), tuple(range(7, 15)), (23, 24)


@dataclass(frozen=True)
class AvatarScore:
    """What was measured.

    overlaps: IoU of the silhouettes from each side, [8].
    shirt, trousers: the colour seen on each, and on how many of the eight sides.
    wanted: their colours as asked for.
    face: share of skin on the head from azimuths 0, 45, ... [8].
    """

    overlaps: list[float]
    shirt: tuple[str, int]
    trousers: tuple[str, int]
    wanted: tuple[str, str]
    face: list[float]

    @property
    def pose_is_right(self) -> bool:
        return float(np.mean(self.overlaps)) >= POSE_BAR

    @property
    def colors_are_right(self) -> bool:
        return all(
            seen == wanted and sides >= 7
            for (seen, sides), wanted in zip((self.shirt, self.trousers), self.wanted, strict=True)
        )

    @property
    def face_is_right(self) -> bool:
        """Skin in front, hair behind."""
        least, most = FACE_BARS
        return self.face[0] >= least and max(self.face[3:6]) <= most

    @property
    def passes(self) -> bool:
        return self.pose_is_right and self.colors_are_right and self.face_is_right

    def text(self) -> str:
        """A line for each of the three, with its bar."""

        def line(name: str, value: str, bar: str, ok: bool) -> str:
            return f"{name:8s} {value}   bar {bar}   {'ok' if ok else 'BELOW'}"

        overlap = f"mean IoU {np.mean(self.overlaps):.3f}, worst {min(self.overlaps):.3f}"
        clothes = ", ".join(
            f"{seen} {name} ({sides} of {VIEWS} sides)"
            for name, (seen, sides) in (("shirt", self.shirt), ("trousers", self.trousers))
        )
        skin = (
            f"skin on the head {100 * self.face[0]:.0f} % in front, {100 * max(self.face[3:6]):.0f} % behind"
        )
        bars = f"{100 * FACE_BARS[0]:.0f} %, at most {100 * FACE_BARS[1]:.0f} %"
        return "\n".join(
            [
                line("pose", overlap, f"{POSE_BAR:g}", self.pose_is_right),
                line("clothes", clothes, f"{self.wanted[0]}, {self.wanted[1]}", self.colors_are_right),
                line("face", skin, bars, self.face_is_right),
            ]
        )


def grade_avatar(run: Path, prompt: str | None = None) -> AvatarScore:
    """Grade the latest Gaussians of a run of configs/avatar.yaml.

    Args:
        prompt: what it should be; None: the run's own.

    Raises:
        FileNotFoundError: no such run, or it has not come to its end.
        ValueError: a run of another config, or a prompt that names no person.
    """
    config = run / "configs/parsed.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"no run at {run}: expected its folder, with configs/parsed.yaml")
    system = yaml.safe_load(config.read_text(encoding="utf-8"))["system"]
    if "body" not in system:
        raise ValueError(f"{run} has no body in its config: it is no run of configs/avatar.yaml")
    spec = captions.parse(prompt or system["prompt_processor"]["prompt"])
    if spec.object != "person":
        raise ValueError(f"the prompt asks for a {spec.object}, not for a person")
    clouds = sorted((run / "save").glob("it*.ply"), key=lambda path: int(re.sub(r"\D", "", path.stem)))
    if not clouds:
        raise FileNotFoundError(f"no Gaussians in {run / 'save'}: the run has not come to its end")
    camera = runs.camera_of(run)
    pictures, alpha, c2w, fovy = draw_around(clouds[-1], camera)
    trousers = spec.part_color or OBJECTS["person"].default_part
    body = body_from_config(system["body"], "system.body")
    return measure(pictures, alpha, body, c2w, fovy, (spec.color, trousers))


def draw_around(cloud: Path, camera: runs.Camera) -> tuple[np.ndarray, np.ndarray, Tensor, Tensor]:
    """Pictures on white [8, H, W, 3] and opacity [8, H, W] of Gaussians from even azimuths, c2w and fovy."""
    g = read_ply(cloud)
    around = circle(VIEWS, camera.elevation, camera.distance, camera.fovy)
    fovy = torch.deg2rad(around.fovy)
    viewmats, Ks = opencv_cameras(around.c2w, fovy, SIZE, SIZE)
    shapes = g.means, g.quats, scales(g), opacities(g)
    with torch.no_grad():
        out = rasterize(
            *shapes, colors=base_colors(g), viewmats=viewmats, Ks=Ks, width=SIZE, height=SIZE, near=0.2
        )
    pictures = (out.rgb + 1.0 - out.alpha).clamp(0, 1)
    return pictures.numpy(), out.alpha[..., 0].numpy(), around.c2w, fovy


def measure(
    pictures: np.ndarray,
    alpha: np.ndarray,
    body: Body,
    c2w: Tensor,
    fovy: Tensor,
    wanted: tuple[str, str],
) -> AvatarScore:
    """The score of pictures [8, H, W, 3] with their opacity [8, H, W], taken from even azimuths."""
    seen, _ = see(body, c2w, fovy, *alpha.shape[1:])
    there, solid = seen.face >= 0, alpha > 0.5
    overlaps = (there & solid).sum((1, 2)) / (there | solid).sum((1, 2))
    part = np.where(there & solid, body.labels[np.maximum(seen.face, 0)], 0)

    def clothes(parts: tuple[int, ...]) -> tuple[str, int]:
        names = [
            nearest_color(np.median(picture[mask], axis=0))
            for picture, mask in zip(pictures, np.isin(part, parts), strict=True)
            if mask.any()
        ]
        best = max(sorted(set(names)), key=names.count, default="nothing")
        return best, names.count(best)

    face = []
    for picture, mask in zip(pictures, np.isin(part, HEAD), strict=True):
        skin = np.array([distance_to(pixel, SKIN) < 0.15 for pixel in picture[mask]])
        face.append(float(skin.mean()) if len(skin) else 0.0)
    return AvatarScore(overlaps.tolist(), clothes(SHIRT), clothes(TROUSERS), wanted, face)


def distance_to(color: np.ndarray, paint: tuple[float, float, float]) -> float:
    """How far a colour [3] is from a paint in whatever shade fits best."""
    return float(np.linalg.norm(SHADES[:, None] * np.array(paint) - color, axis=1).min())


def nearest_color(color: np.ndarray) -> str:
    """The name of the toybox's colour that a colour [3] is a shade of."""
    return min(captions.COLORS, key=lambda name: distance_to(color, captions.COLORS[name]))
