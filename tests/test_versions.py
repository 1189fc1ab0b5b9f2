"""Old packages in a threestudio environment: told at import, and again by what cannot work with them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from test_package import EXTENSION, LOADER, ROOT

from threestudio_lucid import versions
from threestudio_lucid.errors import UserError


def pretend(folder: Path, **installed: str) -> Path:
    """A folder that, first on the path, makes packages be of these versions, as far as their metadata say."""
    for name, version in installed.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


@pytest.fixture
def old(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(pretend(tmp_path, diffusers="0.19.3", transformers="4.28.1")))


def test_the_table_is_that_of_the_project(root):
    wanted = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    pairs = dict(line.split(">=") for line in wanted if ">=" in line)
    assert {name: pairs[name] for name in versions.MINIMUMS} == versions.MINIMUMS


def test_the_installer_names_them_all(root, tmp_path):
    (tmp_path / "threestudio").mkdir()
    (tmp_path / "threestudio/__init__.py").touch()
    script = root / "launch_examples/install_into_threestudio.sh"
    told = subprocess.run(["bash", script, tmp_path], capture_output=True, text=True, check=True).stdout
    assert dict(re.findall(r"'([\w-]+)>=([\d.]+)'", told)) == versions.MINIMUMS
    assert (tmp_path / "custom/threestudio-lucid").resolve() == EXTENSION


def test_what_is_installed_here_is_new_enough():
    assert versions.report() is None and versions.hint("diffusers", "transformers") == ""


def test_old_ones_are_told_with_the_command(old):
    told = versions.report()
    assert "diffusers 0.19.3 (0.36 or newer)" in told and "transformers 4.28.1 (4.57 or newer)" in told
    assert "pip install 'diffusers>=0.36' 'transformers>=4.57'" in told
    assert "torch" not in told


def test_threestudios_loader_hears_of_it_once_and_everything_registers(tmp_path):
    here = pretend(tmp_path, diffusers="0.19.3")
    code = f"""
import sys
sys.path[:0] = [{str(here)!r}, {str(ROOT / "host")!r}]
{LOADER}
import threestudio
told = []
threestudio.warn = told.append
load({str(EXTENSION)!r})
load({str(EXTENSION)!r})
threestudio.find("lucid-ism-guidance"), threestudio.find("lucid-mesh-exporter")
[line] = told
assert "diffusers 0.19.3" in line, line
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr


def test_a_missing_package_is_one_message(tmp_path):
    code = f"""
import sys
from importlib import metadata
sys.path.insert(0, {str(ROOT / "host")!r})
{LOADER}
class Hidden(metadata.DistributionFinder):  # a machine without plyfile
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "plyfile":
            raise ModuleNotFoundError("No module named 'plyfile'", name="plyfile")
    def find_distributions(self, context):
        return iter(())
sys.meta_path.insert(0, Hidden())
found = metadata.Distribution.from_name.__func__
def from_name(cls, name):
    if name == "plyfile":
        raise metadata.PackageNotFoundError(name)
    return found(cls, name)
metadata.Distribution.from_name = classmethod(from_name)
try:
    load({str(EXTENSION)!r})
except ValueError as error:
    assert error.is_user_error and "plyfile" in str(error) and "pip install 'plyfile>=1.1'" in str(error)
else:
    raise SystemExit("it loaded")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr


def test_a_vae_that_diffusers_does_not_have(old, small_prior, monkeypatch):
    import diffusers

    from threestudio_lucid.guidance.prior import Prior

    monkeypatch.delattr(diffusers, "AutoencoderTiny", raising=False)
    monkeypatch.setattr(type(diffusers), "__getattr__", _has_none, raising=False)
    with pytest.raises(
        UserError, match=r"AutoencoderTiny, needs diffusers 0\.36 or newer; here is diffusers 0"
    ):
        _ = Prior(*_arguments(small_prior)).vae


def _has_none(module, name):
    raise AttributeError(name)


def _arguments(folder):
    import torch

    from threestudio_lucid.guidance.cards import find_card

    return find_card(str(folder)), torch.device("cpu"), torch.float32


def test_a_loader_that_fails_says_that_it_may_be_old(old, tmp_path):
    from threestudio_lucid.guidance.prior import loading

    with pytest.raises(UserError, match=r"cannot be loaded[\s\S]*may be whole[\s\S]*diffusers 0\.19\.3"):
        with loading(tmp_path):
            raise AttributeError("from_single_file")


def test_with_new_ones_a_missing_attribute_is_a_bug(tmp_path):
    from threestudio_lucid.guidance.prior import loading

    with pytest.raises(AttributeError, match="from_single_file"):
        with loading(tmp_path):
            raise AttributeError("from_single_file")


@pytest.mark.parametrize("nested", [True, False])
def test_a_text_encoder_by_both_names(small_prior, tmp_path, nested):
    """transformers 4 knows `text_model.encoder...` alone, and 5 writes `encoder...`."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    from threestudio_lucid.guidance.prior import Prior, _under_older_names

    folder = Path(shutil.copytree(small_prior, tmp_path / "prior"))
    file = folder / "text_encoder/model.safetensors"
    bare = {name.removeprefix("text_model."): tensor for name, tensor in load_file(file).items()}
    start = "text_model." if nested else ""
    save_file({start + name: tensor for name, tensor in bare.items()}, file, metadata={"format": "pt"})

    class Older(torch.nn.Module):
        config_class = CLIPTextConfig

        def __init__(self, config):
            super().__init__()
            self.text_model = torch.nn.Linear(1, 1)

    renamed = _under_older_names(folder / "text_encoder", Older)
    assert renamed is None if nested else set(renamed) == {f"text_model.{name}" for name in bare}
    if not hasattr(CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder")), "text_model"):
        assert _under_older_names(folder / "text_encoder", CLIPTextModel) is None
    expected = Prior(*_arguments(small_prior)).encode_text(["a"])
    torch.testing.assert_close(Prior(*_arguments(folder)).encode_text(["a"]), expected)
