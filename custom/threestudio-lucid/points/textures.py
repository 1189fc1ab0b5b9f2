"""Pictures on meshes: where they are, and their colours at places."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ..damaged import reading
from ..errors import UserError
from ..guidance.cards import announce

MAX_PIXELS = 8192**2
# KTX2 and DDS hold what only graphics cards decode.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TGA", "TIFF", "GIF", "AVIF")
_KTX2 = b"\xabKTX 20\xbb\r\n\x1a\n"


@dataclass(frozen=True)
class Texture:
    """A picture, and how it goes on beyond its edges.

    source: the picture's file, or its bytes.
    owner: the mesh's file, for messages.
    wrap: along u and v: "repeat", "mirror" or "clamp".
    """

    source: Path | bytes
    owner: Path
    wrap: tuple[str, str] = ("repeat", "repeat")

    def at(self, uv: np.ndarray) -> np.ndarray:
        """Colours as shown, [n, 3] in [0, 1], at uv [n, 2], v downwards.

        The nearest pixel's, so that nothing of a neighbour's colour gets over the seams of an atlas.

        Raises:
            UserError: the picture is too large or damaged.
        """
        source = BytesIO(self.source) if isinstance(self.source, bytes) else self.source
        name = f"a texture of {self.owner}" if isinstance(self.source, bytes) else str(self.source)
        with reading(name, "a picture"), Image.open(source, formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{self.owner} has a texture of {image.width} x {image.height} pixels; at most "
                    f"{MAX_PIXELS:,} are read. Scale it down."
                )
            sides = zip(np.nan_to_num(uv).T, self.wrap, (image.width, image.height), strict=True)
            columns, rows = (_pixels(values, wrap, size) for values, wrap, size in sides)
            return _colors(image, columns, rows)


def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _pixels(values: np.ndarray, wrap: str, size: int) -> np.ndarray:
    """Which of `size` pixels the values lie in, where 0 to 1 is once across the picture."""
    if wrap == "clamp":
        values = np.clip(values, 0.0, 1.0)
    elif wrap == "mirror":
        values = 1.0 - np.abs(np.mod(values, 2.0) - 1.0)
    else:
        values = np.mod(values, 1.0)
    return np.minimum((values * size).astype(np.int64), size - 1)


def _colors(image: Image.Image, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Colours [n, 3] in [0, 1] of some pixels. Only these are taken out: a picture can be large."""
    if image.mode.startswith("I;16"):
        image = image.convert("I")
    elif image.mode not in ("RGB", "RGBA", "L", "P", "I"):
        image = image.convert("RGB")
    pixels = image.load()
    found = np.array([pixels[x, y] for x, y in zip(columns.tolist(), rows.tolist(), strict=True)])
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB")).reshape(-1, 3)
        found = palette[found]
    elif image.mode in ("L", "I"):
        found = np.repeat(found[:, None], 3, axis=1)
    return np.clip(found[:, :3] / (65535.0 if image.mode == "I" else 255.0), 0.0, 1.0)


def find_texture(owner: Path, name: str, wrap: tuple[str, str] = ("repeat", "repeat")) -> Texture | None:
    """The picture that a mesh's file names, if it lies beside that file; says so if it does not."""
    path = beside(owner, name)
    if path is None:
        announce(
            f"{owner} names the texture {name!r}, which is not in its folder; its surface is read without. "
            "Put the picture there for its colours."
        )
        return None
    return texture_of(owner, path, wrap)


def texture_of(
    owner: Path, source: Path | bytes, wrap: tuple[str, str] = ("repeat", "repeat")
) -> Texture | None:
    """The texture, or None for one in KTX2, which is said."""
    start = source[:12] if isinstance(source, bytes) else source.open("rb").read(12)
    if start == _KTX2:
        announce(f"{owner} has a texture in KTX2, which is not read: export it with PNG or JPEG textures.")
        return None
    return Texture(source, owner, wrap)


def beside(owner: Path, name: str) -> Path | None:
    r"""The file of that name in the folder of `owner` or below it; None for all that is elsewhere.

    Names as Windows writes them are understood: backslashes, whatever upper and lower case. Of a path that is
    not there, such as another machine's, the longest end that is there counts: of C:\work\maps\t.png it is
    maps/t.png, or t.png.
    """
    words = [word for word in name.strip().strip('"').replace("\\", "/").split("/") if word not in ("", ".")]
    if "://" in name or not words:
        return None
    ends = (words[k:] for k in range(len(words)) if ".." not in words[k:])
    return next((found for end in ends if (found := _descend(owner.parent, end)) is not None), None)


def _descend(folder: Path, parts: list[str]) -> Path | None:
    """The file at the end of these names; None unless it is a file in the folder, links followed."""
    try:
        place, root = folder, folder.resolve()
        for part in parts:
            if not (place / part).exists():
                names = [entry.name for entry in place.iterdir()]
                part = next(name for name in sorted(names) if name.casefold() == part.casefold())
            place = place / part
        inside = place.resolve().is_relative_to(root)
        return place if inside and place.is_file() else None
    except (OSError, ValueError, StopIteration):  # no folder, no such name, a name that no file can have
        return None
