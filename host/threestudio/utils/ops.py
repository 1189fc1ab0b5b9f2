"""Small tensor operations: activations, chunks, rays and projections.

Cameras: world right-handed, z up; c2w columns are right, up, -forward, position (OpenGL); image row 0 is the
top; pixel centres lie at +0.5.  Angles are radians unless a name says degrees.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from threestudio.utils.errors import ConfigValueError, did_you_mean
from threestudio.utils.shape import ShapeLoss as ShapeLoss

ValidScale = tuple[float, float] | Tensor
"""A range for `scale_tensor`: low and high, numbers or tensors."""


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product over the last dimension, which is kept."""
    return (x * y).sum(dim=-1, keepdim=True)


def reflect(x: Tensor, n: Tensor) -> Tensor:
    """Mirror ``x`` at the unit normal ``n``: 2 (x.n) n - x."""
    return 2.0 * dot(x, n) * n - x


def perpendicular_component(x: Tensor, y: Tensor) -> Tensor:
    """What of ``x`` is perpendicular to ``y``, over all dimensions but the first ([B, ...]).

    A ``y`` of zeros takes nothing away: noise predictions coincide when the prompts do.
    """
    dims = list(range(1, x.ndim))
    along = (x * y).sum(dim=dims, keepdim=True) / (y * y).sum(dim=dims, keepdim=True).clamp(min=1e-6)
    return x - along * y


def scale_tensor(dat: Tensor, inp_scale: Any, tgt_scale: Any) -> Tensor:
    """Map the range ``inp_scale`` to ``tgt_scale`` linearly, without clamping; None is (0, 1).

    Each range is (low, high): numbers, or tensors that broadcast.
    """
    in_low, in_high = (0, 1) if inp_scale is None else inp_scale
    out_low, out_high = (0, 1) if tgt_scale is None else tgt_scale
    return (dat - in_low) / (in_high - in_low) * (out_high - out_low) + out_low


class _TruncExp(Function):
    """exp whose gradient is computed at min(x, 15), so that large densities do not overflow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.float()
        ctx.save_for_backward(x)
        return torch.exp(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * torch.exp(x.clamp(max=15.0))


trunc_exp = _TruncExp.apply


class SpecifyGradient(Function):
    """A loss of value 1 whose gradient with respect to the input is the given tensor."""

    @staticmethod
    def forward(ctx: Any, input_tensor: Tensor, gt_grad: Tensor) -> Tensor:
        ctx.save_for_backward(gt_grad)
        return torch.ones([1], device=input_tensor.device, dtype=input_tensor.dtype)

    @staticmethod
    def backward(ctx: Any, grad_scale: Tensor) -> tuple[Tensor, None]:
        (gt_grad,) = ctx.saved_tensors
        return gt_grad * grad_scale, None


def _linear_to_srgb(x: Tensor) -> Tensor:
    low = 12.92 * x
    high = torch.pow(x.clamp(min=0.0031308), 1.0 / 2.4) * 1.055 - 0.055
    return torch.where(x > 0.0031308, high, low).clamp(0.0, 1.0)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "lin2srgb": _linear_to_srgb,
    "exp": torch.exp,
    "shifted_exp": lambda x: torch.exp(x - 1.0),
    "trunc_exp": trunc_exp,
    "shifted_trunc_exp": lambda x: trunc_exp(x - 1.0),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "shifted_softplus": lambda x: F.softplus(x - 1.0),
    "scale_-11_01": lambda x: x * 0.5 + 0.5,
}


def get_activation(name: str | None) -> Callable[[Tensor], Tensor]:
    """The activation called ``name``, one of ours or of ``torch.nn.functional``; None is the identity.

    Raises:
        ConfigValueError: (a ValueError) there is none of that name.
    """
    if name is None:
        return _ACTIVATIONS["none"]
    name = name.lower()
    if name in _ACTIVATIONS:
        return _ACTIVATIONS[name]
    function = getattr(F, name, None)
    if function is None:
        names = [*_ACTIVATIONS, *(key for key in vars(F) if key.islower() and not key.startswith("_"))]
        raise ConfigValueError(
            f"Unknown activation {name!r}.{did_you_mean(name, names)} There is: {', '.join(_ACTIVATIONS)}, "
            "and those of torch.nn.functional."
        )
    return function


def chunk_batch(func: Callable[..., Any], chunk_size: int, *args: Any, **kwargs: Any) -> Any:
    """``func(*args, **kwargs)`` in pieces of ``chunk_size`` along dim 0 of the tensors, put together again.

    Everything that is not a tensor is passed as it is.  Without gradients the pieces are detached.

    Args:
        func: returns a tensor, or a tuple, list or dict of tensors (None stays None).
        chunk_size: 0 or less calls ``func`` once.

    Raises:
        ValueError: no tensor among the arguments.
        TypeError: ``func`` returns something else.
    """
    if chunk_size <= 0:
        return func(*args, **kwargs)
    size = next((v.shape[0] for v in [*args, *kwargs.values()] if isinstance(v, Tensor)), None)
    if size is None:
        raise ValueError("chunk_batch needs a tensor among the arguments to cut along dim 0.")

    def piece(value: Any, start: int) -> Any:
        return value[start : start + chunk_size] if isinstance(value, Tensor) else value

    parts: dict[Any, list[Tensor | None]] = defaultdict(list)
    kind: type = Tensor
    for start in range(0, max(size, 1), chunk_size):
        out = func(*(piece(v, start) for v in args), **{k: piece(v, start) for k, v in kwargs.items()})
        kind = _container_of(out)
        for key, value in _items(out, kind):
            parts[key].append(value if value is None or torch.is_grad_enabled() else value.detach())
    joined = {
        key: None if None in _types(values) else torch.cat(values, dim=0) for key, values in parts.items()
    }
    if kind is Tensor:
        return joined[0]
    return joined if kind is dict else kind(joined.values())


def _container_of(out: Any) -> type:
    for kind in (Tensor, dict, tuple, list):
        if isinstance(out, kind):
            return kind
    raise TypeError(
        f"chunk_batch takes functions that return tensors or tuples, lists, dicts, not {type(out)}."
    )


def _items(out: Any, kind: type) -> Any:
    if kind is Tensor:
        return [(0, out)]
    return out.items() if kind is dict else enumerate(out)


def _types(values: list[Tensor | None]) -> list[None]:
    return [None for value in values if value is None]


# ---- cameras -----------------------------------------------------------------------------------------------


def get_ray_directions(
    H: int,
    W: int,
    focal: float | tuple[float, float],
    principal: tuple[float, float] | None = None,
    use_pixel_centers: bool = True,
) -> Tensor:
    """Directions [H, W, 3] through the pixels in camera axes (x right, y up, looking along -z), z = -1.

    Args:
        focal: focal length in pixels, or (fx, fy) together with ``principal``.
        principal: (cx, cy) in pixels; None is the middle.
        use_pixel_centers: aim at +0.5.
    """
    if isinstance(focal, (int, float)):
        fx = fy = float(focal)
        cx, cy = W / 2, H / 2
    else:
        fx, fy = focal
        cx, cy = (W / 2, H / 2) if principal is None else principal
    offset = 0.5 if use_pixel_centers else 0.0
    i, j = torch.meshgrid(
        torch.arange(W, dtype=torch.float32) + offset,
        torch.arange(H, dtype=torch.float32) + offset,
        indexing="xy",
    )
    return torch.stack([(i - cx) / fx, -(j - cy) / fy, -torch.ones_like(i)], dim=-1)


def get_rays(
    directions: Tensor, c2w: Tensor, keepdim: bool = False, noise_scale: float = 0.0, normalize: bool = True
) -> tuple[Tensor, Tensor]:
    """Rays in the world: origins and directions.

    Args:
        directions: camera directions [N, 3], [H, W, 3] or [B, H, W, 3].
        c2w: [4, 4], [N, 4, 4] or [B, 4, 4] to match.
        keepdim: keep the image shape; else [-1, 3].
        noise_scale: standard deviation of noise added to both (world units; torch's global generator).
        normalize: unit directions; False leaves z = -1 in camera axes, so that depth along a ray is z-depth.
    """
    if directions.shape[-1] != 3:
        raise ValueError(f"directions end in 3, got {tuple(directions.shape)}.")
    if c2w.ndim == 2:
        rotation, origin = c2w[:3, :3], c2w[:3, 3]
    elif directions.ndim == 2:
        rotation, origin = c2w[:, :3, :3], c2w[:, :3, 3]
    else:
        rotation, origin = c2w[:, None, None, :3, :3], c2w[:, None, None, :3, 3]
    x, y, z = directions.split(1, dim=-1)  # not a matrix product, which may round to fewer digits
    rays_d = x * rotation[..., 0] + y * rotation[..., 1] + z * rotation[..., 2]
    rays_o = origin.expand(rays_d.shape)
    if noise_scale > 0:
        rays_o = rays_o + torch.randn(3, device=rays_o.device) * noise_scale
        rays_d = rays_d + torch.randn(3, device=rays_d.device) * noise_scale
    if normalize:
        rays_d = F.normalize(rays_d, dim=-1)
    if not keepdim:
        rays_o, rays_d = rays_o.reshape(-1, 3), rays_d.reshape(-1, 3)
    return rays_o, rays_d


def get_projection_matrix(fovy: Tensor, aspect_wh: float, near: float, far: float) -> Tensor:
    """OpenGL projections [B, 4, 4] with y negated (row 0 of an image is its top), z to [-1, 1].

    Args:
        fovy: vertical fields of view [B], radians.
        aspect_wh: width / height.
    """
    tan_half = torch.tan(fovy / 2.0)
    proj = torch.zeros(fovy.shape[0], 4, 4, dtype=torch.float32)
    proj[:, 0, 0] = 1.0 / (tan_half * aspect_wh)
    proj[:, 1, 1] = -1.0 / tan_half
    proj[:, 2, 2] = -(far + near) / (far - near)
    proj[:, 2, 3] = -2.0 * far * near / (far - near)
    proj[:, 3, 2] = -1.0
    return proj


def mask_ray_directions(
    H: int, W: int, s_H: int, s_W: int, generator: torch.Generator | None = None
) -> Tensor:
    """Which pixels of an H x W picture to render instead of all: indices [s_H, s_W], x + W y.

    They are an even grid over three quarters of either side, at a random place.
    """
    low = [int(torch.randint(0, size // 8 + 1, (), generator=generator)) for size in (H, W)]
    rows, columns = (
        torch.linspace(0, 0.75 * size - 1, count).long() + first
        for size, count, first in zip((H, W), (s_H, s_W), low, strict=True)
    )
    return rows[:, None] * W + columns


def get_full_projection_matrix(c2w: Tensor, proj_mtx: Tensor) -> Tensor:
    """The product c2w proj_mtx [..., 4, 4], for row vectors."""
    return c2w @ proj_mtx


def get_mvp_matrix(c2w: Tensor, proj_mtx: Tensor) -> Tensor:
    """World to clip space [B, 4, 4] for column vectors: projection times the inverse of the rigid ``c2w``."""
    w2c = torch.zeros_like(c2w)
    rotation_t = c2w[:, :3, :3].transpose(1, 2)
    w2c[:, :3, :3] = rotation_t
    w2c[:, :3, 3:] = -rotation_t @ c2w[:, :3, 3:]
    w2c[:, 3, 3] = 1.0
    return proj_mtx @ w2c


def look_at_c2w(camera_positions: Tensor, center: Tensor, up: Tensor) -> Tensor:
    """Camera poses [B, 4, 4] (OpenGL axes) at [B, 3] looking at ``center`` [B, 3] with ``up`` [B, 3] upwards.

    Looking straight along ``up`` leaves sideways open; there the camera's right is +y, as at azimuth 0.
    """
    forward = F.normalize(center - camera_positions, dim=-1)
    right = torch.cross(forward, up, dim=-1)
    lost = right.norm(dim=-1, keepdim=True) < 1e-6
    world_y = torch.tensor([0.0, 1.0, 0.0], device=up.device, dtype=up.dtype).expand_as(up)
    right = F.normalize(torch.where(lost, world_y, right), dim=-1)
    true_up = F.normalize(torch.cross(right, forward, dim=-1), dim=-1)
    c2w = torch.zeros(*camera_positions.shape[:-1], 4, 4, device=up.device, dtype=up.dtype)
    c2w[..., :3, :] = torch.stack([right, true_up, -forward, camera_positions], dim=-1)
    c2w[..., 3, 3] = 1.0
    return c2w


# ---- cameras of the Gaussian rasterizers -------------------------------------------------------------------


def convert_pose(C2W: Tensor) -> Tensor:
    """An OpenGL c2w [4, 4] as an OpenCV one (y down, z forward), and back."""
    return C2W @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=C2W.dtype, device=C2W.device))


def get_projection_matrix_gaussian(
    znear: float, zfar: float, fovX: float | Tensor, fovY: float | Tensor, device: Any = None
) -> Tensor:
    """The [4, 4] projection of Inria's rasterizer (x right, y down, z forward), z to [0, 1]."""
    proj = torch.zeros(4, 4, device=device)
    proj[0, 0] = 1.0 / math.tan(float(fovX) / 2)
    proj[1, 1] = 1.0 / math.tan(float(fovY) / 2)
    proj[2, 2] = zfar / (zfar - znear)
    proj[2, 3] = -(zfar * znear) / (zfar - znear)
    proj[3, 2] = 1.0
    return proj


def get_fov_gaussian(P: Tensor) -> tuple[float, float]:
    """(fovX, fovY) in radians of a projection [4, 4]."""
    return 2 * math.atan(1.0 / float(P[0, 0])), 2 * math.atan(1.0 / abs(float(P[1, 1])))


def get_cam_info_gaussian(
    c2w: Tensor, fovx: float | Tensor, fovy: float | Tensor, znear: float, zfar: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What Inria's rasterizer wants to know of one OpenGL camera [4, 4].

    Returns:
        world_view [4, 4] and full_proj [4, 4], both transposed (for row vectors), and the centre [3].
    """
    c2w = convert_pose(c2w)
    world_view = torch.inverse(c2w).transpose(0, 1)
    projection = get_projection_matrix_gaussian(znear, zfar, fovx, fovy, device=c2w.device).transpose(0, 1)
    return world_view, world_view @ projection, c2w[:3, 3]


# ---- losses and schedules ----------------------------------------------------------------------------------


def binary_cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy of probabilities, in the input's own precision (torch's refuses autocast)."""
    return -(target * torch.log(input) + (1 - target) * torch.log(1 - input)).mean()


def tet_sdf_diff(vert_sdf: Tensor, tet_edges: Tensor) -> Tensor:
    """How much the edges that cross the surface disagree with their ends' signs (nvdiffrec's regulariser).

    Args:
        vert_sdf: signed distances at the vertices [N, 1].
        tet_edges: pairs of vertices [E, 2].

    Returns:
        The summed cross entropies of either end's distance with the other's sign, averaged over those edges;
        0 where none crosses.
    """
    ends = vert_sdf[:, 0][tet_edges.reshape(-1)].reshape(-1, 2)
    crossing = ends[torch.sign(ends[:, 0]) != torch.sign(ends[:, 1])]
    if not len(crossing):
        return vert_sdf.sum() * 0.0
    return sum(
        F.binary_cross_entropy_with_logits(crossing[:, i], (crossing[:, 1 - i] > 0).to(crossing))
        for i in (0, 1)
    )


def validate_empty_rays(ray_indices: Tensor, t_start: Tensor, t_end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The samples of a batch of rays, or, where every ray is empty, one sample of no length on ray 0."""
    if ray_indices.nelement():
        return ray_indices, t_start, t_end
    zero = t_start.new_zeros(1)
    return ray_indices.new_zeros(1), zero, zero


def shifted_expotional_decay(a: float, b: float, c: float, r: float | Tensor) -> float | Tensor:
    """a exp(-b r) + c."""
    return a * (torch.exp(-b * r) if isinstance(r, Tensor) else math.exp(-b * r)) + c


def shifted_cosine_decay(a: float, b: float, c: float, r: float | Tensor) -> float | Tensor:
    """a cos(b r + c) + a."""
    return a * (torch.cos(b * r + c) if isinstance(r, Tensor) else math.cos(b * r + c)) + a
