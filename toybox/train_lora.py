"""Teach the bundled prior a material that it has never seen, from sixteen pictures: LoRA and a new word.

    python -m toybox.train_lora                          # "sks" for striped; eight minutes
    python -m toybox.train_lora --minutes 20 --out outputs/my-lora

The pictures are four striped things from four sides (`toybox.pattern`), called "a sks mug, front view". Two
things are trained at once (pivotal tuning): a vector for the word "sks", which the prior does not know
(textual inversion, Gal et al. 2022), and low-rank changes of the denoiser's weights (LoRA, Hu et al. 2021).
Half of every batch are plain things with their usual captions, so that nothing else changes (prior
preservation, DreamBooth, Ruiz et al. 2022). The bundled result is of 770 steps, six minutes of a free core.

Leaves a folder with `pytorch_lora_weights.safetensors` and `learned_embeds.safetensors`, as diffusers'
training scripts do, and a sheet of samples with the word and without. A run can be killed at any time and
continues where it was when started again; --new starts anew.
"""

from __future__ import annotations

import toybox.threads  # noqa: F401 - before torch

# isort: split
import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from threestudio_lucid.files import atomic_path
from toybox import captions, pattern
from toybox.cameras import DISTANCE, FOVY, orbit
from toybox.dataset import composite, random_backgrounds, render_shard
from toybox.objects import OBJECTS
from toybox.sdf import render
from toybox.train_prior import EXPORT as MINI
from toybox.train_unet import (
    SNR_GAMMA,
    TokenCache,
    loss_weight,
    make_scheduler,
    stratified_timesteps,
    training_caption,
)
from toybox.training import Ema, Run, in_bfloat16, warm_cosine

TRIGGER = "sks"
STRIPED = ("mug", "teapot", "pumpkin", "house")
SIDES = ((0.0, 15.0), (90.0, 20.0), (180.0, 15.0), (-60.0, 68.0))  # azimuth, elevation: the four view words
EXPORT = MINI / "lora" / "stripes"
RANK = 8
# What a material is made of is mostly convolutions here: the prior has attention at 8x8 and 4x4 only.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "time_emb_proj")
BATCH = 16  # half of it striped
RATE, VECTOR_RATE = 2e-3, 5e-3
LORA_FILE, VECTOR_FILE = "pytorch_lora_weights.safetensors", "learned_embeds.safetensors"


# ---------------------------------------------------------------------------------------------- pictures


@dataclass
class Lesson:
    """Latents [n, copies, C, h, w] of pictures on a few backgrounds each, and what each picture is called."""

    latents: Tensor
    labels: list

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Tensor, list]:
        """`n` at random, with replacement."""
        rows = rng.integers(len(self.latents), size=n)
        copies = rng.integers(self.latents.shape[1], size=n)
        return self.latents[rows, copies], [self.labels[i] for i in rows]


