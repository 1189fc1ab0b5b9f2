"""Train the bundled point prior: from clouds of the toybox's surfaces to text-to-points, Point-E made small.

    python -m toybox.train_points --stage data                # 6,500 clouds: a few minutes
    python -m toybox.train_points --stage train --minutes 90
    python -m toybox.train_points --stage export              # write the prior, at any time in that
    python -m toybox.train_points                             # all three
    python -m toybox.grade points                             # how good is it?

Every stage can be killed at any time and continues where it was when started again. --minutes is the budget
in all, time used before a restart included. --new throws the checkpoint away.

How it differs from Point-E's base model, apart from size:
- Text and time are added to every point instead of standing in front as tokens. A small network learns the
  text sooner, and as attention then spreads over points alone, it can be trained on few points and draw many.
  So there is no upsampler: the one network draws the whole cloud.
- The text vector comes from a text encoder of its own: a copy of the mini prior's to begin with (tokenizer
  included), and trained on with the points. The pooled vector is enough, for a caption of the toybox says
  four things at most; and as the copy is bundled, training the mini prior anew does not concern this one.
"""

from __future__ import annotations

import toybox.threads  # noqa: F401 - before torch

# isort: split
import argparse
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from threestudio_lucid.points.pointe.generator import (
    MINI,
    TEXT_ENCODER,
    TOKENIZER,
    WEIGHTS,
    FolderConfig,
    Stage,
)
from threestudio_lucid.points.pointe.transformer import TextToPoints
from toybox import captions, clouds, parallel
from toybox.dataset import DEFAULT_CACHE
from toybox.muon import MuonWithAdamW
from toybox.tokenizer import check_single_tokens, save_tokenizer
from toybox.train_unet import stratified_timesteps
from toybox.training import Ema, Run, warm_cosine

START = MINI.parent
MAX_BYTES = 15_000_000

NETWORK = {"width": 256, "layers": 6, "heads": 8, "out_channels": 6, "as_tokens": False}
# How it is sampled. xyz times 0.9 keeps the toybox (up to 1.06) within the denoiser's clamp. At sigma 40
# points say nothing about the shape any more; steps are few because they take their time on a CPU.
STAGE = Stage(
    points=1024, steps=20, sigma_min=5e-3, sigma_max=40.0, s_churn=2.0, guidance_scale=1.5, xyz_scale=0.9
)

BATCH, POINTS = 48, 256  # clouds a step, of all processes together; points of each
MUON_RATE, ADAM_RATE = 0.01, 1e-3
DROP_CAPTION, VIEW = 0.10, 0.10  # no text at all; words about the view, which change nothing


class PointPrior(nn.Module):
    """Network and text encoder as one module: what is trained, averaged and saved together."""

    def __init__(self, text: CLIPTextConfig, network: dict = NETWORK):
        super().__init__()
        self.text = CLIPTextModelWithProjection(text).float()  # the config may say otherwise
        self.points = TextToPoints(**network, text_width=text.projection_dim)
        self.points.half = True

    def start_from(self, folder: Path) -> None:
        """Begin with the text encoder in `folder`; one without a projection gets one that changes nothing.

        Raises:
            ValueError: its weights are not those of such a text encoder.
        """
        weights = {name.removeprefix("text_model."): v for name, v in load_file(folder / WEIGHTS).items()}
        own = {name.removeprefix("text_model."): v for name, v in self.text.state_dict().items()}
        weights.setdefault("text_projection.weight", torch.eye(*own["text_projection.weight"].shape))
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in own.items()}:
            raise ValueError(f"{folder} is no CLIP text encoder of the shape that its config says")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(weights[name])

    def forward(self, x: Tensor, t: Tensor, ids: Tensor, told: Tensor) -> Tensor:
        """Noise [B, 6, N] in x [B, 6, N] at t [B], by token ids [B, T]; where told [B] is 0, by none."""
        vectors = F.normalize(self.text(input_ids=ids).text_embeds, dim=-1)
        return self.points(x, t, vectors * told[:, None])


