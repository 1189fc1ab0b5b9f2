"""Somebody else's extension, with a part of each kind, that knows threestudio and not this host."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch

import threestudio
from threestudio.utils.errors import ConfigValueError

INIT = """
import threestudio
from packaging.version import Version

if hasattr(threestudio, "__version__") and Version(threestudio.__version__) >= Version("0.2.1"):
    pass
else:
    raise ValueError("threestudio is too old")

from .data import cameras
from .models import parts
from .systems import system
"""
CAMERAS = """
from dataclasses import dataclass

import pytorch_lightning as pl
from torch.utils.data import DataLoader
from threestudio import register
from threestudio.data.uncond import (
    RandomCameraDataModuleConfig,
    RandomCameraDataset,
    RandomCameraIterableDataset,
)
from threestudio.utils.config import parse_structured
from threestudio.utils.ops import get_mvp_matrix, get_projection_matrix, get_ray_directions, get_rays
from threestudio.utils.typing import *


@dataclass
class Config(RandomCameraDataModuleConfig):
    n_view: int = 2


class Cameras(RandomCameraIterableDataset):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.zoom = 1.0

    def collate(self, batch) -> Dict[str, Any]:
        made = super().collate(batch)
        assert len(made["elevation"]) == self.batch_size
        low, high = self.fovy_range
        return {**made, "n_view": self.cfg.n_view}


@register("other-cameras")
class Module(pl.LightningDataModule):
    cfg: Config

    def __init__(self, cfg: Optional[Union[dict, DictConfig]] = None) -> None:
        super().__init__()
        self.cfg = parse_structured(Config, cfg)

    def setup(self, stage=None) -> None:
        if stage in [None, "fit"]:
            self.train_dataset = Cameras(self.cfg)
        if stage in [None, "fit", "validate"]:
            self.val_dataset = RandomCameraDataset(self.cfg, "val")
        if stage in [None, "test", "predict"]:
            self.test_dataset = RandomCameraDataset(self.cfg, "test")

    def general_loader(self, dataset, batch_size, collate_fn=None) -> DataLoader:
        return DataLoader(dataset, num_workers=0, batch_size=batch_size, collate_fn=collate_fn)

    def train_dataloader(self) -> DataLoader:
        return self.general_loader(self.train_dataset, None, self.train_dataset.collate)

    def val_dataloader(self) -> DataLoader:
        return self.general_loader(self.val_dataset, 1, self.val_dataset.collate)

    def test_dataloader(self) -> DataLoader:
        return self.general_loader(self.test_dataset, 1, self.test_dataset.collate)

    def predict_dataloader(self) -> DataLoader:
        return self.general_loader(self.test_dataset, 1, self.test_dataset.collate)
"""
PARTS = """
from dataclasses import dataclass, field

import torch
import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.models.exporters.base import Exporter, ExporterOutput
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.mesh import Mesh
from threestudio.models.networks import get_encoding, get_mlp
from threestudio.models.prompt_processors.base import PromptProcessorOutput
from threestudio.models.renderers.base import Rasterizer, VolumeRenderer
from threestudio.utils.base import BaseObject
from threestudio.utils.loss import tv_loss
from threestudio.utils.misc import C, cleanup, get_device, get_rank, parse_version
from threestudio.utils.ops import binary_cross_entropy, dot, get_activation, get_cam_info_gaussian
from threestudio.utils.rasterize import NVDiffRasterizerContext
from threestudio.utils.typing import *


@threestudio.register("other-ball")
class Ball(BaseGeometry):
    @dataclass
    class Config(BaseGeometry.Config):
        size: float = 0.5
        network: dict = field(
            default_factory=lambda: {"otype": "VanillaMLP", "n_neurons": 4, "n_hidden_layers": 1}
        )

    cfg: Config

    def configure(self) -> None:
        self.log_size = torch.nn.Parameter(torch.tensor(self.cfg.size).log())
        self.network = get_mlp(3, 3, self.cfg.network)
        self.seen = set()

    def update_step(self, epoch, global_step, on_load_weights=False):
        self.seen.add(global_step)


@threestudio.register("other-material")
class Material(BaseMaterial):
    @dataclass
    class Config(BaseMaterial.Config):
        pass

    def forward(self, features: Float[Tensor, "*B C"], **kwargs) -> Float[Tensor, "*B 3"]:
        return get_activation("sigmoid")(features)


