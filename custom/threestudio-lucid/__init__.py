"""threestudio-lucid: text to 3D by Interval Score Matching, an extension of threestudio.

Imported as `threestudio_lucid` (installed with pip) or run by threestudio's loader, which calls this folder
"threestudio-lucid"; either way the modules are `threestudio_lucid.*`, exist once and register once. Without a
threestudio to register with, the mathematics stays usable: `threestudio_lucid.rasterizer`,
`.guidance.trajectory`, `.gaussians.density` and the like need no host.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

__version__ = "0.1.0"

_NAME = "threestudio_lucid"

_WITH_RESOLVERS = ("guidance.cards", "recipe")

# The files that define registered classes, and are the only ones to import threestudio.
_REGISTERING = (
    "guidance.lucid_guidance",
    "guidance.lucid_edit_guidance",
    "prompts.processor",
    "data.cameras",
    "data.picture_data",
    "points.initializers",
    "bodies.initializer",
    "gaussians.geometry",
    "renderers.gaussian",
    "systems.swap",
    "systems.safeguard",
    "systems.lucid_dreamer",
    "systems.edit",
    "systems.picture_edit",
    "systems.avatar",
    "exporters.ply",
    "exporters.mesh",
)


def _under_its_own_name() -> None:
    """Imports this file again as `threestudio_lucid`, unless that is done, and stands back for it."""
    if _NAME not in sys.modules:
        folder = Path(__file__).resolve().parent
        spec = importlib.util.spec_from_file_location(
            _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[_NAME] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[_NAME]
            raise
    sys.modules[__name__] = sys.modules[_NAME]


def _has_threestudio() -> bool:
    """Whether there is a threestudio, by its `__init__.py`: a mere folder of that name is none."""
    spec = importlib.util.find_spec("threestudio")
    return spec is not None and spec.origin is not None


def _register_all() -> None:
    """Resolvers, and where there is a threestudio the files above; says first which packages are too old.

    Raises:
        UserError: a package is missing.
    """
    versions = importlib.import_module(".versions", __name__)
    registering: tuple[str, ...] = ()
    if _has_threestudio():
        registering = _REGISTERING
        threestudio = importlib.import_module("threestudio")
        if told := versions.report():
            threestudio.warn(told)
    try:
        for module in _WITH_RESOLVERS:
            importlib.import_module(f".{module}", __name__).register_resolvers()
        for module in registering:
            importlib.import_module(f".{module}", __name__)
    except ImportError as error:
        if (mistake := versions.missing_import(error)) is None:
            raise
        raise mistake from error


if __name__ != _NAME:
    _under_its_own_name()
else:
    _register_all()