def training_caption(thing: np.void, rng: np.random.Generator) -> str:
    """A caption for one cloud."""
    text = clouds.cloud_caption(thing, rng)
    return f"{text}, {rng.choice(captions.VIEWS)} view" if rng.random() < VIEW else text


# --- training -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PointJob:
    """What to train.

    Args:
        cache: folder of the clouds.
        folder: where the checkpoint `points.pt` and the tokenizer are.
        start: a prior in diffusers' format whose text encoder and tokenizer a new run begins with.
        minutes: budget in all; `steps`, `stop_after`: see `Run`.
        batch, points: clouds a step, in equal parts for each of the processes, and points of each.
        network: arguments of `TextToPoints`.
    """

    cache: Path
    folder: Path
    start: Path
    minutes: float
    steps: int | None = None
    stop_after: int | None = None
    batch: int = BATCH
    points: int = POINTS
    seed: int = 0
    network: dict | None = None

    @property
    def checkpoint(self) -> Path:
        return self.folder / "points.pt"


def prepare(job: PointJob) -> None:
    """Give a new run its tokenizer and text encoder, which it keeps ever after.

    Raises:
        ValueError: the toybox has words that the tokenizer does not know.
    """
    for part in (TOKENIZER, TEXT_ENCODER):
        if not (job.folder / part).exists():
            temporary = job.folder / f"{part}.{os.getpid()}.tmp"
            shutil.copytree(job.start / part, temporary)
            os.replace(temporary, job.folder / part)
    check_single_tokens(
        CLIPTokenizer.from_pretrained(job.folder / TOKENIZER), captions.vocabulary(decorated=False)
    )


def make_model(job: PointJob) -> PointPrior:
    """The model of a prepared run, as it is at the start."""
    torch.manual_seed(job.seed)
    model = PointPrior(CLIPTextConfig.from_pretrained(job.folder / TEXT_ENCODER), job.network or NETWORK)
    model.start_from(job.folder / TEXT_ENCODER)
    return model


def train(job: PointJob, processes: int = 1) -> None:
    """Train, or go on training; averaged weights are in the checkpoint (`load_trained`).

    Args:
        processes: that share a batch, on CPUs; where there is CUDA, one does it all.
    """
    prepare(job)
    parallel.run(_train, 1 if torch.cuda.is_available() else processes, job)


