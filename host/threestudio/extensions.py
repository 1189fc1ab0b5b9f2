"""Extensions: every folder or .py file of ``custom/`` is imported, and registers what it has."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from threestudio.kinds import missing_import
from threestudio.utils.errors import ExtensionError, is_user_error


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


def load_extensions(folders: Iterable[Path]) -> list[Path]:
    """Import all extensions of ``folders``.

    threestudio prints a failing one's traceback and goes on without it; here it ends the run, for what
    follows would be about a name that is missing, and not about why.

    Returns:
        What was imported.

    Raises:
        ExtensionError: (an ImportError) one cannot be imported; says why, where, and how to go on.
    """
    paths = find_extensions(folders)
    for path in paths:
        try:
            _load(path)
        except Exception as error:
            if is_user_error(error):
                raise
            missing = missing_import(error) if isinstance(error, ImportError) else None
            raise ExtensionError(
                f"The extension {path} cannot be imported: {missing or f'{type(error).__name__}: {error}'} "
                f"({_where(error, path)}).\nMend it or install what it needs; renamed to {path.stem}_disabled"
                f"{path.suffix} it is left out."
            ) from error
    return paths


def _where(error: BaseException, path: Path) -> str:
    """The extension's own line that failed, the innermost."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(path)] or frames[-1:]
    return f"{own[-1].filename}, line {own[-1].lineno}"


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
