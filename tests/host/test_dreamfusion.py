"""dreamfusion-system on a config in the shape of threestudio's dreamfusion-sd.yaml, and its regularisers."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import save_prior

import threestudio
import threestudio_lucid  # noqa: F401
from threestudio.systems import regularizers
from threestudio.systems.batch import check_batch
from threestudio.utils.errors import BatchError, UserError

ROOT = Path(__file__).parents[2]
CONFIG = """
name: dreamfusion-sd
tag: ${rmspace:${system.prompt_processor.prompt},_}
exp_root_dir: outputs
seed: 0
data_type: random-camera-datamodule
data:
  batch_size: 2
  width: 8
  height: 8
  camera_distance_range: [1.5, 2.0]
  fovy_range: [40, 70]
  elevation_range: [-10, 45]
  light_sample_strategy: dreamfusion
  eval_camera_distance: 2.0
  eval_fovy_deg: 70.
  eval_width: 8
  eval_height: 8
  n_test_views: 2
system_type: dreamfusion-system
system:
  geometry_type: implicit-volume
  geometry:
    radius: 2.0
    normal_type: analytic
    density_bias: blob_magic3d
    density_activation: softplus
    density_blob_scale: 10.
    density_blob_std: 0.5
    pos_encoding_config:
      otype: ProgressiveBandHashGrid
      n_levels: 4
      n_features_per_level: 2
      log2_hashmap_size: 8
      base_resolution: 16
      per_level_scale: 1.447269237440378
      start_level: 2
      start_step: 2000
      update_steps: 500
  material_type: diffuse-with-point-light-material
  material: {ambient_only_steps: 1, albedo_activation: sigmoid}
  background_type: neural-environment-map-background
  background: {color_activation: sigmoid}
  renderer_type: nerf-volume-renderer
  renderer: {radius: "${system.geometry.radius}", num_samples_per_ray: 16}
  prompt_processor_type: stable-diffusion-prompt-processor
  prompt_processor: {pretrained_model_name_or_path: MODEL, prompt: a mug}
  guidance_type: stable-diffusion-guidance
  guidance:
    pretrained_model_name_or_path: MODEL
    guidance_scale: 100.
    weighting_strategy: sds
    min_step_percent: 0.02
    max_step_percent: 0.98
  loggers:
    wandb: {enable: false, project: threestudio, name: None}
  loss:
    lambda_sds: 1.
    lambda_orient: [0, 10., 1000., 5000]
    lambda_sparsity: 1.
    lambda_opaque: 0.
  optimizer:
    name: Adam
    args: {lr: 0.01, betas: [0.9, 0.99], eps: 1.e-15}
    params: {geometry: {lr: 0.01}, background: {lr: 0.001}}
trainer:
  max_steps: 2
  log_every_n_steps: 1
  num_sanity_val_steps: 0
  val_check_interval: 200
  enable_progress_bar: true
  precision: 16-mixed
checkpoint: {save_last: true, save_top_k: -1, every_n_train_steps: "${trainer.max_steps}"}
"""

GAUSSIANS = """
name: dreamfusion-sd
tag: a_mug
data_type: random-camera-datamodule
data: {batch_size: 2, width: 16, height: 16, eval_height: 16, eval_width: 16, n_test_views: 2}
system_type: lucid-dreamer-system
system:
  geometry_type: lucid-gaussian-splatting
  geometry: {num_points: 50, capacity: 100}
  material_type: no-material
  material: {n_output_dims: 0}
  background_type: solid-color-background
  renderer_type: lucid-gaussian-renderer
  prompt_processor_type: stable-diffusion-prompt-processor
  prompt_processor: {pretrained_model_name_or_path: MODEL, prompt: a mug}
  guidance_type: stable-diffusion-guidance
  guidance: {pretrained_model_name_or_path: MODEL, guidance_scale: 100.}
  loss: {lambda_sds: 2, lambda_tv: 0.1, lambda_scale: 1.}