@threestudio.register("other-background")
class Background(BaseBackground):
    @dataclass
    class Config(BaseBackground.Config):
        pass

    def forward(self, dirs):
        return torch.ones_like(dirs)


@threestudio.register("other-renderer")
class Discs(Rasterizer):
    @dataclass
    class Config(Rasterizer.Config):
        sharpness: Any = 10.0

    cfg: Config

    def configure(self, geometry, material, background) -> None:
        super().configure(geometry, material, background)

    def forward(self, c2w, rays_o, rays_d, height, width, bg_color=None, **kwargs) -> Dict[str, Any]:
        nearest = torch.linalg.cross(rays_o, rays_d, dim=-1).norm(dim=-1, keepdim=True)
        opacity = torch.sigmoid(self.cfg.sharpness * (self.geometry.log_size.exp() - nearest))
        color = self.material(self.geometry.network(rays_d.reshape(-1, 3)).view(rays_d.shape))
        back = self.background(dirs=rays_d)
        return {"comp_rgb": color * opacity + back * (1 - opacity), "opacity": opacity}


@threestudio.register("other-prompt-processor")
class Prompts(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        prompt: str = ""

    def __call__(self):
        return self.cfg.prompt


@threestudio.register("other-guidance")
class Red(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        strength: Any = field(default_factory=lambda: [0, 1.0, 0.5, 2])

    cfg: Config

    def configure(self) -> None:
        self.red = torch.tensor([1.0, 0.0, 0.0], device=self.device)

    def __call__(
        self, rgb, prompt_utils, elevation, azimuth, camera_distances, rgb_as_latents=False, **kwargs
    ):
        assert prompt_utils == "red" and kwargs["n_view"] == 3
        return {"loss_sds": ((rgb - self.red) ** 2).mean() * self.now, "grad_norm": rgb.norm()}

    def update_step(self, epoch, global_step, on_load_weights=False):
        self.now = C(self.cfg.strength, epoch, global_step)


@threestudio.register("other-exporter")
class Points(Exporter):
    @dataclass
    class Config(Exporter.Config):
        pass

    def __call__(self) -> List[ExporterOutput]:
        return [ExporterOutput("size.json", "json", {"payload": self.geometry.log_size.item()})]
"""
SYSTEM = """
from dataclasses import dataclass, field

import threestudio
from threestudio.systems.base import BaseLift3DSystem
from threestudio.systems.utils import parse_optimizer, parse_scheduler
from threestudio.utils.typing import *


@threestudio.register("other-system")
class System(BaseLift3DSystem):
    @dataclass
    class Config(BaseLift3DSystem.Config):
        by_hand: bool = False

    cfg: Config

    def configure(self) -> None:
        super().configure()
        self.automatic_optimization = not self.cfg.by_hand

    def configure_optimizers(self):
        if not self.cfg.by_hand:
            return super().configure_optimizers()
        return [parse_optimizer(self.cfg.optimizer, self)]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.prompt_processor = threestudio.find(self.cfg.prompt_processor_type)(self.cfg.prompt_processor)
        self.guidance = threestudio.find(self.cfg.guidance_type)(self.cfg.guidance)

    def forward(self, batch):
        return self.renderer(**batch)

    def training_step(self, batch, batch_idx):
        out = self(batch)
        guidance_out = self.guidance(out["comp_rgb"], self.prompt_processor(), **batch, rgb_as_latents=False)
        loss = 0.0
        for name, value in guidance_out.items():
            self.log(f"train/{name}", value)
            if name.startswith("loss_"):
                loss += value * self.C(self.cfg.loss[name.replace("loss_", "lambda_")])
        if self.cfg.by_hand:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return {"loss": loss}

    def validation_step(self, batch, batch_idx):
        out = self(batch)
        cell = {"type": "rgb", "img": out["comp_rgb"][0], "kwargs": {"data_format": "HWC"}}
        name = f"it{self.true_global_step}-{batch['index'][0]}.png"
        self.save_image_grid(name, [cell], name="validation_step")

    def on_validation_epoch_end(self):
        assert self.true_global_step - 1 in self.geometry.seen or self.true_global_step in self.geometry.seen

    def test_step(self, batch, batch_idx):
        name = f"it{self.true_global_step}-test/{batch['index'][0]}.png"
        self.save_rgb_image(name, self(batch)["comp_rgb"][0])

    def on_test_epoch_end(self):
        folder = f"it{self.true_global_step}-test"
        self.save_img_sequence(folder, folder, r"(\\d+)\\.png", save_format="mp4", fps=30)
"""
CONFIG = """
name: other
tag: ${rmspace:${system.prompt_processor.prompt},_}
use_timestamp: false
data_type: other-cameras
data: {n_view: 3, batch_size: [3, 2], height: [8, 6], width: [8, 6], resolution_milestones: [1],
       eval_height: 8, eval_width: 8, n_test_views: 3}
system_type: other-system
system:
  geometry_type: other-ball
  geometry: {size: 0.4}
  material_type: other-material
  background_type: other-background
  renderer_type: other-renderer
  prompt_processor_type: other-prompt-processor
  prompt_processor: {prompt: red}
  guidance_type: other-guidance
  loss: {lambda_sds: [0, 1.0, 2.0, 2]}
  optimizer: {name: Adam, args: {lr: 0.05}, params: {geometry: {lr: 0.1}}}
  exporter_type: other-exporter
trainer: {max_steps: 4, num_sanity_val_steps: 0, val_check_interval: 2, log_every_n_steps: 1}
checkpoint: {save_last: true}
"""


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """A run of the extension, in custom/threestudio-other of a folder of its own."""
    files = {
        "__init__.py": INIT,
        "data/__init__.py": "",
        "data/cameras.py": CAMERAS,
        "models/__init__.py": "",
        "models/parts.py": PARTS,
        "systems/__init__.py": "",
        "systems/system.py": SYSTEM,
    }
    for name, text in files.items():
        path = tmp_path / "custom/threestudio-other" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "other.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(threestudio, "__modules__", dict(threestudio.__modules__))

    def go(*overrides, stage="train"):
        from threestudio.run import Request, run

        for name in [name for name in threestudio.__modules__ if name.startswith("other-")]:
            del threestudio.__modules__[name]
        for name in [name for name in sys.modules if name.startswith("threestudio-other")]:
            del sys.modules[name]
        run(Request("other.yaml", stage, list(overrides), custom_folders=[tmp_path / "custom"]))
        return Path("outputs/other/red")

    yield go
    for name in [name for name in sys.modules if name.startswith("threestudio-other")]:
        del sys.modules[name]


@pytest.mark.parametrize("by_hand", [False, True])
def test_it_trains_and_exports(launch, by_hand):
    trial = launch(f"system.by_hand={by_hand}")
    save = {path.name for path in (trial / "save").iterdir()}
    assert {"it2-0.png", "it4-0.png", "it4-test", "it4-test.mp4"} <= save
    state = torch.load(trial / "ckpts/last.ckpt", weights_only=True)["state_dict"]
    assert "geometry.log_size" in state and not any(name.startswith("renderer.geometry") for name in state)
    assert state["geometry.log_size"].exp() != pytest.approx(0.4)
    launch(f"resume={trial}/ckpts/last.ckpt", stage="export")
    assert (trial / "save/it4-export/size.json").exists()


def test_a_mixin_of_ours_before_its_system(launch):
    import threestudio_lucid  # noqa: F401  (registers it)

    assert (launch("system_type=other-system:lucid-guidance-swap") / "ckpts/last.ckpt").exists()


def test_nvdiffrast_is_asked_for_when_it_is_used(monkeypatch):
    from threestudio.utils.rasterize import NVDiffRasterizerContext

    monkeypatch.setitem(sys.modules, "nvdiffrast", None)
    with pytest.raises(ConfigValueError, match="nvdiffrast"):
        NVDiffRasterizerContext("cuda", torch.device("cpu"))

    library = types.SimpleNamespace(
        RasterizeGLContext=lambda device: "gl",
        RasterizeCudaContext=lambda device: "cuda",
        rasterize=lambda ctx, pos, tri, size, grad_db: (pos, tri),
    )
    package = types.ModuleType("nvdiffrast")
    package.torch = library
    monkeypatch.setitem(sys.modules, "nvdiffrast", package)
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", library)
    context = NVDiffRasterizerContext("cuda", torch.device("cpu"))
    corners = context.vertex_transform(torch.tensor([[1.0, 2.0, 3.0]]), 2 * torch.eye(4)[None])
    torch.testing.assert_close(corners, torch.tensor([[[2.0, 4.0, 6.0, 2.0]]]))
    assert context.rasterize_one(corners[0], torch.tensor([[0, 0, 0]]), 8)[1].dtype == torch.int32
    with pytest.raises(ConfigValueError, match="gl, cuda"):
        NVDiffRasterizerContext("vulkan", torch.device("cpu"))
