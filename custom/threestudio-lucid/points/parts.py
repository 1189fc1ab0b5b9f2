"""What the readers of mesh files return: triangles or points, where they stand, and what they look like."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from .colors import linear_to_srgb, srgb_to_linear
from .shapes import GREY
from .textures import Texture


@dataclass(frozen=True)
class Draw:
    """Where points were drawn: on which triangle [n], and where in it, weights of its corners [n, 3]."""

    triangle: np.ndarray
    weights: np.ndarray

    def of(self, corners: np.ndarray) -> np.ndarray:
        """Values [n, C] at the points, from those at corners [F, 3, C]."""
        return np.einsum("nk,nkc->nc", self.weights, corners[self.triangle])


def draw_places(areas: np.ndarray, n: int, generator: torch.Generator) -> Draw:
    """`n` places, uniform on triangles of these areas [F].

    Raises:
        ValueError: the triangles have no area.
    """
    total = np.cumsum(areas)
    if not len(total) or not total[-1] > 0.0:
        raise ValueError("the triangles have no area")
    where, u, v = torch.rand(3, n, generator=generator, dtype=torch.float64).numpy()
    triangle = np.searchsorted(total, where * total[-1], side="right").clip(max=len(total) - 1)
    root = np.sqrt(u)  # towards the first corner there is less room
    return Draw(triangle, np.stack([1.0 - root, root * (1.0 - v), root * v], axis=1))


@dataclass(frozen=True)
class Corners:
    """Values of triangles' corners: which of `values` [K, C] a corner has, `rows` [F, 3]."""

    values: np.ndarray
    rows: np.ndarray

    def at(self, draw: Draw) -> np.ndarray:
        """[n, C] at places on the triangles."""
        return np.einsum("nk,nkc->nc", draw.weights, self.values[self.rows[draw.triangle]])


@dataclass(frozen=True)
class Paint:
    """Colours of a surface: a texture, corners, one colour for all, or several of them.

    uv: of the corners, for the texture; v is 0 at the picture's upper edge.
    linear: `colors` and `base` are amounts of light, and everything is multiplied, as in glTF. Otherwise they
        are colours as shown, and the first of texture, corners and base that there is counts: many programs
        write a diffuse colour of 0 or 0.8 beside a texture, and mean the texture.
    """

    base: np.ndarray | None = None
    colors: Corners | None = None
    texture: Texture | None = None
    uv: Corners | None = None
    linear: bool = False

    def at(self, draw: Draw) -> np.ndarray:
        """Colours as shown, [n, 3], at places on the triangles; grey where nothing is said."""
        shown = None
        if self.texture is not None and self.uv is not None:
            shown = self.texture.at(self.uv.at(draw))
        colors = None if self.colors is None else self.colors.at(draw)
        if not self.linear:
            found = next((c for c in (shown, colors, self.base) if c is not None), np.full(3, GREY))
            return np.broadcast_to(found, (len(draw.triangle), 3))
        factors = [c for c in (self.base, colors) if c is not None]
        factors += [] if shown is None else [srgb_to_linear(shown)]
        if not factors:
            return np.full((len(draw.triangle), 3), GREY)
        light = np.ones((len(draw.triangle), 3))
        for factor in factors:
            light = light * factor
        return linear_to_srgb(light)


@dataclass(frozen=True)
class Part:
    """A piece of a scene: vertices [V, 3] in its own axes, float64, and triangles [F, 3] of their rows.

    Without triangles it is a cloud of points, coloured by `point_colors` [V, 3] as shown, if there are any.
    place: from its axes to the file's, [4, 4].
    """

    vertices: np.ndarray
    triangles: np.ndarray
    paint: Paint = field(default_factory=Paint)
    place: np.ndarray = field(default_factory=lambda: np.eye(4))
    point_colors: np.ndarray | None = None

    def placed(self) -> np.ndarray:
        """Vertices [V, 3] where they stand in the file."""
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is told by who reads it
            return self.vertices @ self.place[:3, :3].T + self.place[:3, 3]


def fans(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Polygons cut into triangles around their first corners.

    Args:
        sizes: how many corners each of the polygons has, [P]; their corners are counted through.

    Returns:
        Corners [F, 3] of the triangles, and the polygon [F] that each one is of.

    >>> fans(np.array([4, 2, 3]))
    (array([[0, 1, 2], [0, 2, 3], [6, 7, 8]]), array([0, 0, 2]))
    """
    sizes = np.asarray(sizes, np.int64)
    each = np.maximum(sizes - 2, 0)
    polygon = np.repeat(np.arange(len(sizes)), each)
    first = (np.cumsum(sizes) - sizes)[polygon]
    step = np.arange(len(polygon)) - (np.cumsum(each) - each)[polygon]
    return np.stack([first, first + step + 1, first + step + 2], axis=1), polygon


def strip(rows: np.ndarray) -> np.ndarray:
    """Triangles [F, 3] of a strip's rows: every second one is turned, so that all face the same way."""
    k = np.arange(max(len(rows) - 2, 0))
    return rows[np.stack([k, k + 1 + k % 2, k + 2 - k % 2], axis=1)]
