"""Systems, datamodules and parts of threestudio's own configs, on configs in the shape of those it ships."""

from __future__ import annotations

import copy
import csv
from pathlib import Path

import pytest
import torch
import yaml
from tiny import save_prior

import threestudio
import threestudio_lucid  # noqa: F401
from threestudio.systems import sdi, sjc
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.shape import ShapeLoss, squared_distance, winding_number

ROOT = Path(__file__).parents[2]
GRID = {
    "otype": "HashGrid",
    "n_levels": 4,
    "n_features_per_level": 2,
    "log2_hashmap_size": 8,
    "base_resolution": 16,
    "per_level_scale": 1.45,
}
BASE = {
    "name": "stock",
    "tag": "run",
    "use_timestamp": False,
    "data_type": "random-camera-datamodule",
    "data": {"width": 8, "height": 8, "eval_width": 8, "eval_height": 8, "n_test_views": 2},
    "system": {
        "geometry_type": "implicit-volume",
        "geometry": {"radius": 2.0, "normal_type": "analytic", "pos_encoding_config": GRID},
        "material_type": "diffuse-with-point-light-material",
        "material": {"ambient_only_steps": 1},
        "background_type": "neural-environment-map-background",
        "renderer_type": "nerf-volume-renderer",
        "renderer": {"num_samples_per_ray": 16},
        "prompt_processor_type": "stable-diffusion-prompt-processor",
        "prompt_processor": {"prompt": "a mug"},
        "guidance_type": "stable-diffusion-guidance",
        "guidance": {"guidance_scale": 100.0, "weighting_strategy": "sds"},
        "loss": {"lambda_sds": 1.0, "lambda_orient": 0.1, "lambda_sparsity": 1.0, "lambda_opaque": 0.1},
        "optimizer": {"name": "Adam", "args": {"lr": 0.01, "betas": [0.9, 0.99], "eps": 1e-15}},
    },
    "trainer": {
        "max_steps": 2,
        "num_sanity_val_steps": 0,
        "val_check_interval": 2,
        "log_every_n_steps": 1,
        "precision": "16-mixed",
    },
    "checkpoint": {"save_last": True, "save_top_k": -1, "every_n_train_steps": 2},
}
LATENTS = {
    "geometry": {
        "n_feature_dims": 4,
        "normal_type": None,
        "density_bias": "blob_dreamfusion",
        "density_activation": "trunc_exp",
        "density_blob_scale": 5.0,
        "density_blob_std": 0.2,
        "pos_encoding_config": GRID,
    },
    "material_type": "no-material",
    "material": {"n_output_dims": 4, "color_activation": "none"},
    "background": {"n_output_dims": 4, "color_activation": "none"},
    "loss": {"lambda_sds": 1.0, "lambda_sparsity": 5e-4, "lambda_opaque": 0.0, "lambda_orient": 0.0},
}
WARM_UP = {
    "name": "SequentialLR",
    "interval": "step",
    "warmup_steps": 1,
    "milestones": ["${system.scheduler.warmup_steps}"],
    "schedulers": [
        {"name": "LinearLR", "args": {"start_factor": 0.1, "end_factor": 1.0, "total_iters": 1}},
        {
            "name": "ExponentialLR",
            "args": {"gamma": "${calc_exp_lr_decay_rate:0.1,${sub:3,1}}"},
        },
    ],
}
SYSTEMS = {
    "magic3d-system": {"geometry": BASE["system"]["geometry"] | {"isosurface_threshold": "auto"}},
    "latentnerf-system": LATENTS | {"scheduler": WARM_UP},
    "sjc-system": {
        "geometry_type": "volume-grid",
        "geometry": {
            "normal_type": None,
            "grid_size": [8, 8, 8],
            "density_bias": -1.0,
            "n_feature_dims": 4,
        },
        "material_type": "no-material",
        "material": {"n_output_dims": 4, "color_activation": "none"},
        "background_type": "textured-background",
        "background": {"n_output_dims": 4, "color_activation": "none", "height": 4, "width": 4},
        "renderer": {"num_samples_per_ray": 16, "grid_prune": False},
        "guidance": {"use_sjc": True, "var_red": True, "min_step_percent": 0.01, "max_step_percent": 0.97},
        "loss": {
            "lambda_sds": 1.0,
            "center_ratio": 0.78125,
            "lambda_depth": 10,
            "lambda_emptiness": [5000, 1e4, 2e5, 5001],
            "emptiness_scale": 10,
        },
        "optimizer": {
            "name": "Adamax",
            "args": {"lr": 0.05},
            "params": {"geometry": {"lr": 0.05}, "background": {"lr": 1e-4}},
        },
    },
    "sdi-system": {
        "renderer": {"num_samples_per_ray": 16, "return_comp_normal": True},
        "prompt_processor": {"prompt": "a mug", "use_perp_neg": True},
        "guidance_type": "stable-diffusion-sdi-guidance",
        "guidance": {"guidance_scale": 7.5, "min_step_percent": 0.25, "inversion_n_steps": 3},
        "loss": {
            "lambda_sdi": 1.0,
            "lambda_orient": 0.1,
            "lambda_sparsity": [0, 0.15, 0.0, 3000],
            "lambda_opaque": 0.1,
            "lambda_convex": [0, 1.0, 0.1, 4000],
            "lambda_z_variance": 1.0,
        },
    },
    "efficient-dreamfusion-system": {},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_prior(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def launch(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def go(system_type, *overrides, stage="train", **changes):
        from threestudio.run import Request, run

        config = copy.deepcopy(BASE) | {"system_type": system_type}
        config["system"] |= SYSTEMS.get(system_type, {}) | changes
        for part in ("guidance", "prompt_processor"):
            config["system"][part] = config["system"][part] | {"pretrained_model_name_or_path": str(model)}
        if system_type.startswith("efficient"):
            config["data_type"] = "eff-random-camera-datamodule"
            config["data"] |= {"width": 16, "height": 16, "sample_width": 8, "sample_height": 8}
        Path("config.yaml").write_text(yaml.safe_dump(config))
        run(Request("config.yaml", stage, list(overrides), custom_folders=[ROOT / "custom"]))
        return Path("outputs/stock/run")

    return go


def logged(trial, name):
    with (trial / "csv_logs/version_0/metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.parametrize("system_type", SYSTEMS)
def test_two_steps(launch, system_type):
    trial = launch(system_type)
    names = {path.name for path in (trial / "save").iterdir()}
    assert {"it2-0.png", "it2-test", "it2-test.mp4"} <= names
    losses = [f"train/{key.replace('lambda_', 'loss_')}" for key in SYSTEMS[system_type].get("loss", {})]
    for name in [name for name in losses if "loss_orient" not in name and name.startswith("train/loss_")]:
        values = logged(trial, name)
        assert len(values) == 2 and torch.tensor(values).isfinite().all(), name
    state = torch.load(trial / "ckpts/last.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())


def test_stages_of_a_field_of_latents(launch):
    """Its pictures want the guidance's VAE, in every stage."""
    resume = f"resume={launch('sjc-system')}/ckpts/last.ckpt"
    for stage in ("validate", "test"):
        launch("sjc-system", resume, stage=stage)


def test_a_field_of_latents_is_refined_in_colours(launch):
    first = launch("latentnerf-system")
    first.rename("first")
    trial = launch(
        "latentnerf-system",
        refinement=True,
        weights="first/ckpts/last.ckpt",
        weights_ignore_modules=["material", "background"],
        material_type="sd-latent-adapter-material",
        material={},
        background={},
    )
    assert logged(trial, "train/loss_sds")


@pytest.mark.parametrize("system_type", ["latentnerf-system", "sjc-system", "magic3d-system"])
def test_one_value_makes_it_ism(launch, system_type):
    trial = launch(system_type, "system.guidance_type=lucid-ism-guidance", "trainer.precision=32-true")
    assert all(value > 0 for value in logged(trial, "train/loss_sds"))


def test_a_sketch_of_the_shape(launch, tmp_path):
    import trimesh

    trimesh.creation.box((1.0, 1.0, 1.0)).export(tmp_path / "box.obj")
    loss = LATENTS["loss"] | {"lambda_shape": 1.0}
    trial = launch("latentnerf-system", guide_shape="box.obj", loss=loss)
    assert all(value > 0 for value in logged(trial, "train/loss_shape"))


@pytest.mark.parametrize(
    ("system_type", "override", "words"),
    [
        ("magic3d-system", "system.refinement=true", "give a mesh"),
        ("latentnerf-system", "system.guide_shape=no.obj", "no file no.obj"),
        ("sjc-system", "system.guidance_type=stable-diffusion-guidanc", "Did you mean"),
        ("sdi-system", "system.renderer.return_comp_normal=false", "return_comp_normal=true"),
        ("sdi-system", "system.guidance.use_sjc=true", "belongs to stable-diffusion-guidance"),
        ("efficient-dreamfusion-system", "data.sample_width=17", "from 2 to width"),
        ("efficient-dreamfusion-system", "data.resolution_milestones=[1]", None),
    ],
)
def test_mistakes(launch, system_type, override, words):
    if words is None:
        launch(system_type, override)
        return
    with pytest.raises(Exception, match=words) as caught:
        launch(system_type, override)
    assert caught.value.is_user_error


# ---- the parts ----


def test_center_depth_has_no_logarithm_of_a_negative_number():
    depth = torch.ones(1, 8, 8, 1)
    depth[:, 2:6, 2:6] = 0.25
    nearer = sjc.center_depth(depth, torch.ones_like(depth), 0.5)
    assert nearer == pytest.approx(-torch.tensor(0.75).log().item(), abs=1e-4)
    assert sjc.center_depth(depth, torch.ones_like(depth), 1.0).isfinite()


def test_convexity_by_hand():
    """Two columns whose normals turn by 90 degrees in the picture's plane: sine 1 across, 0 upwards."""
    left, right = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    normals = torch.stack([left, right]).expand(1, 2, 2, 3)
    assert sdi.convexity(normals, 2) == pytest.approx(-1.0)
    assert sdi.convexity(normals.flip(2), 2) == pytest.approx(1.0)


def test_textured_background_is_a_picture_on_the_sphere():
    config = {"height": 4, "width": 4, "color_activation": "none"}
    background = threestudio.find("textured-background")(config)
    assert background.texture.shape == (1, 3, 4, 4)
    uv = background.spherical_xyz_to_uv(torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]))
    torch.testing.assert_close(uv[:, 0], torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(uv[1, 1], torch.tensor(0.5))
    color = background(torch.nn.functional.normalize(torch.randn(2, 5, 6, 3), dim=-1))
    assert color.shape == (2, 5, 6, 3)
    color.sum().backward()
    assert background.texture.grad.abs().sum() > 0


def test_latent_adapter_takes_latents():
    material = threestudio.find("sd-latent-adapter-material")({})
    assert [name for name, _ in material.named_parameters()] == ["adapter"]
    torch.testing.assert_close(material(torch.zeros(5, 4)), torch.full((5, 3), 0.5))
    with pytest.raises(ConfigValueError, match="n_feature_dims"):
        material(torch.zeros(5, 3))


def test_grid_of_pixels_is_put_back_where_it_was():
    from threestudio.systems.eff_dreamfusion import EffDreamFusion
    from threestudio.utils.ops import mask_ray_directions

    height, width = 40, 24
    mask = mask_ray_directions(height, width, 30, 18)
    assert mask.shape == (30, 18) and mask.min() >= 0 and mask.max() < height * width
    y, x = torch.meshgrid(torch.arange(height) * 1.0, torch.arange(width) * 1.0, indexing="ij")
    picture = torch.stack([x, y, x + y])
    coarse = picture.flatten(1)[:, mask][None]
    whole = EffDreamFusion.unmask(None, mask, coarse, height, width)
    assert whole.shape == (1, height, width, 3)
    inside = whole[0].reshape(-1, 3)[mask.flatten()].reshape(30, 18, 3)
    torch.testing.assert_close(inside, coarse[0].permute(1, 2, 0), atol=1e-3, rtol=0)


def test_shape_of_a_box(tmp_path):
    import trimesh

    box = trimesh.creation.box((2.0, 2.0, 2.0))
    triangles = torch.from_numpy(box.vertices[box.faces]).float()
    points = torch.tensor([[0.0, 0.1, 0.2], [0.0, 0.0, 3.0], [2.0, 2.0, 2.0], [0.9, 0.0, 0.0]])
    torch.testing.assert_close(
        winding_number(points, triangles), torch.tensor([1.0, 0.0, 0.0, 1.0]), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(squared_distance(points, triangles), torch.tensor([0.64, 4.0, 3.0, 0.01]))
    box.export(tmp_path / "box.obj")
    loss = ShapeLoss(str(tmp_path / "box.obj"))
    middle, far = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 2.0]])
    empty, dense = torch.tensor([[0.0]]), torch.tensor([[100.0]])
    assert loss(middle, dense) < loss(middle, empty)
    assert loss(far, empty) < loss(far, dense)


def test_inversion_leads_to_the_timestep_and_comes_back(model):
    guidance = threestudio.find("stable-diffusion-sdi-guidance")(
        {"pretrained_model_name_or_path": str(model), "inversion_eta": 0.0, "inversion_n_steps": 10}
    )
    path = guidance.get_inversion_timesteps(500)
    assert path[:3] == [-1, 1, 101] and path[-2] == 401 and 500 <= path[-1] < 600
    assert guidance.get_inversion_timesteps(0)[0] == -1
    # where the noise is known, one stride is the forward process
    x0, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    a = guidance.alphas
    start = a[101].sqrt() * x0 + (1 - a[101]).sqrt() * noise
    further = guidance.ddim_inversion_step(noise, 101, 201, start)
    torch.testing.assert_close(
        further, a[201].sqrt() * x0 + (1 - a[201]).sqrt() * noise, atol=1e-5, rtol=1e-4
    )


def test_annealed_timestep(model):
    guidance = threestudio.find("stable-diffusion-sdi-guidance")(
        {"pretrained_model_name_or_path": str(model), "min_step_percent": 0.25, "trainer_max_steps": 100}
    )
    for step, percent in ((0, 0.98), (50, 0.615), (100, 0.25), (200, 0.25)):
        guidance.update_step(0, step)
        assert guidance.min_step == guidance.max_step == int(1000 * percent)
