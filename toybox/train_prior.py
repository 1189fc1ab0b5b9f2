"""Train the bundled mini prior: from the toybox's pictures to a folder in Stable Diffusion's format.

    python -m toybox.train_prior --stage data                  # 24,000 pictures: 10 minutes on two cores
    python -m toybox.train_prior --stage vae --minutes 20      # the autoencoder
    python -m toybox.train_prior --stage latents               # encode every picture: a few minutes
    python -m toybox.train_prior --stage unet --minutes 240    # the denoiser: as long as there is a machine
    python -m toybox.train_prior --stage release --minutes 15  # what there is of it, with a falling rate
    python -m toybox.train_prior --stage decoder --minutes 15  # sharper pictures from the same latents
    python -m toybox.train_prior --stage export                # write the prior, at any time in that
    python -m toybox.train_prior --stage all                   # all of it

Every stage can be killed at any time (SIGTERM, Ctrl-C, power) and continues where it was when started again.
--minutes is the budget of a stage in all, time used before a restart included: learning rates fall to zero
when it is used up. To train longer, give more minutes. --new throws a stage's checkpoint away.

The denoiser's rate stays: it can be trained for as long as a machine is at hand, and released at any time. It
runs on a GPU where there is one (--device). Pictures, latents and checkpoints are in --cache, outside of the
project, and what is there is used again.

Where there are no checkpoints, training can go on from a finished prior, such as the bundled one: data, then
latents and unet with --start custom/threestudio-lucid/priors/mini, then export with the same --start.
--vae FOLDER takes the autoencoder alone from there, and the denoiser begins anew.
"""

from __future__ import annotations

import toybox.threads  # noqa: F401 - before torch

# isort: split
import argparse
import json
import os
import shutil
from pathlib import Path

import torch
import yaml
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from toybox import captions, dataset, latents
from toybox.train_unet import CHANNELS, PEAK_RATE, Denoiser, UnetJob, make_scheduler, train_unet
from toybox.train_vae import make_vae, train_decoder, train_vae
from toybox.training import Ema

DEFAULT_MINUTES = {"vae": 20.0, "unet": 240.0, "release": 15.0, "decoder": 15.0}
EXPORT = Path(__file__).parents[1] / "custom/threestudio-lucid/priors/mini"
MAX_BYTES = 40_000_000

CARD = {
    "name": "mini",
    "path": ".",
    "kind": "latent-diffusion",
    "image_size": 128,
    "latent_size": 16,
    "render_size": 128,
    "guidance_scale": 3.0,
    "num_steps": 50,
    "num_points": 4000,
    "dtype": "auto",
    "prediction_type": "epsilon",
    "prompt": "a hamburger",
}


# ---------------------------------------------------------------------------------------------- checkpoints


def _checkpoint(path: Path, stage: str) -> dict:
    if not path.exists():
        raise SystemExit(f"no {path}: run  python -m toybox.train_prior --stage {stage}  first")
    return torch.load(path, weights_only=True, map_location="cpu", mmap=True)


def load_vae(work: Path, finished: Path | None = None) -> AutoencoderTiny:
    """The autoencoder of the checkpoint, averaged weights; with the better decoder, if that stage has run.

    Without a checkpoint, the one of the prior `finished`.
    """
    if finished is not None and not (work / "vae.pt").exists():
        vae = AutoencoderTiny.from_pretrained(finished / "vae", torch_dtype=torch.float32)
        vae = vae.eval().requires_grad_(False)
    else:
        vae = _averaged(work / "vae.pt")
    better = decoder_checkpoint(work, vae)
    return _averaged(better) if better.exists() else vae


def _averaged(path: Path) -> AutoencoderTiny:
    vae = make_vae()
    ema = Ema(vae)
    ema.load_state_dict(_checkpoint(path, "vae")["parts"]["ema"])
    return ema.copy_to(vae).eval().requires_grad_(False)


