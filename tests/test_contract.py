"""What the extension takes from threestudio, against what threestudio 0.2.3 has.

The list is the extension's whole debt to its host. A name that is not in it may exist in host/threestudio and
not in the real one, so it is added here only after looking there.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXTENSION = ROOT / "custom" / "threestudio-lucid"

# Imports, by module.
ALLOWED = {
    "threestudio": {"register", "find", "info", "warn", "debug", "__modules__"},
    "threestudio.data.uncond": {
        "RandomCameraDataModuleConfig",
        "RandomCameraIterableDataset",
        "RandomCameraDataset",
        "RandomCameraDataModule",
    },
    "threestudio.models.exporters.base": {"Exporter", "ExporterOutput"},
    "threestudio.models.geometry.base": {"BaseGeometry", "BaseExplicitGeometry", "BaseImplicitGeometry"},
    "threestudio.models.renderers.base": {"Renderer", "Rasterizer", "VolumeRenderer"},
    "threestudio.models.mesh": {"Mesh"},
    "threestudio.systems.base": {"BaseSystem", "BaseLift3DSystem"},
    "threestudio.utils.base": {"BaseObject", "BaseModule", "Updateable", "update_if_possible"},
    "threestudio.utils.config": {"parse_structured", "load_config", "config_to_primitive"},
    "threestudio.utils.misc": {"C", "get_device", "get_rank", "cleanup", "barrier", "broadcast"},
    "threestudio.utils.ops": {"get_ray_directions", "get_rays", "get_projection_matrix", "get_mvp_matrix"},
}
# The files that hold registered classes, and are the only ones to know threestudio.
REGISTERING = {
    "__init__.py",  # which imports the others
    "guidance/lucid_guidance.py",
    "guidance/lucid_edit_guidance.py",
    "prompts/processor.py",
    "data/cameras.py",
    "data/picture_data.py",
    "points/initializers.py",
    "bodies/initializer.py",
    "gaussians/geometry.py",
    "renderers/gaussian.py",
    "systems/lucid_dreamer.py",
    "systems/edit.py",
    "systems/picture_edit.py",
    "systems/avatar.py",
    "systems/swap.py",
    "systems/density.py",
    "systems/safeguard.py",
    "exporters/ply.py",
    "exporters/mesh.py",
}
FILES = sorted(path for path in EXTENSION.rglob("*.py") if "__pycache__" not in path.parts)


def uses(tree: ast.AST) -> set[tuple[str, str]]:
    """(module, name) of every import from threestudio, and of every attribute of the name `threestudio`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "threestudio":
            found |= {(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {
                (alias.name, "*")
                for alias in node.names
                if alias.name.startswith("threestudio.") or (alias.name == "threestudio" and alias.asname)
            }
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "threestudio":
            found.add(("threestudio", node.attr))
    return found


def knows_threestudio(tree: ast.AST) -> bool:
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    return bool(uses(tree)) or any(alias.name == "threestudio" for node in imports for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(EXTENSION)))
def test_takes_only_what_threestudio_has(path):
    taken = uses(ast.parse(path.read_text()))
    unknown = {f"{module}: {name}" for module, name in taken if name not in ALLOWED.get(module, set())}
    assert not unknown, f"{path.name} takes {sorted(unknown)}, which is not in the list"


def test_only_registering_files_know_threestudio():
    knowing = {str(p.relative_to(EXTENSION)) for p in FILES if knows_threestudio(ast.parse(p.read_text()))}
    assert knowing <= REGISTERING


def test_the_walk_sees_what_it_should():
    code = "import threestudio\nfrom threestudio.utils.misc import C, secret\nthreestudio.find('x').y"
    assert uses(ast.parse(code)) == {
        ("threestudio.utils.misc", "C"),
        ("threestudio.utils.misc", "secret"),
        ("threestudio", "find"),
    }
    assert uses(ast.parse("import threestudio.utils.misc as m")) == {("threestudio.utils.misc", "*")}


def test_the_host_has_all_of_it():
    import importlib

    for module, names in ALLOWED.items():
        found = importlib.import_module(module)
        assert not [name for name in names if not hasattr(found, name)], module


def test_exporters_hand_over_what_the_savers_take():
    """The params of a save_type are keywords of threestudio's own method: save_file's is src_path."""
    import inspect

    from threestudio.utils.saving import SaverMixin

    assert list(inspect.signature(SaverMixin.save_file).parameters) == ["self", "filename", "src_path"]
    for name in ("ply", "mesh"):
        assert '"src_path"' in (EXTENSION / "exporters" / f"{name}.py").read_text()
