"""The packages that the extension uses, and how new they must be.

threestudio pins packages of 2023. Nothing here refuses them as a whole: what runs with old ones runs, and
what does not says so where it is asked for, with the command that helps.
"""

from __future__ import annotations

import sys
from importlib import metadata

from .errors import UserError

MINIMUMS = {
    "torch": "2.6",
    "diffusers": "0.36",
    "transformers": "4.57",
    "accelerate": "1.0",
    "peft": "0.17",
    "safetensors": "0.4.5",
    "omegaconf": "2.3",
    "numpy": "1.26",
    "scipy": "1.12",
    "numba": "0.61",
    "pillow": "10.1",
    "plyfile": "1.1",
    "trimesh": "4.4",
    "scikit-image": "0.24",
}
"""Oldest versions that are tested, as in pyproject.toml; by the names that pip knows."""

PYTHON = (3, 11)
_IMPORTED_AS = {"pillow": "PIL", "scikit-image": "skimage"}


def unmet(minimums: dict[str, str] = MINIMUMS) -> dict[str, str | None]:
    """Packages that are older than they should be, with their versions; None: not installed."""
    from packaging.version import Version

    found = {name: _installed(name) for name in minimums}
    return {name: v for name, v in found.items() if v is None or Version(v) < Version(minimums[name])}


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def remedy(names: list[str] | tuple[str, ...]) -> str:
    """The command that brings packages up to date, and no others."""
    return "pip install " + " ".join(f"'{name}>={MINIMUMS[name]}'" for name in names)


def report() -> str | None:
    """What is too old or missing, and what to type; None where nothing is."""
    wrong = unmet()
    parts = [_described(name, version) for name, version in wrong.items()]
    if sys.version_info < PYTHON:
        parts.append(f"Python {sys.version_info[0]}.{sys.version_info[1]} ({PYTHON[0]}.{PYTHON[1]} or newer)")
    if not parts:
        return None
    message = (
        f"threestudio-lucid is tested with newer packages than some here: {', '.join(parts)}. What runs with "
        "these will run, and what does not will say so."
    )
    return message + (f" To have all of it:\n  {remedy(list(wrong))}" if wrong else "")


def _described(name: str, version: str | None) -> str:
    return f"{name} {version or 'missing'} ({MINIMUMS[name]} or newer)"


def hint(*names: str) -> str:
    """For the end of a message about a file that cannot be loaded: that a library may be too old for it.

    Empty where all of `names` are new enough.
    """
    wrong = {name: version for name, version in unmet().items() if name in names}
    if not wrong:
        return ""
    old = " and ".join(_described(name, version) for name, version in wrong.items())
    return f"It may be whole, and a library too old for it: {old}. {remedy(list(wrong))}"


def needs(what: str, *names: str) -> UserError:
    """The error for a part that these packages, as they are installed, cannot do."""
    names = tuple(unmet({name: MINIMUMS[name] for name in names})) or names
    listed = " and ".join(f"{name} {MINIMUMS[name]} or newer" for name in names)
    here = ", ".join(f"{name} {_installed(name) or '(missing)'}" for name in names)
    return UserError(f"{what} needs {listed}; here is {here}. Bring it up to date: {remedy(names)}")


def missing_import(error: ImportError) -> UserError | None:
    """The error for an import that failed because a package of the table is missing; None: another reason."""
    top = (error.name or "").partition(".")[0]
    for name in MINIMUMS:
        if top == _IMPORTED_AS.get(name, name) and _installed(name) is None:
            return UserError(
                f"threestudio-lucid needs the package {name}, which is not installed. Install what it "
                f"needs: {remedy(list(unmet()))}"
            )
    return None
