"""The code of a run: the source of this project and of the extensions, and how it differs from the commit."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import threestudio
from threestudio.utils.files import TEMPORARY, make_folder, writing

PROJECT = Path(__file__).resolve().parents[3]
"""Where launch.py and host/ are."""
PARTS = ("launch.py", "pyproject.toml", "constraints.txt", "configs", "host", "custom")
"""What of it runs; the rest makes priors, tests and pages."""

SUFFIXES = (
    *(".py", ".pyi", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".txt", ".sh"),
    *(".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".glsl", ".slang"),
)
"""Of source and configs. Weights, tokenizers and pictures have others."""
MAX_BYTES = 2**20
"""Of a file; what is larger is data."""
MAX_FILES = 3000
DIFF = "changes.diff"


@dataclass(frozen=True)
class Source:
    """A folder, or a single file, whose code belongs to a run."""

    path: Path
    """Where it is."""
    target: Path
    """Where it goes, below the snapshot's folder."""
    parts: tuple[str, ...] = (".",)
    """What of the folder."""
    new_files: bool = False
    """Also files that git neither tracks nor ignores."""


def sources_of(extensions: Iterable[Path]) -> list[Source]:
    """This project and the extensions, each once."""
    parts = tuple(name for name in PARTS if (PROJECT / name).exists())
    found = [Source(PROJECT, Path(), parts)]
    for path in extensions:
        real = path.resolve()
        inside = real.is_relative_to(PROJECT)
        target = real.relative_to(PROJECT) if inside else Path("custom") / path.name
        found.append(Source(real, target, new_files=True))
    return found


def save_snapshot(folder: str | os.PathLike, extensions: Iterable[Path], but_not: str | os.PathLike) -> None:
    """Put the code of a run into ``folder``, in the place of what is there.

    Of a git work tree that is what git tracks; without git, what has the suffix of source. What differs
    from the commit is in ``changes.diff``, whose first line names it.

    Args:
        extensions: folders and .py files; of these new files belong to it, too.
        but_not: the folder of all runs: nothing in it is copied, wherever it is.

    Raises:
        OutputError: it cannot be written; ``folder`` is as it was.
    """
    folder = Path(folder)
    make_folder(folder.parent)
    with writing(folder), tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder.parent) as temporary:
        new = Path(temporary) / folder.name
        new.mkdir()
        for source in sources_of(extensions):
            for name, content in _files_of(source, Path(but_not).resolve()):
                with writing(folder / name):
                    (new / name).parent.mkdir(parents=True, exist_ok=True)
                    (new / name).write_bytes(content)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(new, folder)


def _files_of(source: Source, but_not: Path) -> Iterator[tuple[Path, bytes]]:
    """What to write of a source, below the snapshot's folder, and its content."""
    if source.path.is_file():
        yield source.target, source.path.read_bytes()
        return
    listed = [name for name in _listed(source) if _is_source(name)]
    names = listed or list(_walked(source))
    if len(names) > MAX_FILES:
        threestudio.warn(f"No code snapshot of {source.path}: {len(names)} files are more than {MAX_FILES}.")
        return
    for name in names:
        if _belongs(source.path / name, source.path, but_not):
            yield source.target / name, (source.path / name).read_bytes()
    changes = _changes(source.path, listed) if listed else None
    if changes is not None:
        yield source.target / DIFF, changes


def _is_source(name: str) -> bool:
    hidden = any(part.startswith((".", "__pycache__")) for part in Path(name).parts)
    return Path(name).suffix in SUFFIXES and not hidden


def _belongs(path: Path, folder: Path, but_not: Path) -> bool:
    real = path.resolve()
    return (
        path.is_file()
        and path.stat().st_size <= MAX_BYTES
        and real.is_relative_to(folder)  # a link may lead anywhere,
        and real.suffix in SUFFIXES  # and to anything
        and not real.is_relative_to(but_not)
        and not any(_is_run(parent) for parent in path.parents if parent.is_relative_to(folder))
    )


def _is_run(folder: Path) -> bool:
    return (folder / "configs" / "parsed.yaml").is_file()


# ---- what belongs to a folder ------------------------------------------------------------------------------


def _listed(source: Source) -> list[str]:
    """The files of the folder that git knows, relative to it; none outside of git."""
    others = ["--others", "--exclude-standard"] if source.new_files else []
    listed = _git(source.path, "ls-files", "-z", "--cached", *others, "--", *source.parts)
    return [os.fsdecode(name) for name in (listed or b"").split(b"\0") if name]


def _walked(source: Source) -> Iterator[str]:
    """The source files of the folder, relative to it; hidden folders and runs are left out."""
    for part in source.parts:
        start = source.path / part
        if start.is_file():
            yield part
        for folder, below, files in os.walk(start):
            below[:] = sorted(
                name
                for name in below
                if not name.startswith((".", "__pycache__")) and not _is_run(Path(folder, name))
            )
            for name in sorted(files):
                if _is_source(name):
                    yield os.path.relpath(os.path.join(folder, name), source.path)


def _changes(folder: Path, names: Sequence[str]) -> bytes | None:
    """The commit, and what of the files differs from it; None without one."""
    commit = _git(folder, "rev-parse", "HEAD")
    command = ("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--relative", "--", *names)
    diff = _git(folder, "--literal-pathspecs", *command)
    return None if commit is None or diff is None else b"commit " + commit + diff


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints about the work tree around ``folder``; None when it cannot."""
    # Not of another work tree, as variables in a hook may say; and nothing is written or run on the way.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, check=True, capture_output=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError) as error:
        threestudio.debug(f"git {arguments[0]} in {folder}: {error}")
        return None
    return done.stdout
