"""`lucid-gaussian-splatting`: the Gaussian cloud as a threestudio geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.models.geometry.base import BaseGeometry
from threestudio.utils.config import parse_structured
from threestudio.utils.misc import C, broadcast

from ..errors import UserError, check_range
from ..points.files import is_gaussian_ply
from ..points.initializers import FilePoints, TextPoints, find_kind
from ..points.shapes import GREY
from .cloud import MAX_SH_DEGREE, PARAMETERS, GaussianCloud, Gaussians, gaussians_from_points
from .density import DensityReport, DensityRules, refine, reset_opacity, screen_gradients
from .ply import read_ply
from .relocation import RelocationRules, relocate, wander


@threestudio.register("lucid-gaussian-splatting")
class LucidGaussianSplatting(BaseGeometry):
    """Gaussians in an arena of fixed size, their learning rates, and what density control needs.

    Learning rates are numbers or threestudio schedules, between whose steps they fall or rise geometrically.
    The defaults are LucidDreamer's, for objects of radius about 0.5 and 5000 steps.
    """

    @dataclass
    class Config(BaseGeometry.Config):
        init: str = "shape:ball"
        """Where points come from: text:PROMPT (Point-E), shap-e:PROMPT, either alone for init_prompt;
        shape:ball, sphere, box or torus; file:PATH of points (.ply, .npz), a mesh (.obj, .glb, .ply), or
        Gaussians (.ply); body:mannequin, smplx:FOLDER or file:PATH."""
        init_prompt: str = ""
        """What text and shap-e are given where `init` does not say; configs set it to the prompt."""
        text_model: str = "mini"
        """What text is given to: mini (bundled, knows the toybox), pointe (OpenAI's), or a folder."""
        init_args: Any = None
        """Further settings of the kind of source, such as {fit: true, up: +y}: see points/initializers.py."""
        init_radius: float = 0.5
        """Radius of shapes, and of what is fitted; world units."""
        init_jitter: float = 0.1
        """Where the source has fewer points than num_points: how far copies of them lie, in init_radius."""
        init_color: bool = True
        """Keep the points' colours; false: all grey, as LucidDreamer's configs start."""
        init_opacity: float = 0.1
        """Opacity of every Gaussian at the start, in (0, 1)."""
        init_scale: float = 1.0
        """Standard deviation at the start, in units of the distance to the neighbours."""
        num_points: int = 4096
        """Gaussians at the start; ignored when `init` is a file of Gaussians."""
        capacity: int = 0
        """Most Gaussians there can ever be; 0: four times num_points."""
        sh_degree: int = 0
        """Spherical harmonics, 0 to 3; 0 looks the same from everywhere."""
        sh_degree_every: int = 500
        """Steps until each further degree takes part."""
        seed: int = 0
        """Seed of the points."""

        lr_means: Any = field(default_factory=lambda: [0, 5.6e-4, 5.6e-6, 5000])
        lr_quats: Any = field(default_factory=lambda: [0, 1e-3, 2e-4, 5000])
        lr_scales: Any = field(default_factory=lambda: [0, 5e-3, 1e-3, 5000])
        lr_opacities: Any = 0.05
        lr_sh_dc: Any = field(default_factory=lambda: [0, 5e-3, 3e-3, 5000])
        lr_sh_rest: Any = 2.5e-4

        def __post_init__(self) -> None:
            getattr(super(), "__post_init__", lambda: None)()
            check_range("init_jitter", self.init_jitter, 0.0)
            check_range("init_radius", self.init_radius, 0.0, above=True)
            _initializer(self)
            check_range("init_opacity", self.init_opacity, 1e-6, 1.0 - 1e-6)
            check_range("init_scale", self.init_scale, 0.0, above=True)
            check_range("num_points", self.num_points, 1)
            check_range("capacity", self.capacity, 0)
            check_range("sh_degree", self.sh_degree, 0, MAX_SH_DEGREE)
            check_range("sh_degree_every", self.sh_degree_every, 0)
            if self.capacity:
                check_range("num_points", self.num_points, high=self.capacity)
            for name in ("means", "quats", "scales", "opacities", "sh_dc", "sh_rest"):
                _check_rate(f"lr_{name}", getattr(self, f"lr_{name}"))

    cfg: Config

    def configure(self) -> None:
        super().configure()
        self.cloud = GaussianCloud(self.cfg.capacity or 4 * self.cfg.num_points, self.cfg.sh_degree)
        self._given: Gaussians | None = None
        self.active_sh_degree = 0
        self._started = False

    def start(self) -> None:
        """Makes the first Gaussians, unless there are some.

        On first use, and not when built, since a checkpoint brings its own: neither the file nor the model
        that a run started from is needed to go on.
        """
        if self._started or len(self.cloud):
            self._started = True
            return
        self.make_room()
        start = self._gaussians_from_points() if self._given is None else self._given
        self._given = None
        if start.sh_degree > self.cfg.sh_degree:
            threestudio.warn(
                f"{self.cfg.init} has colours that depend on the view (SH degree {start.sh_degree}), which "
                f"are cut to degree {self.cfg.sh_degree}. To keep them: "
                f"system.geometry.sh_degree={start.sh_degree}."
            )
        self.cloud.assign(start)
        self._started = True

    def make_room(self) -> None:
        """Reads the file of Gaussians that `init` names, if it names one; the arena grows if that needs more.

        `start` does so too, but several GPUs must know the arena's size before that, when they are set up.
        """
        path = self.file_of_gaussians()
        if path is None or self._given is not None:
            return
        self._given = read_ply(path)
        n = len(self._given)
        capacity = self.cfg.capacity or 4 * max(n, self.cfg.num_points)
        if n > capacity:
            threestudio.info(
                f"{path} holds {n} Gaussians, more than system.geometry.capacity={capacity}: the cloud has "
                f"room for these {n}, and for no more."
            )
        self.cloud.resize(max(n, capacity))

    @torch.no_grad()
    def share(self) -> None:
        """Several processes go on with the Gaussians of the first: where a model drew the points, another
        device may have drawn others.
        """
        for tensor in (*self.cloud.params.values(), *self.cloud.buffers()):
            if tensor.numel():  # a copy, for a broadcast alone would not count as a change of `n`
                tensor.copy_(broadcast(tensor.detach().clone()))

    def file_of_gaussians(self) -> str | None:
        """The file that `init` names, if it holds Gaussians to be taken as they are."""
        kind, cfg = _initializer(self.cfg)
        whole = issubclass(kind, FilePoints) and not cfg.as_points and cfg.value.lower().endswith(".ply")
        if not (whole and is_gaussian_ply(cfg.value)):
            return None
        if cfg.fit is not None or cfg.up or cfg.front:
            raise UserError(
                f"{cfg.value} holds Gaussians, which are taken as they are: fit, up and front of "
                "system.geometry.init_args do nothing to them. Add as_points: true to take centres only."
            )
        return cfg.value

    def _gaussians_from_points(self) -> Gaussians:
        kind, cfg = _initializer(self.cfg)
        points = kind(cfg)()
        if not self.cfg.init_color:
            points = replace(points, colors=torch.full_like(points.colors, GREY))
        return gaussians_from_points(
            points, sh_degree=self.cfg.sh_degree, opacity=self.cfg.init_opacity, scale=self.cfg.init_scale
        )

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        every = self.cfg.sh_degree_every
        self.active_sh_degree = min(self.cfg.sh_degree, global_step // every if every else MAX_SH_DEGREE)

    @property
    def gaussians(self) -> Gaussians:
        """The living Gaussians, raw values that carry gradients."""
        self.start()
        return self.cloud.living

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One optimizer group per parameter, called "geometry.<name>", with its first learning rate."""
        self.start()
        rates = self.learning_rates(0, 0)
        return [
            {"params": [p], "name": f"geometry.{name}", "lr": rates[f"geometry.{name}"]}
            for name, p in self.cloud.params.items()
            if p.numel()
        ]

    def learning_rates(self, epoch: int, step: int) -> dict[str, float]:
        """Learning rates at a step, by the names of `parameter_groups`."""
        return {
            f"geometry.{name}": C(self.cfg[_RATES.get(name, f"lr_{name}")], epoch, step, interpolation="exp")
            for name in PARAMETERS
        }

    def rate_key(self, group: str) -> str:
        """The config's key of the learning rate of a group of `parameter_groups`."""
        name = group.removeprefix("geometry.")
        return f"system.geometry.{_RATES.get(name, f'lr_{name}')}"

    # ---- density control: thin calls of density.py on this cloud ---------------------------------------

    @torch.no_grad()
    def gather_density(self, means2d_grad: Tensor, radii: Tensor, width: int, height: int) -> None:
        """Adds screen-space gradients [B, N, 2] of the living Gaussians to the statistics."""
        total, count = screen_gradients(means2d_grad, radii, width, height)
        self.cloud.grad_sum[: len(total)] += total
        self.cloud.grad_count[: len(count)] += count

    def refine(
        self, moments: dict[str, list[Tensor]], rules: DensityRules, draw: torch.Generator
    ) -> DensityReport:
        """One round of clone, split and prune."""
        c = self.cloud
        return refine(c.params, moments, c.n, c.grad_sum, c.grad_count, rules, draw, c.frozen)

    def relocate(
        self, moments: dict[str, list[Tensor]], rules: RelocationRules, draw: torch.Generator
    ) -> DensityReport:
        """One round of relocation."""
        c = self.cloud
        return relocate(c.params, moments, c.n, rules, draw, c.frozen)

    def wander(self, rate: float, draw: torch.Generator) -> None:
        """Noise on the positions of faint Gaussians."""
        wander(self.cloud.params, self.cloud.n, rate, draw, self.cloud.frozen)

    def reset_opacity(self, moments: dict[str, list[Tensor]], maximum: float) -> None:
        """opacity <- min(opacity, maximum)."""
        reset_opacity(self.cloud.params, moments, self.cloud.n, maximum, self.cloud.frozen)


# Learning rates that are not called as their parameter.
_RATES = {"log_scales": "lr_scales", "logit_opacities": "lr_opacities"}
# Settings of every kind of source, and the fields of the geometry that they come from.
_OWN_FIELDS = {
    "value": "init",
    "num_points": "num_points",
    "radius": "init_radius",
    "jitter": "init_jitter",
    "seed": "seed",
}


def _initializer(config: Any) -> tuple[type, Any]:
    """The kind of source that a config's `init` names, and the kind's own config, checked.

    Raises:
        UserError: no such kind of source, or a value that it does not take.
    """
    kind, value = find_kind(config.init)
    if config.init_args is not None and not isinstance(config.init_args, Mapping):
        raise UserError(f"init_args is {config.init_args!r}; it must be a mapping such as {{fit: true}}.")
    given = dict(config.init_args or {})
    for key, instead in _OWN_FIELDS.items():
        if key in given:
            raise UserError(f"init_args.{key} is not read: set system.geometry.{instead}.")
    if issubclass(kind, TextPoints):
        given.setdefault("model", config.text_model)
    given |= {
        "value": value or (config.init_prompt if kind.takes_prompt else ""),
        "num_points": config.num_points,
        "radius": config.init_radius,
        "jitter": config.init_jitter,
        "seed": config.seed,
    }
    return kind, parse_structured(kind.Config, given)


def _check_rate(name: str, value: Any) -> None:
    """UserError naming the field unless it is a number of at least 0, or a schedule of numbers above 0."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        check_range(name, value, 0.0)
        return
    entries = [0, *value] if len(value) == 3 else list(value)
    complete = len(entries) >= 4 and len(entries) % 2 == 0
    numbers = all(isinstance(entry, int | float) for entry in entries)
    if not complete or not numbers or min(entries[1], *entries[2::2]) <= 0.0:
        raise UserError(
            f"{name} is {value!r}; it must be a number of at least 0 or a schedule [step, rate, rate, step] "
            "whose rates are above 0, for they change geometrically."
        )
