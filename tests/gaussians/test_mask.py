"""Which Gaussians may change, and that the others do not, whatever density control does."""

import pytest
import torch
from test_density import LARGE, SMALL, make_cloud

from threestudio_lucid.errors import UserError
from threestudio_lucid.gaussians.cloud import GaussianCloud, moments_of
from threestudio_lucid.gaussians.density import DensityRules, refine, reset_opacity
from threestudio_lucid.gaussians.mask import MaskConfig, editable


def cloud_at(points, opacities):
    cloud, _ = make_cloud([SMALL] * len(points), opacities)
    cloud.means.data[: len(points)] = torch.tensor(points)
    return cloud.living


@pytest.mark.parametrize(
    ("mask", "chosen"),
    [
        ({}, [True, True, True]),
        ({"box": [[-1, -1, -1], [0.5, 1, 1]]}, [True, False, True]),
        ({"sphere": [1, 0, 0, 0.5]}, [False, True, False]),
        ({"opacity": [0.5, 1.0]}, [False, True, True]),
        ({"indices": [2, 0]}, [True, False, True]),
        ({"box": [[-1, -1, -1], [0.5, 1, 1]], "opacity": [0.5, 1.0]}, [False, False, True]),
        ({"sphere": [1, 0, 0, 0.5], "outside": True}, [True, False, True]),
    ],
)
def test_what_is_chosen(mask, chosen):
    g = cloud_at([[0.0, 0, 0], [1.0, 0, 0], [0.0, 0, 1.0]], [0.2, 0.6, 0.9])
    assert editable(g, MaskConfig(**mask)).tolist() == chosen


def test_indices_of_a_file(tmp_path):
    file = tmp_path / "rows.txt"
    file.write_text("0, 2\n")
    g = cloud_at([[0.0, 0, 0], [1.0, 0, 0], [0.0, 0, 1.0]], [0.2, 0.6, 0.9])
    assert editable(g, MaskConfig(indices=str(file))).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ({"box": [[1, 0, 0], [0, 1, 1]]}, "the low one first"),
        ({"box": [[0, 0], [1, 1]]}, "two corners"),
        ({"box": 3}, "two corners"),
        ({"sphere": [0, 0, 0]}, r"\[x, y, z, radius\]"),
        ({"sphere": [0, 0, 0, 0]}, "radius is 0"),
        ({"opacity": [0.5, 0.1]}, "opacity's high end"),
        ({"opacity": [0.5, 2]}, "opacity's high end"),
        ({"indices": "nowhere.txt"}, "there is no file nowhere.txt"),
        ({"indices": [1, "two"]}, "'two' is no whole number"),
        ({"indices": [-1]}, "-1 is no whole number"),
        ({"indices": [10**19]}, "is no whole number of at least 0, or too large"),
        ({"indices": [0, "9" * 5000]}, "or too large"),
        ({"indices": 3}, "a list of whole numbers"),
        ({"outside": True}, "there is no mask"),
    ],
)
def test_mistakes_are_told_before_there_are_gaussians(mask, words):
    with pytest.raises(UserError, match=words):
        MaskConfig(**mask)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ({"box": [[5, 5, 5], [6, 6, 6]]}, "none of 3 Gaussians.*lie between"),
        ({"indices": []}, "none of 3 Gaussians"),
        ({"opacity": [0.0, 1.0], "outside": True}, "none of 3 Gaussians"),
        ({"indices": [3]}, "3 is too large; there are 3 Gaussians"),
    ],
)
def test_empty_masks(mask, words):
    g = cloud_at([[0.0, 0, 0], [1.0, 0, 0], [0.0, 0, 1.0]], [0.2, 0.6, 0.9])
    with pytest.raises(UserError, match=words):
        editable(g, MaskConfig(**mask))


def test_density_control_passes_over_frozen_rows():
    """Rows that would be cloned, split, pruned as faint, pruned as huge: each once frozen and once not."""
    scales = [SMALL, SMALL, LARGE, LARGE, SMALL, SMALL, 4.0, 4.0]
    faint = [0.5, 0.5, 0.5, 0.5, 0.001, 0.001, 0.5, 0.5]
    cloud, optimizer = make_cloud(scales, faint)
    cloud.frozen[: len(scales)] = torch.arange(len(scales)) % 2 == 1
    before = {name: p.detach().clone() for name, p in cloud.params.items()}
    moments = moments_of(optimizer, cloud.params)
    cloud.grad_sum[: len(scales)] = 1.0
    cloud.grad_count[: len(scales)] = 1.0
    draws = torch.Generator().manual_seed(0)
    arguments = (cloud.params, moments, cloud.n, cloud.grad_sum, cloud.grad_count, DensityRules(), draws)
    report = refine(*arguments, cloud.frozen)
    reset_opacity(cloud.params, {}, cloud.n, 0.01, cloud.frozen)
    assert (report.cloned, report.split, report.pruned) == (1, 1, 2)
    n = len(cloud)
    assert cloud.frozen[:n].sum() == 4 and not cloud.frozen[n:].any()
    rows = cloud.frozen.nonzero()[:, 0]
    for name, p in cloud.params.items():
        assert torch.equal(p[rows], before[name][1 : len(scales) : 2]), name
        for moment in moments[name]:
            assert torch.equal(moment[rows].flatten(1)[:, 0] if moment.ndim > 1 else moment[rows],
                               torch.tensor([2.0, 4.0, 6.0, 8.0]))  # fmt: skip
    assert (cloud.logit_opacities[:n][~cloud.frozen[:n]].sigmoid() <= 0.0101).all()


def test_checkpoints_from_before_there_were_edits_load():
    cloud = GaussianCloud(3)
    state = cloud.state_dict()
    del state["frozen"]
    GaussianCloud(3).load_state_dict(state)