trainer: {max_steps: 2, num_sanity_val_steps: 0, val_check_interval: 2, log_every_n_steps: 1}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_prior(tmp_path_factory.mktemp("model") / "tiny", vae="tiny")


@pytest.fixture
def launch(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("threestudio.models.guidance.pictures.STEPS", 2)
    Path("dreamfusion-sd.yaml").write_text(CONFIG.replace("MODEL", str(model)))

    def go(*overrides, stage="train"):
        from threestudio.run import Request, run

        given = ["use_timestamp=false", *overrides]
        run(Request("dreamfusion-sd.yaml", stage, given, custom_folders=[ROOT / "custom"]))
        return Path("outputs/dreamfusion-sd/a_mug")

    return go


def logged(trial):
    with (trial / "csv_logs/version_0/metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_threestudios_config_trains(launch):
    trial = launch("system.freq.guidance_eval=1", "trainer.val_check_interval=2")
    save = trial / "save"
    assert sorted(path.name for path in save.iterdir()) == [
        "it0-train.png",
        "it1-train.png",
        "it2-0.png",
        "it2-test",
        "it2-test.mp4",
    ]
    assert Image.open(save / "it2-0.png").size == (24, 8)  # colour, normal, opacity
    rows = logged(trial)
    for name in ("loss_sds", "grad_norm", "min_step", "loss_orient", "loss_sparsity", "loss_opaque"):
        values = [float(row[f"train/{name}"]) for row in rows if row.get(f"train/{name}")]
        assert len(values) == 2 and all(map(torch.isfinite, torch.tensor(values))), name
    assert any(row.get("train_params/lambda_orient") for row in rows)


@pytest.mark.parametrize("swap", ["lucid-ism-guidance", "lucid-sds-guidance"])
def test_one_value_makes_it_ism(launch, swap):
    trial = launch(f"system.guidance_type={swap}", "trainer.precision=32-true")
    values = [float(row["train/loss_sds"]) for row in logged(trial) if row.get("train/loss_sds")]
    assert len(values) == 2 and all(value > 0 for value in values)


def test_scores_that_are_none_are_left_out_and_end_the_run(launch, monkeypatch):
    from threestudio.models.guidance.latent_model import LatentModel

    monkeypatch.setattr(LatentModel, "predict", lambda self, x, t, e: torch.full_like(x, torch.nan))
    warnings = []
    monkeypatch.setattr(threestudio, "warn", warnings.append)
    with pytest.raises(
        UserError, match=r"Step 10: the score is not finite .* 10 steps in a row.*No checkpoint"
    ):
        launch("trainer.max_steps=12", "trainer.val_check_interval=12", "checkpoint.every_n_train_steps=12")
    assert [line.split(":")[0] for line in warnings if "score" in line] == [f"Step {n}" for n in range(1, 10)]


def test_out_of_memory_names_what_helps(launch, monkeypatch):
    from threestudio.models.guidance.latent_model import LatentModel

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(LatentModel, "predict", full)
    with pytest.raises(
        UserError, match=r"The GPU has not enough memory .*data.batch_size \(now 2\), data.height"
    ):
        launch()


def test_stages_of_a_checkpoint(launch):
    trial = launch()
    resume = f"resume={trial}/ckpts/last.ckpt"
    launch("tag=v", resume, stage="validate")
    launch("tag=v", resume, stage="test")
    assert Path("outputs/dreamfusion-sd/v/save/it2-0.png").exists()
    assert Path("outputs/dreamfusion-sd/v/save/it2-test.mp4").exists()


def test_stock_guidance_in_our_system_of_gaussians(launch, model):
    Path("dreamfusion-sd.yaml").write_text(GAUSSIANS.replace("MODEL", str(model)))
    trial = launch()
    assert (trial / "save/it2.ply").stat().st_size > 0
    values = [float(row["train/loss_sds"]) for row in logged(trial) if row.get("train/loss_sds")]
    assert len(values) == 2 and all(0 < value < float("inf") for value in values)


# ---- mistakes ----


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("system.guidance.pretrained_model_name_or_path=nowhere/at/all", "does not exist"),
        ("system.geometry_type=implicit-volum", r"geometry_type in dreamfusion-sd.yaml.*'implicit-volume'"),
        ("system.geometry_type=no-material", "registered as material"),
        ("system.geometry.normal_tipe=null", "normal_type"),
        ("system.guidance.guidance_scale=much", "guidance_scale of stable-diffusion-guidance takes float"),
        ("system.guidance.min_step_percent=[1,2]", r"system\.guidance.*min_step_percent: Schedule"),
        ("system.loss.lambda_orient=[1,2]", "Schedule"),
        ("system.freq.guidance_evil=1", "guidance_eval"),
        ("system.optimizer.name=FusedAdam", "needs NVIDIA apex"),
        ("system.loggers.wandb.enable=true", "pip install wandb"),
        ("system.geometry.normal_type=null", "normal"),
    ],
)
def test_mistakes(launch, override, words):
    if any(name in override and importlib.util.find_spec(name) for name in ("wandb", "apex")):
        pytest.skip("it is installed here")
    with pytest.raises(Exception, match=words) as caught:
        launch(override)
    assert caught.value.is_user_error


