"""Files appear whole or not at all, and what cannot be written is named, however its writer puts it."""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

import threestudio_lucid.files
from threestudio.utils import files as host_files
from threestudio.utils.loggers import MetricsTable, TensorBoardEvents
from threestudio.utils.video import write_video

BOTH = pytest.mark.parametrize("files", [host_files, threestudio_lucid.files], ids=["host", "extension"])


@contextlib.contextmanager
def limit(what: int, value: int):
    """A limit of this process, as `ulimit` sets it; Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


def small_files(size: int = 10_000):
    """Files of at most so many bytes, which stands for a full disk."""
    return limit(resource.RLIMIT_FSIZE, size)


def test_host_and_extension_write_alike():
    assert inspect.getsource(host_files) == inspect.getsource(threestudio_lucid.files)


@BOTH
def test_a_failed_write_leaves_what_was_there(tmp_path, files):
    path = tmp_path / "a.txt"
    files.write_text(path, "before")
    with pytest.raises(KeyError), files.atomic_path(path) as temporary:
        Path(temporary).write_text("half")
        raise KeyError("a bug")
    with small_files(), pytest.raises(files.OutputError):
        files.write_text(path, "x" * 20_000)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def _numpy(path):
    with open(path, "wb") as file:
        np.savez(file, a=np.zeros(5000))


def _torch(path):
    torch.save({"a": torch.zeros(5000)}, path)


def _safetensors(path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(5000)}, path)


def _hushed(path):
    try:
        Path(path).write_bytes(bytes(20_000))
    except OSError:
        raise RuntimeError("it did not work") from None


@BOTH
@pytest.mark.parametrize("write", [_numpy, _torch, _safetensors, _hushed])
@pytest.mark.parametrize("name", ["a.bin", "ü.bin"])
def test_every_writer_is_told_alike(tmp_path, files, write, name):
    """Some raise OSErrors without a name, some say nothing of a disk."""
    with (
        small_files(),
        pytest.raises(files.OutputError) as caught,
        files.atomic_path(tmp_path / name) as path,
    ):
        write(path)
    error = caught.value
    assert error.is_user_error and isinstance(error, OSError) and error.errno == errno.EFBIG
    assert str(error).startswith(f"{tmp_path / name} cannot be written: larger than files may be")
    assert "\n" not in str(error)
    assert os.listdir(tmp_path) == []


@BOTH
def test_other_troubles_are_not_the_disks(tmp_path, files):
    with pytest.raises(FileNotFoundError) as caught, files.atomic_path(tmp_path / "a"):
        (tmp_path / "b").read_text()
    assert not isinstance(caught.value, files.OutputError)
    with pytest.raises(RuntimeError, match="a bug"), files.atomic_path(tmp_path / "a"):
        raise RuntimeError("a bug")


@BOTH
def test_too_many_open_files(tmp_path, files):
    with pytest.raises(files.OutputError, match="too many open files"), files.atomic_path(tmp_path / "a"):
        with limit(resource.RLIMIT_NOFILE, 3):
            files.write_text(tmp_path / "b", "")
    with pytest.raises(files.OutputError, match="too many open files"), contextlib.ExitStack() as stack:
        taken: list[int] = []
        stack.enter_context(limit(resource.RLIMIT_NOFILE, 64))
        stack.callback(lambda: [os.close(handle) for handle in taken])
        stack.enter_context(files.atomic_path(tmp_path / "a"))
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            for _ in range(3):  # enough to open a file, too few for a program
                os.close(taken.pop())
            raise RuntimeError("no program found") from None


@BOTH
def test_places_that_cannot_be_written(tmp_path, files):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path, words in {
        "/proc/lucid/a": "/proc/lucid/a cannot be written",
        "/sys/lucid/a": "/sys/lucid/a cannot be written",
        tmp_path / "file/a": "a file stands where its folder should be",
        tmp_path / "folder": "a folder stands in its place",
        tmp_path / ("n" * 300): "the name is too long",
        tmp_path / ("n" * 300) / "a": "the name is too long",
    }.items():
        with pytest.raises(files.OutputError) as caught:
            files.write_text(path, "text")
        assert words in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and not os.listdir(tmp_path / "folder")


# ---- what the host writes in other ways --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_a_film_is_whole_or_told(tmp_path, kind, capfd):
    """ffmpeg is another process, and writes the film's index when all frames are through."""
    noise = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"a.{kind}"
    write_video(path, noise, save_format=kind)
    whole = path.read_bytes()
    for size in (0, len(whole) // 2, len(whole) - 100):
        with small_files(size), pytest.raises(host_files.OutputError, match="larger than files may be"):
            write_video(path, noise, save_format=kind)
    assert path.read_bytes() == whole and os.listdir(tmp_path) == [path.name]
    assert capfd.readouterr().err == ""


def test_rows_of_metrics_are_kept(tmp_path):
    logger = MetricsTable(tmp_path, name="csv")
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.save()
    path = Path(logger.log_dir, "metrics.csv")
    before = path.read_text()
    for more in ({"loss": 2.0}, {"loss": 2.0, "another" * 50: 3.0}):  # a row, and a column
        logger.log_metrics(more, step=1)
        with (
            small_files(len(before) + 2),
            pytest.raises(host_files.OutputError, match=r"metrics\.csv cannot"),
        ):
            logger.save()
        assert path.read_text() == before
    logger.save()
    assert path.read_text().count("\n") == 4


def test_events_of_tensorboard(tmp_path, capfd):
    """Lightning takes every error for a value that cannot be logged; another thread writes."""
    logger = TensorBoardEvents(tmp_path, name="tb")
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.save()
    with small_files(0):
        for _ in range(2):  # it fails where it waits for its thread, and ever after
            with pytest.raises(host_files.OutputError, match="version_0 cannot be written: larger than"):
                logger.log_metrics({"loss": 2.0}, step=1)
                logger.save()
    assert "Traceback" not in capfd.readouterr().err


def test_tensorboard_takes_the_folder_at_its_word(tmp_path, monkeypatch):
    monkeypatch.setenv("FIVE", "6")
    logger = TensorBoardEvents(tmp_path / "a $FIVE mug", name="tb")
    assert logger.log_dir == str(tmp_path / "a $FIVE mug" / "tb" / "version_0")
