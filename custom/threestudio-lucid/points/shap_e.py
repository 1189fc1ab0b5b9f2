"""Text to points by Shap-E (Jun and Nichol 2023), through diffusers' `ShapEPipeline`."""

from __future__ import annotations

import numpy as np
import torch

from ..errors import UserError
from ..guidance.cards import announce
from .cloud import PointCloud
from .colors import linear_to_srgb
from .frame import OPENAI
from .limits import MAX_TRIANGLES
from .meshes import sample_surface

MODEL = "openai/shap-e"


def generate(
    prompt: str,
    n: int,
    generator: torch.Generator,
    *,
    model: str = MODEL,
    guidance_scale: float = 15.0,
    steps: int = 64,
    device: torch.device | str = "cpu",
) -> PointCloud:
    """`n` points, even by area, on the surface that Shap-E draws of a prompt; in our axes, within [-1, 1]^3.

    Args:
        generator: on the CPU; the same gives the same points on the same machine.
        model: hub id or folder of a `ShapEPipeline`, with its weights as safetensors.
        guidance_scale: of classifier-free guidance, 1 is without.
        steps: of sampling.

    Raises:
        UserError: the model is missing, damaged or cannot be fetched, or it drew nothing.
    """
    pipeline = load(model, device)
    announce(f"Shap-E draws {prompt!r} in {steps} steps.")
    nothing = f"Shap-E drew nothing of {prompt!r}: try another seed, or other words."
    try:
        mesh = pipeline(
            prompt,
            generator=generator,
            guidance_scale=guidance_scale,
            num_inference_steps=steps,
            output_type="mesh",
        ).images[0]
    except ValueError as error:  # of a mesh without vertices, whose colours it cannot put together
        raise UserError(nothing) from error
    vertices, faces = mesh.verts.double().cpu().numpy(), mesh.faces.cpu().numpy()
    # the pipeline gives amounts of light, whatever they are called
    light = torch.stack([mesh.vertex_channels[name] for name in "RGB"], dim=1).double().cpu().numpy()
    if len(faces) > MAX_TRIANGLES or not np.isfinite(vertices).all() or not np.isfinite(light).all():
        raise UserError(f"Shap-E drew no proper surface of {prompt!r}: try another seed, or fewer words.")
    try:
        cloud = sample_surface(vertices[faces], linear_to_srgb(light)[faces], n, generator)
    except ValueError:
        raise UserError(nothing) from None
    return cloud.turned(OPENAI)


def load(model: str, device: torch.device | str):
    """The pipeline, from a folder, the hub's cache, or the hub; half precision on a GPU.

    Raises:
        UserError: it is missing, damaged, pickled, or cannot be fetched.
    """
    from diffusers import ShapEPipeline
    from huggingface_hub.utils import HfHubHTTPError
    from safetensors import SafetensorError

    dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    given = {"torch_dtype": dtype, "use_safetensors": True}
    reason: Exception | None = None
    for local in (True, False):
        try:
            return ShapEPipeline.from_pretrained(model, local_files_only=local, **given).to(device)
        except (OSError, ValueError, KeyError, RuntimeError, HfHubHTTPError, SafetensorError) as error:
            reason = error
    words = " ".join(str(reason).split()).split(". ")[0][:160]
    raise UserError(
        f"Shap-E's weights {model!r} are no whole folder here, not in the hub's local cache, and cannot be "
        f"fetched ({type(reason).__name__}: {words}). Fetch them where there is a network with "
        f"`hf download {MODEL}`, give a folder by system.geometry.init_args.model=PATH, or start from "
        "something else: system.geometry.init=shape:ball."
    ) from reason
