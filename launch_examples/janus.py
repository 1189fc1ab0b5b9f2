#!/usr/bin/env python3
"""How many faces? The same prompts with Perp-Neg, with view prompts alone, and with neither; one page.

    python launch_examples/janus.py                                      # three prompts
    python launch_examples/janus.py --prompt "a robot" --seeds 3 --starts text,shape:ball
    python launch_examples/janus.py --arms perp-neg,views --steps 200 system.guidance.guidance_scale=15

A prior that has mostly seen faces paints one on every side: the Janus problem. Against it stand negative
prompts, texts that say from where one looks, and Perp-Neg, which keeps the front's text away from the back.
The arms:

    plain      one text for all sides
    negative   the same, and the front's text as the negative prompt of all sides
    views      ", front view", ", side view", ", back view", ", overhead view"
    perp-neg   the same, and Perp-Neg

The Janus score is the share of views from behind on which the toybox grader sees a front. Leaves janus.html
in --out, which needs no file beside it, written anew after every run. Call it again with the same --out and
it goes on where it stopped, also with more prompts, arms or starts; a run that fails shows its last lines on
the page. Exit status 1 if one did.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from threestudio_lucid.files import write_text
from toybox import captions, page, runs, trials
from toybox.grade import Grader, direction_or_none
from toybox.objects import OBJECTS
from toybox.trials import Mistake, mean, percent
from toybox.truth import true_views

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ("a person with a blue shirt", "a pumpkin", "a robot")
ARMS = {
    "plain": {"view_dependent": False, "use_perp_neg": False},
    "negative": {
        "view_dependent": False,
        "use_perp_neg": False,
        "negative_prompt": "{prompt}, front view",
    },
    "views": {"view_dependent": True, "use_perp_neg": False},
    "perp-neg": {"view_dependent": True, "use_perp_neg": True},
}
FRAMES = 25  # of the turntable, both ends included
CIRCLE = [15.0 * k for k in range(24)]
INSTANCES = 3  # true objects whose score the grader's own mistakes give


@dataclass(frozen=True)
class Arm:
    """One run."""

    prompt: str
    kind: str
    start: str
    seed: int

    @property
    def name(self) -> str:
        parts = (self.prompt, self.kind, self.start, f"seed{self.seed}")
        return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts)


@dataclass(frozen=True)
class Faces:
    """On what share of the views the grader sees a front, and the object. Shares in [0, 1].

    janus: of the views from behind; sides: of those from the side; front: of those from the front, where it
    should be. object: of all views, the share on which it names the object rightly.
    """

    janus: float
    sides: float
    front: float
    object: float


@dataclass(frozen=True)
class Result:
    """What an arm came to; `error` holds the last lines of one that failed."""

    arm: Arm
    error: str | None = None
    video: Path | None = None
    views: np.ndarray | None = None
    faces: Faces | None = None


def count_faces(views: np.ndarray, azimuths: Sequence[float], spec: captions.Spec, grader: Grader) -> Faces:
    """Where the grader sees the front of the object that was asked for.

    Args:
        views: [N, H, H, 3] in [0, 1], from `azimuths` in degrees; those on a border of two directions do not
            count.
    """
    grades = grader(trials.channels_first(views.astype(np.float32)))
    seen: dict[str, list[bool]] = {"front": [], "side": [], "back": []}
    for grade, azimuth in zip(grades, azimuths, strict=True):
        if direction := direction_or_none(azimuth):
            seen[direction].append(grade.view_is("front", spec.object))
    named = mean(grade.object == spec.object for grade in grades)
    return Faces(mean(seen["back"]), mean(seen["side"]), mean(seen["front"]), named)


def of_true_objects(spec: captions.Spec, camera: runs.Camera, size: int, grader: Grader) -> Faces:
    """The same of true objects: what is above 0 there is the grader's own mistake."""
    look = {"elevation": camera.elevation, "distance": camera.distance, "fovy": camera.fovy, "size": size}
    every = [
        count_faces(true_views(spec, CIRCLE, seed=seed, **look), CIRCLE, spec, grader)
        for seed in range(INSTANCES)
    ]
    return mean_of(every)


def mean_of(faces: Sequence[Faces]) -> Faces:
    """The mean of each share."""
    return Faces(*(mean(getattr(f, name) for f in faces) for name in Faces.__dataclass_fields__))


