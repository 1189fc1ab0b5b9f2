"""The grader: names object, colour and view of pictures, and so says how good a prior or an asset is.

    python -m toybox.grade images a.png b.png              # what is on these pictures?
    python -m toybox.grade asset outputs/ism-gs/a_mug@...  # is the asset what the run's prompt says?
    python -m toybox.grade edit outputs/edit-3d/a_mug@...  # is the edit there, and the rest what it was?
    python -m toybox.grade avatar outputs/avatar/a_person… # pose, clothes, face of an avatar
    python -m toybox.grade prior                           # 300 samples of the bundled prior
    python -m toybox.grade points                          # the bundled point prior, all prompts
    python -m toybox.grade train --minutes 10              # train it again, on the pictures of the cache

The classifier was trained on renders of the toybox over all kinds of backgrounds, at several sizes, with
slight blur, noise and shifts of colour. A view counts as right when it looks like the right one on that
object: a doughnut's front, side and back are the same (`Thing.view_groups`).
"""

from __future__ import annotations

import toybox.threads  # noqa: F401 - before torch

# isort: split
import argparse
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from toybox import captions, runs
from toybox.classifier import Classifier, allowed_views, augment, group_nll, shrink, to_input
from toybox.dataset import DEFAULT_CACHE, Pictures, random_backgrounds
from toybox.muon import MuonWithAdamW
from toybox.objects import OBJECTS
from toybox.progress import Progress
from toybox.training import Run, in_bfloat16, warm_cosine

WEIGHTS = Path(__file__).parent / "weights" / "grader"
BARS = {"object": 0.97, "color": 0.95, "view": 0.90}  # for samples of a prior
PEAK_RATE, MUON_RATE = 1e-3, 0.02


@dataclass(frozen=True)
class Grade:
    """What the grader sees on a picture. `probabilities`: a table of names for "object", "color", "view"."""

    object: str
    color: str
    view: str
    probabilities: dict[str, dict[str, float]]

    def view_is(self, view: str, name: str | None = None) -> bool:
        """Whether the view is `view`, or looks like it on the object `name` (default: the object seen)."""
        return view in OBJECTS[name or self.object].group(self.view)


class Grader:
    """The classifier with its labels. `Grader.load()` gives the bundled one; call it with pictures."""

    def __init__(self, model: Classifier, labels: dict[str, list[str]], report: dict | None = None):
        self.model, self.labels, self.report = model.eval(), labels, report or {}

    @classmethod
    def load(cls, folder: Path = WEIGHTS) -> Grader:
        """Read `grader.json` and `grader.safetensors`.

        Raises:
            FileNotFoundError: they are not in `folder`.
        """
        try:
            description = json.loads((folder / "grader.json").read_text())
            weights = load_file(folder / "grader.safetensors")
        except FileNotFoundError as error:
            hint = "python -m toybox.grade train"
            raise FileNotFoundError(f"no grader in {folder}: train one with  {hint}") from error
        labels = description["labels"]
        model = Classifier(*(len(labels[key]) for key in ("object", "color", "view")))
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        return cls(model, labels, description["held_out"])

    def save(self, folder: Path = WEIGHTS) -> None:
        """Write float16 weights and their description."""
        folder.mkdir(parents=True, exist_ok=True)
        half = {k: v.half() if v.is_floating_point() else v for k, v in self.model.state_dict().items()}
        temporary = folder / f"grader.{os.getpid()}.tmp"
        save_file({k: v.contiguous() for k, v in half.items()}, temporary)
        os.replace(temporary, folder / "grader.safetensors")
        description = {"labels": self.labels, "held_out": self.report}
        temporary.write_text(json.dumps(description, indent=1) + "\n")
        os.replace(temporary, folder / "grader.json")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Grade]:
        """Grade pictures.

        Args:
            images: [n, 3, h, w] in [0, 1], any size; square, as the toybox draws them.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"pictures must be [n, 3, h, w], not {list(images.shape)}")
        logits = [self.model(part) for part in to_input(images).split(64)]
        tables = [torch.cat(head).softmax(1) for head in zip(*logits, strict=True)]
        return [self._grade(*rows) for rows in zip(*tables, strict=True)]

    def _grade(self, objects: Tensor, colors: Tensor, views: Tensor) -> Grade:
        keys = ("object", "color", "view")
        probabilities = {
            key: dict(zip(self.labels[key], p.tolist(), strict=True))
            for key, p in zip(keys, (objects, colors, views), strict=True)
        }
        name = max(probabilities["object"], key=probabilities["object"].get)
        color = max(probabilities["color"], key=probabilities["color"].get)
        # Directions that look alike share their probability: the likeliest group first, then the likeliest of
        # it.
        p = probabilities["view"]
        group = max(OBJECTS[name].view_groups, key=lambda group: sum(p[v] for v in group))
        return Grade(name, color, max(group, key=p.get), probabilities)


# ---------------------------------------------------------------------------------------------- training


@dataclass
class GraderData:
    """Pictures at the classifier's size in memory, uint8 [n, 4, 64, 64] premultiplied, and their classes."""

    images: Tensor
    objects: Tensor
    colors: Tensor
    views_allowed: Tensor
    train: np.ndarray
    held_out: np.ndarray
    labels: dict[str, list[str]]


