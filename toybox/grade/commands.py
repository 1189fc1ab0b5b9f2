"""The command line of the grader."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import toybox.grade
from toybox import captions
from toybox.dataset import DEFAULT_CACHE
from toybox.grade import Grade, Grader, grade_asset, prompt_of_run, read_pictures
from toybox.grade.grader import WEIGHTS
from toybox.grade.prior import grade_prior
from toybox.grade.scores import BARS, commitment


def _print_grades(rows: Sequence[tuple[Path, Grade]]) -> None:
    for path, grade in rows:
        p = {key: max(table.values()) for key, table in grade.probabilities.items()}
        print(
            f"{path.name:24s} {grade.color} {grade.object}, {grade.view} view"
            f"   (object {p['object']:.2f}, color {p['color']:.2f})"
        )


def _main_train(options: argparse.Namespace) -> int:
    from toybox.grade.training import load_data, train_grader

    checkpoint = options.cache / "prior" / "grader.pt"
    if options.new:
        checkpoint.unlink(missing_ok=True)
    grader = train_grader(
        load_data(options.cache), checkpoint, options.minutes, steps=options.steps, start=options.start
    )
    grader.save(options.out)
    size = sum(p.stat().st_size for p in options.out.iterdir())
    print(f"{options.out}: {size / 1e6:.2f} MB, held-out accuracy {grader.report}")
    return 0


def _main_prior(options: argparse.Namespace) -> int:
    result = grade_prior(
        Grader.load(),
        options.prior,
        options.n,
        options.seed,
        options.sheet,
        options.steps,
        options.guidance_scale,
    )
    print(result.text())
    for mistake, count in result.score.mistakes.most_common(12):
        print(f"  {count} x {mistake}")
    print(options.sheet)
    return 0 if all(getattr(result.score, key) >= bar for key, bar in BARS.items()) else 1


def _main_points(options: argparse.Namespace) -> int:
    from threestudio_lucid.points.pointe import load_folder
    from threestudio_lucid.points.pointe.generator import MINI
    from toybox.grade.points import BAR, grade_points

    device = "cuda" if torch.cuda.is_available() else "cpu"
    prior = load_folder(options.prior or MINI, device)
    wanted = {"points": options.points, "steps": options.steps, "guidance_scale": options.guidance_scale}
    prior.stage = replace(prior.stage, **{key: value for key, value in wanted.items() if value is not None})
    result = grade_points(prior, options.n, options.seed, options.sheet)
    print(result.text())
    for mistake, count in result.mistakes.most_common(12):
        print(f"  {count} x {mistake}")
    print(options.sheet)
    return 0 if min(result.object, result.color) >= BAR else 1


def _main_asset(options: argparse.Namespace) -> int:
    prompt = options.prompt or prompt_of_run(options.path)
    result, rows = grade_asset(Grader.load(), options.path, prompt)
    spec = captions.parse(prompt)
    print(prompt)
    _print_grades(rows)
    both = sum(g.object == spec.object and g.color == spec.color for _, g in rows)
    print(f"object and colour right in {both} of {len(rows)} views; view {100 * result.view:.0f} %")
    if found := commitment([g for _, g in rows], spec):
        print(found.text())
    return 0 if both >= 7 / 8 * len(rows) else 1


def _main_truth(options: argparse.Namespace) -> int:
    from toybox.grade.truth import ceiling_of, grade_truth, to_json, to_text, write_truth_sheet

    if options.ceiling and options.prompt:
        raise ValueError("--ceiling goes with the run's own prompt: leave --prompt out.")
    prompt = options.prompt or prompt_of_run(options.path)
    verdict = grade_truth(options.path, prompt, options.instances)
    ceiling = ceiling_of(options.path, verdict) if options.ceiling else None
    print(to_json(prompt, verdict, ceiling) if options.json else f"{prompt}\n{to_text(verdict, ceiling)}")
    if options.sheet is not None:
        folder = options.path if options.path.is_dir() else options.path.parent
        sheet = folder / "truth.png" if options.sheet == Path() else options.sheet
        write_truth_sheet(sheet, verdict, ceiling)
        print(sheet, file=sys.stderr)
    return 0


def _main_edit(options: argparse.Namespace) -> int:
    from toybox.grade.edit import AZIMUTHS, grade_edit

    result, grades = grade_edit(Grader.load(), options.path)
    names = [f"{azimuth:.0f} degrees" for azimuth in AZIMUTHS] if len(grades) > 1 else ["edited"]
    _print_grades([(Path(name), grade) for name, grade in zip(names, grades, strict=True)])
    print(result.text())
    return 0 if result.good else 1


def _main_avatar(options: argparse.Namespace) -> int:
    from toybox.grade.avatar import grade_avatar

    result = grade_avatar(options.path, options.prompt)
    print(result.text())
    return 0 if result.passes else 1


def _main_images(options: argparse.Namespace) -> int:
    _print_grades(list(zip(options.paths, Grader.load()(read_pictures(options.paths)), strict=True)))
    return 0


def _count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m toybox.grade",
        description=toybox.grade.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train the grader")
    train.add_argument(
        "--minutes", type=float, default=10.0, help="budget in all, restarts included (%(default)s)"
    )
    train.add_argument("--steps", type=int, help="budget in steps of 128 pictures instead")
    train.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="pictures (%(default)s)")
    train.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the weights (%(default)s)")
    train.add_argument("--new", action="store_true", help="start anew, the checkpoint is deleted")
    train.add_argument("--start", type=Path, help="finished grader whose weights a new run begins with")
    train.set_defaults(run=_main_train)

    prior = commands.add_parser("prior", help="grade samples of a prior; exit status 0 if all bars are met")
    prior.add_argument("--prior", default="mini", help="card or folder (%(default)s)")
    prior.add_argument("-n", type=int, default=300, help="samples (%(default)s)")
    prior.add_argument("--seed", type=int, default=0)
    prior.add_argument("--steps", type=int, help="DDIM steps (the card's)")
    prior.add_argument("--guidance-scale", type=float, help="classifier-free guidance (the card's)")
    prior.add_argument(
        "--sheet", type=Path, default=Path("outputs/grade-prior.png"), help="PNG (%(default)s)"
    )
    prior.set_defaults(run=_main_prior)

    points = commands.add_parser(
        "points", help="grade clouds of a point prior; exit status 0 if the bar is met"
    )
    points.add_argument("--prior", type=Path, help="its folder (the bundled one)")
    points.add_argument("-n", type=int, help="clouds (one for each object and colour: 270)")
    points.add_argument("--seed", type=int, default=0)
    points.add_argument("--points", type=int, help="of a cloud (the prior's)")
    points.add_argument("--steps", type=int, help="Heun steps (the prior's)")
    points.add_argument("--guidance-scale", type=float, help="classifier-free guidance (the prior's)")
    points.add_argument(
        "--sheet", type=Path, default=Path("outputs/grade-points.png"), help="PNG (%(default)s)"
    )
    points.set_defaults(run=_main_points)

    asset = commands.add_parser("asset", help="grade a run's views; exit status 0 if 7 of 8 are right")
    asset.add_argument("path", type=Path, help="a run's folder, a folder of pictures, or a picture")
    asset.add_argument("--prompt", help='what it should be, e.g. "a red mug" (default: the run\'s prompt)')
    asset.set_defaults(run=_main_asset)

    truth = commands.add_parser("truth", help="how close an asset is to true instances of its prompt")
    truth.add_argument("path", type=Path, help="a run's folder, or a file of Gaussians (.ply)")
    truth.add_argument("--prompt", help="what it should be (default: the run's prompt)")
    truth.add_argument("--instances", type=_count, default=16, help="true ones to compare with (%(default)s)")
    truth.add_argument(
        "--ceiling",
        action="store_true",
        help="train the same Gaussians on the true pictures, in RUN-ceiling-N, and measure them too",
    )
    truth.add_argument("--json", action="store_true", help="print the numbers as JSON")
    truth.add_argument(
        "--sheet",
        type=Path,
        nargs="?",
        const=Path(),
        help="PNG, the asset above the truth (default: truth.png beside the run's files)",
    )
    truth.set_defaults(run=_main_truth)

    edit = commands.add_parser("edit", help="grade an edit; exit status 0 if 7 of 8 views are right")
    edit.add_argument("path", type=Path, help="the folder of a run of configs/edit-3d.yaml or edit-2d.yaml")
    edit.set_defaults(run=_main_edit)

    avatar = commands.add_parser("avatar", help="grade an avatar; exit status 0 if all bars are met")
    avatar.add_argument("path", type=Path, help="a run's folder")
    avatar.add_argument("--prompt", help="what it should be (default: the run's prompt)")
    avatar.set_defaults(run=_main_avatar)

    images = commands.add_parser("images", help="say what is on pictures")
    images.add_argument("paths", type=Path, nargs="+", help="PNG files")
    images.set_defaults(run=_main_images)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 for a user's mistake."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
