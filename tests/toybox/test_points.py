"""The bundled point prior's making: surfaces, clouds on disk, training with resume, export, grading."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from threestudio_lucid.points import PointCloud
from threestudio_lucid.points.pointe import generate, load_folder
from toybox import clouds, parts, sdf
from toybox.captions import COLORS, parse
from toybox.clouds import Clouds, cloud_caption, make_shard, sample_surface
from toybox.grade import points as grade_points
from toybox.grade.points import Truth, chamfer, grade_clouds, normalise
from toybox.objects import OBJECTS
from toybox.train_points import STAGE, START, PointJob, export, load_trained, train, training_caption
from toybox.training import Stopped

GREY, RED = (0.5, 0.5, 0.5), (0.9, 0.1, 0.1)
TINY = {"width": 16, "layers": 1, "heads": 2, "out_channels": 6, "as_tokens": False}


# --- surfaces -----------------------------------------------------------------------------------------------


def test_a_ball_is_sampled_evenly():
    xyz, _ = sample_surface(parts.table([parts.ball(0.5, (0.2, 0, 0), GREY)]), 4000, np.random.default_rng(0))
    around = xyz - (0.2, 0, 0)
    np.testing.assert_allclose(np.linalg.norm(around, axis=1), 0.5, atol=sdf.HIT)
    for axis in range(3):  # a sphere's coordinates are uniform (Archimedes)
        assert kstest(around[:, axis] + 0.5, "uniform").pvalue > 0.01


def test_patches_get_points_by_their_area():
    """Of a convex box every side is seen from everywhere in front of it."""
    box = parts.table([parts.box((0.2, 0.4, 0.6), (0, 0, 0), GREY, round=0.0)])
    xyz, _ = sample_surface(box, 6000, np.random.default_rng(0))
    side = np.abs(np.abs(xyz) / (0.2, 0.4, 0.6) - 1).argmin(axis=1)
    areas = np.array([0.4 * 0.6, 0.2 * 0.6, 0.2 * 0.4])
    # three standard deviations of a share at n = 6000 are at most 0.019
    np.testing.assert_allclose(np.bincount(side) / 6000, areas / areas.sum(), atol=0.019)


def test_what_is_hidden_is_not_sampled():
    table = parts.table([parts.ball(0.3, (0, 0, 0), RED), parts.ball(0.6, (0, 0, 0), GREY)])
    xyz, rgb = sample_surface(table, 500, np.random.default_rng(0))
    assert np.linalg.norm(xyz, axis=1).min() > 0.59
    assert (np.ptp(rgb, axis=1) < 0.01).all()


def test_colours_are_those_of_the_pictures():
    """Lit from above: the top of a ball is brighter than its underside, and both keep the hue."""
    xyz, rgb = sample_surface(parts.table([parts.ball(0.5, (0, 0, 0), RED)]), 2000, np.random.default_rng(0))
    assert rgb[xyz[:, 2] > 0.4].mean() > rgb[xyz[:, 2] < -0.4].mean() + 0.05
    np.testing.assert_allclose(rgb[:, 1] / rgb[:, 0], 1 / 9, atol=1e-3)


# --- clouds on disk -----------------------------------------------------------------------------------------


def test_a_shard_is_a_function_of_its_name_and_number():
    first, again, other = (make_shard("mug", number, n=3, points=40) for number in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0] != other[0]).any()
    assert first[0].shape == first[1].shape == (3, 40, 3)
    colors = make_shard("mug", 0, n=11, points=1)[2]["color"]
    assert set(colors) == set(COLORS) and (colors == OBJECTS["mug"].default_color).sum() == 2


def test_unfinished_shards_are_made_again(tmp_path, monkeypatch):
    calls = []

    def small(name, number):
        calls.append((name, number))
        return make_shard(name, number, n=1, points=4)

    monkeypatch.setattr(clouds, "OBJECTS", {name: OBJECTS[name] for name in ("mug", "car")})
    monkeypatch.setattr(clouds, "make_shard", small)
    clouds.build(tmp_path, 2 * clouds.SHARD_SIZE)
    (tmp_path / "car-0000.points.npy").unlink()  # killed before the last of a shard's files
    clouds.build(tmp_path, 2 * clouds.SHARD_SIZE)
    assert calls == [("mug", 0), ("car", 0), ("car", 0)]
    assert len(Clouds.load(tmp_path)) == 2


def test_drawn_points_are_the_clouds_own_with_their_colours():
    xyz = np.arange(24, dtype=np.float16).reshape(2, 4, 3)
    data = Clouds(xyz, (10 * xyz).astype(np.uint8), np.zeros(2, clouds.THING))
    drawn = data.draw(np.array([1, 0, 1]), 3, np.random.default_rng(0))
    assert drawn.shape == (3, 6, 3)
    np.testing.assert_array_equal(drawn[:, 3:], 10 * drawn[:, :3])
    for cloud, row in zip(drawn, (1, 0, 1), strict=True):
        assert set(cloud[0]) < set(xyz[row, :, 0]) and len(set(cloud[0])) == 3


def test_captions_say_what_a_cloud_is():
    rng = np.random.default_rng(0)
    for name in OBJECTS:
        for thing in make_shard(name, 0, n=3, points=1)[2]:
            spec = parse(cloud_caption(thing, rng))
            asked = (spec.object, spec.color, spec.part_color or "", spec.pose or "")
            assert asked == tuple(thing[["object", "color", "part_color", "pose"]])
            assert parse(training_caption(thing, rng)).object == name
    with pytest.raises(FileNotFoundError, match="train_points"):
        Clouds.load(START)


# --- training -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clouds")
    for name in ("mug", "car"):
        shard = make_shard(name, 0, n=4, points=64)
        for kind, array in zip(("points", "colors", "things"), shard, strict=True):
            np.save(folder / f"{name}-0000.{kind}.npy", array)
    return folder


def job(cache, folder, **kw) -> PointJob:
    return PointJob(cache, folder, START, 1.0, steps=4, batch=4, points=16, network=TINY, **kw)


def test_a_resumed_run_repeats_an_uninterrupted_one_and_its_export_draws_points(cache, tmp_path):
    train(whole := job(cache, tmp_path / "whole"))
    with pytest.raises(Stopped):
        train(job(cache, tmp_path / "parts", stop_after=2))
    train(resumed := job(cache, tmp_path / "parts"))
    (model, steps), (other, _) = load_trained(whole), load_trained(resumed)
    assert steps == 4
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)

    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(whole.folder / "tokenizer")
    for _ in range(2):  # over nothing, and over itself
        size = export(model, tokenizer, TINY, tmp_path / "out" / "points")
    assert size < 5e6 and [p.name for p in (tmp_path / "out").iterdir()] == ["points"]
    cloud = generate(
        "a red mug", torch.Generator().manual_seed(0), tmp_path / "out" / "points", points=9, steps=2
    )
    assert len(cloud) == 9 and cloud.points.abs().max() < 2
    prior = load_folder(tmp_path / "out" / "points")
    assert prior.stage == STAGE and "mug" in prior.vocabulary
    # the text encoder is bundled, and has learned
    before = torch.nn.functional.normalize(load_start_vector("a red mug"), dim=-1)
    assert 1e-5 < (prior.text(["a red mug"]) - before).abs().max() < 0.1


def load_start_vector(prompt: str) -> torch.Tensor:
    """The pooled vector of the mini prior's text encoder."""
    from transformers import CLIPTextModel, CLIPTokenizer

    ids = CLIPTokenizer.from_pretrained(START / "tokenizer")([prompt], return_tensors="pt").input_ids
    encoder = CLIPTextModel.from_pretrained(START / "text_encoder", dtype=torch.float32)
    return encoder(input_ids=ids).pooler_output.detach()