def load_data(cache: Path) -> GraderData:
    """Shrink all pictures of the cache (about 0.4 GB for 26,000)."""
    pictures = Pictures(cache)
    images = torch.empty(len(pictures), 4, 64, 64, dtype=torch.uint8)
    with Progress("shrink", len(pictures)) as progress:
        for indices in pictures.batches(np.arange(len(pictures)), 120):
            images[indices] = shrink(torch.from_numpy(pictures.read(indices)))
            progress.update(int(indices[-1]) + 1)
    rows = pictures.labels
    labels = {
        "object": sorted({str(name) for name in rows["object"]}),
        "color": list(captions.COLORS),
        "view": list(captions.VIEWS),
    }
    views = [captions.direction(float(r["elevation"]), float(r["azimuth"])) for r in rows]
    allowed = [
        allowed_views(OBJECTS[str(r["object"])].view_groups, view, captions.VIEWS)
        for r, view in zip(rows, views, strict=True)
    ]
    return GraderData(
        images,
        torch.tensor([labels["object"].index(str(name)) for name in rows["object"]]),
        torch.tensor([labels["color"].index(str(color)) for color in rows["color"]]),
        torch.tensor(allowed),
        pictures.train,
        pictures.held_out,
        labels,
    )


def train_grader(
    data: GraderData,
    checkpoint: Path,
    minutes: float,
    batch: int = 128,
    steps: int | None = None,
    stop_after: int | None = None,
    seed: int = 0,
) -> Grader:
    """Train, or go on training, the classifier; returns the grader with its held-out accuracy."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Classifier(*(len(data.labels[key]) for key in ("object", "color", "view")))
    model.to(memory_format=torch.channels_last).train()
    optimizer = MuonWithAdamW(model, MUON_RATE, PEAK_RATE, plain=("stem.", "objects.", "colors.", "views."))
    parts = {"model": model, "optimizer": optimizer}
    run = Run("grader", checkpoint, parts, rng, minutes, steps, stop_after)
    for _ in run:
        optimizer.set_rate(warm_cosine(run.fraction, warm=0.03))
        rows = torch.from_numpy(rng.choice(data.train, size=batch))
        backgrounds = torch.from_numpy(random_backgrounds(batch, rng))
        x = augment(data.images[rows], backgrounds, torch.default_generator)
        with in_bfloat16():
            objects, colors, views = model(x.contiguous(memory_format=torch.channels_last))
        loss = (
            F.cross_entropy(objects.float(), data.objects[rows], label_smoothing=0.02)
            + F.cross_entropy(colors.float(), data.colors[rows], label_smoothing=0.02)
            + group_nll(views.float(), data.views_allowed[rows]).mean()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        right = (objects.argmax(1) == data.objects[rows]).float().mean()
        run.report(loss=loss.item(), object=right.item())
    grader = Grader(model, data.labels)
    grader.report = held_out_accuracy(grader, data)
    return grader


@torch.no_grad()
def held_out_accuracy(grader: Grader, data: GraderData, seed: int = 1) -> dict[str, float]:
    """Accuracy on held-out pictures: the mean over pictures as drawn and augmented as in training."""
    right = defaultdict(list)
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    for strength in (0.0, 1.0):
        for rows in np.array_split(data.held_out, -(-len(data.held_out) // 128)):
            backgrounds = torch.from_numpy(random_backgrounds(len(rows), rng))
            grades = grader(augment(data.images[rows], backgrounds, generator, strength))
            for grade, row in zip(grades, rows, strict=True):
                right["object"].append(grade.object == data.labels["object"][data.objects[row]])
                right["color"].append(grade.color == data.labels["color"][data.colors[row]])
                right["view"].append(bool(data.views_allowed[row][data.labels["view"].index(grade.view)]))
    return {key: round(float(np.mean(values)), 4) for key, values in right.items()}


# ---------------------------------------------------------------------------------------------- judging


def read_pictures(paths: Sequence[Path]) -> Tensor:
    """PNG files as [n, 3, h, w] in [0, 1]; all are brought to the size of the first.

    Of pictures side by side in one file, the first is read.
    """
    images = [torch.from_numpy(runs.read_square(path)).permute(2, 0, 1) for path in paths]
    size = images[0].shape[1:]
    return torch.stack([F.adaptive_avg_pool2d(image, size) for image in images])


@dataclass(frozen=True)
class Score:
    """Shares of pictures whose object, colour and view are right, and what went wrong."""

    object: float
    color: float
    view: float
    mistakes: Counter

    def text(self, bars: dict[str, float] = BARS) -> str:
        """A line for each of the three, with its bar."""
        lines = []
        for key, bar in bars.items():
            value = getattr(self, key)
            lines.append(
                f"{key:7s} {100 * value:5.1f} %   bar {100 * bar:.0f} %   {'ok' if value >= bar else 'BELOW'}"
            )
        return "\n".join(lines)


def score(grades: Sequence[Grade], wanted: Sequence[captions.Spec]) -> Score:
    """Compare grades with what was asked for; views are judged on the object asked for, None is right."""
    mistakes: Counter = Counter()
    right = defaultdict(int)
    for grade, spec in zip(grades, wanted, strict=True):
        checks = {
            "object": (grade.object, spec.object, grade.object == spec.object),
            "color": (grade.color, spec.color, grade.color == spec.color),
            "view": (grade.view, spec.view, spec.view is None or grade.view_is(spec.view, spec.object)),
        }
        for key, (seen, asked, ok) in checks.items():
            right[key] += ok
            if not ok:
                of = "" if key == "object" else f" of {spec.object}"
                mistakes[f"{key}{of}: {asked} seen as {seen}"] += 1
    n = max(len(grades), 1)
    return Score(right["object"] / n, right["color"] / n, right["view"] / n, mistakes)


def draw_prompts(n: int, seed: int = 0) -> list[str]:
    """`n` prompts that go evenly through all objects, colours and views."""
    rng = np.random.default_rng(seed)
    decks = [
        _deck(list(OBJECTS), n, rng),
        _deck(list(captions.COLORS), n, rng),
        _deck(list(captions.VIEWS), n, rng),
    ]
    return [captions.caption(name, color, view=view) for name, color, view in zip(*decks, strict=True)]


def _deck(names: list[str], n: int, rng: np.random.Generator) -> list[str]:
    """`n` names: every one equally often (but for the last round), in random order."""
    rounds = [rng.permutation(names) for _ in range(-(-n // len(names)))]
    return [str(name) for name in np.concatenate(rounds)[:n]]


def grade_prior(
    grader: Grader,
    name: str = "mini",
    n: int = 300,
    seed: int = 0,
    sheet: Path | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
) -> Score:
    """Sample `n` pictures from a prior and grade them.

    Args:
        name: a prior, as in configs: a card's name or a folder.
        sheet: PNG for the pictures; the wrong ones have a red border.
        steps, guidance_scale: None: the card's.
    """
    from threestudio_lucid.guidance.prior import Prior
    from threestudio_lucid.guidance.sample import sample
    from toybox.pictures import write_sheet

    prior = Prior.load(name, device="cpu")
    prompts = draw_prompts(n, seed)
    generator = torch.Generator().manual_seed(seed)
    images = []
    with Progress("sample", n) as progress:
        for start in range(0, n, 25):
            part = prompts[start : start + 25]
            images.append(
                sample(prior, part, num_steps=steps, guidance_scale=guidance_scale, generator=generator)
                .float()
                .cpu()
            )
            progress.update(start + len(part))
    pictures = torch.cat(images).clamp(0, 1)
    grades, wanted = grader(pictures), [captions.parse(prompt) for prompt in prompts]
    if sheet is not None:
        wrong = [score([g], [w]).mistakes.total() > 0 for g, w in zip(grades, wanted, strict=True)]
        write_sheet(sheet, with_borders(pictures, wrong), columns=20)
    return score(grades, wanted)


def with_borders(pictures: Tensor, marked: Sequence[bool], width: int = 3) -> Tensor:
    """Pictures [n, 3, h, w] with a red frame around the marked ones."""
    out = pictures.clone()
    red = torch.tensor([0.9, 0.0, 0.0])[:, None, None]
    for picture, mark in zip(out, marked, strict=True):
        if mark:
            inside = picture[:, width:-width, width:-width].clone()
            picture[:] = red
            picture[:, width:-width, width:-width] = inside
    return out


class View(NamedTuple):
    """A picture of an asset, and the azimuth that it was taken from in degrees, None where nobody knows."""

    path: Path
    azimuth: float | None

    @property
    def direction(self) -> str | None:
        """The direction word for it; None on the border between two."""
        return None if self.azimuth is None else direction_or_none(self.azimuth)


def direction_or_none(azimuth: float) -> str | None:
    """The direction word of a view from a little above, None halfway between two."""
    words = {captions.direction(15.0, azimuth + e) for e in (-1.0, 1.0)}
    return words.pop() if len(words) == 1 else None


def find_views(path: Path) -> list[View]:
    """The pictures of an asset: a run's latest views, the pictures of a folder, or the one picture `path`.

    Runs of Gaussians keep the views of their contact sheet in `save/itN-views/AZIMUTH.png`; of other runs,
    eight frames of the turntable `save/itN-test` are taken.

    Raises:
        FileNotFoundError: there are none.
    """
    if path.is_file():
        beside = path.with_suffix("")
        return _named_views(beside) if beside.is_dir() and _named_views(beside) else [_named_view(path)]
    if views := runs.latest(path, "views"):
        return _named_views(views)
    if test := runs.latest(path, "test"):
        azimuths = [45.0 * k for k in range(8)]
        return [View(*pair) for pair in zip(runs.nearest(runs.frames(test), azimuths), azimuths, strict=True)]
    if not path.is_dir() or not _named_views(path):
        raise FileNotFoundError(
            f"no pictures at {path}: expected a run's folder, a folder of PNG files or a PNG file"
        )
    return _named_views(path)


def _named_views(folder: Path) -> list[View]:
    return [_named_view(path) for path in sorted(folder.glob("*.png"))]


def _named_view(path: Path) -> View:
    return View(path, float(path.stem) if path.stem.isdigit() else None)


def prompt_of_run(path: Path) -> str:
    """The prompt of a run, from its parsed config.

    Raises:
        ValueError: there is no config, or no prompt in it.
    """
    for folder in (path, *path.resolve().parents[:3]):
        config = folder / "configs" / "parsed.yaml"
        if config.is_file():
            prompt = yaml.safe_load(config.read_text(encoding="utf-8"))["system"]["prompt_processor"][
                "prompt"
            ]
            if prompt:
                return str(prompt)
    raise ValueError(f'no run at {path} tells the prompt: say what it should be, --prompt "a red mug"')


def grade_asset(
    grader: Grader, path: Path, prompt: str | None = None
) -> tuple[Score, list[tuple[Path, Grade]]]:
    """Grade an asset's views against its prompt (see `find_views`).

    Args:
        path: a run's folder, a folder of pictures, or a picture.
        prompt: None: the run's own (`prompt_of_run`).

    Raises:
        ValueError: no prompt, or one that names nothing of the toybox.
    """
    spec = captions.parse(prompt or prompt_of_run(path))
    views = find_views(path)
    grades = grader(read_pictures([view.path for view in views]))
    wanted = [captions.Spec(spec.object, spec.color, view=view.direction) for view in views]
    return score(grades, wanted), [(view.path, grade) for view, grade in zip(views, grades, strict=True)]


# ---------------------------------------------------------------------------------------------- command line


def _print_grades(rows: Sequence[tuple[Path, Grade]]) -> None:
    for path, grade in rows:
        p = {key: max(table.values()) for key, table in grade.probabilities.items()}
        print(
            f"{path.name:24s} {grade.color} {grade.object}, {grade.view} view"
            f"   (object {p['object']:.2f}, color {p['color']:.2f})"
        )


def _main_train(options: argparse.Namespace) -> int:
    checkpoint = options.cache / "prior" / "grader.pt"
    if options.new:
        checkpoint.unlink(missing_ok=True)
    grader = train_grader(load_data(options.cache), checkpoint, options.minutes, steps=options.steps)
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
    for mistake, count in result.mistakes.most_common(12):
        print(f"  {count} x {mistake}")
    print(options.sheet)
    return 0 if all(getattr(result, key) >= bar for key, bar in BARS.items()) else 1


def _main_points(options: argparse.Namespace) -> int:
    from threestudio_lucid.points.pointe import load_folder
    from threestudio_lucid.points.pointe.generator import MINI
    from toybox.grade_points import BAR, grade_points

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
    return 0 if both >= 7 / 8 * len(rows) else 1


def _main_edit(options: argparse.Namespace) -> int:
    from toybox.grade_edit import AZIMUTHS, grade_edit

    result, grades = grade_edit(Grader.load(), options.path)
    names = [f"{azimuth:.0f} degrees" for azimuth in AZIMUTHS] if len(grades) > 1 else ["edited"]
    _print_grades([(Path(name), grade) for name, grade in zip(names, grades, strict=True)])
    print(result.text())
    return 0 if result.good else 1


def _main_avatar(options: argparse.Namespace) -> int:
    from toybox.grade_avatar import grade_avatar

    result = grade_avatar(options.path, options.prompt)
    print(result.text())
    return 0 if result.passes else 1


def _main_images(options: argparse.Namespace) -> int:
    _print_grades(list(zip(options.paths, Grader.load()(read_pictures(options.paths)), strict=True)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m toybox.grade",
        description=__doc__,
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


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
