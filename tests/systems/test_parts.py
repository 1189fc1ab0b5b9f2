"""Small parts of the system: regularisers, timetable, record, contact sheet, recipes, seeds."""

import functools
import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf, __version__
from packaging.version import Version

from threestudio.utils.config import parse_structured
from threestudio.utils.misc import C
from threestudio_lucid import recipe
from threestudio_lucid.data.cameras import LucidCameraDataModuleConfig, LucidCameraDataset
from threestudio_lucid.errors import UserError
from threestudio_lucid.gaussians.density import DensityReport
from threestudio_lucid.guidance import cards
from threestudio_lucid.recipe import PUBLISHED, even, find_recipe, part, ramp, staged
from threestudio_lucid.seeding import generator, seed_of
from threestudio_lucid.systems import density as timetable
from threestudio_lucid.systems.density import DensityConfig
from threestudio_lucid.systems.record import Record
from threestudio_lucid.systems.regularizers import opacity_entropy, total_variation
from threestudio_lucid.systems.sheet import azimuth_label, contact_sheet

OMEGACONF = Version(__version__).release


def test_total_variation_is_the_published_sum():
    x = torch.rand(2, 5, 7, 3)
    b, h, w, c = x.shape
    dy = (x[:, 1:] - x[:, :-1]).square().sum() / (c * (h - 1) * w)
    dx = (x[:, :, 1:] - x[:, :, :-1]).square().sum() / (c * h * (w - 1))
    torch.testing.assert_close(total_variation(x), 2 / b * (dy + dx))


def test_opacity_entropy_is_that_of_a_coin():
    assert opacity_entropy(torch.tensor([0.5, 0.5])).item() == pytest.approx(math.log(2))
    a = torch.tensor([0.2])
    entropy = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert opacity_entropy(a).item() == pytest.approx(entropy)
    assert opacity_entropy(torch.tensor([0.0, 1.0])).item() == pytest.approx(0.0, abs=0.01)


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
    record.count(DensityReport(1, 2, 3, 4, 99), step=7, capacity=99)
    again = Record.from_state(record.state())
    assert again == record
    assert again.summary() == {
        "density": {
            "cloned": 1,
            "split": 2,
            "pruned": 3,
            "refused": 4,
            "rounds": 1,
            "full_since": 7,
        },
        "losses": {"loss": pytest.approx(1.98)},
    }


@pytest.mark.parametrize(
    "title",
    ["a mug\nblue", "a\r\n mug\u2028", "\n", "\x00\x1b[31m", "\ud800 mug", "☕ 日本", "long " * 10**5, ""],
)
def test_contact_sheet_takes_any_title(title):
    sheet = contact_sheet(torch.rand(2, 40, 40, 3), ["front", "back"], title)
    assert sheet.shape == contact_sheet(torch.rand(2, 40, 40, 3), ["front", "back"], title and "mug").shape


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


@pytest.mark.parametrize("milestones", [[5], [3, 4], [1, 2], [0, 7], [2, 9, 10]])
def test_a_weight_that_follows_the_batch_size(milestones):
    """At every step it is the size of that step's batch, for threestudio's schedules of whole steps."""
    sizes = [8, 4, 2, 1][: len(milestones) + 1]
    batches = {"batch_size": sizes, "resolution_milestones": milestones, "height": 4, "width": 4}
    dataset = LucidCameraDataset(parse_structured(LucidCameraDataModuleConfig, batches), rays=False)
    cfg = OmegaConf.create({"data": batches, "weight": "${staged:${data.batch_size}}"})
    for step in range(12):
        assert C(cfg.weight, 0, step) == len(dataset.batch(step)["c2w"]), step
    assert cfg.weight[1] in sizes and all(
        b > a for a, b in zip(cfg.weight[3::2], cfg.weight[5::2], strict=False)
    )


def test_one_batch_size_is_a_number():
    assert (staged(4, []), staged([4], [])) == (4, 4)
    with pytest.raises(UserError, match=r"3 values for 2 stages of data.resolution_milestones"):
        staged([4, 2, 1], [100])


def test_recipes_of_cards(tmp_path):
    assert find_recipe("sd21") == PUBLISHED
    (tmp_path / "card.yaml").write_text(f"name: mine\npath: {tmp_path}\n")
    assert find_recipe(str(tmp_path)) == PUBLISHED
    (tmp_path / "recipe.yaml").write_text("steps: 7\n")
    assert find_recipe(str(tmp_path)) == PUBLISHED | {"steps": 7}
    (tmp_path / "recipe.yaml").write_text("step: 7\n")
    with pytest.raises(UserError, match=r"no key 'step'\. Did you mean 'steps'"):
        find_recipe(str(tmp_path))


def config_of(max_steps):
    return OmegaConf.create(
        {"trainer": {"max_steps": max_steps}, "every": "${even:4}", "lr": "${ramp:[1.0, 0.1]}"}
    )


@pytest.mark.parametrize("max_steps", [-1, 0, 2.5, "abc", None, True])
def test_a_run_has_a_length(max_steps):
    for key in ("every", "lr"):
        with pytest.raises(Exception, match=r"trainer\.max_steps is .* whole number of at least 1"):
            _ = config_of(max_steps)[key]
    assert (config_of(8).every, config_of(8).lr) == (2, [0, 1.0, 0.1, 8])


def test_resolvers_work_in_omegaconf_23(monkeypatch):
    """There register_resolver is a legacy function, and what resolvers return must be scalars or nodes."""
    new = getattr(OmegaConf, "register_resolver" if OMEGACONF >= (2, 4) else "register_new_resolver")
    returned = []

    def legacy(name, resolver):
        raise AssertionError("this is not the function to call")

    def register_new_resolver(name, resolver, *, replace=False):
        def spy(*args, **kwargs):
            returned.append(resolver(*args, **kwargs))
            return returned[-1]

        new(name, functools.wraps(resolver)(spy), replace=replace)

    monkeypatch.setattr(OmegaConf, "register_resolver", legacy, raising=False)
    monkeypatch.setattr(OmegaConf, "register_new_resolver", register_new_resolver)
    recipe.register_resolvers()
    cards.register_resolvers()
    cfg = OmegaConf.merge(
        config_of(8),
        {
            "system": {"guidance": {"prior": "sd21"}},
            "relax": "${recipe:relax}",
            "lr_means": "${ramp:${recipe:lr_means}}",
            "size": "${prior:sd21,image_size}",
        },
    )
    OmegaConf.resolve(cfg)
    assert (cfg.every, cfg.size, cfg.lr_means) == (2, 512, [0, 5.6e-4, 5.6e-6, 8])
    assert cfg.relax.fovy == [0.75, 1.1]
    assert returned and not any(isinstance(value, list | dict) for value in returned)
    monkeypatch.undo()
    recipe.register_resolvers()
    cards.register_resolvers()
