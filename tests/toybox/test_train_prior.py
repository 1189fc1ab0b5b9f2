"""The training of the mini prior at tiny size: pictures, tokenizer, both stages with resume, export."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from toybox import dataset, latents
from toybox.captions import vocabulary
from toybox.tokenizer import MAX_LENGTH, check_single_tokens, learn_merges, make_tokenizer, save_tokenizer
from toybox.train_prior import export, load_denoiser, load_vae
from toybox.train_unet import (
    Denoiser,
    TokenCache,
    UnetJob,
    check_gradients,
    loss_weight,
    make_scheduler,
    sample,
    stratified_timesteps,
    train_unet,
    training_caption,
)
from toybox.train_vae import make_vae, reconstruct, start_from_pca, train_decoder, train_vae, variance_penalty
from toybox.training import Stopped, warm_cosine

OBJECTS = ("hamburger", "cactus")
TINY = (32, 32, 64)  # channels of a denoiser


def ellipses(n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """RGBA pictures of two-coloured ellipses: stand-ins for objects where only pixels matter."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    out = np.zeros((n, size, size, 4), np.uint8)
    for image in out:
        a, b = rng.uniform(0.2, 0.4, 2)
        image[..., 3] = np.where((x / a) ** 2 + (y / b) ** 2 < 1, 255, 0)
        image[..., :3] = np.where(
            (y > rng.uniform(-0.1, 0.1))[..., None], *rng.integers(0, 256, (2, 1, 1, 3))
        )
    return out


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Two objects, two shards each of eight pictures of 128 pixels."""
    folder = tmp_path_factory.mktemp("cache")
    rng = np.random.default_rng(0)
    for name in OBJECTS:
        for number in range(2):
            images_path, labels_path = dataset.shard_paths(folder, name, number)
            labels = np.zeros(8, dataset.LABEL)
            labels["object"], labels["color"], labels["distance"] = name, "red", 3.0
            labels["azimuth"] = rng.uniform(-180, 180, 8)
            dataset.save_array(labels_path, labels)
            dataset.save_array(images_path, ellipses(8, 128, rng))
    return folder


# ---------------------------------------------------------------------------------------------- pictures


def test_composite_shows_the_background_exactly_where_the_picture_is_clear():
    rgba = np.zeros((2, 1, 3, 4), np.uint8)
    rgba[:, 0, 1] = (255, 0, 51, 255)
    rgba[:, 0, 2] = (255, 0, 51, 51)  # alpha 0.2
    image = dataset.composite(rgba, np.array([[0.5, 0.25, 1.0], [0.0, 0.0, 0.0]]))
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[0, 0, 0], (0.5, 0.25, 1.0))
    np.testing.assert_allclose(image[0, 0, 1], (1.0, 0.0, 0.2), atol=1e-6)
    np.testing.assert_allclose(image[0, 0, 2], (0.6, 0.2, 0.84), atol=1e-6)  # 0.8 background + 0.2 colour
    np.testing.assert_allclose(image[1, 0, 2], (0.2, 0.0, 0.04), atol=1e-6)


def test_backgrounds_come_in_their_proportions():
    rgb = dataset.random_backgrounds(4000, np.random.default_rng(0))
    white = (rgb == 1).all(1)
    black = (rgb == 0).all(1)
    grey = (rgb == rgb[:, :1]).all(1) & ~white & ~black
    # Three standard deviations of a binomial proportion at n = 4000 are at most 0.024.
    for share, name in ((white, "white"), (black, "black"), (grey, "grey")):
        assert abs(share.mean() - dataset.BACKGROUNDS[name]) < 0.024


def test_a_shard_is_a_function_of_its_name_and_number():
    first = dataset.render_shard("hamburger", 3, size=16, n=3)
    again = dataset.render_shard("hamburger", 3, size=16, n=3)
    other = dataset.render_shard("hamburger", 4, size=16, n=3)
    assert (first[0] == again[0]).all() and (first[1] == again[1]).all()
    assert (first[0] != other[0]).any()
    assert 0.05 < (first[0][..., 3] > 127).mean() < 0.9


def test_shards_have_all_colors_and_most_of_the_objects_own():
    _, labels = dataset.render_shard("hamburger", 0, size=4, n=24)
    colors, counts = np.unique(labels["color"], return_counts=True)
    assert len(colors) == 10
    assert dict(zip(colors, counts, strict=True))["brown"] == 6


def test_unfinished_shards_are_made_again(tmp_path):
    assert len(dataset._missing_shards(tmp_path, ["mug", "car"], 2 * dataset.SHARD_SIZE)) == 2
    images_path, labels_path = dataset.shard_paths(tmp_path, "mug", 0)
    dataset.save_array(labels_path, np.zeros(1, dataset.LABEL))  # killed between labels and images
    assert len(dataset._missing_shards(tmp_path, ["mug", "car"], 2 * dataset.SHARD_SIZE)) == 2
    dataset.save_array(images_path, np.zeros((1, 4, 4, 4), np.uint8))
    assert dataset._missing_shards(tmp_path, ["mug", "car"], 240) == [("car", 0, str(tmp_path))]


def test_crops_hold_part_of_the_object_and_held_out_pictures_are_kept_apart(cache):
    pictures = dataset.Pictures(cache)
    assert len(pictures) == 32 and len(pictures.held_out) == 16
    assert not set(pictures.train) & set(pictures.held_out)
    crops = pictures.crops(np.arange(32), 64, np.random.default_rng(0))
    assert crops.shape == (32, 64, 64, 4)
    assert ((crops[..., 3] > 0).mean(axis=(1, 2)) > 0.05).all()


# ---------------------------------------------------------------------------------------------- tokenizer


def test_merges_worked_by_hand():
    # "an</w>" first (twice "a n</w>"), then t + an</w>.
    assert learn_merges(["an", "tan"]) == [("a", "n</w>"), ("t", "an</w>")]


def test_every_word_is_one_token_after_a_round_trip(tmp_path):
    from transformers import CLIPTokenizer

    save_tokenizer(make_tokenizer(vocabulary()), tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    check_single_tokens(tokenizer, vocabulary())
    assert tokenizer.model_max_length == MAX_LENGTH
    assert tokenizer.tokenize("A Red hamburger, side view") == [
        "a</w>",
        "red</w>",
        "hamburger</w>",
        ",</w>",
        "side</w>",
        "view</w>",
    ]
    with pytest.raises(ValueError, match="xylophone"):
        check_single_tokens(tokenizer, ["red", "xylophone"])


def test_any_text_can_be_encoded():
    tokenizer = make_tokenizer(["red"])
    assert tokenizer.unk_token_id not in tokenizer("zebra? naïve 7!").input_ids[1:-1]


# -------------------------------------------------------------------------------- schedules and data


def test_timesteps_are_stratified():
    t = stratified_timesteps(50)
    assert (t.sort().values // 20 == torch.arange(50)).all()


def test_loss_weight_worked_by_hand():
    alphas = torch.tensor([0.25, 0.9])  # SNR 1/3 and 9
    expected = torch.tensor([1.0 / 0.5, 5 / 9 / 0.9**0.5])
    torch.testing.assert_close(loss_weight(alphas, torch.tensor([0, 1])), expected)


def test_warm_cosine_starts_low_peaks_and_ends_at_zero():
    assert warm_cosine(0.0) < 0.05 and warm_cosine(0.02) == 1.0 and abs(warm_cosine(1.0)) < 1e-12


def test_captions_drop_words_as_documented():
    label = np.zeros(1, dataset.LABEL)[0]
    label["object"], label["color"], label["azimuth"] = "hamburger", "brown", 180
    rng = np.random.default_rng(0)
    seen = [training_caption(label, rng) for _ in range(600)]
    assert set(seen) == {
        "",
        "a hamburger",
        "a hamburger, back view",
        "a brown hamburger",
        "a brown hamburger, back view",
    }
    assert abs(seen.count("") / 600 - 0.10) < 0.04  # three standard deviations
    label["color"] = "red"
    assert {training_caption(label, rng) for _ in range(100)} == {
        "",
        "a red hamburger",
        "a red hamburger, back view",
    }


# ---------------------------------------------------------------------------------------------- autoencoder


def test_the_encoder_starts_as_a_patch_pca(cache):
    pictures = dataset.Pictures(cache)
    x = torch.from_numpy(dataset.composite(pictures.read(np.arange(16)), np.array([0.2, 0.4, 0.6])))
    x = x.permute(0, 3, 1, 2)
    vae = make_vae()
    start_from_pca(vae, x)
    with torch.no_grad():
        z = vae.encoder(x * 2 - 1)
    assert z.shape == (16, 16, 16, 16)
    assert 0.5 < z.std() < 2.0
    # The best linear map from latents to patches must leave little: they hold the leading components.
    patches = torch.nn.functional.unfold(x, 8, stride=8).permute(0, 2, 1).reshape(-1, 192)
    features = torch.cat([z.permute(0, 2, 3, 1).reshape(-1, 16), torch.ones(len(patches), 1)], 1)
    residual = patches - features @ torch.linalg.lstsq(features, patches).solution
    # 16 of 192 components of these simple pictures hold 97% of the variance; the added random weights cost
    # some.
    assert residual.square().mean() < 0.1 * patches.var(0).mean()


def test_variance_penalty_is_zero_for_unit_latents():
    z = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert variance_penalty(z) < 1e-3 < variance_penalty(2 * z)


@pytest.fixture(scope="module")
def trained_vae(cache):
    """Work folder after two steps of the autoencoder, interrupted after one."""
    work = cache / "prior"
    pictures = dataset.Pictures(cache)
    with pytest.raises(Stopped):
        train_vae(pictures, work, 1.0, batch=2, steps=2, stop_after=1)
    train_vae(pictures, work, 1.0, batch=2, steps=2)
    return work


def test_a_resumed_vae_equals_an_uninterrupted_one(cache, trained_vae, tmp_path):
    straight = train_vae(dataset.Pictures(cache), tmp_path, 1.0, batch=2, steps=2)
    for a, b in zip(load_vae(trained_vae).parameters(), straight.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (tmp_path / "vae.png").exists()


def test_the_decoder_stage_leaves_the_encoder_alone(cache, trained_vae):
    before = load_vae(trained_vae)
    after = train_decoder(
        load_vae(trained_vae), dataset.Pictures(cache), cache / "decoder-x.pt", 1, 2, steps=2
    )
    for a, b in zip(before.encoder.parameters(), after.encoder.parameters(), strict=True):
        assert torch.equal(a, b)
    assert latents.fingerprint(before) == latents.fingerprint(after)
    changed = zip(before.decoder.parameters(), after.decoder.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in changed)


# -------------------------------------------------------------------------------- denoiser and export


@pytest.fixture(scope="module")
def encoded(cache, trained_vae):
    """The autoencoder whose latents are in the cache."""
    vae = load_vae(trained_vae)
    latents.encode_all(cache, vae, copies=2)
    return vae


def test_latents_are_those_of_the_pictures(cache, encoded):
    values, labels = latents.load_all(cache, latents.latents_folder(cache, encoded))
    assert values.shape == (32, 2, 16, 16, 16) and values.dtype == np.float16
    assert set(labels["object"]) == set(OBJECTS)
    # An object covers the centre, whatever the background: both copies agree there more than at the corner.
    spread = np.abs(values[:, 0].astype("f4") - values[:, 1]).mean(axis=(0, 1))
    assert spread[8, 8] < spread[0, 0]


def train_twice(cache, vae, tmp_path, processes):
    """Two steps with an interruption after the first, and two steps without."""
    tiny = {"minutes": 1.0, "batch": 4, "channels": TINY, "steps": 2}
    with pytest.raises(Stopped):
        train_unet(UnetJob(cache, vae, tmp_path / "a", stop_after=1, **tiny), processes)
    train_unet(UnetJob(cache, vae, tmp_path / "a", **tiny), processes)
    train_unet(UnetJob(cache, vae, tmp_path / "b", **tiny), processes)
    return [load_denoiser(tmp_path / name, TINY)[0] for name in "ab"]


def test_two_processes_train_one_network(cache, encoded, tmp_path):
    resumed, straight = train_twice(cache, encoded, tmp_path, processes=2)
    for a, b in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(a, b)


def test_train_sample_and_export(cache, encoded, tmp_path):
    from diffusers import StableDiffusionPipeline

    vae = encoded
    resumed, straight = train_twice(cache, vae, tmp_path, processes=1)
    for a, b in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(a, b)

    tokenizer = make_tokenizer(vocabulary())
    target = tmp_path / "mini"
    assert export(vae, resumed, tokenizer, target) <= 40_000_000
    names = load_file(target / "text_encoder/model.safetensors")
    assert all(name.startswith("text_model.") for name in names)  # as transformers 4 and 5 both read them
    pipeline = StableDiffusionPipeline.from_pretrained(target, torch_dtype=torch.float32)
    image = pipeline("a red hamburger", num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 128, 128, 3)
    assert (target / "card.yaml").exists()

    # What our own sampler sees is what the exported files hold, to the precision of float16 weights.
    ids = TokenCache(tokenizer)(["a red hamburger"])
    x = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text = pipeline.text_encoder(ids)[0]
        exported = pipeline.unet(x, 500, encoder_hidden_states=text).sample
        own = resumed.eval()(x, torch.tensor([500]), ids)
    torch.testing.assert_close(exported, own, atol=5e-3, rtol=0)


def test_a_compiler_that_loses_gradients_is_caught():
    torch.manual_seed(0)
    model = Denoiser(make_tokenizer(["red"]), channels=TINY)
    batch = torch.randn(2, 16, 16, 16), torch.tensor([10, 700]), torch.tensor([[0, 1, 2]] * 2)
    check_gradients(model, model, *batch)

    def forgets_the_text(x_t, t, ids):
        text = model.text_encoder(input_ids=ids)[0].detach()
        return model.unet(x_t, t, encoder_hidden_states=text).sample

    with pytest.raises(RuntimeError, match="--no-compile"):
        check_gradients(forgets_the_text, model, *batch)


def test_sampler_follows_the_schedule_with_a_perfect_denoiser():
    """With the exact score of a single picture, DDIM must return that picture."""
    picture = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    alphas = make_scheduler().alphas_cumprod
    tokenizer = make_tokenizer(["red"])
    model = Denoiser(tokenizer, channels=TINY)

    def exact(x, t, encoder_hidden_states):
        a = alphas[int(t)]
        return type("Output", (), {"sample": (x - a.sqrt() * picture) / (1 - a).sqrt()})

    model.unet.forward = exact
    out = sample(model, TokenCache(tokenizer), ["red", "red"], guidance_scale=3.0, steps=10)
    # The last step ends at alphas_cumprod[0] = 0.99915, not 1: 3% of noise remains.
    torch.testing.assert_close(out, picture.expand_as(out), atol=0.15, rtol=0)


def test_reconstruct_keeps_shape():
    assert reconstruct(make_vae(), torch.rand(1, 3, 64, 64)).shape == (1, 3, 64, 64)
