"""Gaussians in an arena of fixed size: parameters are `[capacity, ...]`, the living ones a prefix `[:n]`.

Nothing reallocates during training: a checkpoint always has the same shapes, several processes stay in step,
and memory is known before the first step. Rows past the prefix are zero and get no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..points import PointCloud, mean_squared_neighbour_distance

# Spherical harmonic of degree 0: colour = 0.5 + SH_C0 * coefficient, before clamping at 0.
SH_C0 = 0.28209479177387814
MAX_SH_DEGREE = 3
ROW_BUFFERS = ("grad_sum", "grad_count", "frozen")
PARAMETERS = ("means", "quats", "log_scales", "logit_opacities", "sh_dc", "sh_rest")
STATISTICS = ("grad_sum", "grad_count")
"""Buffers that each of several processes fills from its own views, until `refine` needs their sum."""


@dataclass(frozen=True)
class Gaussians:
    """Raw values of N Gaussians, as optimised and as 3DGS files store them.

    means [N, 3] world units; quats [N, 4] wxyz, any norm > 0; log_scales [N, 3]; logit_opacities [N];
    sh_dc [N, 1, 3]; sh_rest [N, (d+1)^2 - 1, 3] for SH degree d.
    """

    means: Tensor
    quats: Tensor
    log_scales: Tensor
    logit_opacities: Tensor
    sh_dc: Tensor
    sh_rest: Tensor

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        return sh_degree_of(1 + self.sh_rest.shape[1])


def sh_degree_of(coefficients: int) -> int:
    """1, 4, 9, 16 coefficients per channel -> degree 0, 1, 2, 3.

    Raises:
        ValueError: another number.
    """
    for degree in range(MAX_SH_DEGREE + 1):
        if coefficients == (degree + 1) ** 2:
            return degree
    raise ValueError(f"{coefficients} spherical harmonics per channel: expected 1, 4, 9 or 16")


def gaussians_from_points(
    cloud: PointCloud, *, sh_degree: int = 0, opacity: float = 0.1, scale: float = 1.0
) -> Gaussians:
    """One round Gaussian at each point, as 3DGS starts.

    Its standard deviation is `scale` times the root of the mean squared distance to the three nearest points;
    colours become SH of degree 0, higher degrees start at 0; quaternions are the identity.
    """
    n = len(cloud)
    sigma = scale * mean_squared_neighbour_distance(cloud.points).sqrt()
    return Gaussians(
        means=cloud.points.float(),
        quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(n, 1),
        log_scales=sigma.log()[:, None].repeat(1, 3),
        logit_opacities=torch.logit(torch.full((n,), opacity)),
        sh_dc=((cloud.colors.float() - 0.5) / SH_C0)[:, None, :],
        sh_rest=torch.zeros(n, (sh_degree + 1) ** 2 - 1, 3),
    )


class GaussianCloud(nn.Module):
    """Parameters of up to `capacity` Gaussians, of which the first `n` live.

    Parameters, each [capacity, ...]: the fields of `Gaussians`, under their names.
    Buffers: n (int64 scalar), what density control gathers: grad_sum, grad_count [capacity], and which rows
    are frozen [capacity, bool]: an edit leaves them as they are, to the last bit.
    """

    def __init__(self, capacity: int, sh_degree: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}: expected at least 1")
        if not 0 <= sh_degree <= MAX_SH_DEGREE:
            raise ValueError(f"sh_degree is {sh_degree}: expected 0 to {MAX_SH_DEGREE}")
        super().__init__()
        shapes = {
            "means": (3,),
            "quats": (4,),
            "log_scales": (3,),
            "logit_opacities": (),
            "sh_dc": (1, 3),
            "sh_rest": ((sh_degree + 1) ** 2 - 1, 3),
        }
        for name in PARAMETERS:
            # of nothing (sh_rest of degree 0) there is no gradient, and several processes would wait for it
            learns = 0 not in shapes[name]
            self.register_parameter(name, nn.Parameter(torch.zeros(capacity, *shapes[name]), learns))
        self.register_buffer("n", torch.zeros((), dtype=torch.int64))
        self.register_buffer("grad_sum", torch.zeros(capacity))
        self.register_buffer("grad_count", torch.zeros(capacity))
        self.register_buffer("frozen", torch.zeros(capacity, dtype=torch.bool))
        self._counted = 0, 0, 0  # id and version of `n` when it was last read, and what it was

    @property
    def capacity(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        return sh_degree_of(1 + self.sh_rest.shape[1])

    def __len__(self) -> int:
        """Number of living Gaussians. A GPU is waited for only if `n` was written to since the last call."""
        if self.n.is_inference():  # these do not know whether they were
            return int(self.n)
        now = id(self.n), self.n._version
        if self._counted[:2] != now:
            self._counted = *now, int(self.n)
        return self._counted[2]

    @property
    def params(self) -> dict[str, nn.Parameter]:
        """The parameters by name, whole arena."""
        return {name: getattr(self, name) for name in PARAMETERS}

    @property
    def living(self) -> Gaussians:
        """Raw values of the living prefix; views that carry gradients into the arena."""
        n = len(self)
        return Gaussians(**{name: p[:n] for name, p in self.params.items()})

    @torch.no_grad()
    def assign(self, gaussians: Gaussians) -> None:
        """Replaces the living Gaussians, none of them frozen; clears what density control has gathered.

        A lower SH degree is padded with zeros, a higher one is cut.

        Raises:
            ValueError: more Gaussians than the arena holds.
        """
        n = len(gaussians)
        if n > self.capacity:
            raise ValueError(f"{n} Gaussians do not fit a capacity of {self.capacity}")
        for name, p in self.params.items():
            value = getattr(gaussians, name)
            p.zero_()
            if name == "sh_rest":
                k = min(value.shape[1], p.shape[1])
                p[:n, :k] = value[:, :k].to(p)
            else:
                p[:n] = value.to(p)
        self.n.fill_(n)
        self.grad_sum.zero_()
        self.grad_count.zero_()
        self.frozen.zero_()

    @torch.no_grad()
    def resize(self, capacity: int) -> None:
        """Another number of rows; the living keep theirs. Not once an optimizer has the parameters.

        Raises:
            ValueError: fewer rows than there are living Gaussians.
        """
        if capacity < len(self):
            raise ValueError(f"{len(self)} Gaussians do not fit a capacity of {capacity}")
        if capacity == self.capacity:
            return
        for p in self.params.values():
            p.data, p.grad = _with_rows(p.data, capacity), None
        for name in ROW_BUFFERS:
            setattr(self, name, _with_rows(getattr(self, name), capacity))

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # checkpoints from before there were edits: nothing is frozen
        state_dict.setdefault(prefix + "frozen", torch.zeros_like(self.frozen))
        # another capacity: this one is kept, if the living have room
        if prefix + "n" in state_dict:
            living = int(state_dict[prefix + "n"])
            if living > self.capacity:
                self.n.zero_()
                self.resize(living)
            for name in (*PARAMETERS, *ROW_BUFFERS):
                if prefix + name in state_dict:
                    state_dict[prefix + name] = _with_rows(state_dict[prefix + name], self.capacity)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _with_rows(tensor: Tensor, rows: int) -> Tensor:
    """The tensor with so many rows, further ones zero."""
    if len(tensor) == rows:
        return tensor
    kept = tensor[:rows]
    return torch.cat([kept, kept.new_zeros(rows - len(kept), *tensor.shape[1:])])


def scales(gaussians: Gaussians) -> Tensor:
    """Standard deviations along the three axes [N, 3], > 0."""
    return gaussians.log_scales.exp()


def opacities(gaussians: Gaussians) -> Tensor:
    """[N] in (0, 1)."""
    return gaussians.logit_opacities.sigmoid()


def sh_coefficients(gaussians: Gaussians) -> Tensor:
    """[N, (d+1)^2, 3], degree 0 first."""
    return torch.cat([gaussians.sh_dc, gaussians.sh_rest], dim=1)


def base_colors(gaussians: Gaussians) -> Tensor:
    """View-independent colours [N, 3]: 0.5 + SH_C0 * sh_dc, clamped at 0."""
    return (0.5 + SH_C0 * gaussians.sh_dc[:, 0]).clamp_min(0.0)


def moments_of(
    optimizer: torch.optim.Optimizer, params: Mapping[str, nn.Parameter]
) -> dict[str, list[Tensor]]:
    """What the optimizer remembers per element (Adam: two moments); nothing before its first step."""
    return {
        name: [
            value
            for value in optimizer.state.get(p, {}).values()
            if torch.is_tensor(value) and value.shape == p.shape and p.ndim > 0
        ]
        for name, p in params.items()
    }
