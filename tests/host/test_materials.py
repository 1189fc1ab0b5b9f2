"""Materials and backgrounds."""

from __future__ import annotations

import pytest
import torch

import threestudio
from threestudio.models.background.neural_environment_map_background import NeuralEnvironmentMapBackground
from threestudio.models.materials.diffuse_with_point_light_material import DiffuseWithPointLightMaterial
from threestudio.models.materials.neural_radiance_material import NeuralRadianceMaterial
from threestudio.utils.errors import ConfigValueError

LAMP_AT_60_DEGREES = {
    "positions": torch.zeros(1, 3),
    "light_positions": torch.tensor([[3**0.5, 0.0, 1.0]]),
    "shading_normal": torch.tensor([[0.0, 0.0, 1.0]]),
}


def matt(**config) -> DiffuseWithPointLightMaterial:
    return DiffuseWithPointLightMaterial({"albedo_activation": "none"} | config)


def test_diffuse_shading_by_hand():
    """cos 60 = 1/2: 0.1 + 0.9 / 2 = 0.55 of the albedo; from behind, the ambient 0.1 alone."""
    material = matt().eval()
    features = torch.tensor([[0.2, 0.4, 1.0, 7.0]])
    color = material(features, **LAMP_AT_60_DEGREES, viewdirs=None, c2w=None)
    torch.testing.assert_close(color, 0.55 * features[:, :3])
    behind = LAMP_AT_60_DEGREES | {"shading_normal": torch.tensor([[0.0, 0.0, -1.0]])}
    torch.testing.assert_close(material(features, **behind), 0.1 * features[:, :3])
    white = material(features, **LAMP_AT_60_DEGREES, shading="textureless")
    torch.testing.assert_close(white, torch.full((1, 3), 0.55))
    soft = material(features, **LAMP_AT_60_DEGREES, ambient_ratio=0.4)
    torch.testing.assert_close(soft, (0.4 + 0.6 / 2) * features[:, :3])
    torch.testing.assert_close(material.export(features=features)["albedo"], features[:, :3])


def test_only_the_albedo_at_first():
    material = matt(ambient_only_steps=3).train()
    features = torch.tensor([[0.2, 0.4, 0.6]])
    material.update_step(0, 2)
    for _ in range(20):
        assert torch.equal(material(features, **LAMP_AT_60_DEGREES), features)
    assert torch.equal(material.eval()(features, **LAMP_AT_60_DEGREES), features)
    material.update_step(0, 3)
    assert not torch.equal(material(features, **LAMP_AT_60_DEGREES), features)
    assert torch.equal(matt(ambient_only_on_test=True).eval()(features, **LAMP_AT_60_DEGREES), features)


def test_shadings_are_drawn_as_often_as_asked():
    """A quarter albedo, and of the rest half white: 3/8 each of white and lit; 400 draws, 4 sigma is 0.1."""
    torch.manual_seed(0)
    material = matt(ambient_only_steps=0).train()
    drawn = [material._draw_shading() for _ in range(400)]
    assert drawn.count("albedo") / 400 == pytest.approx(0.25, abs=0.1)
    assert drawn.count("textureless") / 400 == pytest.approx(0.375, abs=0.1)
    assert [matt(diffuse_prob=0.0).train()._draw_shading() for _ in range(9)] == ["albedo"] * 9


def test_soft_shading_keeps_the_sum():
    """Facing the lamp, ambient and diffuse add up to 1 whatever was drawn."""
    material = matt(soft_shading=True, diffuse_prob=1.0, textureless_prob=0.0).train()
    facing = LAMP_AT_60_DEGREES | {"light_positions": torch.tensor([[0.0, 0.0, 5.0]])}
    features = torch.tensor([[0.2, 0.4, 0.6]])
    torch.testing.assert_close(material(features, **facing), features)
    torch.manual_seed(0)
    at_an_angle = {material(features, **LAMP_AT_60_DEGREES)[0, 0].item() for _ in range(5)}
    assert len(at_an_angle) == 5 and all(0.1 <= value <= 0.2 for value in at_an_angle)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"diffuse_prob": 1.5}, r"diffuse_prob must be in \[0, 1\]"),
        ({"ambient_light_color": [0.1, 0.1]}, "ambient_light_color is three numbers"),
    ],
)
def test_material_mistakes(config, words):
    with pytest.raises(ConfigValueError, match=words):
        matt(**config)
    with pytest.raises(ConfigValueError, match="needs 3 features a point, got 2"):
        matt()(torch.zeros(1, 2), **LAMP_AT_60_DEGREES)
    with pytest.raises(ValueError, match="choose one of albedo"):
        matt()(torch.zeros(1, 3), **LAMP_AT_60_DEGREES, shading="shiny")


def test_radiance_depends_on_the_direction():
    torch.manual_seed(0)
    material = NeuralRadianceMaterial({"input_feature_dims": 4})
    features = torch.randn(1, 1, 4).expand(2, 3, 4)
    viewdirs = torch.nn.functional.normalize(torch.randn(2, 3, 3), dim=-1)
    color = material(features, viewdirs=viewdirs, positions=None)
    assert color.shape == (2, 3, 3) and color.min() >= 0 and color.max() <= 1
    assert color.reshape(-1, 3).unique(dim=0).shape[0] == 6
    color.sum().backward()
    assert all(p.grad is not None for p in material.parameters())
    with pytest.raises(ConfigValueError, match=r"the geometry gives 3 features.*n_feature_dims"):
        material(features[..., :3], viewdirs=viewdirs)


# ---- backgrounds -------------------------------------------------------------------------------------------


def directions(batch: int = 2) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.nn.functional.normalize(torch.randn(batch, 4, 5, 3), dim=-1)


def test_environment_map():
    torch.manual_seed(0)
    background = NeuralEnvironmentMapBackground({"n_output_dims": 4})
    assert threestudio.find("neural-environment-map-background") is NeuralEnvironmentMapBackground
    color = background(dirs=directions())
    assert color.shape == (2, 4, 5, 4) and color.min() > 0 and color.max() < 1
    torch.testing.assert_close(background(directions()[1:]), color[1:])


def test_environment_map_now_and_then_is_one_colour():
    background = NeuralEnvironmentMapBackground({"random_aug": True, "random_aug_prob": 1.0}).train()
    color = background(directions(3))
    assert color.flatten(1, 2).unique(dim=1).shape[1] == 1  # one colour an image
    assert len({tuple(image[0, 0].tolist()) for image in color}) == 3
    color.sum().backward()
    assert all((p.grad == 0).all() for p in background.parameters())
    assert background.eval()(directions(1)).flatten(0, 2).unique(dim=0).shape[0] == 20


def test_environment_map_may_have_another_colour_in_evaluation():
    background = NeuralEnvironmentMapBackground({"eval_color": [1, 0.5, 0]})
    assert torch.equal(background.eval()(directions())[1, 2, 3], torch.tensor([1.0, 0.5, 0.0]))
    assert not torch.equal(background.train()(directions())[1, 2, 3], torch.tensor([1.0, 0.5, 0.0]))
    with pytest.raises(ConfigValueError, match="2 values for 3"):
        NeuralEnvironmentMapBackground({"eval_color": [1, 0.5]})
    with pytest.raises(ConfigValueError, match="random_aug_prob"):
        NeuralEnvironmentMapBackground({"random_aug_prob": 2.0})
