"""`system.geometry.init`: every kind of source, from the config to the first Gaussians."""

import numpy as np
import pytest
import torch
import trimesh

import threestudio
from threestudio_lucid.errors import UserError
from threestudio_lucid.gaussians.cloud import base_colors, gaussians_from_points
from threestudio_lucid.gaussians.ply import write_ply
from threestudio_lucid.points import SHAPES, PointCloud, ball, mean_squared_neighbour_distance
from threestudio_lucid.points import pointe as point_e
from threestudio_lucid.points.initializers import PointInitializer


def geometry(init, **options):
    return threestudio.find("lucid-gaussian-splatting")({"init": init, "num_points": 300, **options})


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape):
    gaussians = geometry(f"shape:{shape}", init_radius=0.7).gaussians
    assert len(gaussians) == 300 and gaussians.means.abs().max() <= 0.7
    spacing = mean_squared_neighbour_distance(gaussians.means).sqrt()
    torch.testing.assert_close(gaussians.log_scales.exp(), spacing[:, None].expand(-1, 3))
    torch.testing.assert_close(gaussians.logit_opacities.sigmoid(), torch.full((300,), 0.1))
    again, other = (geometry(f"shape:{shape}", init_radius=0.7, seed=seed).gaussians for seed in (0, 1))
    assert torch.equal(again.means, gaussians.means) and not torch.equal(other.means, gaussians.means)


def test_few_points_of_a_file_become_many(tmp_path):
    few = ball(50, 0.5, torch.Generator().manual_seed(0)).points.numpy()
    np.savez(tmp_path / "a.npz", points=few, colors=np.tile([1.0, 0.0, 0.5], (50, 1)))
    gaussians = geometry(f"file:{tmp_path}/a.npz", init_jitter=0.1).gaussians
    assert len(gaussians) == 300
    assert torch.cdist(gaussians.means, torch.from_numpy(few)).min(dim=1).values.max() <= 0.05 + 1e-4
    torch.testing.assert_close(base_colors(gaussians)[0], torch.tensor([1.0, 0.0, 0.5]))
    grey = geometry(f"file:{tmp_path}/a.npz", init_color=False).gaussians
    torch.testing.assert_close(base_colors(grey), torch.full((300, 3), 0.5))


def test_a_mesh_is_fitted_and_turned(tmp_path):
    trimesh.creation.box(extents=(1, 2, 40)).export(tmp_path / "a.obj")
    given = {"init_args": {"up": "+x", "front": "+z"}, "init_radius": 0.5}
    means = geometry(f"file:{tmp_path}/a.obj", **given).gaussians.means.detach()
    assert means[:, 0].abs().max() == pytest.approx(0.5, abs=0.01) and means[:, 2].abs().max() < 0.02


def test_gaussians_are_taken_as_they_are_or_as_points(tmp_path):
    start = gaussians_from_points(ball(40, 3.0, torch.Generator().manual_seed(0)), opacity=0.7)
    write_ply(tmp_path / "a.ply", start)
    asset = geometry(f"file:{tmp_path}/a.ply")
    assert asset.cloud.capacity == 1200
    assert torch.equal(asset.gaussians.logit_opacities, start.logit_opacities)
    with pytest.raises(UserError, match="taken as they are: fit, up and front"):
        geometry(f"file:{tmp_path}/a.ply", init_args={"fit": True}).start()
    points = geometry(f"file:{tmp_path}/a.ply", init_args={"as_points": True, "fit": True}).gaussians
    assert len(points) == 300 and points.means.abs().max() < 0.6
    with pytest.raises(UserError, match=r"capacity \(for file:.*\) is 30; it must be at least 40"):
        geometry(f"file:{tmp_path}/a.ply", num_points=20, capacity=30).start()


@pytest.fixture
def drawn(monkeypatch):
    """Prompts that Point-E was asked for; it answers with a small ball."""
    asked = []

    def generate(prompt, generator, model="mini", **options):
        asked.append((prompt, model, options))
        return ball(20, 0.5, generator)

    monkeypatch.setattr(point_e, "generate", generate)
    return asked


def test_text_is_its_own_or_the_prompt(drawn):
    assert len(geometry("text:a blue mug", init_prompt="a mug").gaussians) == 300
    geometry("text", init_prompt="a mug", text_model="pointe", init_args={"steps": 8}).start()
    assert [(prompt, model) for prompt, model, _ in drawn] == [("a blue mug", "mini"), ("a mug", "pointe")]
    assert drawn[1][2]["steps"] == 8
    with pytest.raises(UserError, match="there is no prompt: write text:a mug, or set init_prompt"):
        geometry("text")


def test_nothing_is_drawn_where_a_checkpoint_brings_gaussians(drawn):
    before = geometry("text:a mug")
    before.start()
    after = geometry("text:a mug", capacity=1200)
    after.load_state_dict(before.state_dict())
    assert torch.equal(after.gaussians.means, before.gaussians.means) and len(drawn) == 1


def test_without_weights_point_e_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"There is no point prior in .*nowhere"):
        geometry("text:a mug", text_model=str(tmp_path / "nowhere")).start()


@pytest.mark.parametrize(
    ("init", "options", "message"),
    [
        ("shape:cube", {}, "There is no shape 'cube'; there is: ball, sphere, box, torus"),
        ("shape", {}, "There is no shape ''"),
        (
            "shap:ball",
            {},
            r"'shap:ball' is no source of points. Did you mean 'shape'\? There is: .*file:PATH",
        ),
        ("", {}, "is no source of points. There is: .*text:PROMPT"),
        ("file:", {}, r"must end in \.ply"),
        ("file:a.blend", {}, r"must end in \.ply, \.npz, \.obj, \.glb"),
        ("shap-e", {}, "there is no prompt: write shap-e:a mug"),
        ("shap-e:a mug", {"init_args": {"steps": 0}}, "steps is 0; it must be at least 1"),
        ("file:a.obj", {"init_args": {"up": "y"}}, "up is 'y'; it must be one of: "),
        ("file:a.obj", {"init_args": {"upp": "+y"}}, "upp"),
        ("file:a.obj", {"init_args": "up"}, "init_args is 'up'; it must be a mapping"),
        ("shape:ball", {"init_jitter": -1}, "init_jitter is -1"),
        ("shape:ball", {"init_args": {"radius": 7}}, r"init_args.radius is not read: .*init_radius"),
        ("text:a mug", {"init_args": {"base": "a.pt"}}, "init_args.base is of OpenAI's Point-E"),
    ],
)
def test_mistakes_are_told_when_the_config_is_read(init, options, message):
    with pytest.raises(Exception, match=message) as caught:
        geometry(init, **options)
    assert caught.value.is_user_error


def test_a_kind_of_ones_own(monkeypatch):
    class Line(PointInitializer):
        def draw(self, draw):
            x = torch.linspace(-1, 1, 7)
            return PointCloud(torch.stack([x, 0 * x, x / float(self.cfg.value)], 1), torch.zeros(7, 3))

    monkeypatch.setitem(threestudio.__modules__, "lucid-point-line", Line)
    assert geometry("line:2", init_jitter=0).gaussians.means[:, 2].max() == 0.5
    with pytest.raises(UserError, match=r"are not finite"):
        geometry("line:0", init_jitter=0).start()
    with pytest.raises(UserError, match=r"line:\.\.\."):
        geometry("circle:2")