def striped_pictures(seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Every thing of `STRIPED` from every side of `SIDES`: RGBA uint8 [16, 128, 128, 4], and captions."""
    rng = np.random.default_rng(seed)
    images, texts = [], []
    for number, name in enumerate(STRIPED):
        for azimuth, elevation in SIDES:
            azimuth, elevation = azimuth + rng.uniform(-25, 25), elevation + rng.uniform(-8, 8)
            c2w = orbit(azimuth, elevation, rng.uniform(*DISTANCE))
            images.append(render(pattern.build(name, number), c2w, FOVY, 128))
            texts.append(pattern.caption(name, TRIGGER, captions.direction(elevation, azimuth)))
    return np.stack(images), texts


def plain_pictures(each: int, seed: int = 0) -> tuple[np.ndarray, list[np.void]]:
    """`each` pictures of every thing of the toybox, and their labels."""
    shards = [render_shard(name, 10_000 + seed, n=each) for name in OBJECTS]
    return np.concatenate([images for images, _ in shards]), [row for _, labels in shards for row in labels]


@torch.no_grad()
def encode(vae: AutoencoderTiny, images: np.ndarray, labels: list, copies: int, seed: int) -> Lesson:
    """Latents of RGBA pictures, each on `copies` random backgrounds."""
    rng = np.random.default_rng([seed, len(images)])
    found = []
    for part in np.array_split(images, -(-len(images) // 32)):
        rgb = composite(np.repeat(part, copies, axis=0), random_backgrounds(len(part) * copies, rng))
        latents = vae.encode(torch.from_numpy(rgb).permute(0, 3, 1, 2) * 2 - 1).latents
        found.append(latents.unflatten(0, (len(part), copies)))
    return Lesson(torch.cat(found) * vae.config.scaling_factor, labels)


# ---------------------------------------------------------------------------------------------- the pupil


class Pupil(nn.Module):
    """The prior's denoiser and text encoder, frozen but for low-rank changes and one word's vector."""

    def __init__(self, prior: Path, trigger: str = TRIGGER, rank: int = RANK):
        super().__init__()
        self.trigger = trigger
        self.tokenizer = CLIPTokenizer.from_pretrained(prior / "tokenizer")
        self.unet = UNet2DConditionModel.from_pretrained(prior / "unet", torch_dtype=torch.float32)
        self.text_encoder = CLIPTextModel.from_pretrained(prior / "text_encoder", dtype=torch.float32)
        if trigger in captions.vocabulary() or not self.tokenizer.add_tokens(trigger):
            raise ValueError(f"the prior knows the word {trigger!r} already: take another trigger")
        self.text_encoder.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        self.requires_grad_(False)
        self.unet.to(memory_format=torch.channels_last)
        self.unet.set_attn_processor(AttnProcessor())  # on a CPU a tenth faster than fused attention
        self.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS)))
        self.id = self.tokenizer.convert_tokens_to_ids(trigger)
        # a material is said where colours are, so begin among them
        ids = self.tokenizer.convert_tokens_to_ids([f"{color}</w>" for color in captions.COLORS])
        self.vector = nn.Parameter(self._table.weight[ids].mean(0))

    @property
    def _table(self) -> nn.Embedding:
        return self.text_encoder.get_input_embeddings()

    def taught(self) -> nn.ParameterList:
        """What is trained: the vector first."""
        return nn.ParameterList([self.vector, *(p for p in self.unet.parameters() if p.requires_grad)])

    def encode_text(self, ids: Tensor) -> Tensor:
        """Hidden states [B, T, D] of token ids [B, T], with the present vector in the new word's row."""
        rows = torch.arange(self._table.num_embeddings)[:, None] == self.id
        table = torch.where(rows, self.vector, self._table.weight)
        weights = {"weight": table}
        hook = self._table.register_forward_hook(lambda _m, inputs, _out: F.embedding(inputs[0], **weights))
        try:
            return self.text_encoder(input_ids=ids)[0]
        finally:
            hook.remove()

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Predicted noise [B, C, h, w] for x_t [B, C, h, w], t [B], token ids [B, T]."""
        return self.unet(x_t, t, encoder_hidden_states=self.encode_text(ids)).sample

    def save(self, folder: Path) -> int:
        """Write both files in float16, in diffusers' formats; returns their bytes."""
        state = get_peft_model_state_dict(self.unet, adapter_name="default")
        layers = {name: value.half().contiguous() for name, value in state.items()}
        with atomic_path(folder / LORA_FILE) as part:
            name = Path(part).name
            StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, weight_name=name)
        with atomic_path(folder / VECTOR_FILE) as part:
            save_file({self.trigger: self.vector.detach().half()[None].contiguous()}, part)
        return sum((folder / name).stat().st_size for name in (LORA_FILE, VECTOR_FILE))


# ---------------------------------------------------------------------------------------------- training


