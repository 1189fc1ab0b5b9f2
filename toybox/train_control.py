"""Train the bundled ControlNet: people of the toybox, and the maps of the mannequin that stands as they do.

    python -m toybox.train_control --minutes 30                 # all of it, data included
    python -m toybox.train_control --stage data --images 6000   # people in all poses, and their latents
    python -m toybox.train_control --stage train --minutes 30
    python -m toybox.train_control --stage export

It can be killed at any time and goes on where it was when started again. --minutes is the budget of the
training, time before a restart included; with more minutes it goes on. With CUDA it trains there. --new
throws the checkpoint away. Whatever the prior in --prior is (by default the bundled one), the ControlNet is
for that one alone.
"""

from __future__ import annotations

import toybox.threads  # noqa: F401 - before torch

# isort: split
import argparse
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from threestudio_lucid.guidance.combine import Conditioning
from threestudio_lucid.guidance.control import Control, ControlConfig
from threestudio_lucid.guidance.prior import Prior
from threestudio_lucid.guidance.sample import denoise, sampling_path
from toybox import captions, parallel, people
from toybox.dataset import DEFAULT_CACHE
from toybox.muon import MuonWithAdamW
from toybox.train_unet import loss_weight, make_scheduler, stratified_timesteps
from toybox.training import Ema, Run, in_bfloat16, warm_cosine

PRIOR = Path(__file__).parents[1] / "custom/threestudio-lucid/priors/mini"
EXPORT = PRIOR / "controlnet"
MAX_BYTES = 12_000_000
MUON_RATE, ADAM_RATE = 5e-3, 3e-3  # of the copied layers, and of the new ones
HINT_CHANNELS = (8, 16, 32, 96)  # of the layers that read the map, from 128 x 128 to 16 x 16
DROP_CAPTION, DROP_VIEW, DROP_POSE, DROP_COLORS = 0.15, 0.2, 0.6, 0.1


def make_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet for the UNet, its copied layers with the UNet's weights.

    As usual the layers that lead out of it begin at zero; those that read the map do not, so that the first
    gradients see it already, which saves some hundreds of steps.
    """
    copied = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=HINT_CHANNELS)
    # diffusers leaves out how many heads pool the text
    config = dict(copied.config, addition_embed_type_num_heads=unet.config.addition_embed_type_num_heads)
    net = ControlNetModel.from_config({key: v for key, v in config.items() if not key.startswith("_")})
    net.load_state_dict(copied.state_dict())
    nn.init.kaiming_normal_(net.controlnet_cond_embedding.conv_out.weight)
    return net


def training_caption(label: np.void, rng: np.random.Generator) -> str:
    """A caption for one picture: at times empty, or without view, pose or colours."""
    if rng.random() < DROP_CAPTION:
        return ""
    view = captions.direction(float(label["elevation"]), float(label["azimuth"]))
    pose = str(label["pose"])
    plain = rng.random() < DROP_COLORS
    return captions.caption(
        "person",
        str(label["color"]),
        part_color=None if plain else str(label["part_color"]) or None,
        view=None if rng.random() < DROP_VIEW else view,
        drop_color=plain,
        pose=pose if pose and rng.random() > DROP_POSE else None,
    )


# ---------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class ControlJob:
    """What to train.

    Args:
        people: folder of the data.
        prior: folder of the prior.
        checkpoint: file.
        minutes: budget in all; `steps`, `stop_after`: see `Run`.
        batch: pictures a step, in equal parts for each of the processes.
    """

    people: Path
    prior: Path
    checkpoint: Path
    minutes: float
    batch: int = 64
    steps: int | None = None
    stop_after: int | None = None
    seed: int = 0
    device: str = "cpu"


class Texts:
    """Embeddings of captions, remembered: there are only some thousands of different ones."""

    def __init__(self, prior: Prior):
        self.prior, self._known = prior, {}

    def __call__(self, texts: list[str]) -> Tensor:
        """[n, T, D] on the prior's device."""
        if missing := sorted(set(texts) - set(self._known)):
            self._known.update(zip(missing, self.prior.encode_text(missing), strict=True))
        return torch.stack([self._known[text] for text in texts])


def train(job: ControlJob, processes: int = 1) -> None:
    """Train, or go on training; the averaged weights are in the checkpoint (`load`)."""
    parallel.run(_train, processes, job)


