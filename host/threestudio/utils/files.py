"""Files that appear whole or not at all, and one line about those that cannot be written.

The host and the extension both have this module, word for word: neither may import the other's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError

# What the operating system says, in words that lead on; of the rest, its own words.
_CAUSES = {
    errno.ENOSPC: "no space left on device. Free some, or choose a folder on another disk",
    errno.EDQUOT: "disk quota exceeded. Free some space, or choose a folder on another disk",
    errno.EFBIG: "larger than files may be here. `ulimit -f` shows the limit, `ulimit -f unlimited` lifts it",
    errno.EROFS: "the file system is read-only. Choose another folder",
    errno.EACCES: "permission denied. Choose a folder that is yours",
    errno.EPERM: "not permitted. Choose a folder that is yours",
    errno.EIO: "input/output error. The disk or the network drive fails: choose another one",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one",
    errno.EMFILE: "too many open files. `ulimit -n` shows the limit, `ulimit -n 4096` raises it",
    errno.ENFILE: "too many open files on this machine. Close other programs",
    errno.ENOENT: "no such folder, and it cannot be made. Choose another one",
    errno.ENOTDIR: "a file stands where its folder should be. Choose another name",
    errno.EEXIST: "a file stands where its folder should be. Choose another name",
    errno.EISDIR: "a folder stands in its place. Choose another name",
}
TEMPORARY = ".tmp-"
"""How names of half-written files begin."""
_PROBE_BYTES, _PROBE_FILES = 2**20, 8


class OutputError(UserError, OSError):
    """A file that cannot be written; says which one, why, and what to do."""

    def __init__(self, path: str | os.PathLike, cause: OSError) -> None:
        super().__init__(f"{os.fspath(path)} cannot be written: {reason(cause)}.")
        self.errno, self.strerror, self.filename = cause.errno, cause.strerror, os.fspath(path)

    def __str__(self) -> str:
        return str(self.args[0])


def reason(error: OSError) -> str:
    """What the operating system has against a file, and what helps; one line without a full stop."""
    return _CAUSES.get(error.errno) or error.strerror or str(error) or type(error).__name__


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """An OSError in the block becomes an `OutputError` that names ``path``."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(path, error) from error


def make_folder(path: str | os.PathLike) -> Path:
    """Make a folder and those above it, unless they are there.

    Raises:
        OutputError: it cannot be made.
    """
    with writing(path):
        os.makedirs(path, exist_ok=True)
    return Path(path)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, durable: bool = False) -> Iterator[str]:
    """A temporary path beside ``path``, with its suffix, that replaces ``path`` when the block ends well.

    Parent folders are made.  When the block raises, the temporary file is removed, and ``path`` stays.

    Args:
        durable: wait until the disk has the file, so that it survives a loss of power, and a disk that finds
            out late that it is full is heard.

    Raises:
        OutputError: the file cannot be written, however the writer in the block may put it.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A hidden name, so that "*.png" never meets half a file; the suffix tells writers the format.
        handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, suffix=path.suffix, dir=path.parent)
        os.close(handle)
    try:
        try:
            yield temporary
        except Exception as error:
            cause = _why_not_written(error, temporary)
            if cause is None:
                raise
            raise OutputError(path, cause) from error
        with writing(path):
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only the owner reads
            if durable:
                _wait_for_disk(temporary)
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_path(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def _why_not_written(error: Exception, temporary: str) -> OSError | None:
    """The trouble with a file that a writer made half of; None where the trouble is something else."""
    if isinstance(error, OutputError):
        return None
    if isinstance(error, OSError) and error.errno is not None and error.errno != errno.EPIPE:
        named = [name for name in (error.filename, error.filename2) if name is not None]
        return error if not named or temporary in named else None
    # Writers in C++ and other processes keep the cause to themselves: ask for more of the same.
    try:
        with contextlib.ExitStack() as stack:
            *_, file = [stack.enter_context(open(temporary, "ab", buffering=0)) for _ in range(_PROBE_FILES)]
            written = 0
            while written < _PROBE_BYTES:
                written += file.write(bytes(_PROBE_BYTES - written))
    except OSError as cause:
        return cause
    return None


def _wait_for_disk(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