def decoder_checkpoint(work: Path, vae: AutoencoderTiny) -> Path:
    """The decoder stage's checkpoint for this encoder."""
    return work / f"decoder-{latents.fingerprint(vae)}.pt"


def unet_folder(work: Path, vae: AutoencoderTiny) -> Path:
    """A denoiser belongs to its autoencoder: one folder for each."""
    return work / f"unet-{latents.fingerprint(vae)}"


def load_denoiser(folder: Path, channels: tuple[int, ...] = CHANNELS) -> tuple[Denoiser, CLIPTokenizer, int]:
    """Denoiser with averaged weights, its tokenizer and the steps it has been trained.

    The release, if it is later than the training's checkpoint.
    """
    paths = [path for path in (folder / "unet.pt", folder / "release.pt") if path.exists()]
    latest = max(paths, key=lambda path: path.stat().st_mtime, default=folder / "unet.pt")
    state = _checkpoint(latest, "unet")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    model = Denoiser(tokenizer, channels=channels)
    ema = Ema(model)
    ema.load_state_dict(state["parts"]["ema"])
    return ema.copy_to(model).eval(), tokenizer, state["step"]


# ---------------------------------------------------------------------------------------------- export


def export(vae: AutoencoderTiny, model: Denoiser, tokenizer: CLIPTokenizer, target: Path) -> int:
    """Write the prior as a folder that `diffusers.StableDiffusionPipeline` loads, float16 safetensors, with
    its card.

    The folder is built under another name and swapped in at the end; files that this function does not write
    stay.

    Returns:
        its size in bytes.

    Raises:
        ValueError: it is larger than 40 MB.
    """
    from toybox.tokenizer import save_tokenizer

    new = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    for name, module in (("vae", vae), ("unet", model.unet), ("text_encoder", model.text_encoder)):
        if name == "text_encoder":
            half = module.__class__(module.config)
        else:  # without the private keys, such as where it was loaded from
            config = {key: value for key, value in module.config.items() if not key.startswith("_")}
            half = module.__class__.from_config(config)
        half.load_state_dict(module.state_dict())
        half.to(torch.float16).save_pretrained(new / name, safe_serialization=True)
    _name_for_all_versions(new / "text_encoder" / "model.safetensors")
    make_scheduler().save_pretrained(new / "scheduler")
    save_tokenizer(tokenizer, new / "tokenizer")
    (new / "model_index.json").write_text(json.dumps(_model_index(), indent=2) + "\n")
    card = {**CARD, "vocabulary": captions.vocabulary()}
    (new / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    size = sum(path.stat().st_size for path in new.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        shutil.rmtree(new)
        raise ValueError(f"the prior would take {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}")
    _replace_files(new, target)
    return size


def _name_for_all_versions(text_encoder: Path) -> None:
    """Calls the tensors `text_model.encoder...`, which transformers 4 reads too; 5 writes `encoder...`."""
    state = load_file(text_encoder)
    named = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}
    save_file(named, text_encoder, metadata={"format": "pt"})


def _model_index() -> dict:
    import diffusers

    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }


def _replace_files(new: Path, target: Path) -> None:
    """Move every file of `new` over the one of the same name in `target`."""
    for path in [p for p in new.rglob("*") if p.is_file()]:
        destination = target / path.relative_to(new)
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, destination)
    shutil.rmtree(new)


# ---------------------------------------------------------------------------------------------- stages


def stage_data(options: argparse.Namespace) -> None:
    dataset.build(options.cache, options.images, options.workers)


def stage_vae(options: argparse.Namespace) -> None:
    _forget(options, options.work / "vae.pt")
    minutes = options.minutes or DEFAULT_MINUTES["vae"]
    train_vae(dataset.Pictures(options.cache), options.work, minutes, batch=options.batch or 32)


