"""The extension as a package: one set of modules however it is loaded, and usable without a threestudio."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTENSION = ROOT / "custom/threestudio-lucid"

# What threestudio v0.2.3's launch.py does with each folder of custom/.
LOADER = """
import importlib.util, sys
def load(folder):
    name = folder.rsplit("/", 1)[1]
    spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
"""


def python(code: str, *paths: Path) -> str:
    """Runs code in a fresh interpreter that finds packages in `paths` and nowhere near the tests."""
    setup = f"import sys; sys.path[:0] = {[str(p) for p in paths]!r}\n"
    done = subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_loaded_by_threestudio_it_registers_once_under_its_own_name():
    out = python(
        LOADER
        + f"""
import threestudio
before = set(threestudio.__modules__)
load({str(EXTENSION)!r})
import threestudio_lucid
load({str(EXTENSION)!r})
assert sys.modules["threestudio-lucid"] is threestudio_lucid
mine = sorted(set(threestudio.__modules__) - before)
assert all(threestudio.find(name).__module__.startswith("threestudio_lucid.") for name in mine)
assert not [name for name in sys.modules if name.startswith("threestudio-lucid.")]
print(*mine)
""",
        ROOT / "host",
    )
    assert out.split() == [
        "lucid-avatar-system",
        "lucid-camera-datamodule",
        "lucid-dreamer-system",
        "lucid-edit-guidance",
        "lucid-edit-system",
        "lucid-gaussian-renderer",
        "lucid-gaussian-splatting",
        "lucid-guidance-swap",
        "lucid-ism-guidance",
        "lucid-mesh-exporter",
        "lucid-picture-datamodule",
        "lucid-picture-edit-system",
        "lucid-ply-exporter",
        "lucid-point-body",
        "lucid-point-file",
        "lucid-point-shap-e",
        "lucid-point-shape",
        "lucid-point-text",
        "lucid-prompt-processor",
        "lucid-safeguard",
        "lucid-sds-guidance",
    ]


def test_the_mathematics_needs_no_threestudio_and_no_diffusers():
    out = python(
        LOADER
        + f"""
load({str(EXTENSION)!r})
import threestudio_lucid.rasterizer, threestudio_lucid.points, threestudio_lucid.data.orbit
import threestudio_lucid.gaussians.density, threestudio_lucid.gaussians.ply, threestudio_lucid.bodies
import threestudio_lucid.guidance.ism, threestudio_lucid.guidance.sds
heavy = ("threestudio", "pytorch_lightning", "lightning", "diffusers", "transformers", "torchvision")
print(*[name for name in heavy if name in sys.modules])
"""
    )
    assert out.split() == []


def test_a_failed_import_leaves_no_half_package(tmp_path):
    broken = tmp_path / "threestudio-lucid"
    broken.mkdir()
    text = (EXTENSION / "__init__.py").read_text()
    assert '"guidance.cards"' in text
    (broken / "__init__.py").write_text(text.replace('"guidance.cards"', '"no_such_file"'))
    python(
        LOADER
        + f"""
try:
    load({str(broken)!r})
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("it asks for a file that is not there, and loaded")
assert "threestudio_lucid" not in sys.modules
""",
        ROOT / "host",
    )