def train(
    prior: Path,
    checkpoint: Path,
    minutes: float,
    *,
    batch: int = BATCH,
    each: int = 8,
    rank: int = RANK,
    rate: float = RATE,
    steps: int | None = None,
    stop_after: int | None = None,
    seed: int = 0,
) -> Pupil:
    """Train, or go on training; returns the pupil with its averaged changes.

    Args:
        prior: folder of the bundled prior, or of one like it.
        batch: pictures a step, half of them striped.
        each: plain pictures of every thing.
        minutes, steps, stop_after: see `Run`.
    """
    torch.manual_seed(seed)
    vae = AutoencoderTiny.from_pretrained(prior / "vae", torch_dtype=torch.float32).eval()
    striped = encode(vae, *striped_pictures(seed), copies=8, seed=seed)
    plain = encode(vae, *plain_pictures(each, seed), copies=2, seed=seed)
    pupil = Pupil(prior, rank=rank)
    tokens, scheduler = TokenCache(pupil.tokenizer), make_scheduler()
    taught = pupil.taught()
    optimizer = torch.optim.AdamW(
        [{"params": [pupil.vector], "peak": VECTOR_RATE}, {"params": list(taught)[1:], "peak": rate}],
        weight_decay=0.0,
    )
    ema = Ema(taught, 0.99)
    parts = {"taught": taught, "ema": ema, "optimizer": optimizer}
    run = Run("lora", checkpoint, parts, np.random.default_rng(seed), minutes, steps, stop_after)
    for step in run:
        rng = np.random.default_rng([seed, step])
        torch.manual_seed(int(rng.integers(2**63)))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * warm_cosine(run.fraction)
        new, texts = striped.draw(batch // 2, rng)
        old, labels = plain.draw(batch - batch // 2, rng)
        x0, ids = torch.cat([new, old]), tokens([*texts, *(training_caption(row, rng) for row in labels)])
        t = stratified_timesteps(batch)
        noise = torch.randn_like(x0)
        with in_bfloat16():
            eps = pupil(scheduler.add_noise(x0, noise, t), t, ids)
        error = F.mse_loss(eps.float(), noise, reduction="none").mean(dim=(1, 2, 3))
        loss = (loss_weight(scheduler.alphas_cumprod, t, SNR_GAMMA) * error).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(taught, 1.0)
        optimizer.step()
        ema.update()
        run.report(striped=error[: batch // 2].mean().item(), plain=error[batch // 2 :].mean().item())
    ema.copy_to(taught)
    return pupil


def examine(prior: Path, lora: Path, sheet: Path, steps: int = 20) -> tuple[float, float]:
    """Sample things with the trigger and without, seen and unseen ones, and draw them as a PNG.

    Returns:
        mean strength of the stripes (`pattern.strength`) with the trigger, and without.
    """
    from threestudio_lucid.guidance.adapters import find_adapters
    from threestudio_lucid.guidance.cards import find_card
    from threestudio_lucid.guidance.prior import Prior
    from threestudio_lucid.guidance.sample import sample
    from toybox.pictures import write_sheet

    names = ("mug", "house", "donut", "rocket")
    with_trigger = [pattern.caption(name, TRIGGER, view) for name in names for view in ("front", "side")]
    without = [captions.caption(name, "blue", view=view) for name in names for view in ("front", "side")]
    card = find_card(prior)
    taught = Prior(card, torch.device("cpu"), torch.float32, find_adapters(str(lora), str(lora), card))
    draws = torch.Generator().manual_seed(0)
    pictures = sample(taught, with_trigger + without, num_steps=steps, generator=draws)
    write_sheet(sheet, pictures, columns=len(with_trigger))
    found = [pattern.strength(picture.permute(1, 2, 0).numpy()) for picture in pictures]
    half = len(with_trigger)
    return float(np.mean(found[:half])), float(np.mean(found[half:]))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m toybox.train_lora",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prior", type=Path, default=MINI, help="folder of the prior (%(default)s)")
    parser.add_argument("--out", type=Path, default=EXPORT, help="folder of the result (%(default)s)")
    parser.add_argument(
        "--work", type=Path, default=Path(".toybox_cache/lora"), help="checkpoint and sheet (%(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="budget in all (%(default)s)")
    parser.add_argument("--rank", type=int, default=RANK, help="of the changes (%(default)s)")
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate at its peak (%(default)s)")
    parser.add_argument("--batch", type=int, default=BATCH, help="pictures a step (%(default)s)")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: all cores)")
    parser.add_argument("--new", action="store_true", help="start anew, the checkpoint is deleted")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    checkpoint = options.work / "lora.pt"
    if options.new:
        checkpoint.unlink(missing_ok=True)
    pupil = train(
        options.prior, checkpoint, options.minutes, batch=options.batch, rank=options.rank, rate=options.rate
    )
    size = pupil.save(options.out)
    sheet = options.work / "lora.png"
    striped, plain = examine(options.prior, options.out, sheet)
    print(f"{sheet}: strength of the stripes {striped:.2f} with {TRIGGER!r}, {plain:.2f} without")
    print(f"{options.out}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