# ---- runs --------------------------------------------------------------------------------------------------


def command_of(arm: Arm, options: argparse.Namespace) -> list[str]:
    """The command line of an arm, which resumes if there is a checkpoint."""
    texts = {"prompt": "{prompt}", **ARMS[arm.kind]}
    given = {
        "seed": arm.seed,
        "system.geometry.init": arm.start,
        "data.n_test_views": FRAMES,
        **{
            f"system.prompt_processor.{key}": text.replace("{prompt}", arm.prompt)
            if isinstance(text, str)
            else text
            for key, text in texts.items()
        },
    }
    if options.steps is not None:
        given["trainer.max_steps"] = options.steps
    given = {key: json.dumps(value, ensure_ascii=False) for key, value in given.items()}
    return trials.command(options.config, arm.name, options.out, given, options.overrides)


def judge(arm: Arm, out: Path, grader: Grader) -> Result:
    """Pictures and shares of a finished arm."""
    trial, spec = trials.trial_of(arm.name, out), captions.parse(arm.prompt)
    video, views = trials.look(trial)
    circle = np.stack(runs.nearest(runs.turntable(trial), CIRCLE))
    return Result(arm, None, video, views, count_faces(circle, CIRCLE, spec, grader))


# ---- the page ----------------------------------------------------------------------------------------------

NOTE = """Same prompts, seeds, starts, cameras and number of steps in every row; the arms differ in the texts
that the views are given. <b>Janus</b>: on what share of the views from behind (within 45 degrees of straight
behind) the toybox grader sees a front; less is better. <b>Sides</b>: the same of the views from the side.
<b>Front</b>: of those from the front, where it should be. <b>Object</b>: share of all views on which it names
the object rightly; where that is low, the rest says little. The row of true objects shows the grader's own
mistakes."""
HEADER = ["Janus", "sides", "front", "object"]


def write(
    path: Path, options: argparse.Namespace, results: Sequence[Result], truth: dict[str, Faces]
) -> None:
    """The page of the arms so far."""
    steps = "as many steps as the config says" if options.steps is None else f"{options.steps} steps"
    extra = "".join(f", <code>{html.escape(item)}</code>" for item in options.overrides)
    body = [f'<p class="note">{steps}{extra}.</p>', f'<p class="note">{NOTE}</p>']
    body.append(page.table(*summary(results, truth)))
    body += ["<h2>Prompt by prompt: Janus</h2>", page.table(*by_prompt(results, truth))]
    for prompt in dict.fromkeys(result.arm.prompt for result in results):
        cards = [card_of(result) for result in results if result.arm.prompt == prompt]
        body += [f"<h2>{html.escape(prompt)}</h2>", '<div class="row">' + "".join(cards) + "</div>"]
    write_text(path, page.page("How many faces?", body))


