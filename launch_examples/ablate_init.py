#!/usr/bin/env python3
"""Does it matter what training starts from? The same prompts, seeds and steps from each start; one page.

    python launch_examples/ablate_init.py                                   # a ball, and Point-E's points
    python launch_examples/ablate_init.py --starts shape:ball,text,true     # and the true object's own points
    python launch_examples/ablate_init.py --prompt "a red mug" --prompt "a chair" --seeds 3 --steps 300

A start is a value of system.geometry.init; `text` and `shap-e` are given the prompt. `true` are points of the
object that the prompt asks for, which nobody has in earnest: the best that a start can do.

Leaves ablate_init.html in --out, which needs no file beside it: turntables, how far the surface lies from the
true object's, the toybox grader's opinion, and how much each start wins over the first. It is written anew
after every run. Call it again with the same --out and it goes on where it stopped, also with more prompts or
starts; a run that fails shows its last lines on the page. Exit status 1 if one did.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from threestudio_lucid.errors import UserError
from threestudio_lucid.files import write_text
from threestudio_lucid.gaussians.ply import read_ply
from threestudio_lucid.gaussians.surface import mesh_of
from threestudio_lucid.points.meshes import sample_surface
from toybox import captions, clouds, page, runs, trials
from toybox.grade import Grader
from toybox.grade.points import chamfer
from toybox.trials import Mistake, mean, percent
from toybox.truth import build, true_views

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = (
    "a blue mug",
    "a chair",
    "a red rocket",
    "a table",
    "a red car",
    "an airplane",
    "a yellow teapot",
    "a house",
    "a robot",
    "a person with a blue shirt",
)
TRUE = "true"
INSTANCES = 3  # true objects that a surface is compared with; the nearest counts
POINTS = 20_000  # on a surface
RESOLUTION = 128  # cells of the Gaussians' surface


@dataclass(frozen=True)
class Arm:
    """One run."""

    prompt: str
    start: str
    seed: int

    @property
    def name(self) -> str:
        parts = (self.prompt, self.start, f"seed{self.seed}")
        return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts)


@dataclass(frozen=True)
class Result:
    """What an arm came to; `error` holds the last lines of one that failed.

    chamfer: distance of its surface to the true one's, world units; None without a surface.
    """

    arm: Arm
    error: str | None = None
    video: Path | None = None
    views: np.ndarray | None = None
    chamfer: float | None = None
    opinion: trials.Opinion | None = None


# ---- geometry ----------------------------------------------------------------------------------------------


@cache
def true_surfaces(spec: captions.Spec) -> tuple[np.ndarray, ...]:
    """Points [POINTS, 3] on the surface of each of `INSTANCES` true objects."""
    return tuple(
        clouds.sample_surface(build(spec, seed), POINTS, np.random.default_rng(seed))[0]
        for seed in range(INSTANCES)
    )


def surface_of(trial: Path) -> np.ndarray | None:
    """Points [POINTS, 3] on the surface of a run's last Gaussians; None if they have none.

    Raises:
        FileNotFoundError: it left no Gaussians.
    """
    files = [path for path in (trial / "save").glob("it*.ply") if re.fullmatch(r"it\d+", path.stem)]
    if not files:
        raise FileNotFoundError(f"no Gaussians in {trial / 'save'}")
    gaussians = read_ply(max(files, key=lambda path: int(path.stem[2:])))
    try:
        mesh = mesh_of(gaussians, RESOLUTION)
    except UserError:  # nothing is opaque enough
        return None
    draw = torch.Generator().manual_seed(0)
    corners, colors = mesh.vertices[mesh.triangles], mesh.colors[mesh.triangles]
    return sample_surface(corners, colors, POINTS, draw).points.numpy()


def true_points(spec: captions.Spec, out: Path) -> Path:
    """A file with points of a true object and their colours, to start from."""
    name = captions.caption(spec.object, spec.color, spec.part_color, pose=spec.pose).replace(" ", "_")
    path = out / "true" / f"{name}.npz"
    if not path.exists():
        points, colors = clouds.sample_surface(build(spec, 0), 4096, np.random.default_rng(0))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        np.savez(temporary, points=points, colors=colors)
        temporary.replace(path)
    return path


# ---- runs --------------------------------------------------------------------------------------------------


def command_of(arm: Arm, options: argparse.Namespace) -> list[str]:
    """The command line of an arm, which resumes if there is a checkpoint."""
    start = arm.start
    if start == TRUE:
        start = f"file:{true_points(captions.parse(arm.prompt), options.out)}"
    given = {
        "seed": arm.seed,
        "system.prompt_processor.prompt": json.dumps(arm.prompt, ensure_ascii=False),
        "system.geometry.init": json.dumps(start, ensure_ascii=False),
    }
    if options.steps is not None:
        given["trainer.max_steps"] = options.steps
    return trials.command(options.config, arm.name, options.out, given, options.overrides)


def judge(arm: Arm, out: Path, grader: Grader) -> Result:
    """Pictures and numbers of a finished arm; those that take long are kept beside it."""
    trial, spec = trials.trial_of(arm.name, out), captions.parse(arm.prompt)
    video, views = trials.look(trial)
    file = trial / "geometry.json"
    if file.exists():
        distance = json.loads(file.read_text(encoding="utf-8"))["chamfer"]
    else:
        surface = surface_of(trial)
        distance = None if surface is None else min(chamfer(surface, true) for true in true_surfaces(spec))
        write_text(file, json.dumps({"chamfer": distance}))
    return Result(arm, None, video, views, distance, trials.grade(views, spec, grader))


# ---- the page ----------------------------------------------------------------------------------------------

NOTE = """Same prompts, seeds, cameras and number of steps in every row; what differs is the points that
training starts from. <b>Chamfer</b>: how far the Gaussians' surface lies from the true object's, mean over
both surfaces, in world units, to the nearest of three true objects; less is better. <b>Sure</b>: the
probability that the toybox grader gives the right object, mean over eight views; <b>object, colour,
direction</b>: the share of views that it names rightly."""


def write(path: Path, options: argparse.Namespace, results: Sequence[Result]) -> None:
    """The page of the arms so far."""
    steps = "as many steps as the config says" if options.steps is None else f"{options.steps} steps"
    extra = "".join(f", <code>{html.escape(item)}</code>" for item in options.overrides)
    body = [f'<p class="note">{steps}{extra}.</p>', f'<p class="note">{NOTE}</p>']
    body.append(page.table(*summary(results)))
    body += [f"<p>{html.escape(sentence)}</p>" for sentence in wins(results)]
    body += ["<h2>Prompt by prompt: Chamfer, sure</h2>", page.table(*by_prompt(results))]
    for prompt in dict.fromkeys(result.arm.prompt for result in results):
        body.append(f"<h2>{html.escape(prompt)}</h2>")
        of_it = [result for result in results if result.arm.prompt == prompt]
        cards = [truth_card(prompt, options.out, of_it), *(card_of(result) for result in of_it)]
        body.append('<div class="row">' + "".join(cards) + "</div>")
    write_text(path, page.page("What training starts from", body))


def summary(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the means of each start over all its runs, and what true objects differ by."""
    header = ["start", "runs", "Chamfer", "sure", "object", "colour", "direction"]
    rows = []
    for start in dict.fromkeys(result.arm.start for result in results):
        all_of_it = [result for result in results if result.arm.start == start]
        good = [result for result in all_of_it if result.error is None]
        count = str(len(good)) if len(good) == len(all_of_it) else f"{len(good)} of {len(all_of_it)}"
        shares = [
            percent(mean(getattr(result.opinion, name) for result in good) if good else None)
            for name in ("sure", "object", "color", "direction")
        ]
        rows.append([start, count, _number([result.chamfer for result in good]), *shares])
    specs = {captions.parse(result.arm.prompt) for result in results if result.error is None}
    among = [chamfer(*pair) for spec in specs for pair in combinations(true_surfaces(spec), 2)]
    if among:
        rows.append(["true objects among themselves", "", _number(among), *4 * [""]])
    return header, rows


