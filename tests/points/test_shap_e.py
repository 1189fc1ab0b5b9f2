"""Shap-E: diffusers' own classes at tiny size, saved and loaded as the real one is."""

import pytest
import torch
from tiny import save_tokenizer

import threestudio
from threestudio_lucid.errors import UserError
from threestudio_lucid.points import shap_e


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A `ShapEPipeline` of random weights, with a small part of the table of marching cubes."""
    from diffusers import HeunDiscreteScheduler, PriorTransformer, ShapEPipeline
    from diffusers.pipelines.shap_e import ShapERenderer
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("shap-e")
    save_tokenizer(folder / "words")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "words")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        projection_dim=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
    )
    prior = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        embedding_dim=16,
        num_embeddings=32,
        embedding_proj_dim=16,
        time_embed_dim=32,
        num_layers=1,
        clip_embed_dim=32,
        additional_embeddings=0,
        time_embed_act_fn="gelu",
        norm_in_type="layer",
        encoder_hid_proj_type=None,
        added_emb_type=None,
    )
    renderer = ShapERenderer(
        param_shapes=((8, 93), (8, 8), (8, 8), (8, 8)), d_latent=16, d_hidden=8, n_output=12
    )
    # a triangle across the edges of a cell's first corner, where that lies on the other side than their ends
    renderer.mesh_decoder.cases[:, 0] = torch.tensor([0, 4, 8])
    inside = torch.arange(256)[:, None] >> torch.tensor([0, 1, 2, 4]) & 1
    renderer.mesh_decoder.masks[:, 0] = (inside[:, :1] != inside[:, 1:]).all(dim=1)
    with torch.no_grad():
        renderer.mlp.mlp[-1].weight[0] *= 50.0  # so that there is an inside and an outside
    scheduler = HeunDiscreteScheduler(
        beta_schedule="exp",
        num_train_timesteps=1024,
        prediction_type="sample",
        use_karras_sigmas=True,
        clip_sample=True,
        clip_sample_range=1.0,
    )
    pipeline = ShapEPipeline(prior, CLIPTextModelWithProjection(text), tokenizer, scheduler, renderer)
    pipeline.save_pretrained(folder / "whole")
    return folder / "whole"


@pytest.fixture(autouse=True)
def coarse_grid(monkeypatch):
    """Marching cubes on 16^3 places instead of 128^3, which takes seconds."""
    from diffusers.pipelines.shap_e import ShapERenderer

    whole = ShapERenderer.decode_to_mesh
    coarse = lambda self, latents, device: whole(self, latents, device, grid_size=16)  # noqa: E731
    monkeypatch.setattr(ShapERenderer, "decode_to_mesh", coarse)


def generate(folder, n=100, seed=0):
    return shap_e.generate("a mug", n, torch.Generator().manual_seed(seed), model=str(folder), steps=2)


def test_points_of_a_prompt(folder):
    cloud = generate(folder)
    assert len(cloud) == 100 and cloud.points.abs().max() <= 1.1
    assert cloud.colors.min() >= 0.0 and cloud.colors.max() <= 1.0 and cloud.colors.std() > 0
    assert torch.equal(cloud.points, generate(folder).points)
    assert not torch.equal(cloud.points, generate(folder, seed=1).points)


def test_from_the_config_to_the_first_gaussians(folder):
    geometry = threestudio.find("lucid-gaussian-splatting")(
        {
            "init": "shap-e",
            "init_prompt": "a mug",
            "init_args": {"model": str(folder), "steps": 2},
            "num_points": 64,
            "init_radius": 0.6,
        }
    )
    means = geometry.gaussians.means.detach()
    assert len(means) == 64 and means.abs().max() == pytest.approx(0.6, abs=1e-4)  # fitted


def test_what_is_missing_is_told(folder, tmp_path):
    with pytest.raises(UserError, match=r"'openai/shap-e' are no whole folder.*hf download openai/shap-e"):
        shap_e.load("openai/shap-e", "cpu")
    with pytest.raises(UserError, match=r"init_args\.model=PATH"):
        shap_e.load(str(tmp_path), "cpu")


def test_pickled_weights_are_not_loaded(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    weights = tmp_path / "copy/prior/diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save({}, weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="no whole folder"):
        shap_e.load(str(tmp_path / "copy"), "cpu")


def test_an_empty_drawing_is_told(folder, monkeypatch):
    real = shap_e.load

    def without_triangles(model, device):
        pipeline = real(model, device)
        pipeline.shap_e_renderer.mesh_decoder.masks.zero_()
        return pipeline

    monkeypatch.setattr(shap_e, "load", without_triangles)
    with pytest.raises(UserError, match="drew nothing of 'a mug'"):
        generate(folder)
