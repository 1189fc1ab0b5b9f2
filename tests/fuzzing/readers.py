"""Every reader of other people's files, with small valid files of each of its kinds.

A new reader is a function that writes valid files, and a line in `READERS`: the test beside this file and
`python -m tests.fuzzing` then take it in.
"""

from __future__ import annotations

from .adapters import READERS as ADAPTERS
from .shapes import READERS as SHAPES
from .trial import Reader

READERS: dict[str, Reader] = {reader.name: reader for reader in (*SHAPES, *ADAPTERS)}
