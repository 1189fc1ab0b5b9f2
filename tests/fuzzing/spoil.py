"""Ways to spoil a valid file: bytes, numbers and pieces changed, in the file and inside its containers."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from random import Random
from typing import Any

# What headers are likeliest to be wrong by: signs, overflows, sizes beyond the file and beyond memory.
_NUMBERS = (b"0", b"-1", b"1", b"255", b"65536", b"2147483647", b"4294967295", b"99999999999999999999")
_NUMBERS += (b"1e39", b"-1e300", b"nan", b"inf", b'"x"', b"null", b"[]", b"{}", b"true", b"0.5")
_VALUES = (0, 1, -1, 2, 3, 4, 5, 6, 0.5, 1e39, -1e300, float("nan"), 2**31, 2**63, 10**30, 10**6, True)
_VALUES += (
    None,
    "",
    "x",
    "../../etc/passwd",
    "data:,",
    "data:;base64,AAAA",
    [],
    [0],
    [1e39] * 3,
    [-1] * 4,
    {},
)
_WORDS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 0x7FC00000)


def spoil(random: Random, whole: bytes) -> bytes:
    """Another file, one to four changes away; half of them inside what it contains, put together again."""
    if random.random() < 0.5 and (parts := _open(whole)):
        names = list(parts)
        for _ in range(random.randint(1, 3)):
            name = names[random.randrange(len(names))]
            parts[name] = _change(random, parts[name])
        return _close(whole, parts)
    for _ in range(random.randint(1, 4)):
        whole = _change(random, whole)
    return whole


def _change(random: Random, data: bytes) -> bytes:
    if not data:
        return bytes([random.randrange(256)])
    if data[:1] == b"{" and random.random() < 0.75:
        return _change_json(random, data)
    start = random.randrange(len(data))
    end = min(len(data), start + random.randint(1, 64))
    kind = random.randrange(8)
    if kind == 0:  # one byte
        return data[:start] + bytes([random.randrange(256)]) + data[start + 1 :]
    if kind == 1:  # one bit
        return data[:start] + bytes([data[start] ^ (1 << random.randrange(8))]) + data[start + 1 :]
    if kind == 2:  # cut short
        return data[:start]
    if kind == 3:  # a piece is lost, or zeros
        return data[:start] + bytes((end - start) * random.randrange(2)) + data[end:]
    if kind == 4:  # a piece comes again
        return data[:end] + data[start:end] * random.randint(1, 3) + data[end:]
    if kind == 5:  # a binary number
        number = struct.pack("<I", _WORDS[random.randrange(len(_WORDS))])
        return data[:start] + number + data[start + 4 :]
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data[:65536]))
    if found and kind == 6:  # a number that is written in digits
        match = found[random.randrange(len(found))]
        number = _NUMBERS[random.randrange(len(_NUMBERS))]
        return data[: match.start()] + number + data[match.end() :]
    other = random.randrange(len(data))  # a piece of elsewhere
    return data[:start] + data[other : other + end - start] + data[end:]


def _change_json(random: Random, data: bytes) -> bytes:
    """One value of a JSON text is another, gone, or some other place's; it stays JSON."""
    try:
        tree = json.loads(data)
    except ValueError:
        return data
    places = list(_places(tree))
    if not places:
        return data
    holder, key = places[random.randrange(len(places))]
    kind = random.randrange(4)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        other, name = places[random.randrange(len(places))]
        if other is not holder:
            holder[key] = json.loads(json.dumps(other.get(name) if isinstance(other, dict) else other[name]))
    else:
        holder[key] = _VALUES[random.randrange(len(_VALUES))]
    return json.dumps(tree).encode()


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every value of a JSON tree, as what holds it and its key there."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


# --- containers ---------------------------------------------------------------------------------------------


def _open(whole: bytes) -> dict[str, bytes]:
    """The parts of a ZIP archive, a GLB or safetensors file, a PNG picture; empty for other files."""
    if whole[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            return {info.filename: archive.read(info) for info in archive.infolist()}
    if whole[:4] == b"glTF":
        (length,) = struct.unpack_from("<I", whole, 12)
        return {"head": whole[20 : 20 + length], "rest": whole[28 + length :]}
    if whole[:8] == b"\x89PNG\r\n\x1a\n":
        return _png_chunks(whole)
    (length,) = struct.unpack_from("<Q", whole + bytes(8))
    if whole[8:9] == b"{" and 8 + length <= len(whole):
        return {"head": whole[8 : 8 + length], "rest": whole[8 + length :]}
    return {}


def _close(whole: bytes, parts: dict[str, bytes]) -> bytes:
    """The container with other parts: its lengths and check sums are right again."""
    if whole[:4] == b"PK\x03\x04":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, data in parts.items():
                archive.writestr(name, data)
        return file.getvalue()
    if whole[:8] == b"\x89PNG\r\n\x1a\n":
        chunks = [
            struct.pack(">I", len(data))
            + name[-4:].encode()
            + data
            + struct.pack(">I", zlib.crc32(name[-4:].encode() + data))
            for name, data in parts.items()
        ]
        return whole[:8] + b"".join(chunks)
    head, rest = parts["head"], parts["rest"]
    if whole[:4] == b"glTF":
        head += b" " * (-len(head) % 4)
        text = struct.pack("<I4s", len(head), b"JSON") + head
        binary = struct.pack("<I4s", len(rest), b"BIN\0") + rest
        return b"glTF" + struct.pack("<II", 2, 12 + len(text) + len(binary)) + text + binary
    return struct.pack("<Q", len(head)) + head + rest


def _png_chunks(whole: bytes) -> dict[str, bytes]:
    chunks, place = {}, 8
    while place + 12 <= len(whole):
        (length,) = struct.unpack_from(">I", whole, place)
        chunks[f"{place}{whole[place + 4 : place + 8].decode()}"] = whole[place + 8 : place + 8 + length]
        place += 12 + length
    return chunks
