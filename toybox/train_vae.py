"""The autoencoder of the mini prior: 128x128 pixels to 16x16 latents of 16 channels and back.

It is diffusers' AutoencoderTiny, laid out so that two CPU cores train it in minutes:

- few layers at full resolution, on which most of the time would go;
- the encoder starts as an 8x8 patch PCA, which its layers can represent exactly (`start_from_pca`), so that
  the decoder has something to read from the first step on;
- crops of 64x64 pixels, each with its own random background.

The latents are kept near unit variance by a penalty (the decoder's tanh(x/3)*3 saturates beyond), so
`scaling_factor` is 1; noise on the latents in training makes the decoder smooth in them.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from toybox.dataset import Pictures, composite, random_backgrounds
from toybox.muon import MuonWithAdamW
from toybox.training import Ema, Run, in_bfloat16, warm_cosine

LATENT_CHANNELS = 16
LATENT_NOISE = 0.12  # in units of the latents' standard deviation
PEAK_RATE, MUON_RATE = 2e-3, 0.02
CROP = 64


def make_vae(encoder_width: int = 48, decoder_width: int = 48) -> AutoencoderTiny:
    """The autoencoder, with default (random) weights."""
    return AutoencoderTiny(
        encoder_block_out_channels=(encoder_width,) * 4,
        decoder_block_out_channels=(decoder_width,) * 4,
        num_encoder_blocks=(0, 0, 1, 3),
        num_decoder_blocks=(3, 2, 1, 0),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=1.0,
    )


# ---------------------------------------------------------------------------------------------- the start


@torch.no_grad()
def start_from_pca(vae: AutoencoderTiny, images: torch.Tensor) -> None:
    """Make the encoder compute the leading principal components of 8x8 patches.

    Two stride-2 convolutions without a non-linearity between them can rearrange 4x4 pixels into 48 channels;
    these are in [0, 1], so the ReLU of the block that follows lets them pass. The third strided convolution
    sees 8x8 pixels and computes components in pairs (+, -), of which ReLU keeps one each; the last
    convolution puts the pairs together. Residual branches start near zero. A little of the random weights is
    kept everywhere, to learn from.

    Args:
        vae: from `make_vae`, encoder width 48 or more.
        images: [n, 3, h, w] in [0, 1], typical training crops.
    """
    convs = [layer for layer in vae.encoder.layers if isinstance(layer, torch.nn.Conv2d)]
    stem, half, quarter, eighth, out = convs
    blocks = [layer for layer in vae.encoder.layers if not isinstance(layer, torch.nn.Conv2d)]
    for block in blocks:
        block.conv[-1].weight.mul_(0.1), block.conv[-1].bias.zero_()
    for conv in (stem, half, quarter):
        conv.weight.mul_(0.1)
    stem.bias.zero_()
    for c in range(3):
        stem.weight[c, c, 1, 1] += 1
    # Taps 1 and 2 of a stride-2 convolution with padding 1 lie on pixels 2y and 2y + 1.
    for conv, channels in ((half, 3), (quarter, 12)):
        for tap, (dy, dx) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            for c in range(channels):
                conv.weight[tap * channels + c, c, 1 + dy, 1 + dx] += 1
    _pca_layers(vae, eighth, out, images)


def _pca_layers(
    vae: AutoencoderTiny, eighth: torch.nn.Conv2d, out: torch.nn.Conv2d, images: torch.Tensor
) -> None:
    """The last strided convolution and the output convolution of `start_from_pca`."""
    x = images
    for layer in vae.encoder.layers:
        if layer is eighth:
            break
        x = layer(x)
    patches = F.unfold(x[:, :48], 2, stride=2)  # [n, 48 * 4, positions], channel-major
    patches = patches.permute(0, 2, 1).reshape(-1, 192).double()
    patches = patches[torch.randperm(len(patches))[:40_000]]
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    pairs = eighth.out_channels // 2
    vectors = vectors.flip(1)[:, :pairs].float()
    values = values.flip(0)[:pairs].float()
    kernel = vectors.T.reshape(pairs, 48, 2, 2)
    eighth.weight.mul_(0.05)
    eighth.weight[:pairs, :48, 1:, 1:] += kernel
    eighth.weight[pairs : 2 * pairs, :48, 1:, 1:] -= kernel
    # Tempered whitening: standard deviations sigma^0.3 of the components', of unit variance on the whole.
    k = vae.config.latent_channels
    target = values[:k] ** 0.15
    target = target / target.square().mean().sqrt()
    scale = target / values[:k].sqrt()
    out.weight.mul_(0.05)
    out.bias.copy_(-scale * (mean.float() @ vectors[:, :k]))
    for i in range(k):
        out.weight[i, i, 1, 1] += scale[i]
        out.weight[i, pairs + i, 1, 1] -= scale[i]


@torch.no_grad()
def start_decoder(vae: AutoencoderTiny) -> None:
    """Variance-preserving weights for the decoder: it has no norms, and PyTorch's default would fade the
    signal out.

    With them 250 steps reach 25.5 dB on held-out pictures, without 22.5 (AdamW, batch 32).
    """
    for layer in vae.decoder.layers:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        for conv in getattr(layer, "conv", ()):
            if isinstance(conv, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                conv.bias.zero_()
        if hasattr(layer, "conv"):
            layer.conv[-1].weight.mul_(0.2)  # residual branches start small
    last = vae.decoder.layers[-1]
    last.weight.mul_(0.3)
    last.bias.fill_(0.5)  # grey


# ---------------------------------------------------------------------------------------------- data and loss


def crop_batch(
    pictures: Pictures, rng: np.random.Generator, n: int, size: int = CROP, indices: np.ndarray | None = None
) -> torch.Tensor:
    """Random crops of training pictures on random backgrounds, [n, 3, size, size] in [0, 1]."""
    rows = rng.choice(pictures.train if indices is None else indices, size=n)
    image = composite(pictures.crops(rows, size, rng), random_backgrounds(n, rng))
    return torch.from_numpy(image).permute(0, 3, 1, 2)


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 + MSE of colours + L1 of their differences between neighbours (edges), images in [0, 1]."""
    error = output - target
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 2.0 * error.square().mean() + edges


