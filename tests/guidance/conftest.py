"""One set of tiny priors for all tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Tensors here are too small to share between threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def saved_priors(tmp_path_factory) -> dict[str, Path]:
    """Folders of tiny priors by name: kl (epsilon), tiny (AutoencoderTiny), v (v-prediction)."""
    folder = tmp_path_factory.mktemp("priors")
    return {
        "kl": tiny.save_prior(folder / "kl"),
        "tiny": tiny.save_prior(folder / "tiny", vae="tiny"),
        "v": tiny.save_prior(folder / "v", prediction_type="v_prediction"),
    }


@pytest.fixture
def own_prior(saved_priors, tmp_path) -> Path:
    """A copy of the kl prior, to be spoilt."""
    return Path(shutil.copytree(saved_priors["kl"], tmp_path / "own"))
