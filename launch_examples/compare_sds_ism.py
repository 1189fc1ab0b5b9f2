#!/usr/bin/env python3
"""SDS and ISM side by side: same prompt, seeds, cameras and steps; one page of pictures and numbers.

    python launch_examples/compare_sds_ism.py --prompt "a red mug"
    python launch_examples/compare_sds_ism.py --prompt "a red mug" --representation gs,nerf --seeds 3
    python launch_examples/compare_sds_ism.py --arms sds:25,ism:7.5 --steps 900 system.guidance.prior=sd15

Leaves compare.html in --out, which needs no file beside it: turntables, learning curves, how close each
asset is to true objects, the grader's opinion, detail and saturation, seconds a step. It is written anew
after every arm. Call it again with the same --out and it goes on where it stopped: finished arms are not
trained again, unfinished ones resume from their last checkpoint. An arm that fails shows its last lines on
the page. Exit status 1 if one did.
"""

from __future__ import annotations

import argparse
import html
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from threestudio_lucid.files import write_text
from toybox import captions, page, runs, trials
from toybox.grade import Grader
from toybox.grade.truth import COLUMNS, grade_truth, nearest_truth, shown, true_instances
from toybox.grade.truth import INSTANCES as COMPARED
from toybox.measures import detail, object_mask, saturation
from toybox.trials import AZIMUTHS, Mistake, card, mean, mean_of_known, percent
from toybox.truth import true_views

ROOT = Path(__file__).resolve().parents[1]
REPRESENTATIONS = ("gs", "nerf")
METHODS = ("sds", "ism")
INSTANCES = 3  # true objects that detail and saturation are compared with


@dataclass(frozen=True)
class Arm:
    """One run. `scale`: classifier-free guidance, None for the recipe's own."""

    representation: str
    method: str
    scale: float | None
    seed: int

    @property
    def name(self) -> str:
        scale = "" if self.scale is None else f"-{self.scale:g}"
        return f"{self.representation}-{self.method}{scale}-seed{self.seed}"

    @property
    def label(self) -> str:
        scale = "" if self.scale is None else f" {self.scale:g}"
        return f"{self.method.upper()}{scale} {self.representation}"

    @property
    def config(self) -> Path:
        return ROOT / "configs" / f"{self.method}-{self.representation}.yaml"


@dataclass
class Result:
    """What an arm came to; `error` holds the last lines of one that failed."""

    arm: Arm
    error: str | None = None
    video: Path | None = None
    views: np.ndarray | None = None
    seconds_per_step: float | None = None
    numbers: dict[str, float | None] = field(default_factory=dict)
    """How close it is to the truth, see `toybox.grade.truth.Verdict`."""
    detail: float = 0.0
    saturation: float = 0.0
    object: float | None = None
    color: float | None = None
    direction: float | None = None
    belief: list[tuple[float, float]] = field(default_factory=list)
    loss: list[tuple[float, float]] = field(default_factory=list)


# ---- training ----------------------------------------------------------------------------------------------


def command_of(arm: Arm, options: argparse.Namespace) -> list[str]:
    """The command line of an arm, which resumes if there is a checkpoint."""
    given = {
        "seed": arm.seed,
        "system.prompt_processor.prompt": json.dumps(options.prompt, ensure_ascii=False),
        "data.n_val_views": 4,
        "trainer.val_check_interval": "${even:10}",
        "checkpoint.every_n_train_steps": "${even:10}",
    }
    if options.steps is not None:
        given["trainer.max_steps"] = options.steps
    if arm.scale is not None:
        given["system.guidance.guidance_scale"] = arm.scale
    return trials.command(arm.config, arm.name, options.out, given, options.overrides)


# ---- judging -----------------------------------------------------------------------------------------------


def judge(arm: Arm, options: argparse.Namespace, spec: captions.Spec | None, grader: Grader) -> Result:
    """Pictures and numbers of a finished arm."""
    trial = trials.trial_of(arm.name, options.out)
    video, views = trials.look(trial)
    masks = [object_mask(view) for view in views]
    logged = {name: points for name, points in runs.curves(trial).items() if name.startswith("train/")}
    loss = logged.get("train/loss_sds", [])
    result = Result(
        arm,
        video=video,
        views=views,
        seconds_per_step=runs.seconds_per_step(loss),
        detail=mean(detail(view, mask) for view, mask in zip(views, masks, strict=True)),
        saturation=mean(saturation(view, mask) for view, mask in zip(views, masks, strict=True)),
        loss=[(step, value) for step, value, _ in loss],
    )
    if spec is not None:
        opinion = trials.grade(views, spec, grader)
        result.object, result.color, result.direction = opinion.object, opinion.color, opinion.direction
        result.numbers = grade_truth(trial, options.prompt, options.instances).numbers()
        result.belief = [
            (step, trials.sure(grader(trials.channels_first(pictures)), spec))
            for step, pictures in runs.training_views(trial).items()
        ]
    return result


