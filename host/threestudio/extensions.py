"""Extensions: every folder or .py file of ``custom/`` is imported, and registers what it has."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path


def find_extensions(folders: Iterable[Path]) -> list[Path]:
    """Packages and .py files that are not hidden and not called ``*_disabled``, the first of each name."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            name = path.stem if path.suffix == ".py" else path.name
            if name.startswith((".", "__")) or name.endswith("_disabled"):
                continue
            if path.suffix == ".py" or (path / "__init__.py").is_file():
                found.setdefault(name, path)
    return list(found.values())


def load_extensions(folders: Iterable[Path]) -> dict[str, BaseException]:
    """Import all extensions of ``folders``.

    A failing one is reported on stderr with its traceback, and the others are still imported: the run goes on
    unless it needs a name that is missing then.

    Returns:
        The failures, by extension name.
    """
    failures: dict[str, BaseException] = {}
    for path in find_extensions(folders):
        try:
            _load(path)
        except Exception as error:
            failures[path.name] = error
            print(f"The extension {path} cannot be imported:", file=sys.stderr)
            traceback.print_exception(error)
    return failures


def _load(path: Path) -> None:
    """Import ``path`` under its bare name, as threestudio does (dashes included)."""
    name = path.stem if path.suffix == ".py" else path.name
    file = path if path.is_file() else path / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    previous = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if previous is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = previous
        raise
