"""Random cameras around the origin: ``random-camera-datamodule``.

The batch of step k is a function of the seed and k alone, so a run that resumes sees the cameras that it
would have seen.  Sampling draws from a generator of its own; evaluation views are fixed.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from omegaconf import ListConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from threestudio import register
from threestudio.utils.base import Updateable
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.ops import (
    get_mvp_matrix,
    get_projection_matrix,
    get_ray_directions,
    get_rays,
    look_at_c2w,
)

NEAR, FAR = 0.01, 100.0


@dataclass
class RandomCameraDataModuleConfig:
    """All angles in degrees; distances in world units."""

    height: Any = 64
    """Pixels, or a list: one for each stretch between resolution_milestones."""
    width: Any = 64
    """As height."""
    batch_size: Any = 1
    """Cameras a step, a number or a list like height."""
    resolution_milestones: list[int] = field(default_factory=list)
    """Steps at which height, width and batch_size go on to their next value."""
    eval_height: int = 512
    """Pixels of validation and test views."""
    eval_width: int = 512
    """As eval_height."""
    eval_batch_size: int = 1
    """Kept for configs that name it; evaluation takes one view at a time."""
    n_val_views: int = 1
    """Validation views around the object."""
    n_test_views: int = 120
    """Test views around the object; the last is the first again."""
    elevation_range: Any = (-10, 90)
    """Elevation of training cameras."""
    azimuth_range: Any = (-180, 180)
    """Azimuth of training cameras."""
    camera_distance_range: Any = (1, 1.5)
    """Distance of training cameras from the origin."""
    fovy_range: Any = (40, 70)
    """Vertical field of view of training cameras."""
    camera_perturb: float = 0.1
    """Camera positions move by up to this, uniformly, along each axis."""
    center_perturb: float = 0.2
    """Standard deviation of the point looked at."""
    up_perturb: float = 0.02
    """Standard deviation of the up vector."""
    light_position_perturb: float = 1.0
    """Standard deviation of the light's direction around the camera's (dreamfusion)."""
    light_distance_range: Any = (0.8, 1.5)
    """Distance of the light from the origin."""
    eval_elevation_deg: float = 15.0
    """Elevation of validation and test views."""
    eval_camera_distance: float = 1.5
    """Distance of validation and test views."""
    eval_fovy_deg: float = 70.0
    """Vertical field of view of validation and test views."""
    light_sample_strategy: str = "dreamfusion"
    """dreamfusion: a light near the camera; magic3d: a light in a cone around the camera."""
    batch_uniform_azimuth: bool = True
    """Spread the azimuths of a batch over equal parts of the range."""
    progressive_until: int = 0
    """Widen azimuth and elevation from the front view to their ranges until this step; 0 starts wide."""
    rays_d_normalize: bool = True
    """Unit ray directions; false leaves them at depth 1, so that depth along a ray is z-depth."""

    def __post_init__(self) -> None:
        for name in (
            "elevation_range",
            "azimuth_range",
            "camera_distance_range",
            "fovy_range",
            "light_distance_range",
        ):
            _check_range(name, getattr(self, name))
        if self.light_sample_strategy not in ("dreamfusion", "magic3d"):
            raise ConfigValueError(
                f"light_sample_strategy is 'dreamfusion' or 'magic3d', not {self.light_sample_strategy!r}."
            )
        stretches = len(self.resolution_milestones) + 1
        for name in ("height", "width", "batch_size"):
            values = as_list(getattr(self, name))
            if len(values) not in (1, stretches):
                raise ConfigValueError(
                    f"{name} has {len(values)} values for {stretches} stretches of resolution_milestones "
                    f"{list(self.resolution_milestones)}; give one, or {stretches}."
                )
            if not all(isinstance(value, int) and value > 0 for value in values):
                raise ConfigValueError(f"{name} must be a positive whole number, got {getattr(self, name)}.")
        for name in ("eval_height", "eval_width", "n_val_views", "n_test_views"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and value <= 0:
                raise ConfigValueError(f"{name} must be positive, got {value}.")
        for name in ("fovy_range", "eval_fovy_deg"):
            value = getattr(self, name)
            if not all(0.0 < degrees < 180.0 for degrees in as_list(value)):
                raise ConfigValueError(f"{name} is in degrees, above 0 and below 180, got {value}.")


def _check_range(name: str, value: Any) -> None:
    numbers = list(value) if isinstance(value, (list, tuple, ListConfig)) else []
    if len(numbers) != 2 or not all(isinstance(n, (int, float)) for n in numbers) or numbers[0] > numbers[1]:
        raise ConfigValueError(f"{name} is [low, high] with low <= high, got {value!r}.")


def as_list(value: Any) -> list[Any]:
    """A list of one, or the list that it is."""
    return list(value) if isinstance(value, (list, tuple, ListConfig)) else [value]


class RandomCameraIterableDataset(IterableDataset, Updateable):
    """Endless training batches.

    Args:
        cfg: a `RandomCameraDataModuleConfig`.
        seed: None takes the seed torch was given last (``pl.seed_everything``).
        first_step: called when iteration starts; which step the first batch is for.
        batches_per_step: how many batches make one optimizer step (gradient accumulation).
    """

    def __init__(
        self,
        cfg: Any,
        seed: int | None = None,
        first_step: Callable[[], int] | None = None,
        batches_per_step: Callable[[], int] | None = None,
    ) -> None:
        super().__init__()
        self.cfg: RandomCameraDataModuleConfig = cfg
        self.seed = torch.initial_seed() if seed is None else seed
        self._first_step = first_step or (lambda: 0)
        self._batches_per_step = batches_per_step or (lambda: 1)
        self._next_batch = 0

        stretches = len(cfg.resolution_milestones) + 1
        self.heights = spread(cfg.height, stretches)
        self.widths = spread(cfg.width, stretches)
        self.batch_sizes = spread(cfg.batch_size, stretches)
        self.resolution_milestones = [-1, *cfg.resolution_milestones]
        self.directions_unit_focals = [
            get_ray_directions(H=height, W=width, focal=1.0)
            for height, width in zip(self.heights, self.widths, strict=True)
        ]
        self._set_resolution(0)

        self.elevation_range = list(cfg.elevation_range)
        self.azimuth_range = list(cfg.azimuth_range)
        self.camera_distance_range = list(cfg.camera_distance_range)
        self.fovy_range = list(cfg.fovy_range)

    # ---- schedule ------------------------------------------------------------------------------------------

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Set resolution and ranges for ``global_step``."""
        self._set_resolution(bisect.bisect_right(self.resolution_milestones, global_step) - 1)
        self.progressive_view(global_step)

    def _set_resolution(self, stretch: int) -> None:
        self.height = self.heights[stretch]
        self.width = self.widths[stretch]
        self.batch_size = self.batch_sizes[stretch]
        self.directions_unit_focal = self.directions_unit_focals[stretch]

    def progressive_view(self, global_step: int) -> None:
        """Widen the ranges of elevation and azimuth linearly until ``progressive_until``."""
        until = self.cfg.progressive_until
        r = min(1.0, global_step / (until + 1)) if until > 0 else 1.0
        start = self.cfg.eval_elevation_deg
        self.elevation_range = [(1 - r) * start + r * bound for bound in self.cfg.elevation_range]
        self.azimuth_range = [r * bound for bound in self.cfg.azimuth_range]

    # ---- batches -------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._next_batch = self._first_step()
        while True:
            yield {}

    def collate(self, batch: Any) -> dict[str, Any]:
        """The next batch, whatever ``batch`` holds."""
        index = self._next_batch
        self._next_batch += 1
        # Lightning fetches a batch ahead, so the ranges of its step are set here, not by the system.
        self.update_step(0, index // max(1, self._batches_per_step()))
        return self.sample(self.generator_of(index))

    def generator_of(self, index: int) -> torch.Generator:
        """The generator that batch ``index`` draws from."""
        entropy = [self.seed % 2**64, index]
        seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
        return torch.Generator().manual_seed(seed)

    def sample(self, generator: torch.Generator) -> dict[str, Any]:
        """A batch of random cameras; see the keys at the end.  All draws come from ``generator``."""
        elevation_deg = self._sample_elevation(generator)
        azimuth_deg = self._sample_azimuth(generator)
        elevation, azimuth = torch.deg2rad(elevation_deg), torch.deg2rad(azimuth_deg)
        distances = self._uniform(self.camera_distance_range, generator)
        positions = spherical_to_cartesian(elevation, azimuth, distances)
        camera_perturb = self._rand(generator, 3) * 2 * self.cfg.camera_perturb - self.cfg.camera_perturb
        positions = positions + camera_perturb
        center = self._randn(generator, 3) * self.cfg.center_perturb
        up = torch.tensor([0.0, 0.0, 1.0]) + self._randn(generator, 3) * self.cfg.up_perturb
        fovy = torch.deg2rad(self._uniform(self.fovy_range, generator))
        light_positions = self._sample_lights(positions, generator)

        c2w = look_at_c2w(positions, center, up)
        proj_mtx, mvp_mtx, rays_o, rays_d = project(
            c2w, fovy, self.height, self.width, self.directions_unit_focal, self.cfg.rays_d_normalize
        )
        return {
            "rays_o": rays_o,
            "rays_d": rays_d,
            "mvp_mtx": mvp_mtx,
            "proj_mtx": proj_mtx,
            "c2w": c2w,
            "camera_positions": positions,
            "light_positions": light_positions,
            "elevation": elevation_deg,
            "azimuth": azimuth_deg,
            "camera_distances": distances,
            "fovy": fovy,
            "height": self.height,
            "width": self.width,
        }

    def _rand(self, generator: torch.Generator, *shape: int) -> Tensor:
        return torch.rand(self.batch_size, *shape, generator=generator)

    def _randn(self, generator: torch.Generator, *shape: int) -> Tensor:
        return torch.randn(self.batch_size, *shape, generator=generator)

    def _uniform(self, bounds: Sequence[float], generator: torch.Generator) -> Tensor:
        low, high = bounds
        return self._rand(generator) * (high - low) + low

    def _sample_elevation(self, generator: torch.Generator) -> Tensor:
        """Half of the batches uniform in degrees, half uniform on the sphere."""
        if torch.rand((), generator=generator) < 0.5:
            return self._uniform(self.elevation_range, generator)
        low, high = (math.sin(math.radians(bound)) for bound in self.elevation_range)
        return torch.rad2deg(torch.asin(self._uniform((low, high), generator).clamp(-1.0, 1.0)))

    def _sample_azimuth(self, generator: torch.Generator) -> Tensor:
        u = self._rand(generator)
        if self.cfg.batch_uniform_azimuth:
            u = (u + torch.arange(self.batch_size)) / self.batch_size
        low, high = self.azimuth_range
        return u * (high - low) + low

    def _sample_lights(self, positions: Tensor, generator: torch.Generator) -> Tensor:
        """Light positions [B, 3]."""
        distances = self._uniform(self.cfg.light_distance_range, generator)[:, None]
        if self.cfg.light_sample_strategy == "dreamfusion":
            towards = positions + self._randn(generator, 3) * self.cfg.light_position_perturb
            return F.normalize(towards, dim=-1) * distances
        # magic3d: in the cone of 60 degrees around the camera's direction
        local_z = F.normalize(positions, dim=-1)
        local_x = F.normalize(
            torch.stack([local_z[:, 1], -local_z[:, 0], torch.zeros(len(local_z))], dim=-1), dim=-1
        )
        local_y = F.normalize(torch.cross(local_z, local_x, dim=-1), dim=-1)
        angle = self._uniform((-math.pi, math.pi), generator)[:, None]
        height = self._uniform((0.0, math.pi / 3), generator)[:, None]
        direction = (
            local_x * torch.sin(height) * torch.cos(angle)
            + local_y * torch.sin(height) * torch.sin(angle)
            + local_z * torch.cos(height)
        )
        return F.normalize(direction, dim=-1) * distances


def spread(value: Any, stretches: int) -> list[int]:
    """The value of each stretch: one for all of them, or those that are given."""
    values = as_list(value)
    return values * stretches if len(values) == 1 else values


def spherical_to_cartesian(elevation: Tensor, azimuth: Tensor, distance: Tensor) -> Tensor:
    """Positions [..., 3] from radians: z up, azimuth 0 is +x and grows towards +y.

    >>> spherical_to_cartesian(torch.tensor(0.0), torch.tensor(0.0), torch.tensor(2.0))
    tensor([2., 0., 0.])
    """
    ground = distance * torch.cos(elevation)
    return torch.stack(
        [ground * torch.cos(azimuth), ground * torch.sin(azimuth), distance * torch.sin(elevation)], dim=-1
    )


def project(
    c2w: Tensor, fovy: Tensor, height: int, width: int, directions_unit_focal: Tensor, normalize: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """proj_mtx, mvp_mtx [B, 4, 4], rays_o, rays_d [B, H, W, 3] of c2w [B, 4, 4] and fovy [B] (radians)."""
    focal = 0.5 * height / torch.tan(0.5 * fovy)
    directions = directions_unit_focal[None].repeat(len(c2w), 1, 1, 1)
    directions[..., :2] = directions[..., :2] / focal[:, None, None, None]
    rays_o, rays_d = get_rays(directions, c2w, keepdim=True, normalize=normalize)
    proj_mtx = get_projection_matrix(fovy, width / height, NEAR, FAR)
    return proj_mtx, get_mvp_matrix(c2w, proj_mtx), rays_o, rays_d


class RandomCameraDataset(Dataset):
    """The fixed views of validation ("val") and test: a circle at eval_elevation_deg."""

    def __init__(self, cfg: Any, split: str) -> None:
        super().__init__()
        self.cfg: RandomCameraDataModuleConfig = cfg
        self.split = split
        if split == "val":
            self.n_views = cfg.n_val_views
            azimuth_deg = torch.linspace(0.0, 360.0, self.n_views + 1)[: self.n_views]
        else:
            self.n_views = cfg.n_test_views
            azimuth_deg = torch.linspace(0.0, 360.0, self.n_views)
        self.azimuth_deg = azimuth_deg
        self.elevation_deg = torch.full_like(azimuth_deg, cfg.eval_elevation_deg)
        self.camera_distances = torch.full_like(azimuth_deg, cfg.eval_camera_distance)
        self.azimuth, self.elevation = torch.deg2rad(azimuth_deg), torch.deg2rad(self.elevation_deg)

        self.camera_positions = spherical_to_cartesian(self.elevation, self.azimuth, self.camera_distances)
        self.light_positions = self.camera_positions
        center = torch.zeros_like(self.camera_positions)
        up = torch.tensor([0.0, 0.0, 1.0]).expand_as(center)
        self.fovy = torch.deg2rad(torch.full_like(azimuth_deg, cfg.eval_fovy_deg))
        self.c2w = look_at_c2w(self.camera_positions, center, up)
        self._directions = get_ray_directions(H=cfg.eval_height, W=cfg.eval_width, focal=1.0)

    def __len__(self) -> int:
        return self.n_views

    def __getitem__(self, index: int) -> dict[str, Any]:
        one = slice(index, index + 1)
        # Rays are made here, a view at a time: 120 views of 512 x 512 would hold 750 MB.
        proj_mtx, mvp_mtx, rays_o, rays_d = project(
            self.c2w[one],
            self.fovy[one],
            self.cfg.eval_height,
            self.cfg.eval_width,
            self._directions,
            self.cfg.rays_d_normalize,
        )
        return {
            "index": index,
            "rays_o": rays_o[0],
            "rays_d": rays_d[0],
            "mvp_mtx": mvp_mtx[0],
            "proj_mtx": proj_mtx[0],
            "c2w": self.c2w[index],
            "camera_positions": self.camera_positions[index],
            "light_positions": self.light_positions[index],
            "elevation": self.elevation_deg[index],
            "azimuth": self.azimuth_deg[index],
            "camera_distances": self.camera_distances[index],
            "fovy": self.fovy[index],
            "height": self.cfg.eval_height,
            "width": self.cfg.eval_width,
        }

    def collate(self, batch: Any) -> dict[str, Any]:
        """Views as one batch; height and width stay ints."""
        collated = torch.utils.data.default_collate(batch)
        collated.update({"height": self.cfg.eval_height, "width": self.cfg.eval_width})
        return collated


@register("random-camera-datamodule")
class RandomCameraDataModule(pl.LightningDataModule):
    """Random training cameras, a circle of validation and test views."""

    cfg: RandomCameraDataModuleConfig
    config_class = RandomCameraDataModuleConfig
    train_dataset_class = RandomCameraIterableDataset

    def __init__(self, cfg: Any = None) -> None:
        super().__init__()
        self.cfg = parse_structured(self.config_class, cfg)

    def setup(self, stage: str | None = None) -> None:
        if stage in (None, "fit"):
            self.train_dataset = self.train_dataset_class(
                self.cfg, first_step=self._batches_done, batches_per_step=self._accumulated
            )
        if stage in (None, "fit", "validate"):
            self.val_dataset = RandomCameraDataset(self.cfg, "val")
        if stage in (None, "test", "predict"):
            self.test_dataset = RandomCameraDataset(self.cfg, "test")

    def _batches_done(self) -> int:
        """How many training batches are behind us, those before a resumed checkpoint included."""
        return batches_done(self.trainer)

    def _accumulated(self) -> int:
        return self.trainer.accumulate_grad_batches if self.trainer is not None else 1

    def prepare_data(self) -> None:
        pass

    def general_loader(self, dataset: Any, batch_size: int | None, collate_fn: Any = None) -> DataLoader:
        """A loader in this process: making a batch takes less time than handing it over."""
        return DataLoader(dataset, num_workers=0, batch_size=batch_size, collate_fn=collate_fn)

    def train_dataloader(self) -> DataLoader:
        return self.general_loader(self.train_dataset, batch_size=None, collate_fn=self.train_dataset.collate)

    def val_dataloader(self) -> DataLoader:
        return self.general_loader(self.val_dataset, batch_size=1, collate_fn=self.val_dataset.collate)

    def test_dataloader(self) -> DataLoader:
        return self.general_loader(self.test_dataset, batch_size=1, collate_fn=self.test_dataset.collate)

    def predict_dataloader(self) -> DataLoader:
        return self.general_loader(self.test_dataset, batch_size=1, collate_fn=self.test_dataset.collate)


def batches_done(trainer: Any) -> int:
    """Training batches that ``trainer`` has been through, over all epochs and resumed runs.

    "Processed", not "completed": a checkpoint made at the end of a batch is made before that batch completes.
    """
    return 0 if trainer is None else trainer.fit_loop.epoch_loop.batch_progress.total.processed
