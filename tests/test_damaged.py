"""One tuple of errors that mean a damaged file, and one way to say so."""

from __future__ import annotations

import json
import pickle
import struct
import zlib

import pytest

from threestudio_lucid.damaged import reading
from threestudio_lucid.errors import UserError


@pytest.mark.parametrize(
    "parse",
    [
        lambda: json.loads("{"),
        lambda: b"\xff".decode(),
        lambda: struct.unpack("<I", b"1"),
        lambda: zlib.decompress(b"nothing"),
        lambda: pickle.loads(b"\x80"),
        lambda: [][3],
        lambda: {}["faces"],
        lambda: None + 1,
        lambda: 2**70 / 0,
        lambda: float("inf").as_integer_ratio(),
    ],
)
def test_what_parsers_raise_becomes_one_message_that_names_the_file(parse):
    with pytest.raises(UserError, match=r"^mug\.glb cannot be read as GLB: .+\. Is it damaged"):
        with reading("mug.glb", "GLB"):
            parse()


def test_a_file_that_is_not_handed_over_is_not_called_damaged(tmp_path):
    with pytest.raises(UserError, match="Is a directory") as raised:
        with reading(tmp_path, "PLY"):
            tmp_path.open("rb")
    assert "damaged" not in str(raised.value)


def test_messages_of_our_own_and_bugs_pass_through():
    with pytest.raises(UserError, match=r"^too large$"):
        with reading("a.ply", "PLY"):
            raise UserError("too large")
    with pytest.raises(NameError):
        with reading("a.ply", "PLY"):
            undefined_name  # noqa: B018, F821