def variance_penalty(latents: torch.Tensor) -> torch.Tensor:
    """Pulls the mean of every channel to 0 and the variance over all channels to 1."""
    mean = latents.mean(dim=(0, 2, 3))
    power = (latents - mean[:, None, None]).square().mean()
    return mean.square().mean() + (power - 1).square()


@torch.no_grad()
def psnr(vae: AutoencoderTiny, pictures: Pictures, n: int = 96, seed: int = 0) -> float:
    """Mean PSNR in dB over `n` held-out full pictures on random backgrounds."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(pictures.held_out, size=n)
    total = 0.0
    for batch in np.array_split(rows, math.ceil(n / 16)):
        x = composite(pictures.read(batch), random_backgrounds(len(batch), rng))
        x = torch.from_numpy(x).permute(0, 3, 1, 2)
        y = reconstruct(vae, x).clamp(0, 1)
        total += float((-10 * torch.log10((x - y).square().mean(dim=(1, 2, 3)))).sum())
    return total / n


def reconstruct(vae: AutoencoderTiny, images: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] through the autoencoder."""
    return (vae.decoder(vae.encoder(images * 2 - 1)) + 1) / 2


def train_vae(
    pictures: Pictures,
    folder: Path,
    minutes: float,
    batch: int = 32,
    steps: int | None = None,
    stop_after: int | None = None,
    seed: int = 0,
) -> AutoencoderTiny:
    """Train, or go on training, the autoencoder; returns it with averaged weights.

    Args:
        folder: where checkpoint (`vae.pt`) and pictures (`vae.png`) go.
        minutes: budget in all; `steps`, `stop_after`: see `Run`.
    """
    torch.manual_seed(seed)
    vae = make_vae().to(memory_format=torch.channels_last)
    start_from_pca(vae, crop_batch(pictures, np.random.default_rng(seed), 256))
    start_decoder(vae)
    ends = "encoder.layers.0.", f"decoder.layers.{len(vae.decoder.layers) - 1}."
    optimizer = MuonWithAdamW(vae, MUON_RATE, PEAK_RATE, plain=ends)
    return _fit(
        vae, optimizer, pictures, folder / "vae.pt", LATENT_NOISE, batch, minutes, steps, stop_after, seed
    )


