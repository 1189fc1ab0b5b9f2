"""What kind of thing a registered class is, so that messages list only what would fit."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from threestudio.utils.errors import closest, did_you_mean

ROLES = {
    "data_type": "datamodule",
    "system_type": "system",
    "geometry_type": "geometry",
    "material_type": "material",
    "background_type": "background",
    "renderer_type": "renderer",
    "base_renderer_type": "renderer",
    "guidance_type": "guidance",
    "prompt_processor_type": "prompt processor",
    "exporter_type": "exporter",
}
"""Config keys that hold a registered name, and the kind they want."""


LEFT_OUT = {
    **dict.fromkeys(
        ("nvdiff-rasterizer", "tetrahedra-sdf-grid", "custom-mesh", "fantasia3d-system", "pbr-material"),
        "it rasterizes meshes with nvdiffrast, which needs CUDA",
    ),
    **dict.fromkeys(
        ("stable-diffusion-vsd-guidance", "prolificdreamer-system"),
        "variational score distillation trains a LoRA of the prior",
    ),
    **dict.fromkeys(
        ("deep-floyd-guidance", "deep-floyd-prompt-processor"),
        "DeepFloyd's weights and its T5 encoder are beyond what this host loads",
    ),
    **dict.fromkeys(
        (
            "zero123-guidance",
            "zero123-unified-guidance",
            "zero123-system",
            "zero123-simple-system",
            "stable-zero123-guidance",
            "magic123-system",
            "image-condition-dreamfusion-system",
            "single-image-datamodule",
            "co3d-datamodule",
            "dummy-prompt-processor",
        ),
        "it starts from a picture",
    ),
    **dict.fromkeys(
        (
            "stable-diffusion-instructpix2pix-guidance",
            "stable-diffusion-controlnet-guidance",
            "instructnerf2nerf-system",
            "control4d-multiview-system",
            "multiview-camera-datamodule",
            "gan-volume-renderer",
            "patch-renderer",
            "hybrid-rgb-latent-material",
        ),
        "it edits given scenes",
    ),
    **dict.fromkeys(
        ("implicit-sdf", "neus-volume-renderer", "textmesh-system"),
        "it has no signed distance fields; implicit-volume and nerf-volume-renderer are its fields",
    ),
    "perceptual-loss": "it needs the weights of LPIPS",
    "stable-diffusion-unified-guidance": "stable-diffusion-guidance is its guidance",
}
"""Names that threestudio registers and this host does not, and why."""


LEFT_OUT_MODULES = {
    "data.co3d": "co3d-datamodule",
    "data.image": "single-image-datamodule",
    "data.multiview": "multiview-camera-datamodule",
    "models.geometry.custom_mesh": "custom-mesh",
    "models.geometry.implicit_sdf": "implicit-sdf",
    "models.geometry.tetrahedra_sdf_grid": "tetrahedra-sdf-grid",
    "models.guidance.controlnet_guidance": "stable-diffusion-controlnet-guidance",
    "models.guidance.deep_floyd_guidance": "deep-floyd-guidance",
    "models.guidance.instructpix2pix_guidance": "stable-diffusion-instructpix2pix-guidance",
    "models.guidance.stable_diffusion_unified_guidance": "stable-diffusion-unified-guidance",
    "models.guidance.stable_diffusion_vsd_guidance": "stable-diffusion-vsd-guidance",
    "models.guidance.stable_zero123_guidance": "stable-zero123-guidance",
    "models.guidance.zero123_guidance": "zero123-guidance",
    "models.guidance.zero123_unified_guidance": "zero123-unified-guidance",
    "models.materials.hybrid_rgb_latent_material": "hybrid-rgb-latent-material",
    "models.materials.pbr_material": "pbr-material",
    "models.prompt_processors.deepfloyd_prompt_processor": "deep-floyd-prompt-processor",
    "models.prompt_processors.dummy_prompt_processor": "dummy-prompt-processor",
    "models.renderers.deferred_volume_renderer": "gan-volume-renderer",
    "models.renderers.gan_volume_renderer": "gan-volume-renderer",
    "models.renderers.neus_volume_renderer": "neus-volume-renderer",
    "models.renderers.nvdiff_rasterizer": "nvdiff-rasterizer",
    "models.renderers.patch_renderer": "patch-renderer",
    "systems.control4d_multiview": "control4d-multiview-system",
    "systems.fantasia3d": "fantasia3d-system",
    "systems.imagedreamfusion": "image-condition-dreamfusion-system",
    "systems.instructnerf2nerf": "instructnerf2nerf-system",
    "systems.magic123": "magic123-system",
    "systems.prolificdreamer": "prolificdreamer-system",
    "systems.textmesh": "textmesh-system",
    "systems.zero123": "zero123-system",
    "systems.zero123_simple": "zero123-simple-system",
    "utils.GAN": "gan-volume-renderer",
    "utils.perceptual": "perceptual-loss",
}
"""Modules of threestudio that this host has not, and a name of `LEFT_OUT` that has the same reason."""

_OWN_WAY = {
    **dict.fromkeys(
        ("TCNNEncoding", "TCNNNetwork", "TCNNNetworkWithInputEncoding", "ToDTypeWrapper"),
        "get_encoding, get_mlp and create_network_with_input_encoding make what there is",
    ),
    "TCNNEncodingSpatialTime": "it is for scenes that move, and all here stand still",
    **dict.fromkeys(
        ("IsosurfaceHelper", "MarchingCubeCPUHelper", "MarchingTetrahedraHelper"),
        "geometry.isosurface() cuts by itself",
    ),
    "ProgressCallback": "it writes for gradio's page",
    **dict.fromkeys(("MeshOBJ", "ce_pq_loss"), "only what is left out uses it"),
}
"""Names in modules of threestudio that this host has, without them, and why."""


def missing_import(error: ImportError) -> str | None:
    """What to say of an import of threestudio's that this host has not; None: it is of something else."""
    module = error.name or ""
    if module.partition(".")[0] != "threestudio":
        return None
    named = re.match(r"cannot import name '(\w+)'", str(error))
    inner = module.removeprefix("threestudio.")
    reasons = [LEFT_OUT[kind] for m, kind in LEFT_OUT_MODULES.items() if f"{inner}.".startswith(f"{m}.")]
    if named is None:
        return _left_out(module, reasons[0]) if reasons else f"neither threestudio nor this host has {module}"
    name = named[1]
    whole = f"{inner}.{name}"  # from threestudio.utils import perceptual
    if whole in LEFT_OUT_MODULES:
        return _left_out(f"threestudio.{whole}", LEFT_OUT[LEFT_OUT_MODULES[whole]])
    if name in _OWN_WAY:
        return _left_out(f"{module}.{name}", _OWN_WAY[name])
    near = did_you_mean(name, dir(sys.modules.get(module)))
    return f"this host's {module} has no {name}.{near}"