def _train(rank: int, job: ControlJob) -> None:
    torch.manual_seed(job.seed)
    prior = Prior.load(job.prior, job.device, "float32")
    device = prior.device
    _, maps, labels, latents = people.load(job.people)
    share = job.batch // parallel.processes()
    net = make_controlnet(prior.unet).to(device)
    for module in (net, prior.unet):
        module.to(memory_format=torch.channels_last)
        if device.type == "cpu":  # there it is faster than fused attention
            module.set_attn_processor(AttnProcessor())
    ema = Ema(net, 0.995)
    new = ("controlnet_cond_embedding.", "controlnet_down_blocks.", "controlnet_mid_block.", "conv_in.")
    optimizer = MuonWithAdamW(net, MUON_RATE, ADAM_RATE, plain=new)
    texts, scheduler = Texts(prior), make_scheduler()
    parts = {"model": net, "ema": ema, "optimizer": optimizer}
    rng = np.random.default_rng(job.seed)
    run = Run("control", job.checkpoint, parts, rng, job.minutes, job.steps, job.stop_after)
    for step in run:
        # Draws are a function of seed, step and process, so that a resumed run repeats them.
        rng = np.random.default_rng([job.seed, step, rank])
        torch.manual_seed(int(rng.integers(2**63)))
        optimizer.set_rate(warm_cosine(run.fraction, warm=0.01))
        rows = rng.integers(len(latents), size=share)
        z = torch.from_numpy(latents[rows, rng.integers(latents.shape[1], size=share)].astype(np.float32))
        shown = torch.from_numpy(maps[rows]).to(device).permute(0, 3, 1, 2).float() / 255
        text = texts([training_caption(labels[i], rng) for i in rows])
        t, noise = stratified_timesteps(share), torch.randn_like(z)
        x_t = scheduler.add_noise(z, noise, t)
        weight = loss_weight(scheduler.alphas_cumprod, t).to(device)
        t, noise = t.to(device), noise.to(device)
        x_t, shown = (v.to(device, memory_format=torch.channels_last) for v in (x_t, shown))
        with in_bfloat16(device):
            down, mid = net(x_t, t, encoder_hidden_states=text, controlnet_cond=shown, return_dict=False)
            eps = prior.unet(
                x_t,
                t,
                encoder_hidden_states=text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
            ).sample
        error = F.mse_loss(eps.float(), noise, reduction="none").mean(dim=(1, 2, 3))
        loss = (weight * error).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(net.parameters())
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        ema.update()
        if step % 10 == 0:  # reading a number waits for the device
            run.report(loss=loss.item(), mse=error.mean().item())


def load(checkpoint: Path, unet: UNet2DConditionModel) -> ControlNetModel:
    """The averaged weights of a checkpoint.

    Raises:
        SystemExit: there is none.
    """
    if not checkpoint.exists():
        raise SystemExit(f"no {checkpoint}: run  python -m toybox.train_control --stage train  first")
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    net = make_controlnet(unet)
    ema = Ema(net)
    ema.load_state_dict(state["parts"]["ema"])
    return ema.copy_to(net).eval().requires_grad_(False)


# ---------------------------------------------------------------------------------------------- pictures