def _train(rank: int, job: PointJob) -> None:
    data = clouds.Clouds.load(job.cache)
    tokenizer = CLIPTokenizer.from_pretrained(job.folder / TOKENIZER)
    share = job.batch // parallel.processes()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    alphas_cumprod = torch.from_numpy(STAGE.alphas_cumprod).float().to(device)
    model = make_model(job).to(device)
    ema = Ema(model, 0.998)
    plain = ("text.", "points.input_proj", "points.output_proj", "points.clip_embed", "points.time_embed")
    optimizer = MuonWithAdamW(model, MUON_RATE, ADAM_RATE, plain)
    parts = {"model": model, "ema": ema, "optimizer": optimizer}
    run = Run(
        "points",
        job.checkpoint,
        parts,
        np.random.default_rng(job.seed),
        job.minutes,
        job.steps,
        job.stop_after,
    )
    for step in run:
        # Draws are a function of seed, step and process, so that a resumed run repeats them.
        rng = np.random.default_rng([job.seed, step, rank])
        torch.manual_seed(int(rng.integers(2**63)))
        optimizer.set_rate(warm_cosine(run.fraction))
        rows = rng.integers(len(data), size=share)
        x0 = STAGE.encode(torch.from_numpy(data.draw(rows, job.points, rng)).to(device))
        texts = [training_caption(data.things[i], rng) for i in rows]
        ids = tokenizer(texts, padding=True, return_tensors="pt").input_ids.to(device)
        told = torch.from_numpy((rng.random(share) >= DROP_CAPTION).astype(np.float32)).to(device)
        t = stratified_timesteps(share, len(alphas_cumprod)).to(device)
        noise, ab = torch.randn_like(x0), alphas_cumprod[t][:, None, None]
        batch = ab.sqrt() * x0 + (1 - ab).sqrt() * noise, t, ids, told
        loss = F.mse_loss(model(*batch), noise)
        optimizer.zero_grad()
        loss.backward()
        parallel.average_gradients(model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update()
        run.report(loss=loss.item())


def load_trained(job: PointJob) -> tuple[PointPrior, int]:
    """The model of a run with its averaged weights, and the steps it has been trained."""
    if not job.checkpoint.exists():
        raise FileNotFoundError(
            f"no {job.checkpoint}: run  python -m toybox.train_points --stage train  first"
        )
    state = torch.load(job.checkpoint, weights_only=True, map_location="cpu")
    model = make_model(job)
    ema = Ema(model)
    ema.load_state_dict(state["parts"]["ema"])
    return ema.copy_to(model).eval(), state["step"]


# --- export -------------------------------------------------------------------------------------------------


def export(model: PointPrior, tokenizer: CLIPTokenizer, network: dict, target: Path) -> int:
    """Write the folder that `points.pointe.load_folder` reads, float16 safetensors.

    It is built under another name and swapped in.

    Returns:
        its size in bytes.

    Raises:
        ValueError: it is larger than 15 MB.
    """
    new, old = (target.with_name(f"{target.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    new.mkdir(parents=True)
    weights = {name: value.half().contiguous() for name, value in model.points.state_dict().items()}
    save_file(weights, new / WEIGHTS)
    text = CLIPTextModelWithProjection(model.text.config)
    text.load_state_dict(model.text.state_dict())
    text.half().save_pretrained(new / TEXT_ENCODER, safe_serialization=True)
    save_tokenizer(tokenizer, new / TOKENIZER)
    network = {**network, "text_width": model.points.clip_embed.in_features}
    FolderConfig(network, STAGE, captions.vocabulary(decorated=False)).write(new)
    size = sum(path.stat().st_size for path in new.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        shutil.rmtree(new)
        raise ValueError(f"the prior would take {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}")
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)
    return size


# --- command line -------------------------------------------------------------------------------------------


def _stage_data(options: argparse.Namespace, job: PointJob) -> None:
    clouds.build(job.cache, options.clouds, options.processes)


def _stage_train(options: argparse.Namespace, job: PointJob) -> None:
    if options.new:
        shutil.rmtree(job.folder, ignore_errors=True)
    train(job, min(options.processes, job.batch))


def _stage_export(options: argparse.Namespace, job: PointJob) -> None:
    model, step = load_trained(job)
    tokenizer = CLIPTokenizer.from_pretrained(job.folder / TOKENIZER)
    size = export(model, tokenizer, job.network or NETWORK, options.out)
    print(f"{options.out}: {size / 1e6:.1f} MB, {step} steps")


STAGES = {"data": _stage_data, "train": _stage_train, "export": _stage_export}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m toybox.train_points",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--minutes", type=float, default=90.0, help="budget of training (%(default)s)")
    parser.add_argument("--steps", type=int, help="budget in steps instead")
    parser.add_argument("--clouds", type=int, default=6480, help="for the data stage (%(default)s)")
    parser.add_argument(
        "--cache",
        type=Path,
        default=DEFAULT_CACHE,
        help="clouds and checkpoint are in CACHE/points (%(default)s)",
    )
    parser.add_argument(
        "--start", type=Path, default=START, help="prior whose text encoder a new run copies (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=MINI, help="folder of the finished prior (%(default)s)")
    parser.add_argument("--batch", type=int, default=BATCH, help="clouds a step (%(default)s)")
    parser.add_argument("--points", type=int, default=POINTS, help="of each cloud in it (%(default)s)")
    parser.add_argument(
        "--processes",
        type=int,
        default=min(os.cpu_count() or 1, 16),
        help="that make clouds, and without CUDA share a batch (%(default)s)",
    )
    parser.add_argument("--new", action="store_true", help="start anew, the checkpoint is deleted")
    options = parser.parse_args(arguments)
    job = PointJob(
        options.cache / "points" / "clouds",
        options.cache / "points" / "run",
        options.start,
        options.minutes,
        options.steps,
        batch=options.batch,
        points=options.points,
    )
    try:
        for name in STAGES if options.stage == "all" else [options.stage]:
            STAGES[name](options, job)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
