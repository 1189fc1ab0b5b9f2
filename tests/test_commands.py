"""`make demo` and many_prompts.sh hand prompts on as typed, seen by a `python` that only writes them down."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KEY = "system.prompt_processor.prompt="


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The prompts that launch.py was called with, so far."""
    log = tmp_path / "log"
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "python"
    script.write_text(
        '#!/bin/bash\nfor a in "$@"; do printf "%s\\0" "$a" >>"$LOG"; done\n'
        'case "$*" in *"stop here"*) exit 130;; *"goes wrong"*) exit 2;; esac\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("LOG", str(log))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def prompts() -> list[str]:
        given = log.read_text().split("\0") if log.exists() else []
        return [argument.removeprefix(KEY) for argument in given if argument.startswith(KEY)]

    return prompts


# ---- make ----


@pytest.fixture
def made(tmp_path):
    """The Makefile, in a folder where everything is installed."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "constraints.txt", ".venv/bin/activate", ".venv/bin/python"):
        (tmp_path / name).touch()
    (tmp_path / ".venv/installed").touch()
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    return lambda *given, **kwargs: subprocess.run(
        ["make", "demo", *given], cwd=tmp_path, check=True, **kwargs
    )


@pytest.mark.parametrize(
    "prompt",
    [
        'a "blue" mug',
        "it's a 'blue' mug",
        "a $5 mug for $USER, ${HOME} and $$",
        "a `date` mug $(shell date) $(date)",
        "#1 mug # really",
        "a; b & c | d > e < f * ? !g ~",
        "a\\nb \\",
        "100 % ☕",
        "",
    ],
)
def test_make_demo_hands_the_prompt_on(written, made, prompt):
    made(f"PROMPT={prompt}")
    made(env={**os.environ, "PROMPT": prompt})
    assert written() == [prompt, prompt]


def test_make_demo_has_a_prompt_of_its_own_and_makes_one_line_of_two(written, made):
    made()
    made("PROMPT=a red\nmug")
    assert written() == ["a hamburger", "a red mug"]


# ---- many_prompts.sh ----


def many(tmp_path, content: bytes, *given: str) -> subprocess.CompletedProcess:
    file = tmp_path / "my prompts.txt"
    file.write_bytes(content)
    script = ROOT / "launch_examples/many_prompts.sh"
    return subprocess.run(["bash", str(script), str(file), *given], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        (b"a mug\na cup", ["a mug", "a cup"]),
        (b"a mug\na cup\n", ["a mug", "a cup"]),
        (b"\xef\xbb\xbfa mug\r\na cup\r\n", ["a mug", "a cup"]),
        (b"# mugs\n\na mug\n   \n\t# cups\n \r\na cup\n#", ["a mug", "a cup"]),
        (b"\xef\xbb\xbf# mugs\r\na mug", ["a mug"]),
        (b'a "blue" #1 mug: $5 `date` \\\n', ['a "blue" #1 mug: $5 `date` \\']),
        (b"", []),
    ],
)
def test_every_line_is_a_prompt(written, tmp_path, content, prompts):
    assert many(tmp_path, content, "seed=1").returncode == 0
    assert written() == prompts


def test_a_failure_is_told_and_the_next_prompt_is_made(written, tmp_path):
    ended = many(tmp_path, b"this goes wrong\na cup")
    assert ended.returncode == 1 and "failed: this goes wrong" in ended.stderr
    assert written() == ["this goes wrong", "a cup"]


def test_stopping_one_stops_all(written, tmp_path):
    assert many(tmp_path, b"stop here\na cup").returncode == 130
    assert written() == ["stop here"]


def test_utf_16_is_refused(written, tmp_path):
    ended = many(tmp_path, "a mug\na cup".encode("utf-16"))
    assert ended.returncode == 2 and "UTF-8" in ended.stderr and written() == []
