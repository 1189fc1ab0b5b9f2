"""Sets of pictures against each other, by hand; true pictures of prompts; a prior that has learnt nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from toybox import captions
from toybox.grade import Grader, score
from toybox.grade.distributions import covered, distance, frechet_distance
from toybox.grade.prior import draw_prompts, grade_prior, true_pictures


def test_frechet_distance_by_hand():
    """Along each axis: the shift's square, and the square of the difference of the deviations."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((500, 3))
    a = (a - a.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(a, rowvar=False))).T  # exactly white
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6)
    b = a * [1.0, 2.0, 5.0] + [3.0, 0.0, 0.0]
    assert frechet_distance(a, b) == pytest.approx(9.0 + 1.0 + 16.0, rel=1e-6)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]  # does not depend on the axes
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(26.0, rel=1e-6)


def test_frechet_distance_of_fewer_pictures_than_features():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5, 20))
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-5) and frechet_distance(a, b) > 1.0


def test_precision_and_recall_by_hand():
    """Two clusters of four; the pictures know one alone, and add a stray."""
    square = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    truth = np.concatenate([square, square + 100])
    pictures = np.concatenate([square + 0.1, [[50.0, 50.0]]])
    found = distance(pictures, truth)
    assert found.precision == 4 / 5
    assert distance(square + 0.1, truth).recall == 4 / 8
    assert covered(truth, truth) == 1.0
    assert covered(square + 1000, truth) == 0.0


def test_true_pictures_are_what_their_prompts_say():
    prompts = draw_prompts(54, seed=3)
    pictures = true_pictures(prompts, 64, np.random.default_rng(0))
    assert pictures.shape == (54, 3, 64, 64) and pictures.min() >= 0 and pictures.max() <= 1
    grader = Grader.load()
    found = score(grader(pictures), [captions.parse(prompt) for prompt in prompts])
    assert min(found.object, found.color) > 0.9 and found.view > 0.8
    again = true_pictures(prompts, 64, np.random.default_rng(0))
    assert torch.equal(pictures, again)
    # what is told apart by the classes is told apart by the features
    features = grader.features(pictures).numpy()
    others = grader.features(true_pictures(prompts, 64, np.random.default_rng(1))).numpy()
    noise = grader.features(torch.rand(54, 3, 64, 64, generator=torch.Generator().manual_seed(0))).numpy()
    assert frechet_distance(others, features) < 0.5 * frechet_distance(noise, features)


def test_a_prior_that_has_learnt_nothing_is_far_from_the_truth(small_prior, tmp_path):
    result = grade_prior(Grader.load(), str(small_prior), n=8, steps=2, sheet=tmp_path / "sheet.png")
    assert result.samples.recall == result.floor.recall == 0.0  # nothing true is near what it paints
    assert result.samples.frechet > 100
    assert (tmp_path / "sheet.png").exists()
    lines = result.text().splitlines()
    assert lines[0].startswith("object") and lines[-2].startswith("samples") and "recall" in lines[-1]
