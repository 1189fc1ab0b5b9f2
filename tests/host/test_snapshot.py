"""The code of a run is this project's and the extensions', and nobody else's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from threestudio.utils import snapshot
from threestudio.utils.files import OutputError
from threestudio.utils.snapshot import save_snapshot

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"this is {name}\n")


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project with all that should not be in a snapshot."""
    folder = tmp_path / "project"
    write(folder, "launch.py", "configs/a.yaml", "host/b.py", "custom/ext/__init__.py", "custom/ext/c.cu")
    write(folder, "custom/ext/weights.safetensors", "custom/ext/.hidden/d.py", "docs/e.md", ".env", "f.py")
    write(folder, "custom/ext/__pycache__/g.py", "outputs/run/configs/parsed.yaml", "outputs/run/h.py")
    write(folder, "custom/ext/runs/one/configs/parsed.yaml", "custom/ext/runs/one/code/i.py")
    (folder / "custom/ext/big.txt").write_bytes(bytes(snapshot.MAX_BYTES + 1))
    (folder / "custom/ext/link.py").symlink_to("../../.env")
    monkeypatch.setattr(snapshot, "PROJECT", folder)
    return folder


CODE = {"launch.py", "configs/a.yaml", "host/b.py", "custom/ext/__init__.py", "custom/ext/c.cu"}


def test_without_git(project, tmp_path):
    save_snapshot(tmp_path / "code", [project / "custom/ext"], project / "outputs")
    assert names(tmp_path / "code") == CODE


@needs_git
def test_with_git_what_is_tracked_and_what_changed(project, tmp_path, monkeypatch):
    (project / ".gitignore").write_text("outputs/\n.env\n*.safetensors\n")
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "one")
    commit = git(project, "rev-parse", "HEAD")
    (project / "host/b.py").write_text("changed\n")
    (project / "docs/e.md").write_text("changed\n")
    write(project, "host/scratch.py", "custom/ext/new.py", "custom/ext/.env")
    monkeypatch.setenv("GIT_DIR", str(tmp_path))  # as in a hook of another repository
    save_snapshot(tmp_path / "code", [project / "custom/ext"], project / "outputs")
    diffs = {"changes.diff", "custom/ext/changes.diff"}
    assert names(tmp_path / "code") == CODE | {"custom/ext/new.py"} | diffs
    changes = (tmp_path / "code/changes.diff").read_text()
    assert changes.startswith(f"commit {commit}\n") and "+changed" in changes
    assert "b/host/b.py" in changes and "docs" not in changes


@needs_git
def test_nothing_of_a_foreign_repository(project, tmp_path, monkeypatch):
    """Neither of the one around the current folder nor of the one around the project."""
    for folder in (tmp_path, tmp_path / "theirs"):
        write(folder, "theirs.py", ".env", "secret.txt")
        git(folder, "init", "-q")
        git(folder, "add", "theirs.py")
    write(tmp_path / "theirs", "custom/mine/__init__.py", "custom/mine/.env", "custom/single.py")
    monkeypatch.chdir(tmp_path / "theirs")
    extensions = [project / "custom/ext", Path("custom/mine"), Path("custom/single.py")]
    for _ in range(2):  # outputs are not ignored here, and yet no snapshot is in the next one
        save_snapshot("outputs/run/code", extensions, "outputs")
        own = CODE | {"custom/mine/__init__.py", "custom/single.py"}
        assert names(Path("outputs/run/code")) == own
    assert git(Path(), "status", "--porcelain", "custom/mine").startswith("?? custom/mine")


def test_this_projects_snapshot_is_small_and_holds_no_weights(tmp_path, root):
    save_snapshot(tmp_path / "code", [root / "custom/threestudio-lucid"], root / "outputs")
    files = names(tmp_path / "code")
    assert {"launch.py", "configs/ism-gs.yaml", "host/threestudio/run.py"} < files
    assert "custom/threestudio-lucid/systems/lucid_dreamer.py" in files
    assert not [name for name in files if name.endswith((".safetensors", ".json", ".png", ".pyc"))]
    assert sum((tmp_path / "code" / name).stat().st_size for name in files) < 3e6


def test_it_takes_the_place_of_the_last_one_or_leaves_it(project, tmp_path):
    save_snapshot(tmp_path / "code", [], tmp_path / "outputs")
    (project / "host/b.py").unlink()
    write(project, "host/j.py")
    save_snapshot(tmp_path / "code", [], tmp_path / "outputs")
    assert {"host/j.py"} == {name for name in names(tmp_path / "code") if name.startswith("host/")}
    with pytest.raises(OutputError, match="/proc/code cannot be written"):
        save_snapshot("/proc/code", [], tmp_path / "outputs")
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []
