"""Point-E: its networks key by key, schedules and sampler against formulas, the whole of it at tiny size."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from threestudio_lucid.errors import UserError
from threestudio_lucid.points.pointe import generate, load_folder, load_public
from threestudio_lucid.points.pointe.checkpoints import BASE_URL, find_checkpoint, load_weights, read_weights
from threestudio_lucid.points.pointe.diffusion import (
    cosine_schedule,
    guide,
    linear_schedule,
    make_denoiser,
    timestep_of,
)
from threestudio_lucid.points.pointe.generator import (
    NO_TURN,
    PUBLIC_UPSAMPLER,
    FolderConfig,
    Stage,
    TextToPointCloud,
)
from threestudio_lucid.points.pointe.sampler import karras_sigmas, sample_heun
from threestudio_lucid.points.pointe.text import TextVectors, known_words
from threestudio_lucid.points.pointe.transformer import (
    Attention,
    PointsToPoints,
    TextToPoints,
    timestep_embedding,
)
from toybox.tokenizer import make_tokenizer, save_tokenizer

HERE = Path(__file__).parent
WORDS = ["a", "mug", "red"]
TINY = {"width": 16, "layers": 1, "heads": 2, "text_width": 8}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights that do something (a new network's last layer is zero)."""
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(0.3 * torch.randn(value.shape, generator=seeded(seed)))
    return model.eval()


# --- networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network, listed, parameters",
    [(TextToPoints, "pointe_base.txt", 40_333_836), (PointsToPoints, "pointe_upsampler.txt", 40_470_540)],
)
def test_full_size_networks_have_the_public_checkpoints_keys_and_shapes(network, listed, parameters):
    with torch.device("meta"):
        model = network()
    lines = [line.split() for line in (HERE / listed).read_text().splitlines()]
    wanted = {key: tuple(map(int, shape)) for key, *shape in lines}
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == wanted
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_attention_by_the_definition():
    """Query, key and value lie side by side for each head."""
    attention, h = randomise(Attention(8, 2)), torch.randn(1, 5, 8, generator=seeded(1))
    qkv = h[0] @ attention.c_qkv.weight.T + attention.c_qkv.bias
    heads = []
    for head in range(2):
        q, k, v = (qkv[:, 12 * head + 4 * part : 12 * head + 4 * part + 4] for part in range(3))
        heads.append((q @ k.T / math.sqrt(4)).softmax(dim=-1) @ v)
    expected = torch.cat(heads, dim=1) @ attention.c_proj.weight.T + attention.c_proj.bias
    torch.testing.assert_close(attention(h)[0], expected)


def test_time_is_cosines_then_sines():
    got = timestep_embedding(torch.tensor([3]), 4)[0]
    expected = [math.cos(3), math.cos(0.03), math.sin(3), math.sin(0.03)]
    torch.testing.assert_close(got, torch.tensor(expected))


@pytest.mark.parametrize("as_tokens", [True, False])
def test_a_cloud_is_a_set(as_tokens):
    model = randomise(TextToPoints(**TINY, as_tokens=as_tokens))
    x, text = torch.randn(2, 6, 7, generator=seeded()), torch.eye(8)[:2]
    order = torch.randperm(7, generator=seeded())
    t = torch.tensor([3, 900])
    noise = model(x, t, text)
    torch.testing.assert_close(model(x[:, :, order], t, text), noise[:, :, order])
    assert (model(x, t, text.flip(0)) - noise).abs().min() > 1e-4
    assert (model(x, t.flip(0), text) - noise).abs().min() > 1e-4


def test_upsampler_sees_the_coarse_cloud_in_the_networks_units_and_an_empty_picture():
    model = randomise(PointsToPoints(width=16, layers=1, heads=2))
    x, t, low_res = torch.randn(1, 6, 5), torch.tensor([10]), torch.rand(1, 6, 4)
    noise = model(x, t, low_res)
    assert noise.shape == (1, 6, 5)
    # the tokens of the picture are all alike, a layer norm's bias through a linear layer
    norm, linear = model.clip_embed
    token = linear.weight @ norm.bias + linear.bias
    coarse = low_res.mT * model.channel_scales + model.channel_biases
    prefix = [model.embed_time(t)[:, None], token.expand(1, 256, -1), model.cond_point_proj(coarse)]
    torch.testing.assert_close(model.noise(x, prefix), noise)


# --- diffusion ----------------------------------------------------------------------------------------------


def test_schedules_ends():
    sigma = np.sqrt(1 / linear_schedule() - 1)
    assert sigma[-1] == pytest.approx(157.28, abs=0.01) and sigma[0] == pytest.approx(0.0099, abs=2e-4)
    sigma = np.sqrt(1 / cosine_schedule() - 1)
    assert sigma[0] == pytest.approx(0.0063, abs=2e-4)
    assert (np.diff(sigma) > 0).all()


def test_timestep_of_a_schedules_own_levels_and_beyond():
    ab = linear_schedule()
    for t in (1, 500, 1022):
        assert timestep_of(math.sqrt(1 / ab[t] - 1) * 1.0001, ab) == t  # rounded down
    assert timestep_of(160.0, ab) == 1023 and timestep_of(0.005, ab) == 0


def test_denoiser_removes_the_noise_it_is_told_of():
    ab = linear_schedule()
    x0 = 0.9 * torch.rand(2, 6, 9, generator=seeded()) - 0.45
    noise = torch.randn(2, 6, 9, generator=seeded(1))
    sigma = math.sqrt(1 / ab[300] - 1)
    denoise = make_denoiser(lambda x, t: noise, ab)
    torch.testing.assert_close(denoise(x0 + sigma * noise, sigma), x0, atol=1e-5, rtol=1e-5)
    assert make_denoiser(lambda x, t: torch.zeros_like(x), ab)(5 + x0, 0.01).max() == 1.0


def test_guidance_goes_beyond_the_text_without_a_second_clamp():
    def model(x, t, text):  # the text's first number is its x0
        ab = cosine_schedule()[t[0]]
        return (x - math.sqrt(ab) * text[:, :1, None]) / math.sqrt(1 - ab)

    text = torch.tensor([[0.6], [-0.2]])
    x = torch.zeros(2, 6, 3)
    for scale, expected in ((3.0, [1.8, -0.6]), (1.0, [0.6, -0.2])):
        got = guide(model, cosine_schedule(), scale, "text", text)(x, 1.0)
        torch.testing.assert_close(got[:, 0, 0], torch.tensor(expected), atol=1e-3, rtol=0)


def test_karras_levels():
    sigmas = karras_sigmas(64, 1e-3, 120.0)
    assert len(sigmas) == 65 and sigmas[-1] == 0.0
    assert sigmas[0] == pytest.approx(120.0) and sigmas[63] == pytest.approx(1e-3)
    assert sigmas[21] == pytest.approx((120 ** (1 / 7) + (1e-3 ** (1 / 7) - 120 ** (1 / 7)) / 3) ** 7)


@pytest.mark.parametrize("s_churn", [0.0, 3.0])
def test_sampler_draws_from_the_distribution_whose_denoiser_it_has(s_churn):
    """A normal distribution's best denoiser is linear, and Heun's method draws that distribution."""
    mean, std = 0.4, 0.3

    def denoise(x, sigma):
        return mean + std**2 / (std**2 + sigma**2) * (x - mean)

    sample = sample_heun(denoise, (20_000,), karras_sigmas(64, 1e-3, 120.0), seeded(), s_churn)
    # three standard errors of mean and deviation at n = 20,000 are 0.0064 and 0.0045
    assert sample.mean().item() == pytest.approx(mean, abs=0.0064)
    assert sample.std().item() == pytest.approx(std, abs=0.0045)


def test_scaling_is_the_published_one():
    cloud = torch.tensor([0.5, -0.5, 0.0, 0.0, 127.5, 255.0])[:, None]
    x = Stage().encode(cloud)
    torch.testing.assert_close(x[:, 0], torch.tensor([1.0, -1.0, 0.0, -1.0, 0.0, 1.0]))
    torch.testing.assert_close(Stage().decode(x), cloud)


# --- the whole of it ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A tiny point prior in the bundled one's format."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    tokenizer = make_tokenizer(WORDS)
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        projection_dim=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    CLIPTextModelWithProjection(config).save_pretrained(tmp_path / "text_encoder")
    network = {**TINY, "out_channels": 6, "as_tokens": False}
    stage = Stage(points=12, steps=3, xyz_scale=0.9)
    FolderConfig(network, stage, WORDS).write(tmp_path)
    save_file(randomise(TextToPoints(**network)).state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def test_a_folder_draws_coloured_points(folder):
    shares = []
    cloud = generate("A red mug.", seeded(), folder, progress=shares.append)
    assert len(cloud) == 12 and shares == pytest.approx([1 / 3, 2 / 3, 1])
    assert cloud.points.isfinite().all()
    assert ((cloud.colors >= 0) & (cloud.colors <= 1)).all()
    torch.testing.assert_close(255 * cloud.colors, (255 * cloud.colors).round(), atol=1e-4, rtol=0)
    again, other = generate("a red mug", seeded(), folder), generate("a mug", seeded(), folder)
    assert torch.equal(again.points, cloud.points) and not torch.equal(other.points, cloud.points)
    assert len(generate("a mug", seeded(), folder, points=40, steps=1)) == 40


def test_two_stages_at_tiny_size(folder):
    """The public models' path: a coarse cloud, then more points, turned from -y to the front."""
    text = load_folder(folder).text
    base = randomise(TextToPoints(**TINY))
    fine = randomise(PointsToPoints(width=16, layers=1, heads=2))
    stages = Stage(points=10, steps=2), Stage(points=30, schedule="linear", steps=2, s_churn=0.0)
    clouds = TextToPointCloud(text, base, stages[0], fine, stages[1])(["a mug", "a red mug"], seeded())
    coarse = TextToPointCloud(text, base, stages[0], to_world=NO_TURN)(["a mug", "a red mug"], seeded())
    assert [len(cloud) for cloud in clouds] == [40, 40]
    x, y, z = coarse[1].points.T
    torch.testing.assert_close(clouds[1].points[:10], torch.stack([-y, x, z], dim=1))
    assert PUBLIC_UPSAMPLER.sigmas[0] == pytest.approx(160.0)


def test_text_vectors_of_a_whole_clip_model(tmp_path, folder):
    """A CLIP checkpoint with both halves gives the projected vector of its text half, of length 1."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection

    small = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder")
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    both = CLIPModel(CLIPConfig(text_config=small.config.to_dict(), vision_config=vision, projection_dim=8))
    both.load_state_dict(small.state_dict(), strict=False)
    both.save_pretrained(tmp_path / "clip")
    vectors = TextVectors.load(folder / "tokenizer", tmp_path / "clip")(["a mug", "a red mug"])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(vectors, load_folder(folder).text(["a mug", "a red mug"]))


# --- mistakes -----------------------------------------------------------------------------------------------


def test_a_missing_checkpoint_says_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint .*none.pt.*base_40m_textvec.pt"):
        load_public(base=tmp_path / "none.pt")


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def unreachable(url, path):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError, match=r"cannot be downloaded.*no route.*checkpoints/base_40m_textvec.pt"):
        find_checkpoint(BASE_URL, BASE_URL)


def test_a_download_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    calls = []

    def download(url, path):
        calls.append(url)
        Path(path).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    first, second = (find_checkpoint(BASE_URL, BASE_URL) for _ in range(2))
    assert first == second and first.read_bytes() == b"weights" and calls == [BASE_URL]


class Code:
    """What a malicious checkpoint would hold."""

    def __reduce__(self):
        return print, ("run",)


def test_checkpoints_that_are_damaged_malicious_or_something_else(tmp_path):
    torch.save({"x": Code()}, tmp_path / "code.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_bytes(b"hello world")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, message in (
        ("code.pt", "cannot be read"),
        ("cut.pt", "cannot be read"),
        ("cut.safetensors", "cannot be read"),
        ("empty.pt", "cannot be read"),
        ("text.pt", "cannot be read"),
        ("list.pt", "no state dict"),
    ):
        with pytest.raises(UserError, match=message):
            read_weights(tmp_path / name)


def test_weights_of_another_network_are_named(tmp_path):
    save_file(TextToPoints(**{**TINY, "text_width": 5}).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"clip_embed.weight is \(16, 5\), not \(16, 8\) \(1 differences\)"):
        load_weights(TextToPoints(**TINY), tmp_path / "other.safetensors")


def test_pickled_state_dicts_load_by_key(tmp_path):
    model = randomise(TextToPoints(**TINY))
    torch.save(model.state_dict(), tmp_path / "base.pt")
    with torch.device("meta"):
        empty = TextToPoints(**TINY)
    loaded = load_weights(empty, tmp_path / "base.pt")
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    # not to the bit: mapped from the file, weights lie elsewhere in memory, and products round by that
    x, t, text = torch.ones(1, 6, 3), torch.tensor([5]), torch.ones(1, 8)
    torch.testing.assert_close(loaded(x, t, text), model(x, t, text))
    assert not any(p.requires_grad for p in loaded.parameters())


def test_unknown_words_and_broken_folders(folder):
    with pytest.raises(UserError, match=r"does not know 'rad' \(did you mean red\?\)[\s\S]*a mug red"):
        generate("a rad mug", seeded(), folder)
    assert known_words(" A  red, mug. ", WORDS, "it") == "a red, mug"
    with pytest.raises(UserError, match="There is no point prior in"):
        load_folder(folder / "nothing")
    encoder = folder / "text_encoder" / "model.safetensors"
    whole = encoder.read_bytes()
    encoder.write_bytes(whole[:50])
    with pytest.raises(UserError, match=r"text encoder .* cannot be loaded .*train_points"):
        load_folder(folder)
    encoder.write_bytes(whole)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors does not exist.*train_points"):
        load_folder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        load_folder(folder)


def test_a_stages_values_are_checked():
    with pytest.raises(UserError, match="schedule is 'sine'"):
        Stage(schedule="sine")
    with pytest.raises(UserError, match="points is 0"):
        Stage(points=0)