def _left_out(what: str, why: str) -> str:
    return f"threestudio has {what}, and this host leaves it out: {why}"


def kind_of(name: str, cls: Any) -> str | None:
    """The kind of a registered class by its bases, or, where they are common to several, by its name."""
    for kind, base in _bases().items():
        if isinstance(cls, type) and issubclass(cls, base):
            return kind
    return _kind_by_name(name)


def _bases() -> dict[str, type]:
    import pytorch_lightning as pl

    from threestudio.models.background.base import BaseBackground
    from threestudio.models.exporters.base import Exporter
    from threestudio.models.geometry.base import BaseGeometry
    from threestudio.models.materials.base import BaseMaterial
    from threestudio.models.prompt_processors.base import PromptProcessor
    from threestudio.models.renderers.base import Renderer

    return {
        "datamodule": pl.LightningDataModule,
        "system": pl.LightningModule,
        "geometry": BaseGeometry,
        "material": BaseMaterial,
        "background": BaseBackground,
        "renderer": Renderer,
        "prompt processor": PromptProcessor,
        "exporter": Exporter,
    }


def _kind_by_name(name: str) -> str | None:
    """Guidances, and extensions' prompt processors, have no base of their own."""
    endings = {"guidance": "guidance", "prompt-processor": "prompt processor"}
    return next((kind for ending, kind in endings.items() if name.endswith(ending)), None)


def names_of(kind: str, modules: Mapping[str, Any]) -> list[str]:
    """All registered names of a kind, sorted."""
    return sorted(name for name, cls in modules.items() if kind_of(name, cls) == kind)


def unknown_name(name: str, modules: Mapping[str, Any], kind: str | None = None) -> str:
    """The message for a name that nothing registered.

    Args:
        modules: what is registered, by name.
        kind: the kind that was wanted; None: that of the closest name, and where nothing is close, all.
    """
    wanted = names_of(kind, modules) if kind else list(modules)
    near = closest(name, wanted)
    if kind is None:
        kind = kind_of(near[0], modules[near[0]]) if near else _kind_by_name(name)
    lines = [f"Nothing is registered as {name!r}.{did_you_mean(name, wanted)}"]
    if name in LEFT_OUT:
        lines[0] = _left_out(repr(name), LEFT_OUT[name]) + "."
    lines += [_listed(kind, modules)] if kind else _all(modules)
    if name not in LEFT_OUT:
        lines.append("A name that an extension registers needs that extension's folder under custom/.")
    return "\n".join(lines)


def _listed(kind: str, modules: Mapping[str, Any]) -> str:
    return _line(kind, names_of(kind, modules))


def _all(modules: Mapping[str, Any]) -> Iterable[str]:
    groups: dict[str, list[str]] = {}
    for name in sorted(modules):
        groups.setdefault(kind_of(name, modules[name]) or "other", []).append(name)
    return [_line(kind, groups[kind]) for kind in sorted(groups)] or ["Nothing is registered at all."]


def _line(kind: str, names: list[str]) -> str:
    return f"Registered as {kind}: {', '.join(names) or '(nothing)'}."