def train_decoder(
    vae: AutoencoderTiny,
    pictures: Pictures,
    checkpoint: Path,
    minutes: float,
    batch: int = 32,
    steps: int | None = None,
    stop_after: int | None = None,
    seed: int = 1,
) -> AutoencoderTiny:
    """Go on with the decoder alone, for crisper pictures; the latents, and so the denoiser, stay as they are.

    Args:
        vae: a trained one; its encoder is not changed.
        checkpoint: of this stage.
        minutes: budget in all; `steps`, `stop_after`: see `Run`.
    """
    torch.manual_seed(seed)
    vae = vae.to(memory_format=torch.channels_last).requires_grad_(True)
    vae.encoder.requires_grad_(False)
    ends = (f"layers.{len(vae.decoder.layers) - 1}.",)
    optimizer = MuonWithAdamW(vae.decoder, MUON_RATE / 2, PEAK_RATE / 2, plain=ends)
    noise = LATENT_NOISE / 2
    return _fit(vae, optimizer, pictures, checkpoint, noise, batch, minutes, steps, stop_after, seed)


def _fit(
    vae: AutoencoderTiny,
    optimizer: MuonWithAdamW,
    pictures: Pictures,
    checkpoint: Path,
    noise: float,
    batch: int,
    minutes: float,
    steps: int | None,
    stop_after: int | None,
    seed: int,
) -> AutoencoderTiny:
    """The loop of both stages, for the parameters that require gradients."""
    name, rng = checkpoint.name.split("-")[0].removesuffix(".pt"), np.random.default_rng(seed)
    ema = Ema(vae, 0.998)
    parts = {"vae": vae, "ema": ema, "optimizer": optimizer}
    run = Run(name, checkpoint, parts, rng, minutes, steps, stop_after)
    for step in run:
        optimizer.set_rate(warm_cosine(run.fraction))
        x = crop_batch(pictures, rng, batch)
        with in_bfloat16():
            latents = vae.encoder(x * 2 - 1)
            output = (vae.decoder(latents + noise * torch.randn_like(latents)) + 1) / 2
        loss = reconstruction_loss(output.float(), x) + 0.02 * variance_penalty(latents.float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in vae.parameters() if p.requires_grad], 0.5)
        optimizer.step()
        ema.update()
        mse = float((output.detach().float() - x).square().mean())
        spread = latents.detach().float().std().item()
        run.report(loss=loss.item(), psnr=-10 * math.log10(mse + 1e-12), std=spread)
        if (step + 1) % 500 == 0:
            sheet(ema, pictures, checkpoint.with_name(f"{name}.png"))
    averaged = ema.copy_to(make_vae()).eval()
    print(f"{name}: held-out PSNR {psnr(averaged, pictures):.2f} dB after {run.step} steps", flush=True)
    sheet(ema, pictures, checkpoint.with_name(f"{name}.png"))
    return averaged


@torch.no_grad()
def sheet(ema: Ema, pictures: Pictures, path: Path, n: int = 8) -> None:
    """PNG of held-out pictures (upper rows) and their reconstructions (lower rows)."""
    from toybox.pictures import write_sheet

    vae = ema.copy_to(make_vae()).eval()
    rng = np.random.default_rng(1)
    rows = rng.choice(pictures.held_out, size=n)
    x = composite(pictures.read(rows), random_backgrounds(n, rng))
    x = torch.from_numpy(x).permute(0, 3, 1, 2)
    write_sheet(path, torch.cat([x, reconstruct(vae, x)]), columns=n)