@torch.no_grad()
def sample(
    prior: Prior,
    net: nn.Module,
    prompts: list[str],
    maps: Tensor,
    scores: str = "both",
    steps: int = 25,
    seed: int = 0,
) -> Tensor:
    """Pictures [n, 3, H, W] of prompts and maps [n, 3, H, W], by DDIM with the prior's guidance scale."""
    shape = (len(prompts), prior.latent_channels, prior.latent_size, prior.latent_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(prior.device)
    texts = prior.encode_text([*prompts, ""])
    text, uncond = texts[:-1], texts[-1:].expand(len(prompts), -1, -1)
    _, model = Control(net, prior, ControlConfig(model="in memory", scores=scores)).networks(maps)
    path = sampling_path(prior.schedule, steps)
    cond = Conditioning(text, uncond, uncond)
    return prior.decode(denoise(model, prior.schedule, noise, path, cond, prior.card.guidance_scale))


def silhouettes(pictures: Tensor, off: float = 0.12) -> Tensor:
    """Where pictures [n, 3, H, W] differ from the colour of their rims, bool [n, H, W]."""
    rims = torch.cat([pictures[..., 0, :], pictures[..., -1, :], pictures[..., 0], pictures[..., -1]], dim=-1)
    background = rims.median(dim=-1).values[..., None, None]
    return (pictures - background).abs().amax(dim=1) > off


def check(prior: Prior, net: nn.Module, folder: Path, sheet: Path, n: int = 24) -> float:
    """Samples for held-out maps: a sheet of maps, true pictures, samples; the mean IoU of silhouettes."""
    from toybox.dataset import composite
    from toybox.pictures import write_sheet

    images, maps, labels, _ = (array[:n] for array in people.load(folder, held_out=True))
    shown = torch.from_numpy(maps).permute(0, 3, 1, 2).float() / 255
    prompts = [
        captions.caption(
            "person",
            str(label["color"]),
            str(label["part_color"]) or None,
            view=captions.direction(float(label["elevation"]), float(label["azimuth"])),
        )
        for label in labels
    ]
    true = torch.from_numpy(composite(images, np.ones((len(images), 3)))).permute(0, 3, 1, 2)
    both = [sample(prior, net, prompts, shown, scores).float().cpu() for scores in ("both", "conditional")]
    rows = [torch.stack([shown, true, *both])[:, k : k + 12] for k in range(0, n, 12)]
    write_sheet(sheet, torch.cat([row.flatten(0, 1) for row in rows]), columns=12)
    wanted = shown.amax(dim=1) > 0
    found = silhouettes(both[0])
    return float(((wanted & found).sum((1, 2)) / (wanted | found).sum((1, 2))).mean())


# ---------------------------------------------------------------------------------------------- stages


def stage_data(options: argparse.Namespace) -> None:
    people.build(options.people, options.images, options.prior, options.workers)


def stage_train(options: argparse.Namespace) -> None:
    if options.new:
        options.checkpoint.unlink(missing_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    job = ControlJob(
        options.people,
        options.prior,
        options.checkpoint,
        options.minutes,
        options.batch or (256 if device == "cuda" else 64),
        device=device,
    )
    train(job, 1 if device == "cuda" else options.processes)
    _report(options)


def _report(options: argparse.Namespace) -> None:
    prior = Prior.load(options.prior, "cpu", "float32")
    sheet = options.checkpoint.with_suffix(".png")
    overlap = check(prior, load(options.checkpoint, prior.unet), options.people, sheet)
    print(f"{sheet}: silhouettes of samples against those of their maps, mean IoU {overlap:.3f}")


def stage_export(options: argparse.Namespace) -> None:
    prior = Prior.load(options.prior, "cpu", "float32")
    net = load(options.checkpoint, prior.unet).to(torch.float16)
    new = options.out.with_name(f"{options.out.name}.{os.getpid()}.tmp")
    net.save_pretrained(new, safe_serialization=True)
    size = sum(path.stat().st_size for path in new.iterdir())
    if size > MAX_BYTES:
        shutil.rmtree(new)
        raise ValueError(f"the ControlNet would take {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}")
    options.out.mkdir(parents=True, exist_ok=True)
    for path in list(new.iterdir()):
        os.replace(path, options.out / path.name)
    new.rmdir()
    print(f"{options.out}: {size / 1e6:.1f} MB")


STAGES = {"data": stage_data, "train": stage_train, "export": stage_export}


def main(arguments: list[str] | None = None) -> None:
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        prog="python -m toybox.train_control",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--minutes", type=float, default=20.0, help="budget of the training (%(default)s)")
    parser.add_argument("--images", type=int, default=6000, help="pictures of people (%(default)s)")
    parser.add_argument("--batch", type=int, help="pictures a step (64, with CUDA 256)")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="data, checkpoint (%(default)s)")
    parser.add_argument("--prior", type=Path, default=PRIOR, help="folder of the prior (the bundled one)")
    parser.add_argument("--out", type=Path, default=EXPORT, help="folder of the ControlNet (%(default)s)")
    parser.add_argument(
        "--workers", type=int, default=cores, help="processes of the data stage (%(default)s)"
    )
    parser.add_argument(
        "--processes", type=int, default=min(cores, 8), help="that train, without CUDA (%(default)s)"
    )
    parser.add_argument("--new", action="store_true", help="start the training anew")
    options = parser.parse_args(arguments)
    options.people = options.cache / "people"
    options.checkpoint = options.cache / "control" / "control.pt"
    for name in STAGES if options.stage == "all" else [options.stage]:
        STAGES[name](options)


if __name__ == "__main__":
    main()
