"""Valid LoRA, embeddings, pictures, bodies and ControlNets, and what reads them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from threestudio_lucid.bodies.smpl import read_model
from threestudio_lucid.data.picture import Framing, read_picture
from threestudio_lucid.guidance import control
from threestudio_lucid.guidance.adapters import find_adapters
from threestudio_lucid.guidance.cards import Card
from threestudio_lucid.guidance.embeddings import read_embedding
from threestudio_lucid.guidance.lora import merge_loras

from .trial import Reader

CARD = Card("tiny", "nowhere", image_size=32, latent_size=8)
CONV, LINEAR = "mid_block.resnets.0.conv1", "mid_block.attentions.0.proj_in"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


def _random(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)))


# --- LoRA ---------------------------------------------------------------------------------------------------


def _make_loras(folder: Path) -> list[Path]:
    a, b = _random(2, 16), _random(16, 2)
    flat, conv = (f"lora_unet_{name.replace('.', '_')}" for name in (LINEAR, CONV))
    files = {
        "diffusers": {
            f"unet.{LINEAR}.lora_A.default.weight": a,
            f"unet.{LINEAR}.lora_B.default.weight": b,
            f"text_encoder.{TEXT}.lora_A.weight": _random(2, 12),
            f"text_encoder.{TEXT}.lora_B.weight": _random(12, 2),
        },
        "kohya": {
            f"{flat}.lora_down.weight": a,
            f"{flat}.lora_up.weight": b,
            f"{flat}.alpha": torch.tensor(1.0),
            f"{conv}.lora_down.weight": _random(2, 16, 1, 1),
            f"{conv}.lora_mid.weight": _random(2, 2, 3, 3),
            f"{conv}.lora_up.weight": _random(16, 2, 1, 1),
            f"{conv}.diff_b": _random(16).half(),
            "bundle_emb.sks.string_to_param.*": _random(2, 12),
        },
    }
    header = {"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"proj_in": 3}}
    for name, state in files.items():
        metadata = {"lora_adapter_metadata": json.dumps(header)} if name == "diffusers" else None
        save_file(state, folder / f"{name}.safetensors", metadata)
    return [folder / f"{name}.safetensors" for name in files]


def _make_peft(folder: Path) -> list[Path]:
    start = f"base_model.model.{LINEAR}"
    state = {f"{start}.lora_A.weight": _random(2, 16), f"{start}.lora_B.weight": _random(16, 2)}
    save_file(state | {f"{start}.bias": _random(16)}, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "alpha_pattern": {"mid_block.*proj_in": 2.0},
        "rank_pattern": {},
        "use_rslora": True,
        "init_lora_weights": True,
        "target_modules": ["proj_in"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return [folder / "adapter_config.json"]


@cache
def _models() -> Mapping[str, torch.nn.Module]:
    from tests.guidance import tiny

    torch.manual_seed(0)
    return {"unet": tiny.make_unet(), "text_encoder": tiny.make_text_encoder()}


def _merge(path: Path) -> None:
    adapters = find_adapters(str(path), None, CARD)
    for name, model in _models().items():
        before = {key: value.clone() for key, value in model.state_dict().items()}
        try:
            merge_loras(model, name, adapters.loras, "tiny")
            assert all(value.isfinite().all() for value in model.state_dict().values())
        finally:
            model.load_state_dict(before)


# --- embeddings ---------------------------------------------------------------------------------------------


def _make_embeddings(folder: Path) -> list[Path]:
    vectors = _random(2, 12)
    save_file({"<word>": vectors}, folder / "a.safetensors")
    torch.save({"<word>": vectors}, folder / "b.bin")
    of_old = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})
    for name, parameters in (("c", {"*": vectors}), ("d", of_old)):
        content = {"string_to_token": {"*": 265}, "string_to_param": parameters, "name": "sks", "step": 3}
        torch.save(content, folder / f"{name}.pt")
    torch.save({"<word>": vectors}, folder / "e.pt", _use_new_zipfile_serialization=False)
    return [folder / name for name in ("a.safetensors", "b.bin", "c.pt", "d.pt", "e.pt")]


def _embedding(path: Path) -> None:
    token, vectors = read_embedding(path)
    assert isinstance(token, str) and vectors.ndim == 2 and vectors.isfinite().all()


# --- pictures -----------------------------------------------------------------------------------------------


def _make_pictures(folder: Path) -> list[Path]:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    image, names = (
        Image.fromarray(pixels),
        ("rgba.png", "a.webp", "a.jpg", "grey.png", "palette.png", "p.jpg"),
    )
    image.save(folder / "rgba.png", exif=exif)
    image.save(folder / "a.webp", exif=exif)
    image.convert("RGB").save(folder / "a.jpg", exif=exif)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "grey.png")
    image.convert("P").save(folder / "palette.png", transparency=3)
    image.convert("CMYK").save(folder / "p.jpg", progressive=True)
    return [folder / name for name in names]


def _picture(path: Path) -> None:
    _repair(path)
    picture = read_picture(path)
    assert picture.min() >= 0.0 and picture.max() <= 1.0
    Framing(*picture.shape[:2]).to_square(picture, 8)


def _repair(path: Path) -> None:
    """Makes the checksums of a spoilt PNG right, so that what is behind them is tried; half of the time."""
    data = path.read_bytes()
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or zlib.crc32(data) % 2:
        return
    at, out = 8, data[:8]
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    path.write_bytes(out)


# --- bodies, ControlNets ------------------------------------------------------------------------------------


def _make_smpl(folder: Path) -> list[Path]:
    vertices, joints = 30, 24
    draws = np.random.default_rng(0)
    model = {
        "v_template": draws.uniform(-1, 1, (vertices, 3)),
        "f": draws.integers(0, vertices, (20, 3)),
        "shapedirs": draws.uniform(-0.1, 0.1, (vertices, 3, 2)),
        "posedirs": np.zeros((vertices, 3, 9 * (joints - 1)), np.float32),
        "J_regressor": np.full((joints, vertices), 1 / vertices),
        "kintree_table": np.array([[2**32 - 1, *range(joints - 1)], list(range(joints))], np.int64),
        "weights": np.full((vertices, joints), 1 / joints),
    }
    np.savez(folder / "a.npz", **model)
    np.savez_compressed(folder / "b.npz", **model)
    return [folder / "a.npz", folder / "b.npz"]


def _smpl(path: Path) -> None:
    assert all(np.isfinite(array).all() for array in read_model(path).values())


def _make_control(folder: Path) -> list[Path]:
    config = {"_class_name": "ControlNetModel", "conditioning_channels": 3, "block_out_channels": [8, 16]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"conv.weight": _random(2, 2)}, folder / control.WEIGHTS[0])
    return [folder / "config.json", folder / control.WEIGHTS[0]]


READERS = (
    Reader("lora", _make_loras, _merge),
    Reader("lora-settings", _make_peft, lambda path: _merge(path.parent)),
    Reader("embedding", _make_embeddings, _embedding),
    Reader("picture", _make_pictures, _picture),
    Reader("smpl", _make_smpl, _smpl),
    Reader("controlnet", _make_control, lambda path: control.find_controlnet(str(path.parent))),
)