def summary(results: Sequence[Result], truth: dict[str, Faces]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the means of each start and arm over its prompts and seeds, and of true objects."""
    rows = []
    for start, kind in dict.fromkeys((r.arm.start, r.arm.kind) for r in results):
        all_of_it = [r for r in results if (r.arm.start, r.arm.kind) == (start, kind)]
        good = [r for r in all_of_it if r.error is None]
        count = str(len(good)) if len(good) == len(all_of_it) else f"{len(good)} of {len(all_of_it)}"
        rows.append([f"{kind}, from {start}", count, *_cells([r.faces for r in good])])
    if truth:
        rows.append(["true objects", "", *_cells(list(truth.values()))])
    return ["arm", "runs", *HEADER], rows


def by_prompt(results: Sequence[Result], truth: dict[str, Faces]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the Janus score of a prompt, mean over its seeds, for each start and arm."""
    columns = list(dict.fromkeys((r.arm.start, r.arm.kind) for r in results))
    rows = []
    for prompt in dict.fromkeys(r.arm.prompt for r in results):
        cells = []
        for column in columns:
            good = [r.faces.janus for r in results if (r.arm.start, r.arm.kind) == column
                    and r.arm.prompt == prompt and r.error is None]  # fmt: skip
            cells.append(percent(mean(good) if good else None))
        rows.append([prompt, *cells, percent(truth[prompt].janus if prompt in truth else None)])
    return ["prompt", *(f"{kind}, from {start}" for start, kind in columns), "true objects"], rows


def _cells(faces: Sequence[Faces]) -> list[str]:
    if not faces:
        return [percent(None)] * len(HEADER)
    mean_faces = mean_of(faces)
    return [percent(getattr(mean_faces, name)) for name in Faces.__dataclass_fields__]


def card_of(result: Result) -> str:
    arm = result.arm
    title = f"{arm.kind}, from {arm.start}, seed {arm.seed}"
    if result.error is not None:
        return trials.failed_card(title, result.error)
    below = f"Janus {percent(result.faces.janus)}, object {percent(result.faces.object)}"
    return trials.card(title, result.video, result.views, below)


# ---- command line ------------------------------------------------------------------------------------------


def arms_of(options: argparse.Namespace) -> list[Arm]:
    """All arms, those of the same prompt, start and seed one after the other.

    Raises:
        Mistake: a prompt without a front of its own, an unknown arm, no start, or no seed.
    """
    kinds, starts = (
        [item.strip() for item in text.split(",") if item.strip()] for text in (options.arms, options.starts)
    )
    for kind in kinds:
        if kind not in ARMS:
            raise Mistake(f"--arms: {kind!r} is none of {', '.join(ARMS)}.")
    if not kinds or len(set(kinds)) < len(kinds):
        raise Mistake(f"--arms: different ones of {', '.join(ARMS)}.")
    if not starts or len(set(starts)) < len(starts):
        raise Mistake("--starts: different values of system.geometry.init. Example: text,shape:ball")
    if options.seeds < 1 or (options.steps is not None and options.steps < 1):
        raise Mistake("--seeds and --steps are whole numbers of at least 1.")
    for prompt in options.prompt:
        try:
            thing = OBJECTS[captions.parse(prompt).object]
        except ValueError as error:
            raise Mistake(f"--prompt: there is {error}") from None
        if "back" in thing.group("front"):
            faced = [t.name for t in OBJECTS.values() if "back" not in t.group("front")]
            raise Mistake(
                f"--prompt: the back of {thing.name!r} looks like its front. These have a front of their "
                f"own: {', '.join(faced)}."
            )
    return [
        Arm(prompt, kind, start, seed)
        for seed in range(options.seeds)
        for start in starts
        for prompt in options.prompt
        for kind in kinds
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", action="append", help=f"one or several ({'; '.join(PROMPTS)})")
    parser.add_argument("--arms", default=",".join(ARMS), help="(%(default)s)")
    parser.add_argument("--starts", default="text", help="values of init (%(default)s)")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/ism-gs.yaml", help="(%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each (%(default)s)")
    parser.add_argument("--steps", type=int, help="of training (the config's)")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs/janus", help="folder (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")
    options = parser.parse_intermixed_args(arguments)
    options.prompt = list(dict.fromkeys(options.prompt or PROMPTS))
    options.out, options.config = options.out.resolve(), options.config.resolve()
    arms = arms_of(options)
    settings = {"config": options.config.name, "steps": options.steps, "overrides": list(options.overrides)}
    trials.remember_settings(options.out, settings)
    grader, path = Grader.load(), options.out / "janus.html"
    results: list[Result] = []
    truth: dict[str, Faces] = {}
    for number, arm in enumerate(arms, start=1):
        print(
            f"[{number}/{len(arms)}] {arm.prompt}, {arm.kind}, {arm.start}, seed {arm.seed}", file=sys.stderr
        )
        error = trials.train(arm.name, options.out, partial(command_of, arm, options))
        try:
            results.append(Result(arm, error) if error else judge(arm, options.out, grader))
        except FileNotFoundError as missing:  # somebody tidied up
            results.append(Result(arm, str(missing)))
        if results[-1].error is None and arm.prompt not in truth:
            camera, spec = runs.camera_of(trials.trial_of(arm.name, options.out)), captions.parse(arm.prompt)
            truth[arm.prompt] = of_true_objects(spec, camera, results[-1].views.shape[1], grader)
        write(path, options, results, truth)
    header, rows = summary(results, truth)
    for row in [header, *rows]:
        print("  ".join(f"{cell:>8}" if k else f"{cell:28}" for k, cell in enumerate(row)))
    print(path)
    return 1 if any(result.error for result in results) else 0


if __name__ == "__main__":
    trials.run_script(main)
