"""LoRA and learned words on tiny priors: the weights and tokens that come out, one message per mistake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import threestudio
import threestudio_lucid.prompts.processor  # noqa: F401  (registers it)
from threestudio_lucid.errors import UserError
from threestudio_lucid.guidance.adapters import find_adapters, without_words
from threestudio_lucid.guidance.cards import Card, find_card
from threestudio_lucid.guidance.embeddings import read_embedding
from threestudio_lucid.guidance.prior import Prior

CPU = torch.device("cpu")
# Layers of the tiny prior, and ranks that differ.
LAYERS = {
    "unet": {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q": 4,
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0": 4,
        "mid_block.attentions.0.transformer_blocks.0.ff.net.2": 4,
        "mid_block.resnets.0.conv1": 2,
    },
    "text_encoder": {
        "encoder.layers.0.self_attn.q_proj": 4,
        "encoder.layers.0.self_attn.out_proj": 4,
        "encoder.layers.1.mlp.fc1": 2,
    },
}

Pairs = dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]


def load(prior: Path | Card, lora=None, embeddings=None, dtype: torch.dtype = torch.float32) -> Prior:
    card = prior if isinstance(prior, Card) else find_card(prior)
    return Prior(card, CPU, dtype, find_adapters(lora, embeddings, card))


def weights(prior: Prior) -> dict[tuple[str, str], torch.Tensor]:
    models = {"unet": prior.unet, "text_encoder": prior._text[1]}
    return {
        (model, name): flat(models[model]).get_submodule(name).weight.detach()
        for model, layers in LAYERS.items()
        for name in layers
    }


def flat(model):
    """transformers 4 has the text encoder's layers one module deeper."""
    return getattr(model, "text_model", model)


def pairs(prior: Path, seed: int = 0) -> Pairs:
    """A and B of every layer of `LAYERS`."""
    draws = torch.Generator().manual_seed(seed)
    found = {}
    for (model, name), weight in weights(load(prior)).items():
        rank, extra = LAYERS[model][name], [1] * (weight.ndim - 2)
        a = torch.randn(rank, *weight.shape[1:], generator=draws)
        found[model, name] = a, torch.randn(weight.shape[0], rank, *extra, generator=draws)
    return found


def delta(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """B A, for a convolution too: A is one with its kernel, B a 1x1 one."""
    return torch.tensordot(b.flatten(1), a, dims=1)


# --- the formats, written down from A and B ---------------------------------------------------------------


def diffusers_file(folder: Path, layers: Pairs, text_model: str = "text_model.") -> Path:
    """As diffusers saves now: PEFT's names after the model's; alpha is the rank."""
    state = {}
    for (model, name), (a, b) in layers.items():
        start = f"{model}." + (text_model if model == "text_encoder" else "")
        state[f"{start}{name}.lora_A.weight"], state[f"{start}{name}.lora_B.weight"] = a, b
    return written(folder / "pytorch_lora_weights.safetensors", state)


def old_diffusers_file(folder: Path, layers: Pairs) -> Path:
    """As diffusers saved before PEFT: attention processors in the UNet, lora_linear_layer in the encoder."""
    state = {}
    for (model, name), (a, b) in layers.items():
        if "attentions" in name and ".attn" in name:
            base, _, last = name.partition(".to_")
            key = f"{model}.{base}.processor.to_{last.removesuffix('.0')}_lora"
        elif model == "unet":
            key = f"{model}.{name}.lora"
        else:
            key = f"{model}.text_model.{name}.lora_linear_layer"
        state[f"{key}.down.weight"], state[f"{key}.up.weight"] = a, b
    return written(folder / "old.safetensors", state)


def kohya_file(folder: Path, layers: Pairs, alphas: dict[tuple[str, str], float]) -> Path:
    state = {}
    for (model, name), (a, b) in layers.items():
        start = "lora_unet_" if model == "unet" else "lora_te_text_model_"
        key = start + name.replace(".", "_")
        state[f"{key}.lora_down.weight"], state[f"{key}.lora_up.weight"] = a, b
        state[f"{key}.alpha"] = torch.tensor(alphas[model, name])
    return written(folder / "kohya.safetensors", state)


def peft_folder(folder: Path, layers: Pairs, alpha: float, text_model: str = "text_model.") -> Path:
    """As PEFT's `save_pretrained` does, once for each model, with adapter_config.json."""
    for model in LAYERS:
        start = "base_model.model." + (text_model if model == "text_encoder" else "")
        own = {name: ab for (of, name), ab in layers.items() if of == model}
        state = {
            f"{start}{name}.lora_{x}.weight": v
            for name, ab in own.items()
            for x, v in zip("AB", ab, strict=True)
        }
        written(folder / model / "adapter_model.safetensors", state)
        config = {
            "peft_type": "LORA",
            "r": 4,
            "lora_alpha": alpha,
            "rank_pattern": {name: len(a) for name, (a, _) in own.items() if len(a) != 4},
            "target_modules": [name.rsplit(".", 1)[-1] if name[-1] != "0" else "to_out.0" for name in own],
            "a_key_of_tomorrow": 1,
        }
        (folder / model / "adapter_config.json").write_text(json.dumps(config))
    return folder


def written(file: Path, state: dict[str, torch.Tensor]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, file)
    return file


@pytest.fixture
def prior(saved_priors) -> Path:
    return saved_priors["kl"]


@pytest.fixture
def layers(prior) -> Pairs:
    return pairs(prior)


def check_added(prior: Path, lora, expected: dict[tuple[str, str], torch.Tensor]) -> None:
    """The weights of a prior with the LoRA are its own plus what is expected; nothing else is left of it."""
    before, loaded = weights(load(prior)), load(prior, lora)
    for key, after in weights(loaded).items():
        torch.testing.assert_close(after, before[key] + expected[key], rtol=1e-5, atol=1e-5)
    for model in (loaded.unet, loaded._text[1]):
        assert not any("lora" in name for name, _ in model.named_modules())
        assert not any(p.requires_grad for p in model.parameters())


# --- the weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "text_model"), [(1.0, "text_model."), (0.5, ""), (-0.25, "text_model.")])
def test_diffusers(prior, layers, tmp_path, weight, text_model):
    file = diffusers_file(tmp_path, layers, text_model)
    check_added(
        prior, {"path": str(file), "weight": weight}, {k: weight * delta(*ab) for k, ab in layers.items()}
    )


def test_old_diffusers(prior, layers, tmp_path):
    check_added(prior, str(old_diffusers_file(tmp_path, layers)), {k: delta(*ab) for k, ab in layers.items()})


@pytest.mark.parametrize("one", [True, False])
def test_kohya(prior, layers, tmp_path, one):
    """W + weight alpha / rank B A, whether layers have one alpha or each its own."""
    alphas = {key: 1.0 if one else 1.0 + i for i, key in enumerate(layers)}
    file = kohya_file(tmp_path, layers, alphas)
    expected = {key: 0.8 * alphas[key] / len(a) * delta(a, b) for key, (a, b) in layers.items()}
    check_added(prior, {"path": str(file), "weight": 0.8}, expected)


@pytest.mark.parametrize("text_model", ["text_model.", ""])
def test_peft(prior, layers, tmp_path, text_model):
    folder = peft_folder(tmp_path / "two", layers, alpha=6.0, text_model=text_model)
    check_added(prior, str(folder), {key: 6.0 / len(a) * delta(a, b) for key, (a, b) in layers.items()})


def test_what_diffusers_saves_itself_with_its_settings(prior, tmp_path):
    """An alpha that is not the rank is in the file's header."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    unet, name = load(prior).unet, "mid_block.resnets.0.conv1"
    before = unet.get_submodule(name).weight.clone()
    unet.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=[name], init_lora_weights=False))
    state = get_peft_model_state_dict(unet, adapter_name="default")
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=state,
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )
    a, b = (state[f"{name}.lora_{x}.weight"].detach() for x in "AB")
    found = load(prior, str(tmp_path)).unet.get_submodule(name).weight
    torch.testing.assert_close(found, before + 6 / 2 * delta(a, b), rtol=1e-5, atol=1e-5)


def test_of_a_unet_alone(prior, layers, tmp_path):
    """As `unet.save_lora_adapter` writes: no model's name before the keys."""
    own = {key: ab for key, ab in layers.items() if key[0] == "unet"}
    state = {f"{n}.lora_{x}.weight": v for (_, n), ab in own.items() for x, v in zip("AB", ab, strict=True)}
    file = written(tmp_path / "unet.safetensors", state)
    zero = {key: torch.zeros(()) for key in layers}
    check_added(prior, str(file), zero | {key: delta(*ab) for key, ab in own.items()})


def test_several_add_up(prior, layers, tmp_path):
    """Each with its weight, in different formats, and one of some layers only."""
    other, third = pairs(prior, seed=1), pairs(prior, seed=2)
    some = {key: ab for i, (key, ab) in enumerate(third.items()) if i % 2}
    given = [
        {"path": str(diffusers_file(tmp_path / "a", layers)), "weight": 0.3},
        {"path": str(kohya_file(tmp_path / "b", other, dict.fromkeys(other, 2.0))), "weight": -1.5},
        str(old_diffusers_file(tmp_path / "c", some)),
    ]
    expected = {
        key: 0.3 * delta(*layers[key])
        - 1.5 * 2.0 / len(other[key][0]) * delta(*other[key])
        + (delta(*some[key]) if key in some else 0.0)
        for key in layers
    }
    check_added(prior, given, expected)


def test_the_sum_is_rounded_once(prior, layers, tmp_path):
    """Weights in bfloat16 are the nearest to the sum in float32."""
    file = str(diffusers_file(tmp_path, layers))
    found = load(prior, file, dtype=torch.bfloat16).unet.state_dict()
    for key, exact in load(prior, file).unet.state_dict().items():
        assert torch.equal(found[key], exact.bfloat16()), key


def test_single_file_checkpoint_with_a_lora(prior, layers, tmp_path):
    """What people bring from Civitai: a checkpoint in one file, and a LoRA by kohya's scripts."""
    file = tiny.save_single_file(prior, tmp_path / "checkpoint.safetensors")
    card = Card("single", str(file), config=str(prior), image_size=32, latent_size=8)
    lora = str(kohya_file(tmp_path, layers, dict.fromkeys(layers, 4.0)))
    embedding = str(written(tmp_path / "word.safetensors", {"<w>": torch.full((12,), 3.0)}))
    one, whole = load(card, lora, embedding), load(prior, lora, embedding)
    before = weights(load(prior))
    for key, value in weights(whole).items():
        torch.testing.assert_close(weights(one)[key], value, rtol=1e-5, atol=1e-6)
        assert not torch.equal(before[key], value)
    torch.testing.assert_close(
        one.encode_text(["a <w> b"]), whole.encode_text(["a <w> b"]), rtol=1e-4, atol=1e-5
    )


def test_the_same_request_gives_the_same_prior(prior, layers, tmp_path):
    card = find_card(prior)
    file = str(diffusers_file(tmp_path, layers))
    half = {"path": file, "weight": 0.5}
    plain, one, two, other = (
        Prior.load(card, "cpu", "float32", find_adapters(lora, None, card))
        for lora in (None, file, [file], half)
    )
    assert one is two
    assert len({id(plain), id(one), id(other)}) == 3
    assert plain is Prior.load(card, "cpu", "float32")


# --- words --------------------------------------------------------------------------------------------------


def table(prior: Prior) -> torch.Tensor:
    return prior._text[1].get_input_embeddings().weight.detach()


def save_word(file: Path, kind: str, vectors: torch.Tensor, token: str) -> Path:
    """An embedding as diffusers or the web UI writes it."""
    if kind == "diffusers":
        return written(file, {token: vectors})
    if kind == "web UI, safetensors":
        return written(file, {"emb_params": vectors})
    content = {
        "diffusers, bin": {token: vectors},
        "web UI": {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": torch.nn.Parameter(vectors)},
            "name": token,
            "step": 100,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
        },
        "tensor": vectors,
        "old web UI": {
            "string_to_token": {"*": 265},
            "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)}),
            "name": token,
        },
        "clip_l": {"clip_l": vectors},
    }[kind]
    torch.save(content, file)
    return file


@pytest.mark.parametrize(
    ("kind", "name", "token"),
    [
        ("diffusers", "learned_embeds.safetensors", "<cat-toy>"),
        ("diffusers, bin", "learned_embeds.bin", "sks"),
        ("web UI", "file.pt", "myStyle"),
        ("web UI, safetensors", "sks2.safetensors", "sks2"),
        ("tensor", "sks3.pt", "sks3"),
        ("old web UI", "old.pt", "myStyle"),
        ("clip_l", "sks4.bin", "sks4"),
    ],
)
def test_an_embedding_is_one_token_with_its_vector(prior, tmp_path, kind, name, token):
    draws = torch.Generator().manual_seed(0)
    vector = torch.randn(1, 12, generator=draws)
    file = save_word(tmp_path / name, kind, vector, token)
    assert read_embedding(file)[0] == token
    before, loaded = table(load(prior)), load(prior, embeddings=str(file))
    after = table(loaded)
    assert torch.equal(after[: len(before)], before)
    assert len(after) == len(before) + 1
    assert torch.equal(after[-1], vector[0])
    tokenizer = loaded._text[0]
    ids = tokenizer(f"a {token}, b").input_ids
    assert ids.count(len(before)) == 1
    assert len(ids) == len(tokenizer("a c, b").input_ids)
    assert not loaded._text[1].get_input_embeddings().weight.requires_grad
    # the text depends on the vector
    found = [load(prior, embeddings=str(file)).encode_text([f"a {token}"])]
    save_word(tmp_path / name, kind, torch.randn(1, 12, generator=draws), token)
    found.append(load(prior, embeddings=str(file)).encode_text([f"a {token}"]))
    assert not torch.allclose(*found)


def test_a_word_of_several_vectors(prior, tmp_path):
    vectors = torch.randn(3, 12)
    file = save_word(tmp_path / "w.safetensors", "diffusers", vectors, "sks")
    loaded = load(prior, embeddings=str(file))
    n = len(table(load(prior)))
    assert torch.equal(table(loaded)[n:], vectors)
    tokenizer, encoder = loaded._text
    ids = tokenizer("a b", padding="max_length", max_length=40, return_tensors="pt").input_ids[0].tolist()
    expected = torch.tensor([[*ids[:2], n, n + 1, n + 2, *ids[2:-3]]])
    torch.testing.assert_close(loaded.encode_text(["a sks b"]), encoder(expected).last_hidden_state)


def test_a_token_of_ones_own(prior, tmp_path):
    file = save_word(tmp_path / "w.safetensors", "diffusers", torch.randn(12), "<very-long>")
    adapters = find_adapters(None, {"path": str(file), "token": "zz"}, find_card(prior))
    assert adapters.words == ("zz",)
    assert (
        load(prior, embeddings={"path": str(file), "token": "zz"})._text[0].convert_tokens_to_ids("zz") == 80
    )


def test_several_words_and_a_lora(prior, layers, tmp_path):
    """The two do not disturb each other."""
    files = [
        str(save_word(tmp_path / f"{t}.safetensors", "diffusers", torch.randn(12), t)) for t in ("qa", "qb")
    ]
    lora = str(diffusers_file(tmp_path, layers))
    both = load(prior, lora, files)
    assert torch.equal(table(both), table(load(prior, embeddings=files)))
    for key, value in weights(load(prior, lora)).items():
        assert torch.equal(weights(both)[key], value)


# --- words of a closed vocabulary ---------------------------------------------------------------------------


@pytest.fixture
def closed(own_prior) -> Path:
    """A prior that knows few words, with a folder of LoRA beside its weights."""
    card = {"name": "own", "path": ".", "image_size": 32, "latent_size": 8}
    card["vocabulary"] = ["a", "mug", "front", "side", "back", "overhead", "view"]
    (own_prior / "card.yaml").write_text(json.dumps(card))
    save_word(own_prior / "word.safetensors", "diffusers", torch.randn(12), "<Sks>")
    layers = pairs(own_prior)
    diffusers_file(own_prior / "lora" / "striped", layers)
    return own_prior


def processor(prior: Path, folder: Path, **config):
    config = {"prior": str(prior), "prompt": "a mug", "cache_dir": str(folder / "cache")} | config
    return threestudio.find("lucid-prompt-processor")(config)()


def test_a_closed_vocabulary_learns_the_words(closed, tmp_path):
    told = r"does not know '<?sks>?'.*\n(.*\n)*.*system.guidance.embeddings=FILE"
    with pytest.raises(UserError, match=told):
        processor(closed, tmp_path, prompt="a <Sks> mug")
    given = {"embeddings": str(closed / "word.safetensors")}
    assert processor(closed, tmp_path, prompt="A <Sks> mug.", **given).prompt == "a <Sks> mug"
    with pytest.raises(UserError, match="does not know 'plaid'"):
        processor(closed, tmp_path, prompt="a plaid <Sks> mug", **given)


def test_a_lora_says_which_words_it_brings(closed, tmp_path):
    for trigger in ("plaid", "plaid tartan", ["plaid", "tartan"]):
        lora = {"path": "striped", "trigger": trigger}
        assert processor(closed, tmp_path, prompt="a Plaid mug", lora=lora).prompt == "a plaid mug"
    with pytest.raises(UserError, match="does not know 'plaid'"):
        processor(closed, tmp_path, prompt="a plaid mug", lora="striped")


def test_a_token_may_not_hide_a_word(closed, tmp_path):
    with pytest.raises(UserError, match="knows the word 'mug' already"):
        processor(closed, tmp_path, embeddings={"path": str(closed / "word.safetensors"), "token": "mug"})


@pytest.mark.parametrize(
    ("prompt", "words", "expected"),
    [
        ("a sks mug, front view", ["sks"], "a mug, front view"),
        ("a SKS mug", ["sks"], "a mug"),
        ("tasks of a mug", ["sks"], "tasks of a mug"),
        ("a <cat-toy>, as a mug", ["<cat-toy>", "mug"], "a , as a"),
        ("a mug", [], "a mug"),
    ],
)
def test_prompts_without_the_words(prompt, words, expected):
    assert without_words(prompt, words) == expected


# --- the cache of embeddings, and agreement -----------------------------------------------------------------


def test_the_cache_is_never_stale(prior, layers, tmp_path):
    """LoRA, its weight, its file, a word, its file: each change is another entry."""
    lora = diffusers_file(tmp_path / "lora", layers)
    word = save_word(tmp_path / "q.safetensors", "diffusers", torch.randn(12), "qq")

    def embedding(**config) -> torch.Tensor:
        again = processor(prior, tmp_path, prompt="a qq c", **config).plain
        assert torch.equal(processor(prior, tmp_path, prompt="a qq c", **config).plain, again)
        return again

    found = [
        embedding(),
        embedding(lora=str(lora)),
        embedding(lora={"path": str(lora), "weight": 0.5}),
        embedding(lora=[str(lora), str(lora)]),
        embedding(embeddings=str(word)),
    ]
    state = load_file(lora)
    written(lora, {key: 2 * value for key, value in state.items()})
    found.append(embedding(lora=str(lora)))
    save_word(word, "diffusers", torch.randn(12), "qq")
    found.append(embedding(embeddings=str(word)))
    for i, one in enumerate(found):
        for other in found[:i]:
            assert not torch.allclose(one, other)


def guidance(prior: Path, **config):
    import threestudio_lucid.guidance.lucid_guidance  # noqa: F401  (registers it)

    return threestudio.find("lucid-ism-guidance")({"prior": str(prior), "dtype": "float32"} | config)


def test_guidance_and_prompt_must_agree(prior, layers, tmp_path):
    lora = str(diffusers_file(tmp_path, layers))
    with_lora = guidance(prior, lora=lora)
    with_lora.check_prompts(processor(prior, tmp_path, lora=[{"path": lora}]))
    for other in ({}, {"lora": {"path": lora, "weight": 0.9}}):
        with pytest.raises(UserError, match=r"lora to \$\{system.guidance.lora\}"):
            with_lora.check_prompts(processor(prior, tmp_path, **other))
    with pytest.raises(UserError, match="lucid-prompt-processor"):
        with_lora.check_prompts(object())  # a prompt processor of threestudio's
    guidance(prior).check_prompts(object())


# --- mistakes -----------------------------------------------------------------------------------------------


def spoilt_lora(folder: Path, prior: Path, kind: str) -> Path:
    """A file that is no LoRA for this prior."""
    layers = pairs(prior)
    if kind == "another width":
        wider = {
            key: (torch.cat([a, a], dim=1), torch.cat([b, b])) if key[0] == "unet" else (a, b)
            for key, (a, b) in layers.items()
        }
        return diffusers_file(folder, wider)
    if kind == "more layers":
        more = {
            ("unet", "down_blocks.7.attentions.0.proj_in"): (
                torch.zeros(2, 16, 1, 1),
                torch.zeros(16, 2, 1, 1),
            )
        }
        return diffusers_file(folder, layers | more)
    if kind == "other names":
        state = {f"transformer.blocks.{i}.lora_A.weight": torch.zeros(2, 2) for i in range(2)}
        return written(folder / "flux.safetensors", state)
    if kind == "SDXL":
        state = load_file(kohya_file(folder, layers, dict.fromkeys(layers, 1.0)))
        state = {key.replace("lora_te_", "lora_te2_"): value for key, value in state.items()}
        return written(folder / "sdxl.safetensors", state)
    if kind == "not finite":
        return diffusers_file(folder, {key: (a * torch.inf, b) for key, (a, b) in layers.items()})
    if kind == "cut off":
        file = diffusers_file(folder, layers)
        file.write_bytes(file.read_bytes()[:-100])
        return file
    if kind == "checkpoint":
        return tiny.save_single_file(prior, folder / "checkpoint.safetensors")
    if kind == "embedding":
        return save_word(folder / "word.safetensors", "diffusers", torch.zeros(12), "sks")
    if kind == "LyCORIS":
        return written(
            folder / "loha.safetensors", {f"lora_unet_x.hada_w{i}_a": torch.zeros(2) for i in (1, 2, 3)}
        )
    if kind == "DoRA":
        state = load_file(kohya_file(folder, layers, dict.fromkeys(layers, 1.0)))
        return written(folder / "dora.safetensors", state | {"lora_unet_mid.dora_scale": torch.ones(1)})
    if kind == "pickled":
        torch.save({}, folder / "lora.pt")
        return folder / "lora.pt"
    if kind == "empty folder":
        (folder / "nothing").mkdir()
        return folder / "nothing"
    return folder / "missing.safetensors"


LORA_MISTAKES = {
    "another width": "does not fit the unet of the prior .*another base model. Its .* has a weight of",
    "more layers": "does not fit the unet .*down_blocks.7.attentions.0.proj_in, which this model",
    "other names": "was made for a diffusion transformer.*transformer.blocks.0",
    "SDXL": "was made for SDXL .it has lora_te2_",
    "not finite": "does not fit the unet .*not all numbers of .* are finite",
    "cut off": "is damaged or incomplete .*Copy or download it again",
    "checkpoint": "is no LoRA.*whole checkpoint: system.guidance.prior=",
    "embedding": "is no LoRA.*system.guidance.embeddings=",
    "LyCORIS": "is LoHa",
    "DoRA": "is DoRA",
    "pickled": "pickled LoRA is not loaded",
    "empty folder": "holds nothing of the kind",
    "missing": "there is no .*missing.safetensors",
}


@pytest.mark.parametrize(("kind", "message"), LORA_MISTAKES.items(), ids=LORA_MISTAKES)
def test_a_lora_that_does_not_fit(prior, tmp_path, kind, message):
    file = spoilt_lora(tmp_path, prior, kind)
    with pytest.raises(UserError, match=message):
        guidance(prior, lora=str(file))


def test_a_text_encoders_lora_that_does_not_fit(prior, layers, tmp_path):
    own = {key: (torch.cat([a, a], dim=1), b) for key, (a, b) in layers.items() if key[0] == "text_encoder"}
    with pytest.raises(UserError, match="does not fit the text_encoder of the prior"):
        processor(prior, tmp_path, lora=str(diffusers_file(tmp_path, own)))


class Shouts:
    """Unpickling this would call a function."""

    def __reduce__(self):
        return print, ("unpickled",)


def spoilt_embedding(folder: Path, kind: str) -> Path:
    file = folder / "word.safetensors"
    if kind == "another width":
        return save_word(file, "diffusers", torch.zeros(768), "sks")
    if kind == "SDXL":
        return written(file, {"clip_l": torch.zeros(768), "clip_g": torch.zeros(1280)})
    if kind == "two words":
        return written(file, {"sks": torch.zeros(12), "zzz": torch.zeros(12)})
    if kind == "a picture":
        return written(file, {"sks": torch.zeros(3, 8, 8)})
    if kind == "not finite":
        return written(file, {"sks": torch.full((12,), torch.nan)})
    if kind == "code":
        torch.save({"sks": Shouts()}, folder / "word.pt")
        return folder / "word.pt"
    if kind == "a module":
        torch.save({"string_to_param": torch.nn.Linear(2, 2)}, folder / "word.pt")
        return folder / "word.pt"
    if kind == "a parameter that is none":
        torch.save({"string_to_param": torch.nn.ParameterDict({"*": 3})}, folder / "word.pt")
        return folder / "word.pt"
    if kind == "damaged":
        (folder / "word.bin").write_bytes(b"PK nonsense")
        return folder / "word.bin"
    if kind == "spaces":
        return save_word(file, "diffusers", torch.zeros(12), "my style")
    if kind == "text":
        (folder / "word.txt").write_text("sks")
        return folder / "word.txt"
    if kind == "a token of the tokenizer":
        return save_word(file, "diffusers", torch.zeros(12), "a</w>")
    return folder / "missing.pt"


EMBEDDING_MISTAKES = {
    "another width": "vectors of width 768, the text encoder of the prior .* takes 12",
    "SDXL": "is for SDXL",
    "two words": "is no textual inversion",
    "a picture": "is no textual inversion",
    "not finite": "not all of its numbers are finite",
    "code": "holds code, which is not run",
    "a module": "holds code, which is not run",
    "a parameter that is none": "is no textual inversion",
    "damaged": "pickle holds code, which is not run, or is damaged. Use a .safetensors file",
    "spaces": "calls its word 'my style'",
    "text": "must be .safetensors, .pt or .bin",
    "a token of the tokenizer": "cannot be called 'a</w>'",
    "missing": "there is no .*missing.pt",
}


@pytest.mark.parametrize(("kind", "message"), EMBEDDING_MISTAKES.items(), ids=EMBEDDING_MISTAKES)
def test_an_embedding_that_does_not_fit(prior, tmp_path, kind, message, capsys):
    file = spoilt_embedding(tmp_path, kind)
    with pytest.raises(UserError, match=message):
        processor(prior, tmp_path, embeddings=str(file))
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora": 3}, "system.guidance.lora is 3; it must be a path, or a mapping of path, weight, trigger"),
        ({"lora": {"weight": 1.0}}, "it must be a path"),
        ({"lora": {"path": "striped", "wieght": 1.0}}, "unknown key 'wieght'. Did you mean 'weight'"),
        ({"lora": {"path": "striped", "weight": "much"}}, "weight is 'much'; it must be a number"),
        ({"lora": "stripd"}, "there is no stripd.*has: striped"),
        ({"embeddings": ["word.pt"]}, "system.guidance.embeddings: there is no word.pt"),
        ({"lora": "nobody/no-such-lora"}, "system.guidance.lora: .*not in the hub's local cache"),
    ],
)
def test_mistakes_in_the_config(closed, config, message):
    with pytest.raises(UserError, match=message):
        guidance(closed, **config)


def test_two_words_may_not_share_a_token(closed):
    file = str(closed / "word.safetensors")
    with pytest.raises(UserError, match="two are called"):
        guidance(closed, embeddings=[file, file])


def test_a_folder_with_several_files_asks_which(prior, layers, tmp_path):
    file = diffusers_file(tmp_path, layers)
    for name in ("one.safetensors", "two.safetensors"):
        shutil.copy(file, tmp_path / name)
    file.unlink()
    with pytest.raises(
        UserError, match=r"holds 2 files: one.safetensors, two.safetensors. Give the file itself"
    ):
        guidance(prior, lora=str(tmp_path))
    (tmp_path / "two.safetensors").unlink()
    guidance(prior, lora=str(tmp_path))
