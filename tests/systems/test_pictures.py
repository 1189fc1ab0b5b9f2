"""Pictures of every depth, kind and size: what is seen, and which are refused before they are unpacked."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from threestudio_lucid.data.picture import read_picture
from threestudio_lucid.errors import UserError


def save_png(path, size, depth, kind, rows: bytes, *chunks: tuple[bytes, bytes]):
    """A PNG written by hand: Pillow writes neither 16 bits of colour nor few of grey with a clear one."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


def words16(*values: int) -> bytes:
    return b"".join(struct.pack(">H", value) for value in values)


GREY, COLOR, PALETTE, GREY_ALPHA, COLOR_ALPHA = 0, 2, 3, 4, 6
TWO_COLORS = (b"PLTE", bytes([255, 0, 0, 0, 0, 255]))
# Depth, kind, one row, chunks; what is seen over a grey of 51, in 255ths.
PNGS = {
    "16 bits of grey": (16, GREY, words16(30000, 65535), (), [[116.73] * 3, [255] * 3]),
    "one of them clear": (
        16,
        GREY,
        words16(30000, 30001),
        (b"tRNS", words16(30000)),
        [[51] * 3, [116.74] * 3],
    ),
    "16 bits with alpha": (16, GREY_ALPHA, words16(30000, 65535, 0, 0), (), [[117] * 3, [51] * 3]),
    "16 bits of colour": (16, COLOR, words16(30000, 65535, 0, 0, 0, 65535), (), [[117, 255, 0], [0, 0, 255]]),
    "one colour clear": (
        *(16, COLOR, words16(30000, 65535, 100, 0, 0, 65535), (b"tRNS", words16(30000, 65535, 100))),
        [[51] * 3, [0, 0, 255]],
    ),
    "colour and alpha": (
        16,
        COLOR_ALPHA,
        words16(65535, 0, 0, 65535, 9, 9, 9, 0),
        (),
        [[255, 0, 0], [51] * 3],
    ),
    "2 bits, one clear": (2, GREY, b"\x60", (b"tRNS", words16(1)), [[51] * 3, [170] * 3]),
    "4 bits, one clear": (4, GREY, b"\x5f", (b"tRNS", words16(5)), [[51] * 3, [255] * 3]),
    "1 bit, one clear": (1, GREY, b"\x40", (b"tRNS", words16(1)), [[0] * 3, [51] * 3]),
    "a palette": (1, PALETTE, b"\x40", TWO_COLORS, [[255, 0, 0], [0, 0, 255]]),
}


@pytest.mark.parametrize(("depth", "kind", "row", "chunk", "seen"), PNGS.values(), ids=PNGS)
def test_png_of_every_depth(tmp_path, depth, kind, row, chunk, seen):
    path = save_png(tmp_path / "a.png", (2, 1), depth, kind, b"\0" + row, *([chunk] if chunk else []))
    found = read_picture(path, under=51)[0] * 255
    torch.testing.assert_close(found, torch.tensor(seen, dtype=torch.float32), atol=0.02, rtol=0)


def test_a_palette_with_clear_colours_and_greys_with_alpha(tmp_path):
    clear = (b"tRNS", b"\x80")
    save_png(tmp_path / "a.png", (2, 1), 8, PALETTE, b"\0\0\1", TWO_COLORS, clear)
    found = read_picture(tmp_path / "a.png", under=51)[0] * 255
    assert torch.allclose(found, torch.tensor([[153.0, 25, 25], [0, 0, 255]]), atol=1)
    Image.new("LA", (2, 2), (200, 0)).save(tmp_path / "b.png")
    assert torch.allclose(read_picture(tmp_path / "b.png", under=51) * 255, torch.tensor(51.0))


def test_print_colours(tmp_path):
    """Red in cyan, magenta, yellow and black."""
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert torch.allclose(read_picture(tmp_path / "a.jpg"), torch.tensor([1.0, 0, 0]), atol=0.02)


@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_turned_as_their_camera_says_in_any_depth(tmp_path, turn):
    """What EXIF says to do is undone by Pillow's own table of what it means."""
    upright = np.arange(6, dtype=np.uint16).reshape(2, 3) * 10_000
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    found = read_picture(tmp_path / "a.png")[..., 0] * 65535
    assert torch.allclose(found, torch.from_numpy(upright.astype(np.float32)), atol=0.1)


def test_a_picture_with_damaged_exif_is_read_as_it_lies(tmp_path):
    Image.new("RGB", (6, 4), (255, 0, 0)).save(
        tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nothing"
    )
    assert read_picture(tmp_path / "a.jpg").shape == (4, 6, 3)


@pytest.mark.parametrize(
    ("size", "words"),
    [((6001, 6001), "6,001 x 6,001"), ((100_000, 2), "100,000 x 2 pixels, which makes a square of 100,000"),
     ((2, 6001), "2 x 6,001"), ((20_000, 20_000), "too many pixels"), ((2**31 - 1, 1), "6,000 x 6,000")],
)  # fmt: skip
def test_pictures_that_are_too_large_are_refused_before_memory_is_asked_for(tmp_path, size, words):
    """They say so in their header, and have no pixels."""
    path = save_png(tmp_path / "a.png", size, 1, GREY, b"")
    tracemalloc.start()
    with pytest.raises(UserError) as caught:
        read_picture(path)
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()
    told = str(caught.value)
    assert words in told and "at most 6,000 x 6,000 are read. Make it smaller" in told
    assert "damaged" not in told and told.count("data.image") == 1


def test_a_large_picture_is_read(tmp_path):
    """Of a camera's size in one direction."""
    Image.new("1", (6000, 3), 1).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.shape == (3, 6000, 3) and bool((picture == 1).all())
