"""Training the bundled ControlNet: it starts as nothing, resumes exactly, and is exported small and whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from threestudio_lucid.guidance.control import Control
from threestudio_lucid.guidance.prior import Prior
from toybox import people, train_control
from toybox.captions import parse
from toybox.dataset import LABEL, save_array
from toybox.train_control import ControlJob, make_controlnet, silhouettes, training_caption


@pytest.fixture(scope="module")
def mini() -> Prior:
    return Prior.load(train_control.PRIOR, "cpu", "float32")


@pytest.fixture
def data(tmp_path):
    """Two shards of four pictures each, of nothing in particular."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "people"
    folder.mkdir()
    labels = np.zeros(4, LABEL)
    labels["object"], labels["color"], labels["part_color"] = "person", "red", ["blue", "", "green", ""]
    labels["pose"], labels["azimuth"] = ["walking", "", "arms up", ""], [0, 90, 180, 45]
    for name in ("0000", "0001"):
        arrays = {
            "images": rng.integers(0, 255, (4, 128, 128, 4), np.uint8),
            "maps": rng.integers(0, 255, (4, 128, 128, 3), np.uint8),
            "labels": labels,
            "latents": rng.standard_normal((4, 2, 16, 16, 16)).astype(np.float16),
        }
        for kind, array in arrays.items():
            save_array(folder / f"{name}.{kind}.npy", array)
    return folder


def test_it_starts_as_nothing_and_pools_the_text_as_the_unet_does(mini):
    net = make_controlnet(mini.unet)
    x, text, t = torch.randn(1, 16, 16, 16), torch.randn(1, 32, 192), torch.tensor([400])
    down, mid = net(x, t, text, torch.rand(1, 3, 128, 128), return_dict=False)
    assert all(not part.any() for part in (*down, mid))
    assert torch.allclose(net.add_embedding(text), mini.unet.add_embedding(text))
    embedding = net.controlnet_cond_embedding(torch.rand(1, 3, 128, 128))
    assert embedding.shape == (1, 64, 16, 16) and embedding.std() > 0.01


def test_resumed_training_ends_like_uninterrupted_and_is_exported(mini, data, tmp_path, capsys):
    nets = {}
    for name, stops in (("whole", [None]), ("control", [1, None])):
        checkpoint = tmp_path / "control" / f"{name}.pt"
        for stop in stops:
            job = ControlJob(data, train_control.PRIOR, checkpoint, 1.0, 1, steps=2, stop_after=stop)
            if stop is None:
                train_control.train(job)
            else:
                with pytest.raises(SystemExit):
                    train_control.train(job)
        nets[name] = train_control.load(checkpoint, mini.unet)
    for a, b in zip(nets["whole"].parameters(), nets["control"].parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(p.any() for p in nets["whole"].controlnet_mid_block.parameters())

    out = tmp_path / "out"
    train_control.main(["--stage", "export", "--cache", str(tmp_path), "--out", str(out)])
    assert "MB" in capsys.readouterr().out
    assert sum(path.stat().st_size for path in out.iterdir()) < train_control.MAX_BYTES
    control = Control.load({"model": str(out)}, mini)
    _, guided = control.networks(torch.rand(1, 3, 128, 128))
    assert guided(torch.randn(1, 16, 16, 16), 500, torch.randn(1, 32, 192)).isfinite().all()
    assert not list(tmp_path.glob("*.tmp"))


def test_captions_tell_what_is_there_or_less(data):
    _, _, labels, _ = people.load(data)
    rng = np.random.default_rng(0)
    texts = {training_caption(labels[0], rng) for _ in range(200)}
    assert "" in texts and any("walking" in text for text in texts)
    assert any(text and "walking" not in text for text in texts)
    for text in texts - {""}:
        spec = parse(text)
        assert spec.object == "person" and spec.view in (None, "front") and spec.part_color in (None, "blue")


def test_silhouettes_of_pictures_on_any_ground():
    pictures = torch.full((2, 3, 32, 32), 0.4)
    pictures[0, :, 8:24, 8:24] = 0.9
    pictures[1, 0, 4:20, 10:12] = 0.1
    found = silhouettes(pictures)
    assert found[0].sum() == 256 and found[1].sum() == 32 and found[0, 8:24, 8:24].all()


def test_without_data_it_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="train_control --stage data"):
        people.load(tmp_path)
    with pytest.raises(SystemExit, match="--stage train"):
        train_control.main(["--stage", "export", "--cache", str(tmp_path)])
