"""`lucid-point-text`, `-shape`, `-file`, `-shap-e`: where clouds come from, by name.

`system.geometry.init: KIND:VALUE` finds `lucid-point-KIND`; a class that is registered under such a name is a
new kind.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Optional

import torch

import threestudio
from threestudio.utils.base import BaseObject

from ..errors import UserError, check_choice, check_range
from ..seeding import generator
from ..texts import shortened
from .cloud import PointCloud
from .frame import AXES
from .shapes import SHAPES
from .sources import check_shape, check_suffix, read_file, split_source

PREFIX = "lucid-point-"


def kinds() -> list[str]:
    """What is registered, without the prefix."""
    return [name.removeprefix(PREFIX) for name in threestudio.__modules__ if name.startswith(PREFIX)]


def find_kind(source: str) -> tuple[type[PointInitializer], str]:
    """ "shape:ball" -> (the class registered as lucid-point-shape, "ball").

    Raises:
        UserError: no such kind of source; lists the kinds.
    """
    kind, value = split_source(source, kinds())
    return threestudio.find(PREFIX + kind), value


class PointInitializer(BaseObject):
    """Makes a cloud of the asked-for size. A kind of source overrides `draw`."""

    @dataclass
    class Config(BaseObject.Config):
        value: str = ""
        """What stands behind the colon: a prompt, the name of a shape, a path."""
        num_points: int = 4096
        """Size of the cloud."""
        radius: float = 0.5
        """Of shapes, and of what is fitted; world units."""
        jitter: float = 0.1
        """Where there are fewer points: longest way of their copies from them, in radii."""
        seed: int = 0
        """Of everything random."""
        fit: Optional[bool] = None
        """Centre the bounding box and make its longest side two radii; null: as the kind of source says."""

        def __post_init__(self) -> None:
            getattr(super(), "__post_init__", lambda: None)()
            check_range("num_points", self.num_points, 1)
            check_range("radius", self.radius, 0.0, above=True)
            check_range("jitter", self.jitter, 0.0)

    cfg: Config
    takes_prompt: ClassVar[bool] = False
    """Whether the prompt stands in for an empty `value`."""

    @abstractmethod
    def draw(self, draw: torch.Generator) -> PointCloud:
        """Points in our axes, any number of them."""

    def __call__(self) -> PointCloud:
        """`num_points` points in world units, z up, front +x; the same for the same config.

        Raises:
            UserError: a file, model or prompt that cannot be used; points that are not finite.
        """
        c = self.cfg
        draw = generator(c.seed, "points")
        cloud = self.draw(draw)
        if not bool(cloud.points.isfinite().all() and cloud.colors.isfinite().all()):
            raise UserError(f"The points of {c.value!r} are not finite.")
        if c.fit:
            cloud = cloud.fitted(c.radius)
        return cloud if len(cloud) == c.num_points else cloud.densify(c.num_points, c.jitter * c.radius, draw)


@threestudio.register(PREFIX + "text")
class TextPoints(PointInitializer):
    """Point-E: the bundled small one, or OpenAI's. In its own size unless `fit` is true."""

    @dataclass
    class Config(PointInitializer.Config):
        model: str = "mini"
        """mini (bundled, knows the toybox), pointe (OpenAI's), or a folder in the bundled one's format."""
        points: Optional[int] = None
        """How many it draws; null: as many as it is meant for."""
        guidance_scale: Optional[float] = None
        """Of classifier-free guidance; null: the model's own."""
        steps: Optional[int] = None
        """Of sampling; null: the model's own."""
        base: Optional[str] = None
        """File or address of Point-E's first network; null: OpenAI's address."""
        upsampler: Optional[str] = None
        """Of its second, likewise."""
        text_encoder: Optional[str] = None
        """Folder or hub id of the CLIP that Point-E reads texts with; null: OpenAI's."""

        def __post_init__(self) -> None:
            super().__post_init__()
            _check_prompt(self.value, "text")
            for name in ("points", "steps", "guidance_scale"):
                if getattr(self, name) is not None:
                    check_range(name, getattr(self, name), 0 if name == "guidance_scale" else 1)
            for name in ("base", "upsampler", "text_encoder"):
                if getattr(self, name) is not None and self.model != "pointe":
                    raise UserError(
                        f"init_args.{name} is of OpenAI's Point-E: set system.geometry.text_model=pointe."
                    )

    cfg: Config
    takes_prompt = True

    def draw(self, draw: torch.Generator) -> PointCloud:
        from tqdm import tqdm

        from .pointe import generate

        names = ("points", "guidance_scale", "steps", "base", "upsampler", "text_encoder")
        given = {name: self.cfg[name] for name in names if self.cfg[name] is not None}
        form = "{l_bar}{bar}| {elapsed}<{remaining}"
        with tqdm(total=1.0, desc=f"Points of {shortened(self.cfg.value)!r}", bar_format=form) as bar:
            return generate(
                self.cfg.value,
                draw,
                self.cfg.model,
                device=self.device,
                progress=lambda share: bar.update(share - bar.n),
                **given,
            )


@threestudio.register(PREFIX + "shap-e")
class ShapEPoints(PointInitializer):
    """Shap-E, through diffusers. Fitted unless `fit` is false."""

    @dataclass
    class Config(PointInitializer.Config):
        model: str = "openai/shap-e"
        """Hub id or folder of a ShapEPipeline."""
        guidance_scale: float = 15.0
        """Of classifier-free guidance; 1 is without."""
        steps: int = 64
        """Of sampling."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.fit = True if self.fit is None else self.fit
            check_range("guidance_scale", self.guidance_scale, 0.0)
            check_range("steps", self.steps, 1)
            _check_prompt(self.value, "shap-e")

    cfg: Config
    takes_prompt = True

    def draw(self, draw: torch.Generator) -> PointCloud:
        from .shap_e import generate

        c = self.cfg
        return generate(
            c.value,
            c.num_points,
            draw,
            model=c.model,
            guidance_scale=c.guidance_scale,
            steps=c.steps,
            device=self.device,
        )


@threestudio.register(PREFIX + "shape")
class ShapePoints(PointInitializer):
    """A simple shape filled with grey points."""

    @dataclass
    class Config(PointInitializer.Config):
        def __post_init__(self) -> None:
            super().__post_init__()
            check_shape(self.value)

    cfg: Config

    def draw(self, draw: torch.Generator) -> PointCloud:
        return SHAPES[self.cfg.value](self.cfg.num_points, self.cfg.radius, draw)


@threestudio.register(PREFIX + "file")
class FilePoints(PointInitializer):
    """Points or a mesh in a file. Meshes are fitted unless `fit` is false, points only if it is true."""

    @dataclass
    class Config(PointInitializer.Config):
        up: str = ""
        """Axis of the file that points up: +x, -x, +y, -y, +z, -z; empty: as the kind of file is meant."""
        front: str = ""
        """Axis of the file that the object looks along, likewise."""
        as_points: bool = False
        """Take Gaussians for points, with their base colours; otherwise they are taken as they are."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_suffix(self.value)
            for name in ("up", "front"):
                if getattr(self, name):
                    check_choice(name, getattr(self, name), AXES)

    cfg: Config

    def draw(self, draw: torch.Generator) -> PointCloud:
        c = self.cfg
        return read_file(c.value, c.num_points, draw, up=c.up, front=c.front, fit=c.fit, radius=c.radius)


def _check_prompt(prompt: str, kind: str) -> None:
    if not prompt:
        raise UserError(f"init is {kind!r} and there is no prompt: write {kind}:a mug, or set init_prompt.")
