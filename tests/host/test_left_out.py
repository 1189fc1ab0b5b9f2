"""What of threestudio is not in this host is refused by name, and early."""

from __future__ import annotations

import pytest

from threestudio.extensions import load_extensions
from threestudio.kinds import LEFT_OUT, LEFT_OUT_MODULES
from threestudio.models.networks import get_encoding
from threestudio.utils.config import load_config
from threestudio.utils.errors import ConfigValueError, ExtensionError, UnknownNameError


@pytest.fixture
def import_error(tmp_path):
    """The message for an extension of this one line."""

    def message(line: str) -> str:
        (tmp_path / "ext.py").write_text(line + "\n")
        with pytest.raises(ExtensionError) as caught:
            load_extensions([tmp_path])
        assert caught.value.is_user_error and "ext.py, line 1" in str(caught.value)
        return str(caught.value)

    return message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("from threestudio.utils.perceptual import PerceptualLoss", "utils.perceptual, and .* LPIPS"),
        (
            "from threestudio.utils.perceptual.perceptual import PerceptualLoss",
            "it needs the weights of LPIPS",
        ),
        ("import threestudio.data.image", "threestudio.data.image, and .* starts from a picture"),
        ("from threestudio.data import image", "threestudio.data.image, and .* starts from a picture"),
        ("from threestudio.models.networks import TCNNEncoding", "TCNNEncoding, and .* get_encoding"),
        ("from threestudio.models.networks import TCNNEncodingSpatialTime", "scenes that move"),
        (
            "from threestudio.models.networks import get_encodin",
            r"Did you mean 'get_encoding'",
        ),
        ("from threestudio.utils.GAN.vae import Decoder", "it edits given scenes"),
        (
            "import threestudio.utils.nothing",
            "neither threestudio nor this host has",
        ),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_an_import(import_error, line, words):
    import re

    assert re.search(words, import_error(line))


def test_every_module_has_a_reason():
    assert set(LEFT_OUT_MODULES.values()) <= set(LEFT_OUT)


def test_a_4d_encoding():
    with pytest.raises(ConfigValueError, match=r"HashGridSpatialTime.*leaves it out: .*scenes that move"):
        get_encoding(3, {"otype": "HashGridSpatialTime", "n_levels": 4, "static": True, "n_key_frames": 2})


@pytest.mark.parametrize(
    "yaml",
    [
        "{system_type: prolificdreamer-system, tag: x, system: {prompt_processor: {prompt: '???'}}}",
        "{tag: x, data_type: single-image-datamodule, data: {image_path: '???'}}",
        "{tag: x, system_type: 'dreamfusion-system:textmesh-system', system: {a: '???'}}",
        "{tag: x, system: {renderer: {base_renderer_type: neus-volume-renderer, radius: '???'}}}",
    ],
)
def test_a_config_that_cannot_run_asks_for_nothing(yaml):
    with pytest.raises(UnknownNameError, match="this host leaves it out") as caught:
        load_config(yaml, from_string=True)
    assert "???" not in str(caught.value) and "for you to give" not in str(caught.value)


def test_one_that_can_asks():
    with pytest.raises(ConfigValueError, match=r"leaves system\.prompt for you to give"):
        load_config("{tag: x, system_type: dreamfusion-system, system: {prompt: '???'}}", from_string=True)
