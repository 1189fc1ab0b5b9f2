"""Mistakes in a config: one message that names what is wrong and what was meant, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_guidance_swap import GAUSSIANS
from test_nerf_configs import SHORT as NERF
from tiny import save_prior

import threestudio_lucid  # noqa: F401  (its resolvers and classes)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def prior(tmp_path_factory):
    return save_prior(tmp_path_factory.mktemp("prior") / "tiny", vae="tiny")


def told(name: str, prior: Path, folder: Path, override: str) -> str:
    """The message of a run of configs/NAME.yaml with a mistake."""
    from threestudio.run import Request, run

    given = [
        *(NERF if name.endswith("nerf") else GAUSSIANS),
        f"system.guidance.prior={prior}",
        f"system.prompt_processor.cache_dir={folder}/cache",
        f"exp_root_dir={folder / 'out'}",
        override,
    ]
    with pytest.raises(Exception) as caught:
        run(Request(str(ROOT / f"configs/{name}.yaml"), "train", given, [ROOT / "custom"]))
    assert getattr(caught.value, "is_user_error", False), repr(caught.value)
    assert not (folder / "out").exists()
    return str(caught.value)


KEYS = {
    "sytem.x=1": "'system'",
    "data.heigth=8": "'height'",
    "system.geometri_type=implicit-volume": "'geometry_type'",
    "system.geometry.radios=3": "'radius'",
    "system.geometry.pos_encoding_config.n_level=3": "'n_levels'",
    "system.geometry.mlp_network_config={otype: VanillaMLP, n_neurons: 8, n_hidden_layers: 1, n_neuron: 8}": (
        "'n_neurons'"
    ),
    "system.material.color_activatoin=exp": "'color_activation'",
    "system.background.colour=1": "'color'",
    "system.renderer.num_sample_per_ray=3": "'num_samples_per_ray'",
    "system.guidance.dleta_t=3": "'delta_t'",
    "system.prompt_processor.promt=a": "'prompt'",
    "system.exporter.texture_sise=3": "'texture_size'",
    "system.optimizer.arg={}": "'args'",
    "system.optimizer.args.lrr=1": "'lr'",
    "system.optimizer.params={geometri: {}}": "'geometry'",
    "system.scheduler={name: ExponentialLR, arg: {gamma: 0.1}, args: {gamma: 0.1}}": "'args'",
    "system.freq={guidance_evil: 1}": "guidance_eval",
    "trainer.max_step=3": "'max_steps'",
    "checkpoint.save_lst=true": "'save_last'",
}
NAMES = {
    "data_type=lucid-camera-datamodul": "'lucid-camera-datamodule'",
    "system_type=dreamfusion-sistem": "'dreamfusion-system'",
    "system_type=dreamfusion-system:lucid-guidance-swop": "'lucid-guidance-swap'",
    "system.geometry_type=implicit-volum": "'implicit-volume'",
    "system.material_type=no-materia": "'no-material'",
    "system.background_type=solid-color-backgrund": "'solid-color-background'",
    "system.renderer_type=nerf-volume-rendere": "'nerf-volume-renderer'",
    "system.guidance_type=lucid-ism-guidanc": "'lucid-ism-guidance'",
    "system.prompt_processor_type=lucid-prompt-procesor": "'lucid-prompt-processor'",
    "system.exporter_type=mesh-exprter": "'mesh-exporter'",
    "system.optimizer.name=Adma": "'Adam'",
    "system.scheduler={name: ExponentialLr, args: {gamma: 0.1}}": "'ExponentialLR'",
    "system.geometry.pos_encoding_config.otype=HashGri": "'HashGrid'",
    "system.geometry.density_activation=softplos": "activation",
}
VALUES = {
    "seed=first": "seed",
    "data.batch_size=many": "data",
    "system.geometry.radius=big": "system.geometry.radius",
    "system.renderer.num_samples_per_ray=many": "system.renderer.num_samples_per_ray",
    "system.guidance.delta_t=long": "system.guidance.delta_t",
    "system.loss.lambda_sparsity=much": "system.loss.lambda_sparsity",
    "system.loss.lambda_sparsity=[1,2]": "system.loss.lambda_sparsity",
    "system.optimizer.args.lr=fast": "system.optimizer",
    "system.renderer.estimator=proposal": "occgrid and importance",
    "trainer.max_steps=many": "trainer.max_steps",
    "trainer.precision=17": "trainer",
    "checkpoint.save_top_k=some": "checkpoint",
}
LEFT_OUT = {
    "system.renderer_type=nvdiff-rasterizer": ("nvdiffrast", "nerf-volume-renderer"),
    "system.guidance_type=stable-diffusion-vsd-guidance": ("LoRA", "stable-diffusion-guidance"),
    "system_type=prolificdreamer-system": ("LoRA", "dreamfusion-system"),
    "system.guidance_type=deep-floyd-guidance": ("T5", "lucid-ism-guidance"),
}
GAUSSIAN = {
    "system.loss.lambda_sdss=1": "'lambda_sds'",
    "system.loss.lambda_tv=strong": "system.loss.lambda_tv",
    "system.density.evry=3": "'every'",
    "system.density={every: often}": "every",
    "system.geometry_type=lucid-gaussian-splating": "'lucid-gaussian-splatting'",
    "system.renderer_type=lucid-gaussian-rendere": "'lucid-gaussian-renderer'",
    "system.exporter_type=lucid-ply-exportr": "'lucid-ply-exporter'",
    "system.exporter.sav_video=true": "'save_video'",
}


@pytest.mark.parametrize(("override", "word"), KEYS.items(), ids=KEYS)
def test_unknown_keys(prior, tmp_path, override, word):
    assert word in told("ism-nerf", prior, tmp_path, override)


@pytest.mark.parametrize(("override", "word"), NAMES.items(), ids=NAMES)
def test_unknown_names(prior, tmp_path, override, word):
    message = told("ism-nerf", prior, tmp_path, override)
    assert word in message
    if override.partition("=")[0].endswith("_type"):
        assert f"{override.partition('=')[0]} in {ROOT / 'configs/ism-nerf.yaml'}" in message
        assert "Registered as" in message


@pytest.mark.parametrize(("override", "word"), VALUES.items(), ids=VALUES)
def test_wrong_values(prior, tmp_path, override, word):
    assert word in told("ism-nerf", prior, tmp_path, override)


@pytest.mark.parametrize(("override", "words"), LEFT_OUT.items(), ids=LEFT_OUT)
def test_what_threestudio_has_and_the_host_has_not(prior, tmp_path, override, words):
    message = told("ism-nerf", prior, tmp_path, override)
    assert "this host leaves it out" in message
    assert all(word in message for word in words)


@pytest.mark.parametrize(("override", "word"), GAUSSIAN.items(), ids=GAUSSIAN)
def test_mistakes_in_a_config_of_gaussians(prior, tmp_path, override, word):
    assert word in told("ism-gs", prior, tmp_path, override)