@dataclass(frozen=True)
class Truth:
    """The object that the prompt asks for, as the arms' cameras see it.

    numbers: how close another true object is to it.
    """

    video: Path
    views: np.ndarray
    numbers: dict[str, float | None]
    detail: float
    saturation: float


def truth_of(spec: captions.Spec, camera: runs.Camera, size: int, options: argparse.Namespace) -> Truth:
    """Drawn with the camera of the runs, as large as their pictures."""
    look = {"elevation": camera.elevation, "distance": camera.distance, "fovy": camera.fovy, "size": size}
    video = options.out / "truth.mp4"
    if not video.exists():
        page.write_video(video, true_views(spec, np.linspace(0, 360, 60), **look), fps=15)
    instances = [true_views(spec, AZIMUTHS, seed=seed, **look) for seed in range(INSTANCES)]
    first, *others = true_instances(spec, camera, max(options.instances, 2))
    another = nearest_truth(lambda _: first, others, camera).numbers()
    every = [(view, object_mask(view)) for views in instances for view in views]
    return Truth(
        video,
        instances[0],
        another,
        mean(detail(view, mask) for view, mask in every),
        mean(saturation(view, mask) for view, mask in every),
    )


# ---- the page ----------------------------------------------------------------------------------------------

NOTE = """Same seed, cameras and number of steps in every column; the arms differ in the method and the
guidance scale alone. Eight views are compared with those of the nearest of several true objects, at the
uniform scale of the asset that fits best: <b>PSNR</b> of the pictures and, <b>inside</b>, of what is two
pixels off the outline; <b>IoU</b> of the silhouettes; <b>fuzz</b>: half-transparent area, where a true
outline has 1; <b>holes</b>: share of the inside that something shines through; <b>strays</b>: what is more
than three pixels outside, in units of the object; <b>scale</b>: below 1 the asset is too large. <b>Object,
colour, direction</b>: share of eight views that the toybox grader names rightly. <b>Detail</b>: energy of
the fine structure inside the outline, 1 is that of the true object; less is over-smoothed, more is noise.
<b>Saturation</b>: mean of the object's pixels. <b>s / step</b>: median time of a step."""


def write(path: Path, options: argparse.Namespace, results: Sequence[Result], truth: Truth | None) -> None:
    """The page of the arms so far."""
    steps = "as many steps as the config says" if options.steps is None else f"{options.steps} steps"
    extra = "".join(f", <code>{html.escape(item)}</code>" for item in options.overrides)
    body = [f'<p class="note">{steps}{extra}. {html.escape(machine())}.</p>', f'<p class="note">{NOTE}</p>']
    body.append(page.table(*table_of(results, truth)))
    for representation in dict.fromkeys(result.arm.representation for result in results):
        of_it = [result for result in results if result.arm.representation == representation]
        for seed in dict.fromkeys(result.arm.seed for result in of_it):
            body.append(f"<h2>{representation}, seed {seed}</h2>")
            cards = [card_of(result) for result in of_it if result.arm.seed == seed]
            if truth is not None:
                cards.insert(0, card("the true object", truth.video, truth.views, "what the prompt asks for"))
            body.append('<div class="row">' + "".join(cards) + "</div>")
        body.append(charts_of(representation, of_it))
    write_text(path, page.page(f"SDS and ISM: {options.prompt}", body))


def table_of(results: Sequence[Result], truth: Truth | None) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each method's mean over its seeds, and the true object."""
    named = ["object", "colour", "direction"]
    header = ["", "seeds", *COLUMNS.values(), *named, "detail", "saturation", "s / step"]
    rows = []
    for label in dict.fromkeys(result.arm.label for result in results):
        all_of_it = [result for result in results if result.arm.label == label]
        good = [result for result in all_of_it if result.error is None]
        seeds = str(len(good)) if len(good) == len(all_of_it) else f"{len(good)} of {len(all_of_it)}"
        numbers = [shown(key, mean_of_known(result.numbers.get(key) for result in good)) for key in COLUMNS]
        numbers += [percent(_over(good, name)) for name in ("object", "color", "direction")]
        fine = _over(good, "detail")
        ratio = "–" if fine is None or truth is None else f"{fine / max(truth.detail, 1e-12):.2f}"
        colourful, pace = _over(good, "saturation"), _over(good, "seconds_per_step")
        numbers += [
            ratio,
            "–" if colourful is None else f"{colourful:.2f}",
            "–" if pace is None else f"{pace:.2f}",
        ]
        rows.append([label, seeds, *numbers])
    if truth is not None:
        alike = [shown(key, truth.numbers[key]) for key in COLUMNS]
        rows.append(["another true object", "", *alike, "", "", "", "1.00", f"{truth.saturation:.2f}", ""])
    return header, rows


def _over(results: Sequence[Result], name: str) -> float | None:
    return mean_of_known(getattr(result, name) for result in results)


