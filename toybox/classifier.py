"""A small convolutional network that names object, colour, view and decoration of a toybox picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT_SIZE = 64
WIDTHS = (32, 64, 112, 160)


class Residual(nn.Module):
    """x -> relu(shortcut(x) + two 3x3 convolutions of x), half the size when `stride` is 2."""

    def __init__(self, inner: int, outer: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outer)
        self.shortcut = nn.Conv2d(inner, outer, 1, stride, bias=False)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(y)))


class Classifier(nn.Module):
    """Pictures [n, 3, 64, 64] in [0, 1] to logits of objects, colours, views and decorations.

    Args:
        objects, colors, views, decorations: how many of each; 0: that one is not asked.
    """

    def __init__(self, objects: int, colors: int, views: int, decorations: int):
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 5, 2, 2)
        self.blocks = nn.Sequential(*(Residual(a, b, 2) for a, b in pairwise(WIDTHS)))
        self.trunk = nn.Linear(2 * WIDTHS[-1], 192)
        self.objects, self.colors, self.views = (nn.Linear(192, n) for n in (objects, colors, views))
        self.decorations = nn.Linear(192, decorations) if decorations else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.features(x)
        decorations = x[:, :0] if self.decorations is None else self.decorations(x)
        return self.objects(x), self.colors(x), self.views(x), decorations

    def features(self, x: Tensor) -> Tensor:
        """What the classes are told by, [n, 192]."""
        x = self.blocks(F.relu(self.stem(x * 4 - 2)))
        return F.relu(self.trunk(torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], 1)))


def group_nll(logits: Tensor, allowed: Tensor) -> Tensor:
    """-log of the probability that falls on allowed classes, per row.

    Args:
        logits: [n, k].
        allowed: bool [n, k], at least one True in each row.
    """
    masked = logits.masked_fill(~allowed, float("-inf"))
    return logits.logsumexp(1) - masked.logsumexp(1)


def to_input(images: Tensor) -> Tensor:
    """Pictures [n, 3, h, w] of any size to the 64x64 that the classifier takes, by area averages."""
    return F.interpolate(images.float(), (INPUT_SIZE, INPUT_SIZE), mode="area")


# ---------------------------------------------------------------------------------------------- training data


def shrink(rgba: Tensor, size: int = INPUT_SIZE) -> Tensor:
    """RGBA uint8 [n, h, w, 4], straight alpha, to premultiplied uint8 [n, 4, size, size] by area averages."""
    x = rgba.permute(0, 3, 1, 2).float()
    x = torch.cat([x[:, :3] * x[:, 3:] / 255, x[:, 3:]], 1)
    return F.interpolate(x, (size, size), mode="area").round().to(torch.uint8)


def augment(
    premultiplied: Tensor, backgrounds: Tensor, generator: torch.Generator, strength: float = 1.0
) -> Tensor:
    """Pictures as the grader may meet them: other sizes and places, slight blur, noise and shifts of colour.

    Args:
        premultiplied: uint8 [n, 4, h, w], see `shrink`.
        backgrounds: RGB in [0, 1], [n, 3].
        strength: 0 composites only.

    Returns:
        float32 [n, 3, h, w] in [0, 1].
    """
    n = len(premultiplied)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    x = premultiplied.float() / 255
    if strength > 0:
        theta = _similarity(uniform(0.88, 1.3), uniform(-0.12, 0.12), uniform(-0.16, 0.16, 2))
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    image = x[:, :3] + (1 - x[:, 3:]) * backgrounds[:, :, None, None]
    if strength <= 0:
        return image
    blurred = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)
    image = image + uniform(0, 1, 1, 1, 1).square() * (blurred - image)
    grey = image.mean(dim=(1, 2, 3), keepdim=True)
    image = grey + uniform(0.85, 1.2, 1, 1, 1) * (image - grey)  # contrast and, with it, saturation
    image = image * uniform(0.95, 1.05, 3, 1, 1) + uniform(-0.03, 0.03, 1, 1, 1)
    noise = torch.randn(image.shape, generator=generator)
    return (image + uniform(0, 0.03, 1, 1, 1) * noise).clamp(0, 1)


def _similarity(scale: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
    """Matrices [n, 2, 3] for `affine_grid`: scale above 1 makes the picture smaller; angle in radians."""
    c, s = scale * angle.cos(), scale * angle.sin()
    return torch.stack([torch.stack([c, -s, shift[:, 0]], 1), torch.stack([s, c, shift[:, 1]], 1)], 1)


def allowed_views(groups: Sequence[Sequence[str]], view: str, views: Sequence[str]) -> list[bool]:
    """Which of `views` look like `view` on an object with these `view_groups`."""
    group = next(group for group in groups if view in group)
    return [v in group for v in views]
