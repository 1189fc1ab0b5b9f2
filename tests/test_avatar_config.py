"""configs/avatar.yaml: two steps on tiny models, the same twice, and its mistakes told before training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import trimesh
from PIL import Image
from test_configs import SHORT
from tiny import save_prior

import threestudio
import threestudio_lucid  # noqa: F401  (its resolvers and classes)
from threestudio.utils.config import load_config, parse_structured
from threestudio_lucid.gaussians.ply import read_ply
from threestudio_lucid.guidance.control import Control, check_fits, find_controlnet, read_config
from threestudio_lucid.guidance.prior import Prior

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/avatar.yaml"


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny prior, and a ControlNet for it."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    folder = tmp_path_factory.mktemp("models")
    prior = save_prior(folder / "prior", vae="tiny")
    unet = UNet2DConditionModel.from_pretrained(prior / "unet")
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8))
    torch.manual_seed(0)
    for name, p in net.named_parameters():
        if name.startswith("controlnet_"):
            torch.nn.init.normal_(p, std=0.3)
    net.save_pretrained(folder / "controlnet")
    return prior, folder / "controlnet"


def launch(models, folder, *overrides, stage="train"):
    from threestudio.run import Request, run

    prior, controlnet = models
    given = [
        *(item for item in SHORT if "geometry.init" not in item),
        f"system.guidance.prior={prior}",
        "system.guidance.dtype=float32",
        f"system.guidance.control.model={controlnet}",
        f"exp_root_dir={folder / 'out'}",
        f"system.prompt_processor.cache_dir={folder}/cache",
        "system.prompt_processor.prompt=abc",
        *overrides,
    ]
    run(Request(str(CONFIG), stage, given, [ROOT / "custom"]))
    return folder / "out" / "avatar" / "abc"


def test_two_steps_twice_are_the_same_and_the_pose_matters(models, tmp_path):
    results = []
    for name, pose in (("a", "walking"), ("b", "walking"), ("c", "t")):
        save = launch(models, tmp_path / name, f"system.body.pose={pose}") / "save"
        assert Image.open(save / "it2-maps.png").size[0] > 16
        results.append((save / "it2.ply").read_bytes())
    assert results[0] == results[1] != results[2]
    assert len(read_ply(save / "it2.ply")) > 0


@pytest.mark.parametrize(
    "override",
    [
        "system.guidance_type=lucid-sds-guidance",
        "system.guidance.control.scores=both",
        "system.guidance.control=null",
        "system.geometry.init=shape:ball system.geometry.init_args=null",
        "system.accumulate=2",
        "system.body.pose={left shoulder: [40, 0, 0]}",
    ],
)
def test_other_ways_to_run_it(models, tmp_path, override):
    items = override.split(" system.") if "shape:ball" in override else [override]
    items = [items[0], *(f"system.{item}" for item in items[1:])]
    assert (launch(models, tmp_path, *items) / "save/it2.ply").is_file()


def test_a_mesh_of_the_users(models, tmp_path):
    from threestudio_lucid.bodies.mannequin import mannequin

    body = mannequin("t")
    trimesh.Trimesh(body.vertices, body.faces, process=False).export(tmp_path / "body.obj")
    run = launch(models, tmp_path, f"system.body.model=file:{tmp_path / 'body.obj'}", "system.body.pose=t")
    assert (run / "save/it2.ply").is_file()


@pytest.mark.parametrize("name", ["sd21", "sd15", "mini"])
def test_parses_for_every_prior(name):
    cfg = load_config(str(CONFIG), cli_args=[f"system.guidance.prior={name}"])
    assert (cfg.name, cfg.system.body_map) == ("avatar", "iuv" if name == "mini" else "viridis")
    for role in ("guidance", "prompt_processor", "geometry", "renderer", "exporter"):
        parse_structured(threestudio.find(cfg.system[f"{role}_type"]).Config, cfg.system.get(role, {}))
    parse_structured(threestudio.find(cfg.system_type).Config, cfg.system)


def test_it_is_ism_gs_with_a_body():
    ism, avatar = (
        load_config(str(ROOT / f"configs/{name}.yaml"), cli_args=[]) for name in ("ism-gs", "avatar")
    )
    for cfg in (ism, avatar):
        for key in ("body", "body_map", "geometry", "prompt_processor", "exporter"):
            cfg.system.pop(key, None)
        cfg.system.guidance.pop("control", None)
    del ism.system_type, avatar.system_type
    for block in ("data", "system", "trainer", "checkpoint"):
        assert ism[block] == avatar[block]


def test_the_bundled_controlnet_is_for_the_bundled_prior():
    prior = Prior.load("mini", "cpu", "float32")
    check_fits(read_config(find_controlnet("mini")), prior, "mini")
    control = Control.load({"model": "mini"}, prior)
    size = sum(path.stat().st_size for path in find_controlnet("mini").iterdir())
    assert size < 12_000_000 and control.active(500)


# --- mistakes -----------------------------------------------------------------------------------------------

MISTAKES = {
    "system.body.pose=arms upp": ("'arms up'", "walking"),
    "system.body.pose={left sholder: [1,2,3]}": ("'left shoulder'",),
    "system.body.model=manequin": ("'mannequin'", "smplx:FOLDER"),
    "system.body.model=file:nowhere.obj": ("There is no file nowhere.obj",),
    "system.body.model=smplx:nowhere": ("smplx", "system.body.model=mannequin"),
    "system.body.heigth=1": ("'height'",),
    "system.body.height=-1": ("height", "above 0"),
    "system.body_map=jet": ("system.body_map", "viridis, parula, iuv"),
    "system.geometry.init_args.pose=t": ("block", "system.body"),
    "system.geometry.init_args={block: null}": ("body:mannequin",),
    "system.geometry.init_args={block: {pose: t}}": ("differ", "pose: 'standing' against 't'"),
    "system.geometry.init=body:file:a.obj": ("block", "system.body"),
    "system.guidance.control.model=nowhere": ("There is no ControlNet 'nowhere'", "mini"),
    "system.guidance.control.model=mini": ("another base model", "cross_attention_dim"),
    "system.guidance.control.scores=all": ("conditional, both",),
    "system.guidance.control.strength=1": ("'strength'", "scale"),
    "system.guidance.control.start=2": ("control.start", "at most 1"),
}


@pytest.mark.parametrize(("override", "words"), MISTAKES.items(), ids=MISTAKES)
def test_mistakes_are_told_before_anything_is_written(models, tmp_path, override, words):
    with pytest.raises(Exception) as caught:
        launch(models, tmp_path, override)
    assert getattr(caught.value, "is_user_error", False), repr(caught.value)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert not (tmp_path / "out").exists()


def test_a_body_of_the_geometry_alone_must_be_the_systems(models, tmp_path):
    ways = (
        "system.geometry.init=body:mannequin",
        "system.geometry.init_args={block: null, pose: t, height: 1.0}",
    )
    with pytest.raises(Exception, match="differ"):
        launch(models, tmp_path, *ways)
    assert (launch(models, tmp_path, *ways, "system.body.pose=t") / "save/it2.ply").is_file()


def test_meshes_that_are_no_bodies(models, tmp_path):
    (tmp_path / "points.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 1\n")
    trimesh.creation.box((1609.0, 1.0, 1.0)).export(tmp_path / "mile.obj")
    for name, words in (("points.obj", "no triangles"), ("mile.obj", "no body that stands up")):
        with pytest.raises(Exception, match=words):
            launch(models, tmp_path, f"system.body.model=file:{tmp_path / name}")


def test_the_command_line_ends_with_2(models, tmp_path, capsys):
    import launch as command

    arguments = ["--config", str(CONFIG), "--train", f"exp_root_dir={tmp_path}", "system.body.pose=flying"]
    assert command.main(arguments) == 2
    told = capsys.readouterr().err
    assert told.count("error:") == 1 and "flying" in told and "Traceback" not in told
