"""A guidance without a prior, for tests of the loop around it: every view is to be a red disc."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

import threestudio
from threestudio.utils.base import BaseObject

TOY = "toy-disc-guidance"

if TOY not in threestudio.__modules__:

    @threestudio.register(TOY)
    class ToyGuidance(BaseObject):
        @dataclass
        class Config(BaseObject.Config):
            scale: float = 1.0
            nan_from: int = 10**9
            """Call from which on the loss is not finite."""
            nan_until: int = 10**9
            """Call until which, itself not included."""
            out_of_memory: bool = False
            """Raise what CUDA does where there is no memory left."""

        def configure(self):
            self.calls = 0

        def __call__(self, rgb, prompt_utils, **kwargs):
            self.calls += 1
            if self.cfg.out_of_memory:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
            h, w = rgb.shape[1:3]
            y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
            disc = ((x**2 + y**2) < 0.4).float()[..., None]
            target = disc * torch.tensor([0.9, 0.1, 0.1]) + (1 - disc) * rgb.detach()
            loss = self.cfg.scale * 0.5 * (rgb - target).square().sum() / len(rgb)
            if self.cfg.nan_from <= self.calls < self.cfg.nan_until:
                loss = loss * float("nan")
            return {"loss_sds": loss, "grad_norm": (rgb - target).detach().norm()}

    @threestudio.register("toy-prompts")
    class ToyPrompts(BaseObject):
        @dataclass
        class Config(BaseObject.Config):
            prompt: str = "a red ball"

        def __call__(self):
            return self.cfg.prompt


def toy_config(folder: Path) -> dict:
    """A run of 12 steps with density control in the middle, about 0.1 s a step."""
    return {
        "name": "toy",
        "tag": "run",
        "use_timestamp": False,
        "exp_root_dir": str(folder),
        "data_type": "lucid-camera-datamodule",
        "data": {
            "batch_size": 2,
            "height": 24,
            "width": 24,
            "camera_distance_range": [2.8, 3.2],
            "fovy_range": [38, 42],
            "elevation_range": [-10, 60],
            "eval_height": 32,
            "eval_width": 32,
            "eval_camera_distance": 3.0,
            "eval_fovy_deg": 40.0,
            "n_val_views": 1,
            "n_test_views": 4,
        },
        "system_type": "lucid-dreamer-system",
        "system": {
            "geometry_type": "lucid-gaussian-splatting",
            "geometry": {"num_points": 60, "capacity": 150, "lr_means": 0.01, "lr_scales": 0.02},
            "material_type": "no-material",
            "material": {"n_output_dims": 0},
            "background_type": "solid-color-background",
            "renderer_type": "lucid-gaussian-renderer",
            "guidance_type": TOY,
            "prompt_processor_type": "toy-prompts",
            "prompt_processor": {"prompt": "a red ball"},
            "loss": {"lambda_sds": 1.0, "lambda_tv": 0.1, "lambda_scale": 0.1},
            "density": {
                "start": 2,
                "until": 10,
                "every": 3,
                "reset_every": 5,
                "grad_threshold": 1e-6,
                "clone_scale": 0.08,
            },
            "exporter_type": "lucid-ply-exporter",
        },
        "trainer": {"max_steps": 12, "num_sanity_val_steps": 0},
        "checkpoint": {"save_last": True, "save_top_k": -1, "every_n_train_steps": 4},
    }


def launch(config: dict, folder: Path, *overrides: str, stage: str = "train") -> Path:
    """Runs a config as launch.py does; returns the trial's folder."""
    from threestudio.run import Request, run

    file = folder / "config.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config))
    run(Request(config=str(file), stage=stage, overrides=overrides))
    return Path(config["exp_root_dir"]) / config["name"] / config["tag"]
