"""LoRA by all names that trainers give its parts: what it adds to layers, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import threestudio
from threestudio_lucid.errors import UserError
from threestudio_lucid.guidance.adapters import find_adapters
from threestudio_lucid.guidance.cards import Card
from threestudio_lucid.guidance.lora import layer_names, merge_loras
from threestudio_lucid.guidance.lora_files import plain

CARD = Card("tiny", "nowhere", image_size=32, latent_size=8)
KEY = "system.guidance.lora"
QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "mid_block.resnets.0.conv1"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return tiny.make_unet().requires_grad_(False)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return tiny.make_text_encoder().requires_grad_(False)


def written(file: Path, state: dict[str, torch.Tensor], **metadata: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: value.clone().contiguous() for key, value in state.items()}, file, metadata=metadata or None
    )
    return file


def added(model, file: Path, component: str = "unet", weight: float = 1.0) -> dict[str, torch.Tensor]:
    """What a LoRA adds to the parameters of a model, by their names; those that it leaves are left out."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loras = find_adapters({"path": str(file), "weight": weight}, None, CARD).loras
    try:
        merge_loras(model, component, loras, "tiny")
        after = {
            name.removeprefix("text_model."): value.clone() for name, value in model.state_dict().items()
        }
    finally:
        model.load_state_dict(before)
    before = {name.removeprefix("text_model."): value for name, value in before.items()}
    return {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def random(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


# --- names --------------------------------------------------------------------------------------------------

A, B = random(4, 16), random(16, 4, seed=1)
_KOHYA = f"lora_unet_{QUERY.replace('.', '_')}"
SPELLINGS = {
    "diffusers": {f"unet.{QUERY}.lora_A.weight": A, f"unet.{QUERY}.lora_B.weight": B},
    "an adapter's name": {f"unet.{QUERY}.lora_A.default.weight": A, f"unet.{QUERY}.lora_B.default.weight": B},
    "another's": {f"unet.{QUERY}.lora_A.style_1.weight": A, f"unet.{QUERY}.lora_B.style_1.weight": B},
    "one that sounds like OFT": {
        f"unet.{QUERY}.lora_A.hada_look.weight": A,
        f"unet.{QUERY}.lora_B.hada_look.weight": B,
    },
    "no model": {f"{QUERY}.lora_A.weight": A, f"{QUERY}.lora_B.weight": B},
    "before PEFT": {
        f"unet.{QUERY.replace('.to_q', '.processor.to_q')}_lora.down.weight": A,
        f"unet.{QUERY.replace('.to_q', '.processor.to_q')}_lora.up.weight": B,
    },
    "lora.down": {f"unet.{QUERY}.lora.down.weight": A, f"unet.{QUERY}.lora.up.weight": B},
    "kohya": {f"{_KOHYA}.lora_down.weight": A, f"{_KOHYA}.lora_up.weight": B},
    "kohya in diffusers'": {f"unet.{QUERY}.lora_down.weight": A, f"unet.{QUERY}.lora_up.weight": B},
    "both": {f"unet.{QUERY}.lora_A.weight": A, f"{_KOHYA}.lora_up.weight": B},
    "PEFT": {f"base_model.model.{QUERY}.lora_A.weight": A, f"base_model.model.{QUERY}.lora_B.weight": B},
    "PEFT in a model": {
        f"unet.base_model.model.{QUERY}.lora_A.weight": A,
        f"unet.base_model.model.{QUERY}.lora_B.weight": B,
    },
    "first release": {
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.lora_down.weight": A,
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.lora_up.weight": B,
    },
    "ComfyUI": {
        "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.lora_A.weight": A,
        "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.lora_B.weight": B,
    },
    "LyCORIS alone": {
        f"lycoris_{QUERY.replace('.', '_')}.lora_down.weight": A,
        f"lycoris_{QUERY.replace('.', '_')}.lora_up.weight": B,
    },
}


@pytest.mark.parametrize("state", SPELLINGS.values(), ids=SPELLINGS)
def test_one_layer_by_many_names(unet, tmp_path, state):
    close(added(unet, written(tmp_path / "a.safetensors", state)), {f"{QUERY}.weight": B @ A})


@pytest.mark.parametrize(
    ("state", "ids"), [(SPELLINGS["kohya in diffusers'"], 0), (SPELLINGS["before PEFT"], 1)]
)
def test_alpha_in_any_format(unet, tmp_path, state, ids):
    alpha = {f"unet.{QUERY}.alpha": torch.tensor(3.0), f"unet.{QUERY}.lora.alpha": torch.tensor([3])}
    key = list(alpha)[ids]
    file = written(tmp_path / "a.safetensors", state | {key: alpha[key]})
    close(added(unet, file, weight=0.5), {f"{QUERY}.weight": 0.5 * 3 / 4 * B @ A})


@pytest.mark.parametrize(
    "start",
    [
        f"text_encoder.{TEXT}",
        f"lora_te_{TEXT.replace('.', '_')}",
        f"text_encoder.{TEXT.removeprefix('text_model.')}",
        f"base_model.model.{TEXT}",
        f"clip_l.transformer.{TEXT}",
        f"text_encoder.{TEXT.replace('q_proj', 'to_q')}",
    ],
)
def test_a_text_encoders_layer(encoder, tmp_path, start):
    a, b = random(4, 12), random(12, 4, seed=1)
    file = written(tmp_path / "a.safetensors", {f"{start}.lora_down.weight": a, f"{start}.lora_up.weight": b})
    close(added(encoder, file, "text_encoder"), {f"{TEXT.removeprefix('text_model.')}.weight": b @ a})


def test_names_of_the_first_release_are_those_of_the_same_layers(unet):
    """Against the table that tests write single-file checkpoints by."""
    names, modules = layer_names(unet), dict(unet.named_modules())
    layers = {key.rpartition(".")[0] for key in unet.state_dict()}
    for layer in layers:
        original = tiny._unet_key(f"{layer}.weight").removeprefix("model.diffusion_model.")
        assert names[plain(original.removesuffix(".weight"))] is modules[layer], (layer, original)


def test_to_out_before_peft(unet, tmp_path):
    start = f"unet.{OUT.replace('.to_out.0', '.processor.to_out')}_lora"
    file = written(tmp_path / "a.safetensors", {f"{start}.down.weight": A, f"{start}.up.weight": B})
    close(added(unet, file), {f"{OUT}.weight": B @ A})


# --- what is added ------------------------------------------------------------------------------------------


def test_a_kernel_between_two_1x1_convolutions(unet, tmp_path):
    """LyCORIS' CP: the change of the weight does what the three convolutions do, one after the other."""
    down, mid, up = random(2, 16, 1, 1), random(2, 2, 3, 3, seed=1), random(16, 2, 1, 1, seed=2)
    start = f"lora_unet_{CONV.replace('.', '_')}"
    state = {f"{start}.lora_{name}.weight": v for name, v in (("down", down), ("mid", mid), ("up", up))}
    file = written(tmp_path / "a.safetensors", state | {f"{start}.alpha": torch.tensor(1.0)})
    (change,) = added(unet, file).values()
    x = random(1, 16, 5, 5, seed=3)
    expected = F.conv2d(F.conv2d(F.conv2d(x, down), mid, padding=1), up) * (1 / 2)
    torch.testing.assert_close(F.conv2d(x, change, padding=1), expected, rtol=1e-3, atol=1e-4)


def test_whole_differences_of_weights_biases_and_norms(unet, tmp_path):
    """Beside a LoRA and alone, as LyCORIS and kohya's scripts extract them."""
    norm = "mid_block.attentions.0.norm"
    state = {
        f"{_KOHYA}.diff": random(16, 16),
        f"lora_unet_{CONV.replace('.', '_')}.diff": random(16, 16, 3, 3, seed=1),
        f"lora_unet_{CONV.replace('.', '_')}.diff_b": random(16, seed=2),
        f"lora_unet_{norm.replace('.', '_')}.w_norm": random(16, seed=3),
        f"lora_unet_{norm.replace('.', '_')}.b_norm": random(16, seed=4),
    }
    names = [f"{QUERY}.weight", f"{CONV}.weight", f"{CONV}.bias", f"{norm}.weight", f"{norm}.bias"]
    expected = dict(zip(names, (0.5 * value for value in state.values()), strict=True))
    close(added(unet, written(tmp_path / "a.safetensors", state), weight=0.5), expected)
    start = f"lora_unet_{OUT.replace('.', '_')}"
    state |= {f"{start}.lora_down.weight": A, f"{start}.lora_up.weight": B}
    expected[f"{OUT}.weight"] = 0.5 * B @ A
    close(added(unet, written(tmp_path / "b.safetensors", state), weight=0.5), expected)


def test_a_1x1_convolutions_lora_fits_a_linear_layer(unet, tmp_path):
    state = {
        f"{_KOHYA}.lora_down.weight": A[:, :, None, None],
        f"{_KOHYA}.lora_up.weight": B[:, :, None, None],
    }
    close(added(unet, written(tmp_path / "a.safetensors", state)), {f"{QUERY}.weight": B @ A})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_numbers_of_any_kind(unet, tmp_path, dtype):
    state = {key: value.to(dtype) for key, value in SPELLINGS["diffusers"].items()}
    expected = B.to(dtype).float() @ A.to(dtype).float()
    close(added(unet, written(tmp_path / "a.safetensors", state)), {f"{QUERY}.weight": expected})


PEFT = {
    "unet": {
        "target_modules": ["to_q", "conv1", "to_out.0", "conv_in"],
        "modules_to_save": ["conv_out"],
        "rank_pattern": {"conv1": 2},
        "alpha_pattern": {"mid_block.*to_q": 3.0, "^conv_in": 5},
        "use_rslora": True,
    },
    "biases of B": {"target_modules": ["to_out.0", "time_emb_proj"], "lora_bias": True},
    "text_encoder": {"target_modules": ["q_proj", "token_embedding"], "bias": "lora_only"},
}


@pytest.mark.parametrize("kind", PEFT)
def test_peft_merges_the_same(unet, encoder, tmp_path, kind):
    """Its own `merge_and_unload`, of what it trained and saved with every setting that matters."""
    from peft import LoraConfig, get_peft_model

    component = "text_encoder" if kind == "text_encoder" else "unet"
    model = encoder if component == "text_encoder" else unet
    copy = (tiny.make_text_encoder if component == "text_encoder" else tiny.make_unet)()
    copy.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    trained = get_peft_model(copy, LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, **PEFT[kind]))
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    trained.save_pretrained(tmp_path)
    merged = trained.merge_and_unload().state_dict()
    before = model.state_dict()
    changed = {
        name: merged[name] - before[name] for name in before if not torch.equal(merged[name], before[name])
    }
    expected = {name.removeprefix("text_model."): value for name, value in changed.items()}
    assert len(expected) > 4
    close(added(model, tmp_path, component), expected)


def test_without_peft_settings_alpha_is_the_rank_and_that_is_told(unet, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(threestudio, "info", told.append)
    file = written(tmp_path / "adapter_model.safetensors", SPELLINGS["PEFT"])
    for _ in range(2):
        close(added(unet, file), {f"{QUERY}.weight": B @ A})
    assert len([line for line in told if "has no adapter_config.json" in line and "weight" in line]) == 1


# --- words in a LoRA ----------------------------------------------------------------------------------------


def test_bundled_words_come_along(saved_priors, tmp_path):
    from threestudio_lucid.guidance.cards import find_card
    from threestudio_lucid.guidance.prior import Prior

    vectors = random(2, 12, seed=5)
    state = SPELLINGS["kohya"] | {
        "bundle_emb.sks.string_to_param.*": vectors,
        "bundle_emb.zz.emb_params": vectors[:1],
    }
    file, card = written(tmp_path / "style.safetensors", state), find_card(saved_priors["kl"])
    adapters = find_adapters(str(file), None, card)
    assert adapters.words == ("sks", "zz") and "word 'sks' (style.safetensors)" in str(adapters)
    plain_prior, prior = (
        Prior(card, torch.device("cpu"), torch.float32, given)
        for given in (find_adapters(None, None, card), adapters)
    )
    table = prior._text[1].get_input_embeddings().weight
    n = len(plain_prior._text[1].get_input_embeddings().weight)
    assert torch.equal(table[n:], torch.cat([vectors, vectors[:1]]))
    change = prior.unet.get_submodule(QUERY).weight - plain_prior.unet.get_submodule(QUERY).weight
    torch.testing.assert_close(change, B @ A, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="two are called 'sks'"):
        find_adapters(str(file), {"path": str(written(tmp_path / "w.safetensors", {"sks": vectors}))}, card)


# --- what is not loaded is named ----------------------------------------------------------------------------

_N = torch.zeros(2, 2)
NAMED = {
    "DoRA": ({f"{_KOHYA}.dora_scale": _N}, "is DoRA"),
    "LoHa": ({f"{_KOHYA}.hada_w1_a": _N, f"{_KOHYA}.alpha": _N[0, 0]}, "is LoHa"),
    "LoKr": ({f"{_KOHYA}.lokr_w1": _N}, "is LoKr"),
    "OFT": ({f"{_KOHYA}.oft_blocks": _N, f"{_KOHYA}.alpha": _N[0, 0]}, "is OFT"),
    "PEFT's OFT": ({f"base_model.model.{QUERY}.oft_R.weight": _N}, "is OFT"),
    "BOFT": ({f"base_model.model.{QUERY}.boft_R": _N}, "is BOFT"),
    "IA3": ({f"{_KOHYA}.on_input": _N[0, 0], f"{_KOHYA}.weight": _N}, "is IA3"),
    "PEFT's IA3": ({f"base_model.model.{QUERY}.ia3_l": _N}, "is IA3"),
    "GLoRA": ({f"{_KOHYA}.a1.weight": _N, f"{_KOHYA}.b2.weight": _N}, "is GLoRA"),
    "SDXL by te1": ({"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": _N}, "made for SDXL"),
    "SDXL by te2": ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": _N}, "made for SDXL"),
    "SDXL by diffusers": ({f"text_encoder_2.{TEXT}.lora_A.weight": _N}, "made for SDXL"),
    "SDXL by its word": ({**SPELLINGS["kohya"], "bundle_emb.sks.clip_g": _N}, "made for SDXL"),
    "FLUX": ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": _N}, "made for FLUX"),
    "SD 3": ({"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": _N}, "Stable Diffusion 3"),
    "a transformer": ({"transformer.blocks.0.attn.to_q.lora_A.weight": _N}, "diffusion transformer"),
    "AnimateDiff": ({f"unet.down_blocks.0.motion_modules.0.{QUERY}.lora_A.weight": _N}, "AnimateDiff"),
    "strange keys beside": (
        SPELLINGS["kohya"] | {"new.lora_C": _N},
        "names of 1 of its 3 tensors .*new.lora_C",
    ),
    "embeddings alone": ({"bundle_emb.sks.emb_params": _N}, "is no LoRA"),
}


@pytest.mark.parametrize(("state", "message"), NAMED.values(), ids=NAMED)
def test_what_is_no_plain_lora_is_named(tmp_path, state, message):
    file = written(tmp_path / "a.safetensors", state)
    with pytest.raises(UserError, match=f"^{KEY}: .*{message}"):
        find_adapters(str(file), None, CARD)


MISFITS = {
    "half a pair": ({f"unet.{QUERY}.lora_A.weight": A}, f"{QUERY} lacks its up part"),
    "other ranks": (
        {f"unet.{QUERY}.lora_A.weight": A, f"unet.{QUERY}.lora_B.weight": B[:, :3]},
        "common rank",
    ),
    "one number": ({f"unet.{QUERY}.lora_A.weight": A[0, 0], f"unet.{QUERY}.lora_B.weight": B}, "is empty"),
    "nothing": ({f"unet.{QUERY}.lora_A.weight": A[:0], f"unet.{QUERY}.lora_B.weight": B[:, :0]}, "is empty"),
    "two adapters": (
        SPELLINGS["an adapter's name"]
        | {k.replace("default", "x"): v for k, v in SPELLINGS["an adapter's name"].items()},
        "twice .default and x., so it is several LoRA",
    ),
    "deeper": (
        {k.replace("blocks.0.attn1", "blocks.1.attn1"): v for k, v in SPELLINGS["diffusers"].items()},
        "changes .*transformer_blocks.1.attn1.to_q, which this model has not, but SDXL",
    ),
    "no bias": ({f"unet.{QUERY}.diff_b": A[0]}, "the bias of .*to_q, which has none in this model"),
    "another width": (
        {f"unet.{QUERY}.lora_A.weight": A[:, :8], f"unet.{QUERY}.lora_B.weight": B},
        "another base model. Its .*to_q has a weight of 16 x 8, this model's is 16 x 16",
    ),
    "infinite alpha": (SPELLINGS["kohya"] | {f"{_KOHYA}.alpha": torch.tensor(torch.inf)}, "damaged"),
    "alphas": (SPELLINGS["kohya"] | {f"{_KOHYA}.alpha": torch.zeros(2)}, "alpha of .* is no number"),
    "too large a product": ({k: v * 1e30 for k, v in SPELLINGS["kohya"].items()}, "not all numbers of"),
    "a mid part of another size": (SPELLINGS["kohya"] | {f"{_KOHYA}.lora_mid.weight": _N}, "mid part of"),
}


@pytest.mark.parametrize(("state", "message"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_told_as_it_is(unet, tmp_path, state, message):
    file = written(tmp_path / "a.safetensors", state)
    with pytest.raises(UserError, match=f"does not fit the unet of the prior 'tiny': .*{message}"):
        added(unet, file)


GOOD = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["to_q"]}
SETTINGS = {
    "empty": "",
    "cut": '{"peft_type": "LORA", "r": 4, "lora_al',
    "twice": json.dumps(GOOD) * 2,
    "no object": "[1, 2]",
    "null": "null",
    "not UTF-8": b'{"peft_type": "LORA", "r": 4, "x": "\xff"}',
    "zeros": bytes(100),
    "deep": "[" * 100_000,
    "no type": json.dumps(GOOD | {"peft_type": None}),
    "misspelt": json.dumps({"peft_typ5": "LORA", "r": 4, "lora_alpha": 4}),
    "another type": json.dumps(GOOD | {"peft_type": "VBLORA"}),
    "alpha in words": json.dumps(GOOD | {"lora_alpha": "four"}),
    "alpha NaN": json.dumps(GOOD | {"lora_alpha": float("nan")}),
    "alpha huge": json.dumps(GOOD | {"lora_alpha": 10**400}),
    "alpha true": json.dumps(GOOD | {"lora_alpha": True}),
    "rank in a list": json.dumps(GOOD | {"r": [4]}),
    "pattern a list": json.dumps(GOOD | {"rank_pattern": ["to_q"]}),
    "pattern of words": json.dumps(GOOD | {"alpha_pattern": {"to_q": "much"}}),
    "pattern no expression": json.dumps(GOOD | {"alpha_pattern": {"to_q(": 1}}),
    "pattern without end": json.dumps(GOOD | {"alpha_pattern": {"(.*)*.*.*.*.*x": 1}}),
    "weights changed, too": json.dumps(GOOD | {"init_lora_weights": "pissa_niter_4"}),
    "DoRA": json.dumps(GOOD | {"use_dora": True}),
    "large": " " * 2_000_000 + json.dumps(GOOD),
}


@pytest.mark.parametrize("content", SETTINGS.values(), ids=SETTINGS)
def test_damaged_settings_are_one_message(tmp_path, content):
    written(tmp_path / "adapter_model.safetensors", SPELLINGS["PEFT"])
    (tmp_path / "adapter_config.json").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    with pytest.raises(
        UserError, match=rf"^{KEY}: \S*adapter_config\.json (cannot be read|is of VBLORA|has )"
    ) as told:
        find_adapters(str(tmp_path), None, CARD)
    assert "\n" not in str(told.value) and len(str(told.value)) < 500


@pytest.mark.parametrize("content", [SETTINGS["cut"], SETTINGS["deep"], '{"unet.lora_alpha": "x"}', "[1]"])
def test_a_damaged_header_is_one_message(tmp_path, content):
    file = written(tmp_path / "a.safetensors", SPELLINGS["diffusers"], lora_adapter_metadata=content)
    with pytest.raises(UserError, match=rf"^{KEY}: \S*a\.safetensors cannot be read as a LoRA"):
        find_adapters(str(file), None, CARD)


def test_settings_of_another_lora_are_told(unet, tmp_path):
    written(tmp_path / "adapter_model.safetensors", SPELLINGS["PEFT"])
    (tmp_path / "adapter_config.json").write_text(json.dumps(GOOD | {"r": 8}))
    with pytest.raises(UserError, match="has rank 4, its settings say 8"):
        added(unet, tmp_path)
