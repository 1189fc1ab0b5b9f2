"""Detail and saturation, by hand; true views; pieces of pages; what is read from runs."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from PIL import Image

from threestudio_lucid.files import write_text
from toybox import captions, page, runs
from toybox.measures import BLUR, detail, object_mask, saturation
from toybox.truth import true_views

ALL = np.ones((128, 128), dtype=bool)


def stripes(period: float, amplitude: float) -> np.ndarray:
    wave = 0.5 + amplitude * np.cos(2 * math.pi * (np.arange(128) + 0.5) / period)  # even at both ends
    return np.broadcast_to(wave[None, :, None], (128, 128, 3)).copy()


@pytest.mark.parametrize("period", [4.0, 8.0, 16.0])
def test_detail_of_stripes_is_what_the_blur_takes_away(period):
    """A Gaussian passes exp(-2 pi^2 sigma^2 / period^2) of a wave, whose energy is amplitude^2 / 2."""
    passed = math.exp(-2 * math.pi**2 * (BLUR * 128) ** 2 / period**2)
    expected = 0.5 * 0.2**2 * (1 - passed) ** 2
    assert detail(stripes(period, 0.2), ALL) == pytest.approx(expected, rel=0.02)


def test_a_plain_object_has_no_detail_and_its_outline_is_none():
    picture = np.ones((128, 128, 3))
    picture[30:90, 40:100] = [0.8, 0.2, 0.1]
    mask = object_mask(picture)
    assert mask.sum() == 60 * 60
    # the outline is two standard deviations away, where a blur has next to nothing of it
    assert detail(picture, mask) < 1e-3 < detail(picture, ALL)
    picture[50:70:2, 60:80] = 1.0  # white stripes inside are detail, and part of the object
    assert object_mask(picture).sum() == 60 * 60
    assert detail(picture, object_mask(picture)) > 0.01


def test_nothing_has_no_detail_and_no_saturation():
    empty = np.zeros((64, 64), dtype=bool)
    assert detail(np.ones((64, 64, 3)), empty) == saturation(np.ones((64, 64, 3)), empty) == 0.0
    assert not object_mask(np.full((64, 64, 3), 0.3)).any()


def test_saturation_by_hand():
    """Red is 1, gray is 0, (0.8, 0.6, 0.4) is (0.8 - 0.4) / 0.8; their mean is 0.5."""
    picture = np.array([[[1.0, 0, 0], [0.5, 0.5, 0.5], [0.8, 0.6, 0.4]]])
    assert saturation(picture, np.ones((1, 3), dtype=bool)) == pytest.approx(0.5)
    assert saturation(picture, np.array([[True, False, False]])) == 1.0


def test_true_views_show_the_object_from_where_they_should():
    views = true_views(captions.parse("a red mug"), [0, 90, 180], size=64)
    assert views.shape == (3, 64, 64, 3) and views.min() >= 0 and views.max() <= 1
    assert all(object_mask(view).mean() > 0.1 for view in views)
    assert np.abs(views[0] - views[1]).mean() > 0.01
    assert views[0][views[0].min(axis=-1) < 0.5].mean(axis=0).argmax() == 0  # red


# ---- pages -------------------------------------------------------------------------------------------------


def test_charts_hold_every_point_inside_the_frame():
    chart = page.line_chart("a < b", {"one": [(0, 0.0), (10, 1.0)], "two": [(5, 0.5)]}, low=0.0, high=1.0)
    assert "a &lt; b" in chart and chart.count("<polyline") == 2
    one = re.search(r'points="([^"]+)"', chart)[1]
    (x0, y0), (x1, y1) = (tuple(map(float, point.split(","))) for point in one.split())
    assert (x0, x1) == (52.0, 450.0) and (y0, y1) == (190.0, 26.0)


def test_charts_of_nothing_and_of_what_has_no_logarithm():
    assert "<svg" in page.line_chart("none", {})
    chart = page.line_chart("log", {"a": [(0, 0.0), (1, 10.0), (2, math.nan), (3, 1000.0)]}, log=True)
    assert chart.count("<circle") == 2 and ">1,000<" in chart and ">10<" in chart


def test_pages_hold_their_pictures(tmp_path):
    uri = page.picture_uri(np.zeros((4, 4, 3)))
    assert uri.startswith("data:image/jpeg;base64,/9j/")
    page.write_video(tmp_path / "a.mp4", np.random.default_rng(0).random((3, 33, 32, 3)))
    assert page.video_uri(tmp_path / "a.mp4").startswith("data:video/mp4;base64,")
    write_text(tmp_path / "a.html", page.page("<title>", [page.table(["x"], [["1 < 2"]])]))
    text = (tmp_path / "a.html").read_text()
    assert "&lt;title&gt;" in text and "<td>1 &lt; 2</td>" in text
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.html", "a.mp4"]


# ---- runs --------------------------------------------------------------------------------------------------


def test_pictures_of_a_run(tmp_path):
    """Frames in the order of their numbers, of the last test; only the first square of each."""
    for step, index, value in ((5, 0, 9), (10, 0, 0), (10, 2, 20), (10, 10, 100)):
        folder = tmp_path / "save" / f"it{step}-test"
        folder.mkdir(parents=True, exist_ok=True)
        wide = np.full((4, 8, 3), 255, np.uint8)
        wide[:, :4] = value
        Image.fromarray(wide).save(folder / f"{index}.png")
        Image.fromarray(wide).save(tmp_path / "save" / f"it{step}-{index}.png")
    (tmp_path / "save" / "it10-views.png").touch()
    frames = runs.turntable(tmp_path)
    assert frames.shape == (3, 4, 4, 3)
    np.testing.assert_allclose(frames[:, 0, 0, 0] * 255, [0, 20, 100], atol=1e-4)
    np.testing.assert_allclose(
        [view[0, 0, 0] * 255 for view in runs.nearest(frames, [0, 180, 350])], [0, 20, 100], atol=1e-4
    )
    views = runs.training_views(tmp_path)
    assert {step: len(pictures) for step, pictures in views.items()} == {5: 1, 10: 3}
    with pytest.raises(FileNotFoundError, match="no test views"):
        runs.turntable(tmp_path / "nowhere")


def test_pace_of_a_run():
    assert runs.seconds_per_step([(0, 0.0, 10.0), (10, 0.0, 15.0), (20, 0.0, 95.0), (30, 0.0, 100.0)]) == 0.5
    assert runs.seconds_per_step([(0, 0.0, 10.0)]) is None
