"""Systems, optimizers, schedules, checkpoints' weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import threestudio
from threestudio.models.exporters.base import Exporter, ExporterOutput
from threestudio.models.geometry.base import BaseExplicitGeometry
from threestudio.models.renderers.base import Rasterizer
from threestudio.systems.base import BaseLift3DSystem, BaseSystem
from threestudio.systems.optimizers import Adan
from threestudio.systems.utils import parse_optimizer, parse_scheduler
from threestudio.utils.errors import CheckpointError, UserError
from threestudio.utils.misc import find_last_path, load_checkpoint, load_module_weights


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(2, 2)
        self.head = torch.nn.ModuleDict({"out": torch.nn.Linear(2, 1)})
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.note = "text"


def test_one_group_for_each_named_attribute():
    config = OmegaConf.create(
        {"name": "AdamW", "args": {"lr": 0.1}, "params": {"body": {"lr": 0.5}, "head.out": None, "scale": {}}}
    )
    config.params["note"] = {}
    optimizer = parse_optimizer(config, Model())
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {name: len(group["params"]) for name, group in groups.items()} == {
        "body": 2,
        "head.out": 2,
        "scale": 1,
        "note": 0,
    }
    assert groups["body"]["lr"] == 0.5 and groups["scale"]["lr"] == 0.1


def test_without_names_everything_is_one_group():
    optimizer = parse_optimizer(OmegaConf.create({"name": "SGD", "args": {"lr": 0.1}}), Model())
    assert len(optimizer.param_groups) == 1 and len(optimizer.param_groups[0]["params"]) == 5


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"name": "Adma", "args": {}}, KeyError, "Adam"),
        ({"name": "Adam", "args": {"lrr": 1}}, TypeError, "'lrr'.*Did you mean 'lr'"),
        ({"name": "Adam", "arg": {"lr": 1}, "args": {}}, TypeError, "'arg'.*Did you mean 'args'"),
        ({"name": "Adam", "args": {}, "params": {"boddy": {}}}, AttributeError, "Did you mean 'body'"),
        ({"name": "Adam", "args": {"lr": -1}}, ValueError, "learning rate"),
        ({"name": "Adam", "args": {}, "params": {"tail": {}}}, AttributeError, "'tail'"),
        ({"name": "Adam", "args": {}, "params": {"head": {}, "head.out": {}}}, ValueError, "more than one"),
        ({"args": {}}, AttributeError, "name"),
    ],
)
def test_optimizer_mistakes(config, error, words):
    with pytest.raises(error, match=words):
        parse_optimizer(OmegaConf.create(config), Model())


def test_schedulers():
    optimizer = parse_optimizer(OmegaConf.create({"name": "SGD", "args": {"lr": 1.0}}), Model())
    config = OmegaConf.create(
        {
            "name": "SequentialLR",
            "interval": "step",
            "milestones": [2],
            "schedulers": [
                {"name": "ConstantLR", "args": {"factor": 0.5, "total_iters": 100}},
                {"name": "ExponentialLR", "args": {"gamma": 0.1}},
            ],
        }
    )
    parsed = parse_scheduler(config, optimizer)
    assert parsed["interval"] == "step"
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        parsed["scheduler"].step()
    assert rates == pytest.approx([0.5, 0.5, 1.0, 0.1])
    assert (
        parse_scheduler(OmegaConf.create({"name": "ExponentialLR", "args": {"gamma": 1}}), optimizer)[
            "interval"
        ]
        == "epoch"
    )


@pytest.mark.parametrize(
    "config",
    [
        {"name": "ExponentialLr", "args": {"gamma": 0.1}},
        {"name": "ExponentialLR", "args": {"gama": 0.1}},
        {"name": "ExponentialLR", "args": {"gamma": 0.1}, "intervall": "step"},
        {"name": "SequentialLR", "milestones": [1, 2], "schedulers": []},
        {"name": "ExponentialLR", "interval": "steps", "args": {"gamma": 0.1}},
    ],
)
def test_scheduler_mistakes(config):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(UserError):
        parse_scheduler(OmegaConf.create(config), optimizer)


def test_adan_first_steps_by_hand():
    """Constant gradient g: all differences are 0, so each step is lr * g / (|g| + eps)."""
    param = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = Adan([param], lr=0.1)
    for _ in range(3):
        param.grad = torch.tensor([2.0, -4.0])
        optimizer.step()
    torch.testing.assert_close(param.detach(), torch.tensor([0.7, -1.7]))


def test_adan_finds_a_minimum_and_decays():
    param = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = Adan([param], lr=0.05, max_grad_norm=5.0)
    for _ in range(300):
        optimizer.zero_grad()
        ((param - 1) ** 2).sum().backward()
        optimizer.step()
    # a constant rate leaves the weights circling within about two steps of the minimum
    torch.testing.assert_close(param.detach(), torch.ones(2), atol=0.1, rtol=0)
    before = param.detach().clone()
    param.grad = torch.zeros(2)
    Adan([param], lr=0.1, weight_decay=1.0).step()
    torch.testing.assert_close(param.detach(), before / 1.1)


# ---- systems ----


class OneWeight(BaseSystem):
    @dataclass
    class Config(BaseSystem.Config):
        size: int = 2

    def configure(self):
        self.body = torch.nn.Linear(self.cfg.size, 1)
        self.loaded_at = None

    def update_step(self, epoch, global_step, on_load_weights=False):
        if on_load_weights:
            self.loaded_at = (epoch, global_step)


@pytest.fixture
def checkpoint(tmp_path):
    system = OneWeight({})
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": system.state_dict(), "epoch": 1, "global_step": 7}, path)
    return system, str(path)


def test_weights_of_config(checkpoint):
    old, path = checkpoint
    new = OneWeight({"weights": path})
    torch.testing.assert_close(new.body.weight, old.body.weight)
    assert new.loaded_at == (1, 7)
    other = OneWeight({"weights": path, "weights_ignore_modules": ["body"]})
    assert not torch.equal(other.body.weight, old.body.weight)


def test_weights_that_do_not_fit(checkpoint):
    old, _ = checkpoint
    with pytest.raises(CheckpointError, match=r"OneWeight[\s\S]*body\.weight"):
        OneWeight({"size": 3}).load_state_dict(old.state_dict())


def test_step_comes_from_the_checkpoint_when_evaluating(checkpoint):
    system, _ = checkpoint
    system.set_resume_status(2, 30)
    assert (system.true_current_epoch, system.true_global_step) == (2, 30)
    assert system.C([0, 1.0, 0.0, 60]) == 0.5


def test_steps_must_be_written():
    for name in ("training_step", "validation_step", "test_step"):
        with pytest.raises(NotImplementedError, match=name):
            getattr(BaseSystem({}), name)({}, 0)


def test_module_weights(checkpoint):
    _, path = checkpoint
    weights, epoch, step = load_module_weights(path, module_name="body")
    assert sorted(weights) == ["bias", "weight"] and (epoch, step) == (1, 7)
    with pytest.raises(CheckpointError, match="it has: body"):
        load_module_weights(path, module_name="geometry")
    with pytest.raises(ValueError, match="not both"):
        load_module_weights(path, module_name="body", ignore_modules=["body"])


def test_bad_checkpoints(tmp_path, checkpoint):
    _, path = checkpoint
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(Path(path).read_bytes()[:500])
    text = tmp_path / "text.ckpt"
    text.write_text("hello")
    other = tmp_path / "other.ckpt"
    torch.save([1, 2], other)
    for bad in (cut, text, other):
        with pytest.raises(CheckpointError, match=bad.name):
            load_checkpoint(bad)
    with pytest.raises(CheckpointError, match=r"There is: .*last\.ckpt"):
        load_checkpoint(tmp_path / "missing.ckpt")


def test_checkpoints_are_not_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    torch.save({"state_dict": {}, "epoch": 0, "global_step": 0, "x": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "evil.ckpt")


def test_last_path(tmp_path):
    for stamp in ("@1", "@3", "@2"):
        (tmp_path / f"a_bird{stamp}").mkdir()
    assert find_last_path(f"{tmp_path}/a bird@LAST/ckpts/last.ckpt") == f"{tmp_path}/a_bird@3/ckpts/last.ckpt"
    assert find_last_path("x/last.ckpt") == "x/last.ckpt"
    with pytest.raises(CheckpointError, match="fish"):
        find_last_path(f"{tmp_path}/fish@LAST/last.ckpt")


# ---- a system of parts ----


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.setattr(threestudio, "__modules__", dict(threestudio.__modules__))

    @threestudio.register("dot-geometry")
    class Dot(BaseExplicitGeometry):
        def configure(self):
            super().configure()
            self.position = torch.nn.Parameter(torch.zeros(3))
            self.visits = 0

        def update_step(self, epoch, global_step, on_load_weights=False):
            self.visits += 1

        @staticmethod
        def create_from(other, cfg=None, **kwargs):
            dot = Dot(cfg)
            dot.position.data.copy_(other.position.data + 1)
            return dot

    @threestudio.register("dot-renderer")
    class DotRenderer(Rasterizer):
        def forward(self, c2w, **kwargs):
            return {"comp_rgb": torch.sigmoid(self.geometry.position).expand(len(c2w), 2, 2, 3)}

    @threestudio.register("dot-exporter")
    class DotExporter(Exporter):
        def __call__(self):
            return [ExporterOutput("dot.json", "json", {"payload": self.geometry.position.tolist()})]

    return {
        "geometry_type": "dot-geometry",
        "material_type": "no-material",
        "background_type": "solid-color-background",
        "renderer_type": "dot-renderer",
        "exporter_type": "dot-exporter",
    }


def test_parts_are_made_and_weights_stay_under_their_names(parts):
    system = BaseLift3DSystem(parts)
    assert sorted(system.state_dict()) == [
        "background.env_color",
        "geometry.bbox",
        "geometry.position",
        "renderer.bbox",
    ]
    assert system.renderer.geometry is system.geometry


def test_geometry_is_updated_by_the_system_and_by_the_renderer(parts):
    system = BaseLift3DSystem(parts)
    system.do_update_step(0, 0)
    assert system.geometry.visits == 2


def test_export(parts, tmp_path):
    system = BaseLift3DSystem(parts)
    system.set_save_dir(str(tmp_path))
    system.set_resume_status(0, 5)
    system.on_predict_start()
    system.predict_step({}, 0)
    system.on_predict_epoch_end()
    assert (tmp_path / "it5-export" / "dot.json").exists()


def test_geometry_is_converted_from_another_run(parts, tmp_path):
    trial = tmp_path / "a@1"
    (trial / "configs").mkdir(parents=True)
    (trial / "ckpts").mkdir()
    old = BaseLift3DSystem(parts)
    torch.nn.init.constant_(old.geometry.position, 3.0)
    torch.save({"state_dict": old.state_dict(), "epoch": 0, "global_step": 9}, trial / "ckpts" / "last.ckpt")
    OmegaConf.save(
        OmegaConf.create({"tag": "a", "system": dict(parts, stage="coarse")}), trial / "configs/parsed.yaml"
    )
    new = BaseLift3DSystem(dict(parts, geometry_convert_from=f"{tmp_path}/a@LAST/ckpts/last.ckpt"))
    assert new.geometry.position.tolist() == [4.0, 4.0, 4.0]
    resumed = BaseLift3DSystem(dict(parts, geometry_convert_from="nowhere.ckpt"), resumed=True)
    assert resumed.geometry.position.tolist() == [0.0, 0.0, 0.0]


def test_guidance_evaluation(parts, tmp_path):
    system = BaseLift3DSystem(parts)
    system.set_save_dir(str(tmp_path))
    imgs = torch.rand(2, 8, 8, 3)
    columns = dict.fromkeys(("imgs_noisy", "imgs_1step", "imgs_1orig", "imgs_final"), imgs)
    path = system.guidance_evaluation_save(torch.rand(2, 4, 4, 3), {"bs": 2, "texts": ["a", "b"], **columns})
    assert path.endswith("it0-train.png")


def test_background():
    background = threestudio.find("solid-color-background")({"color": [0.0, 0.5, 1.0]})
    dirs = torch.zeros(2, 3, 4, 3)
    assert background(dirs=dirs).shape == (2, 3, 4, 3) and background(dirs)[0, 0, 0].tolist() == [
        0.0,
        0.5,
        1.0,
    ]
    random = threestudio.find("solid-color-background")(
        {"random_aug": True, "random_aug_prob": 1.0, "learned": True}
    )
    colors = random(dirs)
    assert (colors[0] == colors[0, 0, 0]).all() and not torch.equal(colors[0], colors[1])
    colors.sum().backward()
    assert random.env_color.grad is not None
    assert random.eval()(dirs).min() == 1.0
    with pytest.raises(UserError, match="2 values"):
        threestudio.find("solid-color-background")({"color": [0.0, 1.0]})


def test_no_material():
    material = threestudio.find("no-material")({})
    assert material(torch.zeros(2, 3), anything=1).tolist() == [[0.5] * 3] * 2
    with pytest.raises(ValueError, match="needs 3 features"):
        material(torch.zeros(2, 4))
    network = {"otype": "VanillaMLP", "n_neurons": 8, "n_hidden_layers": 1}
    material = threestudio.find("no-material")({"input_feature_dims": 4, "mlp_network_config": network})
    assert material(torch.zeros(2, 5, 4)).shape == (2, 5, 3)
    assert set(material.export(torch.zeros(2, 4))) == {"albedo"}