def card_of(result: Result) -> str:
    if result.error is not None:
        return trials.failed_card(result.arm.label, result.error)
    seen = ", ".join(
        f"{COLUMNS[key]} {shown(key, result.numbers.get(key))}" for key in ("psnr", "iou", "fuzz")
    )
    return card(result.arm.label, result.video, result.views, seen if result.numbers else "")


def charts_of(representation: str, results: Sequence[Result]) -> str:
    """Learning curves of a representation: one line an arm."""
    many = len({result.arm.seed for result in results}) > 1
    names = {id(r): f"{r.arm.label}{f', seed {r.arm.seed}' if many else ''}" for r in results}
    belief = {names[id(r)]: r.belief for r in results if r.belief}
    loss = {names[id(r)]: r.loss for r in results if r.loss}
    charts = []
    if belief:
        title = f"{representation}: how sure the grader is of the object, by step"
        charts.append(page.line_chart(title, belief, low=0.0, high=1.0))
    if loss:
        charts.append(page.line_chart(f"{representation}: loss of the guidance, by step", loss, log=True))
    return f'<div class="charts">{"".join(charts)}</div>'


def machine() -> str:
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return f"Python {platform.python_version()}, PyTorch {torch.__version__}, {where}"


# ---- command line ------------------------------------------------------------------------------------------


def arms_of(options: argparse.Namespace) -> list[Arm]:
    """All arms, those of the same seed and representation one after the other.

    Raises:
        Mistake: an unknown method or representation, or a config that is not there.
    """
    methods = []
    for item in options.arms.split(","):
        method, _, scale = item.strip().partition(":")
        try:
            methods.append((method, float(scale) if scale else None))
        except ValueError:
            raise Mistake(
                f"--arms: {scale!r} in {item!r} is no guidance scale. Example: sds:7.5,ism"
            ) from None
        if method not in METHODS:
            raise Mistake(f"--arms: {method!r} is none of {', '.join(METHODS)}. Example: sds:7.5,sds:100,ism")
    representations = [item.strip() for item in options.representation.split(",")]
    for item in representations:
        if item not in REPRESENTATIONS:
            raise Mistake(f"--representation: {item!r} is none of {', '.join(REPRESENTATIONS)}.")
    if options.seeds < 1 or (options.steps is not None and options.steps < 1):
        raise Mistake("--seeds and --steps are whole numbers of at least 1.")
    arms = [
        Arm(representation, *method, seed)
        for representation in representations
        for seed in range(options.seeds)
        for method in methods
    ]
    missing = sorted({str(arm.config) for arm in arms if not arm.config.exists()})
    if missing:
        raise Mistake(f"There is no {', '.join(missing)}.")
    return arms


def parse_prompt(prompt: str) -> captions.Spec | None:
    """What the toybox knows of a prompt; None if nothing, and then there is no grading."""
    try:
        return captions.parse(prompt)
    except ValueError as error:
        print(f"No grades, for there is {error}", file=sys.stderr)
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", default="a hamburger", help="(%(default)s)")
    parser.add_argument("--representation", default="gs", help="gs, nerf or gs,nerf (%(default)s)")
    parser.add_argument(
        "--arms", default="sds:7.5,sds:100,ism", help="method[:guidance scale], ... (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of each arm (%(default)s)")
    parser.add_argument("--steps", type=int, help="of training (the config's)")
    parser.add_argument(
        "--instances", type=int, default=COMPARED, help="true objects to compare with (%(default)s)"
    )
    parser.add_argument("--out", type=Path, help="folder (outputs/compare/PROMPT)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")
    options = parser.parse_intermixed_args(arguments)
    options.out = (options.out or ROOT / "outputs/compare" / options.prompt.replace(" ", "_")).resolve()
    arms, spec = arms_of(options), parse_prompt(options.prompt)
    settings = {"prompt": options.prompt, "steps": options.steps, "overrides": list(options.overrides)}
    trials.remember_settings(options.out, settings)
    grader, path, truth = Grader.load(), options.out / "compare.html", None
    results: list[Result] = []
    for number, arm in enumerate(arms, start=1):
        print(f"[{number}/{len(arms)}] {arm.label}, seed {arm.seed}", file=sys.stderr)
        error = trials.train(arm.name, options.out, partial(command_of, arm, options))
        try:
            results.append(Result(arm, error) if error else judge(arm, options, spec, grader))
        except (FileNotFoundError, ValueError) as missing:  # somebody tidied up
            results.append(Result(arm, str(missing)))
        if results[-1].error is None and truth is None and spec is not None:
            camera = runs.camera_of(trials.trial_of(arm.name, options.out))
            truth = truth_of(spec, camera, results[-1].views.shape[1], options)
        write(path, options, results, truth)
    header, rows = table_of(results, truth)
    for row in [header, *rows]:
        print("  ".join(f"{cell:>12}" if k else f"{cell:16}" for k, cell in enumerate(row)))
    print(path)
    return 1 if any(result.error for result in results) else 0


if __name__ == "__main__":
    trials.run_script(main)
