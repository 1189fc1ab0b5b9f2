"""Trainings that go wrong: steps are left out or undone, told, and end a run that cannot go on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn
from toy import launch, toy_config

import threestudio
import threestudio.run
from threestudio_lucid.errors import UserError
from threestudio_lucid.systems.safeguard import LARGEST_LOSS, PATIENCE, RETURNS, Safeguard

# Only Adam moves anything.
NO_DENSITY = {"until": 0}
# The rate of one step, the fourth, is a million.
ONE_LEAP = [0, 0.02, 0.02, 2, 1e6, 3, 0.02, 4]


@pytest.fixture
def told(monkeypatch):
    """Warnings, in order."""
    lines = []
    monkeypatch.setattr(threestudio, "warn", lines.append)
    return lines


def result(trial, step=12):
    save = trial / "save"
    return (save / f"it{step}.ply").read_bytes(), (save / f"it{step}-metrics.json").read_bytes()


def run(folder, *overrides, **changes):
    config = toy_config(folder)
    for section, values in changes.items():
        config["system"][section] = config["system"].get(section, {}) | values
    return launch(config, folder, *overrides)


# --- left out -----------------------------------------------------------------------------------------------


def test_ten_steps_in_a_row_without_numbers_end_the_run(tmp_path, told):
    with pytest.raises(UserError) as caught:
        run(tmp_path, guidance={"nan_from": 3})
    message = str(caught.value)
    assert message.startswith("Step 12: the loss is nan. 10 steps in a row were left out")
    assert "system.geometry.lr_means (now 0.01)" in message
    assert f"resume={tmp_path}/toy/run/ckpts/last.ckpt" in message
    assert [line.split(":")[0] for line in told] == [f"Step {n}" for n in range(3, 12)]


def test_left_out_steps_move_nothing(tmp_path, told):
    """Nine of twelve are left out: what remains is the run of three steps."""
    whole = run(tmp_path / "a", "checkpoint.every_n_train_steps=3", guidance={"nan_from": 4})
    short = run(tmp_path / "b", "trainer.max_steps=3", "checkpoint.every_n_train_steps=3")
    assert result(whole)[0] == result(short, 3)[0]
    assert len(told) == 9


def test_a_loss_beyond_all_sense_is_no_success(tmp_path, told):
    with pytest.raises(UserError, match=r"Step 10: the loss is \d.*e\+1[3-9]\. 10 steps"):
        run(tmp_path, guidance={"scale": 1e12 * 3})
    assert LARGEST_LOSS == 1e12


def test_a_cloud_that_no_view_shows(tmp_path, told):
    """There is no gradient, so it cannot come back."""
    with pytest.raises(UserError, match=r"Step 10: no view shows anything: .*lr_opacities"):
        run(tmp_path, density=NO_DENSITY, geometry={"init_opacity": 1e-5})


# --- undone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", ["lr_means", "lr_scales", "lr_opacities", "lr_sh_dc", "lr_quats"])
def test_a_rate_of_a_million_ends_the_run(tmp_path, told, rate):
    with pytest.raises(UserError) as caught:
        run(tmp_path, density=NO_DENSITY, geometry={rate: 1e6})
    message, name = str(caught.value), {"lr_scales": "log_scales", "lr_opacities": "logit_opacities"}
    tensor = f"geometry.cloud.{name.get(rate, rate.removeprefix('lr_'))}"
    assert message.startswith(f"Step {RETURNS + 1}: {tensor} is 1e+06 large")
    assert f"system.geometry.{rate} (now 1e+06)" in message
    assert len(told) == RETURNS and all(tensor in line and "undone" in line for line in told)


def test_also_where_density_control_comes_between(tmp_path, told):
    """Adam skips the steps in which rows move, so these are no sign that all is well."""
    with pytest.raises(UserError, match=r"Step 5: geometry.cloud.means"):
        run(tmp_path, geometry={"lr_means": 1e6})


def test_one_bad_step_is_undone_and_the_run_goes_on(tmp_path, told):
    """The undone step has left no trace: the run is the one in which this step was left out."""
    leaping = run(tmp_path / "a", density=NO_DENSITY, geometry={"lr_scales": ONE_LEAP})
    assert len(told) == 1 and told[0].startswith("Step 4: geometry.cloud.log_scales is 9.87e+05 l")
    told.clear()
    skipping = run(tmp_path / "b", density=NO_DENSITY, guidance={"nan_from": 4, "nan_until": 5})
    assert len(told) == 1 and told[0].startswith("Step 4: the loss is nan")
    assert result(leaping) == result(skipping)


def test_undone_with_density_control(tmp_path, told):
    """And the run can be resumed before it."""
    density = {"start": 0, "every": 3, "until": 10}
    leap = [0, 0.02, 0.02, 3, 1e6, 4, 0.02, 5]  # the fifth step, after rows were cloned in the third
    whole = run(tmp_path / "a", density=density, geometry={"lr_scales": leap})
    assert [line.split(":")[0] for line in told] == ["Step 5"]
    checkpoint = whole / "ckpts/epoch=0-step=4.ckpt"
    resumed = run(tmp_path / "b", f"resume='{checkpoint}'", density=density, geometry={"lr_scales": leap})
    assert result(whole) == result(resumed)


def test_counts_go_through_checkpoints(tmp_path, told):
    """A run that is interrupted gives up at the same step."""
    checkpoint = tmp_path / "a/toy/run/ckpts/epoch=0-step=2.ckpt"
    overrides = {"a": "checkpoint.every_n_train_steps=2", "b": f"resume='{checkpoint}'"}
    messages = []
    for name, override in overrides.items():
        with pytest.raises(UserError) as caught:
            run(tmp_path / name, override, density=NO_DENSITY, geometry={"lr_means": 1e6})
        messages.append(str(caught.value).split(" The last")[0])
    assert messages[0] == messages[1]


def _system(lr=0.1, **parameters):
    """As much of a system as the safeguard looks at."""
    module = nn.Module()
    for name, value in parameters.items():
        module.register_parameter(name, nn.Parameter(value))
    module.register_buffer("count", torch.zeros((), dtype=torch.int64))
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    module.cfg = SimpleNamespace(guidance={})
    module.trainer = SimpleNamespace(optimizers=[optimizer], checkpoint_callback=None, ckpt_path=None)
    return module, optimizer


def _step(system, optimizer, guard, number, rate=0.1):
    for k, p in enumerate(system.parameters()):
        p.grad = torch.sin(torch.arange(p.numel()).reshape(p.shape) + 3.0 * number + k)
    optimizer.param_groups[0]["lr"] = rate
    guard.keep(system)
    optimizer.step()
    system.count += 1
    return guard.check(system, number)


@pytest.mark.parametrize("bad", [1, 4])
def test_a_step_that_was_undone_has_left_no_trace(told, bad):
    """Parameters, buffers and Adam's memory are those of a training that never made it."""
    systems = []
    for leaps in (True, False):
        system, optimizer = _system(a=torch.ones(3, 2), b=torch.zeros(5))
        guard = Safeguard()
        for number in range(1, 9):
            if number == bad and leaps:
                assert not _step(system, optimizer, guard, number, rate=1e9)
            elif number != bad:
                assert _step(system, optimizer, guard, number)
        systems.append((system, optimizer))
    (one, first), (other, second) = systems
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        for name, value in first.state[p].items():
            assert torch.equal(value, second.state[q][name]), name


