"""Recipes: what a 3D run takes besides the prior's card, so that one config serves every prior.

Configs read them, and the length of the run, through resolvers:

    ${recipe:steps}             a value of the recipe of system.guidance.prior
    ${part:0.6}                 this part of trainer.max_steps, a whole number of steps
    ${ramp:${recipe:lr_means}}  the schedule [0, v0, v1, trainer.max_steps] of a pair; a number stays one
    ${staged:${data.batch_size}}  a list with an entry per stage of data.resolution_milestones, as a schedule
    ${even:4}                   steps between things that happen about 4 times a run, the last at its end
    ${without_words:${prompt}}  the prompt without the words that system.guidance.lora and embeddings bring

`PUBLISHED` holds LucidDreamer's numbers, for Stable Diffusion at 512 pixels. A prior that wants others has a
recipe.yaml beside its weights, as the bundled one does. With `system.guidance.recipe: paper` the interval and
the timesteps are those of the paper's Algorithm 1, whatever the prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError, check_pair, closest
from .guidance.adapters import find_adapters, without_words
from .guidance.cards import find_card
from .guidance.ism import RECIPE_DEFAULTS
from .resolvers import register_resolver
from .texts import check_prompt

PUBLISHED: dict[str, Any] = {
    # length of the run, and cameras a step
    "steps": 5000,
    "batch_size": 4,
    # size of the object and of the cloud; world units
    "init_radius": 0.5,
    "text_model": "pointe",  # what makes points of text
    "init_color": False,  # whether they keep their colours; grey otherwise
    "init_scale": 1.0,  # of a Gaussian, in distances to its neighbours
    "capacity": 1_000_000,
    # learning rates: one number, or first and last (geometric in between)
    "lr_means": [5.6e-4, 5.6e-6],
    "lr_quats": [1e-3, 2e-4],
    "lr_scales": [5e-3, 1e-3],
    "lr_opacities": 0.05,
    "lr_sh_dc": [5e-3, 3e-3],
    "adam_betas": [0.9, 0.999],
    # cameras: degrees and world units; after every `relax_every` part of the run the ends of ranges are
    # multiplied by `relax`, up to `relax_limits`
    "elevation": [-15.0, 45.0],
    "azimuth": [-180.0, 180.0],
    "distance": [5.2, 5.5],
    "fovy": [18.335, 34.377],
    "camera_perturb": 0.025,
    "center_perturb": 0.05,
    "up_perturb": 0.01,
    "even_azimuth": False,
    "relax_every": 0.1,
    "relax": {"camera_distance": [0.95, 0.95], "fovy": [0.75, 1.1]},
    "relax_limits": {"camera_distance": [3.5, 5.0], "fovy": [9.167, 34.377]},
    # how pictures of the result are taken
    "eval_size": 512,
    "eval_elevation": 15.0,
    "eval_distance": 3.5,
    "eval_fovy": 31.513,
    # score distillation, and how the prompt follows the view
    "delta_t": 50,
    "delta_t_start": 100,
    "delta_s": 200,
    "max_step_percent_end": 0.5,
    "warmup": 0.3,
    "guidance_scale": 7.5,
    "grad_scale": 0.1,
    "view_blend": "linear",
    "overhead_threshold": None,
    "use_perp_neg": False,
    "horizontal_flip": 0.5,  # how often the batch is shown mirrored
    # what is shown, and how it is disturbed
    "as_latent_ratio": 0.2,
    "bg_aug_ratio": 0.66,
    "scale_noise": 0.1118,
    # regularisers
    "lambda_tv": 1.0,
    "lambda_scale": 1.0,
    # not the paper's
    "lambda_opaque": 0.0,  # for pixels to be opaque or empty; one weight, or first and last
    "lambda_opacity": 0.0,  # for Gaussians that no view needs to fade
    # density control; from, until and the intervals are parts of the run
    "density_start": 0.02,
    "density_until": 0.6,
    "density_every": 0.02,
    "reset_every": 0.06,
    "grad_threshold": 7.5e-4,
    "clone_scale": 0.0105,
    "prune_opacity": 0.005,
    "prune_scale": 0.35,
    "prune_scale_after": 0.06,
    # edits; the paper gives no numbers
    "edit_steps": 1000,
    "edit_lr_sh_dc": [2e-2, 5e-3],
    "lambda_anchor": 10.0,
    "edit_guidance_scale": 7.5,
    "edit_adam_eps": 1e-15,
    "edit_2d_guidance_scale": 7.5,
    "edit_2d_steps": 200,
    "edit_2d_lr": [0.1, 0.01],  # of latents
    # avatars: the ControlNet, what it is shown of the body (bodies/maps.py), and the body's height
    "controlnet": "jschoormans/controlnet-densepose-sd2-1-base",
    "control_scale": 1.0,
    "control_scores": "conditional",
    "body_map": "viridis",
    "body_height": 1.0,
    # NeRFs; here the numbers are threestudio's for Stable Diffusion
    "nerf_steps": 10_000,
    "nerf_batch_size": 1,
    "nerf_levels": 16,  # of the hash grid; each has cells 1.447 times as fine as the last, from 1/16
    "nerf_log2_hashmap_size": 19,
    "nerf_samples": 512,  # along the box's diagonal
    "nerf_eval_size": 512,
}


def find_recipe(prior: str) -> dict[str, Any]:
    """The recipe of a prior, by any of the ways to name one: its recipe.yaml over the published numbers.

    Raises:
        UserError: no such prior, or an unknown key in its recipe.yaml.
    """
    file = Path(find_card(prior).path) / "recipe.yaml"
    if not file.is_file():
        return dict(PUBLISHED)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"The recipe {file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"The recipe {file} must be a mapping of keys to values.")
    for key in content:
        _check_key(key, f"The recipe {file}")
    return PUBLISHED | content


def algorithm_1(highest: Any = None) -> dict[str, Any]:
    """The paper's values of a recipe's keys: one interval, and the same range of timesteps at every step.

    Args:
        highest: the `max_step_percent` that is given, if any: the range ends there from first to last.
    """
    numbers = RECIPE_DEFAULTS["paper"]
    end = highest if isinstance(highest, int | float) else numbers["max_step_percent_end"]
    return {
        "delta_t": numbers["delta_t"],
        "delta_s": numbers["delta_s"],
        "max_step_percent_end": end,
        "warmup": numbers["warmup_steps"],
    }


def part(fraction: float, max_steps: int) -> int:
    """A part of the run in whole steps, at least 1 unless the part is 0.

    >>> part(0.3, 600), part(0.0001, 600), part(0, 600)
    (180, 1, 0)
    """
    return max(round(fraction * max_steps), 1) if fraction > 0 else 0


def ramp(value: float | Sequence[float], max_steps: int) -> float | list[float]:
    """[v0, v1] as a schedule over the whole run.

    >>> ramp([1.0, 0.1], 600), ramp(0.5, 600)
    ([0, 1.0, 0.1, 600], 0.5)

    Raises:
        UserError: neither a number nor two.
    """
    if isinstance(value, int | float):
        return value
    first, last = check_pair("A ramp", value, "one number, or [first, last]")
    return [0, first, last, max_steps]


def staged(values: float | Sequence[float], milestones: Sequence[int]) -> float | list[float]:
    """A value that changes at milestones, as a schedule that jumps within one step; a number stays one.

    >>> staged([4, 2, 1], [100, 200]), staged([4], []), staged(4, [100])
    ([99, 4, 2, 100, 2, 199, 1, 200], 4, 4)

    Raises:
        UserError: neither one value nor one more than there are milestones.
    """
    if not isinstance(values, Sequence) or isinstance(values, str):
        return values  # text is for its own field to refuse
    values, milestones = list(values), list(milestones)
    if len(values) == 1:
        return values[0]
    if len(values) != len(milestones) + 1:
        raise UserError(
            f"{values} has {len(values)} values for {len(milestones) + 1} stages of "
            f"data.resolution_milestones {milestones}."
        )
    knots = [(milestones[0] - 1, values[0])]
    for step, before, after in zip(milestones, values[:-1], values[1:], strict=True):
        if step - 1 > knots[-1][0]:
            knots.append((step - 1, before))
        knots.append((step, after))
    (start, first), *later = knots
    return [start, first, *(entry for step, value in later for entry in (value, step))]


def even(times: int, max_steps: int) -> int:
    """The smallest interval that divides the run and makes at most `times` parts of it.

    >>> even(4, 600), even(4, 602), even(4, 601)
    (150, 301, 601)
    """
    smallest = -(-max_steps // max(int(times), 1))
    return next(n for n in range(smallest, max_steps + 1) if max_steps % n == 0)


def register_resolvers() -> None:
    """Makes the resolvers above work in OmegaConf configs; may be called again."""

    def recipe_of(key: str, *, _root_: Any) -> Any:
        recipe = find_recipe(str(_root_.system.guidance.prior))
        _check_key(key, "recipe")
        guidance = _root_.system.guidance
        if guidance.get("recipe") == "paper":
            recipe = recipe | algorithm_1(guidance.get("max_step_percent"))
            if key == "delta_t_start":  # nothing is annealed
                return guidance.get("delta_t", recipe["delta_t"])
        return recipe[key]

    def prompt_without(prompt: str, *, _root_: Any) -> str:
        from omegaconf import OmegaConf

        check_prompt(prompt, "system.prompt_processor.prompt")
        given = [OmegaConf.select(_root_, f"system.guidance.{key}") for key in ("lora", "embeddings")]
        if not any(given):
            return prompt
        return without_words(
            prompt, find_adapters(*given, find_card(str(_root_.system.guidance.prior))).words
        )

    resolvers = {
        "recipe": recipe_of,
        "part": lambda fraction, *, _root_: part(float(fraction), _max_steps(_root_)),
        "ramp": lambda value, *, _root_: ramp(value, _max_steps(_root_)),
        "without_words": prompt_without,
        "staged": lambda values, *, _root_: staged(values, _root_.data.get("resolution_milestones") or []),
        "even": lambda times, *, _root_: even(times, _max_steps(_root_)),
    }
    for name, resolver in resolvers.items():
        register_resolver(name, resolver)


def _max_steps(config: Any) -> int:
    """Length of the run.

    Raises:
        UserError: it is no whole number of at least 1, or missing; Lightning's -1, without end, is none.
    """
    from omegaconf import OmegaConf

    steps = OmegaConf.select(config, "trainer.max_steps")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise UserError(
            f"trainer.max_steps is {steps!r}; it must be a whole number of at least 1, for schedules are "
            "parts of the run."
        )
    return steps


def _check_key(key: Any, where: str) -> None:
    if key in PUBLISHED:
        return
    near = closest(str(key), PUBLISHED)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"{where} has no key {key!r}.{hint} Keys: {', '.join(PUBLISHED)}.")
