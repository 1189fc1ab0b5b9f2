"""Pictures and masks from files, and their way to the square that a diffusion model sees, and back."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..damaged import DAMAGED, reading
from ..errors import UserError

# A picture is edited in a square; a file may not ask for a larger one. (A camera's of 24 megapixels fits.)
MAX_SIDE = 6000
FORMATS = ("PNG", "JPEG", "WEBP")  # others can start programs, as PostScript does
BOX = "[left, top, right, bottom] in shares of width and height, such as [0.2, 0.5, 0.8, 1]"


def read_picture(path: str | Path, where: str = "data.image", under: int = 255) -> Tensor:
    """A picture [H, W, 3] in [0, 1] as people see it: turned as its camera says.

    Args:
        where: the config key, for messages.
        under: grey that is seen where it is see-through, 0 to 255.

    Raises:
        UserError: no such file, no picture, a damaged or a very large one (before it is unpacked).
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{where}: there is no file {path}.")
    with _opened(path, where) as image:
        # how many there are of each step of grey or colour that a see-through one is said in
        steps = _STEPS.get(str(image.tile[0][3]) if image.tile else "", 1)
        if "transparency" in image.info and steps != 1:
            image.info["transparency"] = _scaled(image.info["transparency"], steps)
        image.load()
        with contextlib.suppress(*DAMAGED):  # damage to EXIF is none to the picture
            image = ImageOps.exif_transpose(image)
        pixels = torch.empty(image.height, image.width, 3)
        for top in range(0, image.height, _ROWS):  # few at a time: steps on the way take four times as much
            strip = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
            pixels[top : top + _ROWS] = _seen(strip, under)
    return pixels


_ROWS = 64
# Pillow scales what is stored in other depths to bytes, but not which of it is see-through.
_STEPS = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}


def _scaled(value: Any, steps: float) -> Any:
    return tuple(int(v * steps) for v in value) if isinstance(value, tuple) else int(value * steps)


@contextlib.contextmanager
def _opened(path: Path, where: str) -> Iterator[Image.Image]:
    """The picture, not unpacked yet, and of a size that may be."""
    try:
        with reading(f"{where}: {path}", "a picture", "Is it damaged?"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's of sizes, and of metadata that nobody asks for
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                if (side := max(width, height)) > MAX_SIDE:
                    raise UserError(
                        f"{where}: {path} has {width:,} x {height:,} pixels, which makes a square of "
                        f"{side:,} x {side:,}; at most {MAX_SIDE:,} x {MAX_SIDE:,} are read. Make it smaller."
                    )
                yield image
    except UserError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise UserError(f"{where}: {path} is no picture. PNG, JPEG and WebP are read.") from None
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise UserError(
                f"{where}: {path} has too many pixels; at most {MAX_SIDE:,} x {MAX_SIDE:,} are read. Make it "
                "smaller."
            ) from None
        raise


def _seen(image: Image.Image, under: int) -> Tensor:
    """[H, W, 3] in [0, 1] of an image of any mode, over a grey where it is see-through."""
    if image.mode.startswith("I"):  # 16 bits of grey, of which Pillow would keep no more than 255
        grey = np.asarray(image).astype(np.float32) / 65535.0
        if isinstance(clear := image.info.get("transparency"), int):
            grey[np.asarray(image) == clear] = under / 255.0
        return torch.from_numpy(grey)[..., None].expand(-1, -1, 3)
    image = image.convert("RGBA")
    behind = Image.new("RGBA", image.size, (under, under, under, 255))
    data = Image.alpha_composite(behind, image).convert("RGB")
    pixels = torch.frombuffer(bytearray(data.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3) / 255.0


def read_mask(image: str, box: Any, height: int, width: int) -> Tensor | None:
    """Where a picture may change, [H, W, 1] bool: the bright half of a picture, or a box. None: everywhere.

    Raises:
        UserError: both are given, the picture has another size, the box is none, or nothing may change.
    """
    if image and box is not None:
        raise UserError("data.mask and data.box both say what may change: give one of them.")
    if image:
        mask = read_picture(image, "data.mask", under=0).mean(dim=-1, keepdim=True) > 0.5
        if mask.shape[:2] != (height, width):
            raise UserError(
                f"data.mask: {image} has {mask.shape[1]} x {mask.shape[0]} pixels, data.image "
                f"{width} x {height}; they must be the same."
            )
    elif box is not None:
        mask = box_mask(box, height, width)
    else:
        return None
    if not bool(mask.any()):
        which = f"data.mask: {image} is dark everywhere" if image else f"data.box {list(box)} holds no pixel"
        raise UserError(f"{which}, so nothing may change. White is what may.")
    return mask


def box_mask(box: Any, height: int, width: int) -> Tensor:
    """[H, W, 1] bool, true for pixels whose centres lie in [left, top, right, bottom].

    Raises:
        UserError: no box, see `BOX`, or one whose first end is above its second.
    """
    numbers = list(box) if isinstance(box, Sequence) and not isinstance(box, str) else []
    good = len(numbers) == 4 and all(isinstance(v, int | float) and 0.0 <= v <= 1.0 for v in numbers)
    if not good or numbers[0] > numbers[2] or numbers[1] > numbers[3]:
        raise UserError(f"data.box is {numbers or box!r}; it must be {BOX}.")
    left, top, right, bottom = numbers
    x, y = ((torch.arange(n) + 0.5) / n for n in (width, height))
    return (((y >= top) & (y <= bottom))[:, None] & ((x >= left) & (x <= right))[None])[..., None]


@dataclass(frozen=True)
class Framing:
    """Where a picture of height x width lies in the square that it is shown in; pixels."""

    height: int
    width: int

    @property
    def side(self) -> int:
        return max(self.height, self.width)

    @property
    def top(self) -> int:
        return (self.side - self.height) // 2

    @property
    def left(self) -> int:
        return (self.side - self.width) // 2

    def to_square(self, picture: Tensor, size: int) -> Tensor:
        """[H, W, C] -> [size, size, C]: its border goes on to a square, which is resized."""
        square = picture.float()
        for dim, (first, n) in enumerate(((self.top, self.height), (self.left, self.width))):
            if n < self.side:
                places = (torch.arange(self.side, device=square.device) - first).clamp(0, n - 1)
                square = square.index_select(dim, places)
        return _resized(square, size)

    def from_square(self, square: Tensor) -> Tensor:
        """[s, s, C] -> [H, W, C]: resized, and what had been added is cut off."""
        whole = _resized(square, self.side)
        return whole[self.top : self.top + self.height, self.left : self.left + self.width]


def _resized(square: Tensor, size: int) -> Tensor:
    if len(square) == size:
        return square
    planes = square.permute(2, 0, 1)[None]
    shrinks = len(square) > size
    planes = F.interpolate(planes, (size, size), mode="bilinear", align_corners=False, antialias=shrinks)
    return planes[0].permute(1, 2, 0)