def test_a_text_encoder_of_another_shape_is_refused(cache, tmp_path):
    from safetensors.torch import save_file

    from toybox.train_points import make_model, prepare

    prepare(other := job(cache, tmp_path))
    save_file({"text_projection.weight": torch.eye(3)}, tmp_path / "text_encoder" / "model.safetensors")
    with pytest.raises(ValueError, match="no CLIP text encoder of the shape"):
        make_model(other)


# --- grading ------------------------------------------------------------------------------------------------


def test_chamfer_by_hand_and_without_size():
    a, b = np.zeros((1, 3)), np.array([[0.0, 0, 0], [2, 0, 0]])
    assert chamfer(a, b) == chamfer(b, a) == 0.5  # 0 one way, (0 + 2) / 2 the other
    points = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_allclose(normalise(3 * points + 1), normalise(points), atol=1e-12)


def test_true_clouds_are_right_and_others_wrong(monkeypatch):
    names = ("mug", "rocket", "table")
    monkeypatch.setattr(grade_points, "OBJECTS", {name: OBJECTS[name] for name in names})
    truth = Truth(instances=1, points=256)
    rng = np.random.default_rng(5)

    def cloud(name, color):
        xyz, rgb = sample_surface(OBJECTS[name].build(color, rng, decoration=OBJECTS[name].own), 256, rng)
        return PointCloud(torch.from_numpy(1.7 * xyz), torch.from_numpy(rgb))

    wanted = [(name, color) for name in names for color in ("red", "blue", "white")]
    made = [cloud(*one) for one in wanted]
    good = grade_clouds(made, wanted, truth, seconds=18.0)
    assert (good.object, good.color, good.both, good.seconds) == (1.0, 1.0, 1.0, 2.0)
    bad = grade_clouds(made, [("mug", "red")] * 9, truth)
    assert bad.object == pytest.approx(1 / 3) and bad.color < 0.5
    assert bad.mistakes["mug taken for rocket"] == 3
    assert bad.distance > 2 * good.distance


def test_pictures_of_clouds_show_what_is_near():
    far, near = torch.tensor([[-0.5, -0.3, -0.2]]), torch.tensor([[0.5, 0.3, 0.2]])
    towards = near / near.norm()
    points = torch.cat([far, 0.5 * towards, -0.5 * towards])
    image = grade_points.draw(PointCloud(points, torch.eye(3)), size=32)
    assert image.shape == (3, 32, 32) and image.max() == 1.0
    assert (image.flatten(1).T != 1).any(dim=1).sum() >= 4


def test_a_prior_is_graded_on_evenly_spread_prompts(tmp_path, monkeypatch):
    asked = []

    def prior(prompts, generator):
        asked.extend(prompts)
        return [
            PointCloud(torch.randn(32, 3, generator=generator), torch.full((32, 3), 0.5)) for _ in prompts
        ]

    monkeypatch.setattr(grade_points, "Truth", lambda: Truth(instances=1, points=8))
    score = grade_points.grade_points(prior, n=4, sheet=tmp_path / "sheet.png")
    assert score.n == 4 and len({parse(prompt).object for prompt in asked}) == 4
    assert (tmp_path / "sheet.png").stat().st_size > 0 and "4 clouds" in replace(score).text()