def wins(results: Sequence[Result]) -> list[str]:
    """How much each start wins over the first, on the prompts and seeds that both have finished."""
    finished = {result.arm: result for result in results if result.error is None}
    starts = list(dict.fromkeys(result.arm.start for result in results))
    sentences = []
    for start in starts[1:]:
        pairs = [
            (finished[Arm(arm.prompt, starts[0], arm.seed)], result)
            for arm, result in finished.items()
            if arm.start == start and Arm(arm.prompt, starts[0], arm.seed) in finished
        ]
        shaped = [(a.chamfer, b.chamfer) for a, b in pairs if None not in (a.chamfer, b.chamfer)]
        if not shaped:
            sentences.append(f"{start} against {starts[0]}: nothing to compare yet.")
            continue
        change = mean(b / a - 1.0 for a, b in shaped)
        surer = mean(b.opinion.sure - a.opinion.sure for a, b in pairs)
        sentences.append(
            f"{start} against {starts[0]}: Chamfer {mean(b for _, b in shaped):.4f} instead of "
            f"{mean(a for a, _ in shaped):.4f}, {100 * change:+.0f} % on average, better in "
            f"{sum(b < a for a, b in shaped)} of {len(shaped)}; sure {100 * surer:+.0f} points, better in "
            f"{sum(b.opinion.sure > a.opinion.sure for a, b in pairs)} of {len(pairs)}."
        )
    return sentences