def test_undone_steps_are_forgotten_after_ten_good_ones(told):
    system, optimizer = _system(a=torch.ones(3))
    guard = Safeguard()
    for number in range(1, 5 * (PATIENCE + 1)):
        rate = 1e9 if number % (PATIENCE + 1) == 0 else 1e-3
        assert _step(system, optimizer, guard, number, rate) is (rate < 1)
    assert len(told) == 4
    for number in range(RETURNS - 1):
        _step(system, optimizer, guard, number, 1e9)
    with pytest.raises(UserError, match="diverges"):
        for number in range(2):
            _step(system, optimizer, guard, number, 1e9)


def test_large_numbers_to_begin_with_are_no_divergence():
    """As of somebody's cloud in millimetres."""
    system, optimizer = _system(a=torch.full((3,), 5e4))
    assert _step(system, optimizer, Safeguard(), 1)


def test_a_bad_start_is_told():
    system, _ = _system(a=torch.tensor([1.0, float("nan")]))
    with pytest.raises(UserError, match="a holds numbers that are not finite before the first step"):
        Safeguard().keep(system)


def test_a_checkpoint_that_holds_no_numbers_is_told(tmp_path):
    trial = run(tmp_path, "trainer.max_steps=4")
    file = trial / "ckpts/last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["state_dict"]["geometry.cloud.means"][3, 1] = float("nan")
    torch.save(checkpoint, file)
    for stage in ("train", "test", "export"):
        with pytest.raises(UserError, match=r"last.ckpt: the weights geometry.cloud.means hold 1 numbers"):
            launch(toy_config(tmp_path), tmp_path, f"resume='{file}'", stage=stage)


# --- memory and mixed precision -----------------------------------------------------------------------------


def test_out_of_memory_names_what_helps(tmp_path):
    with pytest.raises(UserError) as caught:
        run(tmp_path, guidance={"out_of_memory": True})
    message = str(caught.value)
    assert "(CUDA out of memory)" in message
    for key in (
        "system.accumulate (now 1)",
        "data.batch_size",
        "system.guidance.vae",
        "data.height",
        "dtype",
    ):
        assert key in message


def test_a_gradscaler_changes_nothing(tmp_path, monkeypatch):
    """trainer.precision=16-mixed multiplies the loss by 65,536, and density control must not see it."""
    plain = run(tmp_path / "plain")
    make = threestudio.run._make_trainer

    def make_mixed(*args, **kwargs):
        trainer = make(*args, **kwargs)
        scaler = torch.amp.GradScaler("cpu")  # on a CPU Lightning would take bfloat16, without one
        trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
        return trainer

    monkeypatch.setattr(threestudio.run, "_make_trainer", make_mixed)
    assert result(run(tmp_path / "mixed")) == result(plain)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"geometry": {"lr_means": float("inf")}}, "system.geometry.lr_means is inf"),
        ({"loss": {"lambda_sds": float("nan")}}, "system.loss.lambda_sds is nan"),
        ({"geometry": {"lr_scales": [0, 0.1, float("inf"), 9]}}, r"system.geometry.lr_scales\[2\] is inf"),
        ({"density": {"grad_threshold": float("-inf")}}, "system.density.grad_threshold is -inf"),
    ],
)
def test_numbers_that_are_none_are_refused_in_a_config(tmp_path, change, key):
    with pytest.raises(Exception, match=key) as caught:
        run(tmp_path, **change)
    assert caught.value.is_user_error
    assert not (tmp_path / "toy").exists()
