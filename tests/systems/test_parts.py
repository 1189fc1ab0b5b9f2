"""Small parts of the system: regularisers, timetable, record, contact sheet, recipes, seeds."""

import numpy as np
import pytest
import torch

from threestudio_lucid.errors import UserError
from threestudio_lucid.gaussians.density import DensityReport
from threestudio_lucid.recipe import PUBLISHED, even, find_recipe, part, ramp
from threestudio_lucid.seeding import generator, seed_of
from threestudio_lucid.systems import density as timetable
from threestudio_lucid.systems.density import DensityConfig
from threestudio_lucid.systems.record import Record
from threestudio_lucid.systems.regularizers import total_variation
from threestudio_lucid.systems.sheet import azimuth_label, contact_sheet


def test_total_variation_is_the_published_sum():
    x = torch.rand(2, 5, 7, 3)
    b, h, w, c = x.shape
    dy = (x[:, 1:] - x[:, :-1]).square().sum() / (c * (h - 1) * w)
    dx = (x[:, :, 1:] - x[:, :, :-1]).square().sum() / (c * h * (w - 1))
    torch.testing.assert_close(total_variation(x), 2 / b * (dy + dx))


def test_timetable_is_the_published_one():
    """Of 5000 steps: rounds at 200 ... 2900, resets at 300 ... 2700, size limit after 300."""
    cfg = DensityConfig()
    steps = range(1, 5001)
    assert [s for s in steps if timetable.refines(cfg, s)] == list(range(200, 3000, 100))
    assert [s for s in steps if timetable.resets(cfg, s)] == list(range(300, 3000, 300))
    assert sum(timetable.gathers(cfg, s) for s in steps) == 2999
    assert timetable.rules(cfg, 300).prune_scale is None
    assert timetable.rules(cfg, 301).prune_scale == 0.35


def test_density_can_be_off():
    cfg = DensityConfig(until=0)
    assert not any(f(cfg, s) for s in range(1, 999) for f in (timetable.refines, timetable.resets))


def test_record_survives_a_checkpoint():
    record = Record()
    record.update({"loss": torch.tensor(2.0), "gaussians": torch.tensor(5.0)})
    record.update({"loss": torch.tensor(1.0)})
    record.count(DensityReport(1, 2, 3, 4, 99))
    again = Record.from_state(record.state())
    assert again == record
    assert again.summary() == {
        "density": {"cloned": 1, "split": 2, "pruned": 3, "refused": 4},
        "losses": {"loss": pytest.approx(1.98)},
    }


def test_contact_sheet_shows_every_view_unchanged():
    views = torch.rand(8, 40, 40, 3)
    sheet = contact_sheet(
        views, [azimuth_label(45 * k) for k in range(8)], "a hamburger with everything " * 9
    )
    assert sheet.dtype == np.uint8
    expected = (views * 255).round().byte().numpy()
    found = 0
    for y in range(sheet.shape[0] - 39):
        for x in range(sheet.shape[1] - 39):
            patch = sheet[y, x]
            for picture in expected:
                if (patch == picture[0, 0]).all() and (sheet[y : y + 40, x : x + 40] == picture).all():
                    found += 1
    assert found == 8


def test_labels():
    assert [azimuth_label(a) for a in (0, 45, 90, 180, 360)] == [
        "front, 0°",
        "45°",
        "side, 90°",
        "back, 180°",
        "front, 0°",
    ]


def test_seeds_differ_by_purpose_and_step():
    seeds = {seed_of(s, purpose, step) for s in range(3) for purpose in ("a", "b") for step in range(50)}
    assert len(seeds) == 300
    assert all(0 <= s < 2**63 for s in seeds)
    assert torch.equal(torch.rand(3, generator=generator(1, "x")), torch.rand(3, generator=generator(1, "x")))


def test_parts_of_a_run():
    assert [part(0.6, 5000), part(0.02, 600), part(0.0, 600), part(1e-9, 600)] == [3000, 12, 0, 1]
    assert ramp([1e-3, 1e-5], 600) == [0, 1e-3, 1e-5, 600]
    assert ramp(0.05, 600) == 0.05
    assert [even(4, n) for n in (600, 602, 601, 3, 1)] == [150, 301, 601, 1, 1]


def test_recipes_of_cards(tmp_path):
    assert find_recipe("sd21") == PUBLISHED
    (tmp_path / "card.yaml").write_text(f"name: mine\npath: {tmp_path}\n")
    assert find_recipe(str(tmp_path)) == PUBLISHED
    (tmp_path / "recipe.yaml").write_text("steps: 7\n")
    assert find_recipe(str(tmp_path)) == PUBLISHED | {"steps": 7}
    (tmp_path / "recipe.yaml").write_text("step: 7\n")
    with pytest.raises(UserError, match=r"no key 'step'\. Did you mean 'steps'"):
        find_recipe(str(tmp_path))