def by_prompt(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a prompt each, means over its seeds."""
    starts = list(dict.fromkeys(result.arm.start for result in results))
    rows = []
    for prompt in dict.fromkeys(result.arm.prompt for result in results):
        cells = []
        for start in starts:
            good = [r for r in results if (r.arm.prompt, r.arm.start) == (prompt, start) and r.error is None]
            believed = percent(mean(r.opinion.sure for r in good) if good else None)
            cells.append(f"{_number([r.chamfer for r in good])}, {believed}")
        rows.append([prompt, *cells])
    return ["prompt", *starts], rows


def _number(values: Sequence[float | None]) -> str:
    there = [value for value in values if value is not None]
    return f"{mean(there):.4f}" if there else "–"


def card_of(result: Result) -> str:
    title = f"{result.arm.start}, seed {result.arm.seed}"
    if result.error is not None:
        return trials.failed_card(title, result.error)
    below = f"Chamfer {_number([result.chamfer])}, sure {percent(result.opinion.sure)}"
    return trials.card(title, result.video, result.views, below)


def truth_card(prompt: str, out: Path, results: Sequence[Result]) -> str:
    """The true object, drawn with the camera of the runs; nothing before the first is finished."""
    done = next((result for result in results if result.error is None), None)
    if done is None:
        return ""
    spec, camera = captions.parse(prompt), runs.camera_of(trials.trial_of(done.arm.name, out))
    seen = {"elevation": camera.elevation, "distance": camera.distance, "fovy": camera.fovy}
    seen["size"] = done.views.shape[1]
    video = out / "true" / f"{Arm(prompt, TRUE, 0).name}.mp4"
    if not video.exists():
        page.write_video(video, true_views(spec, np.linspace(0, 360, 40), **seen), fps=15)
    return trials.card(
        "the true object", video, true_views(spec, trials.AZIMUTHS, **seen), "what is asked for"
    )


# ---- command line ------------------------------------------------------------------------------------------


def arms_of(options: argparse.Namespace) -> list[Arm]:
    """All arms, those of the same prompt and seed one after the other.

    Raises:
        Mistake: a prompt that the toybox does not know, no start, or no seed.
    """
    starts = [start.strip() for start in options.starts.split(",") if start.strip()]
    if not starts or len(set(starts)) < len(starts):
        raise Mistake("--starts: different values of system.geometry.init. Example: shape:ball,text")
    if options.seeds < 1 or (options.steps is not None and options.steps < 1):
        raise Mistake("--seeds and --steps are whole numbers of at least 1.")
    for prompt in options.prompt:
        try:
            captions.parse(prompt)
        except ValueError as error:
            raise Mistake(f"--prompt: there is {error}") from None
    return [Arm(p, start, seed) for p in options.prompt for seed in range(options.seeds) for start in starts]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", action="append", help="one or several (ten of the toybox)")
    parser.add_argument(
        "--starts", default="shape:ball,text", help="the first is compared with (%(default)s)"
    )
    parser.add_argument("--config", type=Path, default=ROOT / "configs/ism-gs.yaml", help="(%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each prompt and start (%(default)s)")
    parser.add_argument("--steps", type=int, help="of training (the config's)")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs/ablate_init", help="folder (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")
    options = parser.parse_intermixed_args(arguments)
    options.prompt = list(dict.fromkeys(options.prompt or PROMPTS))
    options.out, options.config = options.out.resolve(), options.config.resolve()
    arms = arms_of(options)
    settings = {"config": options.config.name, "steps": options.steps, "overrides": list(options.overrides)}
    trials.remember_settings(options.out, settings)
    grader, path = Grader.load(), options.out / "ablate_init.html"
    results: list[Result] = []
    for number, arm in enumerate(arms, start=1):
        print(f"[{number}/{len(arms)}] {arm.prompt}, {arm.start}, seed {arm.seed}", file=sys.stderr)
        error = trials.train(arm.name, options.out, partial(command_of, arm, options))
        try:
            results.append(Result(arm, error) if error else judge(arm, options.out, grader))
        except FileNotFoundError as missing:  # somebody tidied up
            results.append(Result(arm, str(missing)))
        write(path, options, results)
    header, rows = summary(results)
    for row in [header, *rows]:
        print("  ".join(f"{cell:>10}" if k else f"{cell:30}" for k, cell in enumerate(row)))
    print(*wins(results), path, sep="\n")
    return 1 if any(result.error for result in results) else 0


if __name__ == "__main__":
    trials.run_script(main)