def test_a_missing_weight_names_the_loss_and_what_there_is(launch):
    text = Path("dreamfusion-sd.yaml").read_text()
    Path("dreamfusion-sd.yaml").write_text(text.replace("    lambda_sds: 1.\n", ""))
    with pytest.raises(UserError, match=r"lambda_sds is missing: it weighs loss_sds.*lambda_sparsity"):
        launch()


def test_a_batch_without_a_key():
    def guidance(rgb, prompt_utils, elevation, azimuth, camera_distances, rgb_as_latents=False, **kwargs):
        pass

    with pytest.raises(BatchError, match=r"guidance needs 'elevation', 'azimuth'.*camera_distances, rays_o"):
        check_batch(guidance, {"rays_o": 0, "camera_distances": 0}, "system.guidance_type guidance", given=2)
    check_batch(guidance, dict.fromkeys(("elevation", "azimuth", "camera_distances")), "guidance", given=2)


# ---- regularisers ----


def test_z_variance_of_an_empty_picture_is_zero():
    variance = torch.full((1, 2, 2, 1), float("nan"), requires_grad=True)
    loss = regularizers.z_variance(variance, torch.zeros(1, 2, 2, 1))
    loss.backward()
    assert loss == 0 and (variance.grad == 0).all()


def test_z_variance_averages_what_is_solid():
    opacity = torch.tensor([0.9, 0.6, 0.5, 0.0]).view(1, 2, 2, 1)
    variance = torch.tensor([1.0, 3.0, 100.0, 100.0]).view(1, 2, 2, 1)
    assert regularizers.z_variance(variance, opacity) == 2.0


def test_orientation_counts_normals_that_face_away():
    normal = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    t_dirs = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    weights = torch.tensor([[0.5], [0.5]], requires_grad=True)
    opacity = torch.tensor([1.0, 0.0]).view(1, 1, 2, 1)
    loss = regularizers.orientation(weights, normal.requires_grad_(), t_dirs, opacity)
    assert loss == 0.5
    loss.backward()
    assert weights.grad is None and normal.grad[0, 2] == 1.0


def test_sparsity_and_opaqueness_by_hand():
    assert regularizers.sparsity(torch.zeros(4)) == pytest.approx(0.1)
    half = regularizers.opaqueness(torch.full((4,), 0.5))
    assert half == pytest.approx(0.6931, abs=1e-4)
    assert regularizers.opaqueness(torch.tensor([0.0, 1.0])) < 0.01


def test_registered():
    assert threestudio.find("dreamfusion-system").__name__ == "DreamFusion"
