"""What parsers raise over damaged or hostile files, in one place for all who read files of others."""

from __future__ import annotations

import lzma
import os
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from PIL import Image, UnidentifiedImageError
from plyfile import PlyParseError
from safetensors import SafetensorError

from .errors import UserError

# Whatever a parser stumbles over in bytes that mean nothing: numbers that are none, names and rows that are
# not there, wrong types, sizes beyond memory, archives that do not unpack. Not here: NameError and
# ImportError, which no bytes of a file cause.
DAMAGED: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    Image.DecompressionBombError,
    LookupError,
    MemoryError,
    OSError,
    PlyParseError,
    RuntimeError,  # RecursionError, NotImplementedError, torch's
    SafetensorError,
    StopIteration,
    SyntaxError,  # Pillow's, for PNG
    TypeError,
    UnidentifiedImageError,
    ValueError,  # UnicodeDecodeError, JSONDecodeError
    lzma.LZMAError,
    pickle.UnpicklingError,
    struct.error,
    tokenize.TokenError,  # numpy's, for headers of arrays
    yaml.YAMLError,
    zipfile.BadZipFile,
    zlib.error,
)


def reason(error: BaseException, longest: int = 160) -> str:
    """What an error says, for a message: one line, its type where it says nothing."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)  # without the path, which the message has already
    said = " ".join(str(error).split())
    if isinstance(error, pickle.UnpicklingError):  # torch's advice is to run what is in the file
        return "its pickle holds code, which is not run, or is damaged"
    said = f"there is no {said} in it" if isinstance(error, KeyError) and said else said
    return said[:longest] or type(error).__name__


@contextmanager
def reading(path: str | Path, kind: str, next_step: str = "Is it damaged or cut short?") -> Iterator[None]:
    """Turns whatever a parser raises into one message: "PATH cannot be read as KIND: REASON. NEXT STEP".

    Messages of our own (`UserError`) pass; so do bugs that no file causes. A file that the system does not
    hand over (permissions, a failing disk) is not called damaged.

    >>> with reading("cloud.npz", "an archive"):
    ...     raise zlib.error("bad data")
    Traceback (most recent call last):
    UserError: cloud.npz cannot be read as an archive: bad data. Is it damaged or cut short?

    Raises:
        UserError: the body raised one of `DAMAGED`.
    """
    try:
        yield
    except UserError:
        raise
    except DAMAGED as error:
        system = isinstance(error, OSError) and error.errno
        wanted = "" if system else f" as {kind}"
        raise UserError(
            f"{path} cannot be read{wanted}: {reason(error)}.{'' if system else ' ' + next_step}"
        ) from error