def stage_latents(options: argparse.Namespace) -> None:
    vae = load_vae(options.work, options.vae)
    folder = latents.encode_all(options.cache, vae, options.copies, device=options.device)
    values, labels = latents.load_all(options.cache, folder)
    sample = values[:: max(len(values) // 500, 1)].astype("float32")
    print(f"{len(labels)} pictures in {folder}: mean {sample.mean():.3f}, std {sample.std():.3f}")


def stage_unet(options: argparse.Namespace, stage: str = "unet") -> None:
    vae = load_vae(options.work, options.vae)
    folder = unet_folder(options.work, vae)
    _forget(options, folder / f"{stage}.pt")
    job = UnetJob(
        options.cache,
        vae,
        folder,
        options.minutes or DEFAULT_MINUTES[stage],
        batch=options.batch or 0,
        start=options.start,
        compiled=options.compile,
        rate=options.rate,
        device=options.device,
        release=stage == "release",
    )
    train_unet(job, options.processes if options.device == "cpu" else 1)


def stage_release(options: argparse.Namespace) -> None:
    stage_unet(options, "release")


def stage_decoder(options: argparse.Namespace) -> None:
    vae = load_vae(options.work, options.vae)
    checkpoint = decoder_checkpoint(options.work, vae)
    _forget(options, checkpoint)
    minutes = options.minutes or DEFAULT_MINUTES["decoder"]
    train_decoder(vae, dataset.Pictures(options.cache), checkpoint, minutes, batch=options.batch or 32)


def stage_export(options: argparse.Namespace) -> None:
    vae = load_vae(options.work, options.vae)
    model, tokenizer, step = load_denoiser(unet_folder(options.work, vae))
    size = export(vae, model, tokenizer, options.out)
    print(f"{options.out}: {size / 1e6:.1f} MB, {step} steps")


STAGES = {
    "data": stage_data,
    "vae": stage_vae,
    "latents": stage_latents,
    "unet": stage_unet,
    "release": stage_release,
    "decoder": stage_decoder,
    "export": stage_export,
}


def _forget(options: argparse.Namespace, checkpoint: Path) -> None:
    if options.new:
        checkpoint.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m toybox.train_prior",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument(
        "--minutes", type=float, help="budget of the stage: vae (20), unet (240), release (15), decoder (15)"
    )
    parser.add_argument(
        "--cache", type=Path, default=dataset.DEFAULT_CACHE, help="pictures and latents (%(default)s)"
    )
    parser.add_argument("--work", type=Path, help="checkpoints and sample sheets (CACHE/prior)")
    parser.add_argument("--start", type=Path, help="finished prior to go on from, without checkpoints")
    parser.add_argument("--out", type=Path, default=EXPORT, help="folder of the finished prior (%(default)s)")
    parser.add_argument(
        "--images", type=int, default=24_000, help="pictures for the data stage (%(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of the data stage (%(default)s)")
    parser.add_argument("--vae", type=Path, help="finished prior whose autoencoder to keep, likewise")
    parser.add_argument("--batch", type=int, help="batch size (vae and decoder 32, unet 128, on a GPU 1024)")
    parser.add_argument(
        "--copies", type=int, default=latents.COPIES, help="backgrounds a picture (%(default)s)"
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=min(os.cpu_count() or 1, 8),
        help="of the unet stage, which share a batch (%(default)s)",
    )
    parser.add_argument(
        "--rate", type=float, default=PEAK_RATE, help="unet: Muon's learning rate at its peak (%(default)s)"
    )
    parser.add_argument(
        "--no-compile",
        dest="compile",
        action="store_false",
        help="unet: do not compile the network (compiling needs a C++ compiler and two minutes)",
    )
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: all cores)")
    parser.add_argument("--new", action="store_true", help="start the stage anew, its checkpoint is deleted")
    options = parser.parse_args(arguments)
    options.work = options.work or options.cache / "prior"
    options.vae = options.vae or options.start
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.stage == "all" and options.minutes:
        parser.error("--minutes needs one stage: --stage vae, unet, release or decoder")
    for name in STAGES if options.stage == "all" else [options.stage]:
        STAGES[name](options)


if __name__ == "__main__":
    main()
