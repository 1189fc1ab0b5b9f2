"""`lucid-camera-datamodule`: random cameras whose ranges change with the step, as LucidDreamer's do.

The batch of step k is a function of (seed, rank, k) alone, in threestudio's own loop too: a resumed run sees
the cameras it would have seen, and no batch lags behind the schedule because it was fetched ahead.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import ListConfig
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

import threestudio
from threestudio.data.uncond import RandomCameraDataModule, RandomCameraDataModuleConfig
from threestudio.utils.config import parse_structured
from threestudio.utils.misc import get_rank
from threestudio.utils.ops import get_mvp_matrix, get_projection_matrix, get_ray_directions, get_rays

from ..errors import UserError, check_pair, check_range
from ..seeding import generator
from .orbit import Cameras, Orbit, Relaxation, sample_cameras

RANGES = ("elevation", "azimuth", "camera_distance", "fovy")
NEAR, FAR = 0.01, 100.0


@dataclass
class LucidCameraDataModuleConfig(RandomCameraDataModuleConfig):
    """The fields of random-camera-datamodule (`progressive_until` gives way to `relax`), and:"""

    seed: int = 0
    """Cameras are a function of this and the step."""
    relax_every: int = 0
    """Ranges change every so many steps, 0: never."""
    relax: dict = field(default_factory=dict)
    """Factors of the low and the high end of a range at each change, e.g. camera_distance: [0.95, 0.95].
    Names: elevation, azimuth, camera_distance, fovy."""
    relax_limits: dict = field(default_factory=dict)
    """Where the ends stop, e.g. camera_distance: [3.5, 5.0]. Needed for every range in `relax`."""

    def __post_init__(self) -> None:
        getattr(super(), "__post_init__", lambda: None)()
        if self.progressive_until:
            raise UserError("progressive_until is random-camera-datamodule's; here relax_every and relax.")
        check_range("relax_every", self.relax_every, 0)
        check_range("eval_camera_distance", self.eval_camera_distance, 0.0, above=True)
        nearest, _ = check_pair("camera_distance_range", self.camera_distance_range, "[low, high]")
        if nearest <= 0.0:
            raise UserError(
                f"camera_distance_range is {self.camera_distance_range!r}; distances must be above 0."
            )
        _check_ends("relax", self.relax, "[low end's factor, high end's factor]")
        _check_ends("relax_limits", self.relax_limits, "[low end, high end]")
        for end in self.relax_limits.get("camera_distance", ()):
            check_range("relax_limits.camera_distance", end, 0.0, above=True)
        missing = [name for name in self.relax if name not in self.relax_limits]
        if missing:
            raise UserError(f"relax_limits lacks {', '.join(missing)}, which relax changes.")


def _check_ends(key: str, given: Any, form: str) -> None:
    """UserError unless it is a mapping of names of ranges to two numbers."""
    if not isinstance(given, Mapping):
        raise UserError(f"{key} is {given!r}; it must be a mapping such as {{fovy: {form}}}.")
    for name, ends in given.items():
        if name not in RANGES:
            raise UserError(f"{key} names {name!r}; it must be one of: {', '.join(RANGES)}.")
        check_pair(f"{key}.{name}", ends, f"two numbers, {form}")


class LucidCameraDataset(IterableDataset):
    """Endless training batches, with the keys of threestudio's random cameras.

    Args:
        cfg: a parsed `LucidCameraDataModuleConfig`.
        first_batch: called when iteration starts; the number of the first batch.
        rays: whether batches have rays, which are nearly all of the work (80 ms for four views of 512 x 512).
    """

    def __init__(self, cfg: Any, first_batch: Callable[[], int] = lambda: 0, rays: bool = True) -> None:
        super().__init__()
        self.cfg = cfg
        self.first_batch = first_batch
        self.rays = rays
        self.relaxation = Relaxation(cfg.relax_every, cfg.relax, cfg.relax_limits)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        step = self.first_batch()
        while True:
            yield self.batch(step)
            step += 1

    def orbit(self, step: int) -> Orbit:
        """Where cameras are drawn from at a step."""
        ranges = {name: self.relaxation.at(name, self.cfg[f"{name}_range"], step) for name in RANGES}
        return Orbit(
            elevation=ranges["elevation"],
            azimuth=ranges["azimuth"],
            distance=ranges["camera_distance"],
            fovy=ranges["fovy"],
            camera_perturb=self.cfg.camera_perturb,
            center_perturb=self.cfg.center_perturb,
            up_perturb=self.cfg.up_perturb,
            even_azimuth=self.cfg.batch_uniform_azimuth,
        )

    def batch(self, step: int) -> dict[str, Any]:
        """The batch of a step."""
        stage = bisect.bisect_right(list(self.cfg.resolution_milestones), step)
        n, height, width = (_at_stage(self.cfg[k], stage) for k in ("batch_size", "height", "width"))
        draw = generator(self.cfg.seed, "cameras", get_rank(), step)
        cameras = sample_cameras(self.orbit(step), n, draw)

        near_camera = cameras.c2w[:, :3, 3] + self.cfg.light_position_perturb * torch.randn(
            n, 3, generator=draw
        )
        low, high = self.cfg.light_distance_range
        distance = low + (high - low) * torch.rand(n, 1, generator=draw)
        batch = view_batch(cameras, height, width, normalize=self.cfg.rays_d_normalize, rays=self.rays)
        return batch | {"light_positions": distance * F.normalize(near_camera, dim=1)}


def view_batch(
    cameras: Cameras, height: int, width: int, *, normalize: bool = True, rays: bool = True
) -> dict[str, Any]:
    """A batch of cameras with threestudio's keys; the light is at the camera.

    elevation, azimuth in degrees, fovy in radians, c2w OpenGL, rays see `view_rays`; without `rays` there are
    none.
    """
    positions, fovy = cameras.c2w[:, :3, 3], torch.deg2rad(cameras.fovy)
    proj_mtx = get_projection_matrix(fovy, width / height, NEAR, FAR).to(fovy)
    return {
        **(view_rays(cameras.c2w, fovy, height, width, normalize=normalize) if rays else {}),
        "mvp_mtx": get_mvp_matrix(cameras.c2w, proj_mtx),
        "proj_mtx": proj_mtx,
        "c2w": cameras.c2w,
        "camera_positions": positions,
        "light_positions": positions,
        "elevation": cameras.elevation,
        "azimuth": cameras.azimuth,
        "camera_distances": cameras.distance,
        "fovy": fovy,
        "height": height,
        "width": width,
    }


def view_rays(
    c2w: Tensor, fovy: Tensor, height: int, width: int, *, normalize: bool = True
) -> dict[str, Tensor]:
    """Rays from pixel centres, rays_o and rays_d [B, H, W, 3], on the cameras' device.

    Args:
        c2w: [B, 4, 4], OpenGL.
        fovy: [B] radians.
        normalize: to unit length; False: to depth 1.
    """
    focal = 0.5 * height / torch.tan(0.5 * fovy)
    with torch.device(c2w.device):  # threestudio's function does not ask where
        directions = get_ray_directions(H=height, W=width, focal=1.0)[None].repeat(len(c2w), 1, 1, 1)
    directions[..., :2] /= focal[:, None, None, None]
    rays_o, rays_d = get_rays(directions, c2w, keepdim=True, normalize=normalize)
    return {"rays_o": rays_o, "rays_d": rays_d}


def _at_stage(value: Any, stage: int) -> int:
    """A number, or of a list the entry of this stage between resolution_milestones."""
    return value[stage] if isinstance(value, (list, tuple, ListConfig)) and len(value) > 1 else _first(value)


def _first(value: Any) -> int:
    return value[0] if isinstance(value, (list, tuple, ListConfig)) else value


@threestudio.register("lucid-camera-datamodule")
class LucidCameraDataModule(RandomCameraDataModule):
    """`LucidCameraDataset` for training; validation and test views of random-camera-datamodule."""

    def __init__(self, cfg: Any = None) -> None:
        super().__init__({})
        self.cfg = parse_structured(LucidCameraDataModuleConfig, cfg)

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if stage in (None, "fit"):
            # in a trainer, rays are added on its device
            self.train_dataset = LucidCameraDataset(self.cfg, self._batches_done, rays=self.trainer is None)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if "rays_d" in batch:
            return batch
        views = (batch[key] for key in ("c2w", "fovy", "height", "width"))
        return batch | view_rays(*views, normalize=self.cfg.rays_d_normalize)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, num_workers=0, batch_size=None)

    def _batches_done(self) -> int:
        """Training batches behind us, those before a resumed checkpoint included."""
        if self.trainer is None:
            return 0
        # "processed": a checkpoint made at the end of a batch is made before that batch counts as completed
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed
