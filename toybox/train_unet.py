"""The denoiser of the mini prior: UNet2DConditionModel and CLIPTextModel, trained together on latents.

Noise prediction on Stable Diffusion's schedule, weights from min-SNR (Hang et al. 2023, arXiv 2303.09556,
gamma 5), timesteps stratified over the batch, captions dropped for classifier-free guidance.

What makes it quick on a CPU: one process a core instead of threads, and a compiled network (together three
times the pictures a second).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from toybox import captions, latents, parallel
from toybox.muon import MuonWithAdamW
from toybox.tokenizer import MAX_LENGTH, check_single_tokens, make_tokenizer, save_tokenizer, split_words
from toybox.training import Ema, Run, in_bfloat16, save_atomically, warm_constant

PEAK_RATE = 0.02  # Muon's; AdamW, which takes what is no matrix and the first and last layer, has a twentieth
BATCH, GPU_BATCH = 128, 1024  # of all processes together
WARM_STEPS = 40
EMA, RELEASE_EMA = 0.998, 0.95  # a falling rate averages by itself
EXTRA = 2.0  # how often things with decorations come: a caption of theirs has several modes to learn
SNR_GAMMA = 5.0
DROP_CAPTION, DROP_VIEW, DROP_DECORATION = 0.10, 0.15, 0.35
DROP_COLOR = 0.40  # only where it is the object's own
TEXT_WIDTH = 192
CHANNELS = (64, 128, 192)  # of the denoiser where the latents are 16x16, 8x8 and 4x4
SHEET_EVERY = 900.0  # seconds

SHEET_PROMPTS = (
    "a hamburger, side view",
    "a blue mug with stars, front view",
    "a white snowman with a red hat, front view",
    "a house, front view",
    "a red rocket with checks, side view",
    "a green cactus, side view",
    "a robot, front view",
    "a pink donut with hearts, overhead view",
    "an orange car, side view",
    "a person with a blue shirt, front view",
    "a person with a red shirt, back view",
    "a yellow teapot with dots, side view",
    "a mug, back view",
    "a red mushroom, overhead view",
    "a pumpkin, front view",
    "a cat, front view",
)


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def make_unet(latent_channels: int = 16, channels: tuple[int, ...] = CHANNELS) -> UNet2DConditionModel:
    """The denoiser for 16x16 latents.

    The text comes in twice: by cross-attention where the picture is 8x8 and 4x4, and pooled, beside the time,
    into every block (`addition_embed_type`), since object, colour and view are matters of the whole picture.
    """
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # the number of heads, in diffusers' naming
        norm_num_groups=32,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A small CLIP text model for the tokenizer's vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=3 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class Denoiser(nn.Module):
    """UNet and text encoder as one module: what is trained, averaged and saved together."""

    def __init__(
        self, tokenizer: CLIPTokenizer, latent_channels: int = 16, channels: tuple[int, ...] = CHANNELS
    ):
        super().__init__()
        self.vocabulary = tokenizer.get_vocab()
        self.unet = make_unet(latent_channels, channels)
        self.text_encoder = make_text_encoder(tokenizer)

    def load_finished(self, folder: Path) -> None:
        """Take the weights of a finished prior of the same architecture."""
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        known = CLIPTokenizer.from_pretrained(folder / "tokenizer").get_vocab()
        missing, unexpected = self.unet.load_state_dict(unet.state_dict(), strict=False)
        if unexpected or not all(name.startswith("add_embedding.") for name in missing):
            raise ValueError(f"{folder} is no prior of this architecture: {[*missing, *unexpected][:3]}, ...")
        if missing:  # made before the text came in pooled as well: that path begins at zero
            nn.init.zeros_(self.unet.add_embedding.norm2.weight)
        self._load_text_encoder(text_encoder, known)

    @torch.no_grad()
    def _load_text_encoder(self, finished: CLIPTextModel, known: dict[str, int]) -> None:
        """Weights of a finished text encoder; words that it does not know keep their new embeddings."""
        name = "embeddings.token_embedding.weight"
        state = finished.state_dict()
        key = next(k for k in state if k.endswith(name))
        rows = self.text_encoder.state_dict()[key].clone()
        for symbol, row in self.vocabulary.items():
            if symbol in known:
                rows[row] = state[key][known[symbol]]
        self.text_encoder.load_state_dict({**state, key: rows})

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Predicted noise [B, C, h, w] for x_t [B, C, h, w], t [B], token ids [B, T]."""
        text = self.text_encoder(input_ids=ids)[0]
        return self.unet(x_t, t, encoder_hidden_states=text).sample


# ---------------------------------------------------------------------------------------------- data


def training_caption(label: np.void, rng: np.random.Generator) -> str:
    """A caption for one picture: at times empty, or without direction, decoration or its own colour."""
    from toybox.objects import OBJECTS

    if rng.random() < DROP_CAPTION:
        return ""
    name, color = str(label["object"]), str(label["color"])
    view = captions.direction(float(label["elevation"]), float(label["azimuth"]))
    own = color == OBJECTS[name].default_color
    return captions.caption(
        name,
        color,
        part_color=str(label["part_color"]) or None,
        view=None if rng.random() < DROP_VIEW else view,
        drop_color=bool(own and rng.random() < DROP_COLOR),
        pose=str(label["pose"]) or None,
        decoration=None if rng.random() < DROP_DECORATION else str(label["decoration"]) or None,
    )


class TokenCache:
    """Token ids of captions, remembered: there are only some thousands of different ones."""

    def __init__(self, tokenizer: CLIPTokenizer):
        self.tokenizer, self._ids = tokenizer, {}

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """Ids [n, 32], padded as Stable Diffusion's pipeline pads."""
        for text in texts:
            if text not in self._ids:
                self._ids[text] = self.tokenizer(
                    text, padding="max_length", max_length=MAX_LENGTH, truncation=True
                ).input_ids
        return torch.tensor([self._ids[text] for text in texts])


def stratified_timesteps(n: int, steps: int = 1000) -> torch.Tensor:
    """One random timestep from each of `n` equal parts of [0, steps), shuffled; integers [n]."""
    t = (torch.arange(n) + torch.rand(n)) * (steps / n)
    return t.long().clamp(max=steps - 1)[torch.randperm(n)]


def loss_weight(alphas_cumprod: torch.Tensor, t: torch.Tensor, gamma: float = SNR_GAMMA) -> torch.Tensor:
    """min(SNR, gamma) / SNR / sqrt(a), for a loss on the noise; SNR = a / (1 - a).

    min-SNR, and half-way (in powers of a) to the weights of v-prediction, 1 / a: where there is much noise,
    errors in it are small, yet what they spoil is what is on the picture, and from which side.
    """
    a = alphas_cumprod[t]
    snr = a / (1 - a)
    return snr.clamp(max=gamma) / snr / a.sqrt()


# ---------------------------------------------------------------------------------------------- training


def run_tokenizer(folder: Path, start: Path | None = None) -> CLIPTokenizer:
    """The tokenizer of the run in `folder`, the same one ever after.

    At the start it is that of the finished prior `start` if that knows all words of the toybox, or else made
    from them.

    Raises:
        ValueError: the toybox has words by now that this run's tokenizer does not know.
    """
    path = folder / "tokenizer"
    if not (path / "tokenizer.json").exists():
        finished = start and CLIPTokenizer.from_pretrained(start / "tokenizer")
        enough = finished and not split_words(finished, captions.vocabulary())
        save_tokenizer(finished if enough else make_tokenizer(captions.vocabulary()), path)
    tokenizer = CLIPTokenizer.from_pretrained(path)
    check_single_tokens(tokenizer, captions.vocabulary())
    return tokenizer


@dataclass(frozen=True)
class UnetJob:
    """What to train.

    Args:
        cache: pictures' labels and their latents.
        vae: the autoencoder of the latents; it decodes the sample sheets.
        folder: checkpoint `unet.pt`, tokenizer/, sheets `unet-*.png`.
        minutes: budget in all; `steps`, `stop_after`: see `Run`.
        batch: pictures a step, in equal parts for each of the processes; 0: `BATCH` on a CPU, 1024 on a GPU.
        start: a finished prior whose weights and tokenizer a new run begins with.
        compiled: compile the network first, which takes two minutes once.
        rate: Muon's learning rate at its peak.
        device: "cpu" or "cuda".
        release: instead of going on, let the learning rate of what there is fall to zero (`RELEASE`).
    """

    cache: Path
    vae: AutoencoderTiny
    folder: Path
    minutes: float
    batch: int = 0
    steps: int | None = None
    stop_after: int | None = None
    channels: tuple[int, ...] = CHANNELS
    seed: int = 0
    start: Path | None = None
    compiled: bool = False
    rate: float = PEAK_RATE
    device: str = "cpu"
    release: bool = False


def train_unet(job: UnetJob, processes: int = 1) -> None:
    """Train, or go on training, the denoiser; its averaged weights are in the checkpoint
    (`train_prior.load_denoiser`).

    The learning rate rises, then stays, so that training can go on for as long as there is a machine. A
    release is a short run of its own, from the latest checkpoint, in which the rate falls to zero.
    """
    run_tokenizer(job.folder, job.start)
    parallel.run(_train, processes, job)


def compile_denoiser(model: Denoiser) -> nn.Module:
    """The model, compiled but for its upsamplers.

    Inductor's backward of nearest-neighbour upsampling on a CPU (PyTorch 2.13, bfloat16, channels last) is
    zero: everything below it, the text encoder too, would keep its first weights while the loss falls.
    """
    for block in model.unet.up_blocks:
        for upsampler in block.upsamplers or ():
            upsampler.forward = torch.compiler.disable(upsampler.forward)
    return torch.compile(model)


def check_gradients(network: nn.Module, model: Denoiser, *batch: torch.Tensor) -> None:
    """Compare the gradients of a compiled network with those of the model itself, on one batch (x_t, t, ids).

    Raises:
        RuntimeError: those of some part point elsewhere: the compiler has a bug, train without it.
    """
    found = []
    for forward in (model, network):
        model.zero_grad(set_to_none=True)
        with in_bfloat16(batch[0].device):
            forward(*batch).float().square().mean().backward()
        parts = (model.text_encoder, model.unet.down_blocks, model.unet.mid_block, model.unet.up_blocks)
        found.append([torch.cat([_gradient(p) for p in part.parameters()]) for part in parts])
    model.zero_grad(set_to_none=True)
    cosines = [F.cosine_similarity(a, b, dim=0).item() for a, b in zip(*found, strict=True)]
    if min(cosines) < 0.9:
        raise RuntimeError(
            f"compiled gradients differ from the model's (cosines {cosines} of text encoder, down, middle "
            "and up blocks): train with --no-compile"
        )


def _gradient(p: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()


class LatentPictures:
    """Latents and labels in memory, on the device; things with decorations come more often, see `EXTRA`."""

    def __init__(self, cache: Path, vae: AutoencoderTiny, device: str):
        from toybox.objects import OBJECTS

        values, self.labels = latents.load_all(cache, latents.latents_folder(cache, vae))
        self.values = torch.from_numpy(values).to(device)
        decorated = [name for name, thing in OBJECTS.items() if thing.decorations]
        weight = np.where(np.isin(self.labels["object"], decorated), EXTRA, 1.0)
        # as if every thing had equally many pictures
        _, which, count = np.unique(self.labels["object"], return_inverse=True, return_counts=True)
        self._cumulative = np.cumsum(weight / count[which])

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.values.shape[2]

    def draw(self, n: int, rng: np.random.Generator) -> tuple[torch.Tensor, list[str]]:
        """Latents [n, C, h, w], float32, and a caption for each."""
        rows = np.searchsorted(self._cumulative, rng.random(n) * self._cumulative[-1])
        copies = rng.integers(self.values.shape[1], size=n)
        x0 = self.values[torch.from_numpy(rows), torch.from_numpy(copies)].float()
        return x0, [training_caption(self.labels[i], rng) for i in rows]


def _checkpoint(job: UnetJob) -> Path:
    """The run's file. A release's begins as a copy of the latest training, unless one was interrupted."""
    trained, release = job.folder / "unet.pt", job.folder / "release.pt"
    if not job.release:
        return trained
    if parallel.rank() == 0 and (not release.exists() or release.stat().st_mtime < trained.stat().st_mtime):
        state = torch.load(trained, weights_only=True, map_location="cpu")
        save_atomically(release, {**state, "elapsed": 0.0, "step": 0})
    return release


def _train(rank: int, job: UnetJob) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(job.folder / "tokenizer")
    tokens = TokenCache(tokenizer)
    share = (job.batch or (BATCH if job.device == "cpu" else GPU_BATCH)) // parallel.processes()
    data = LatentPictures(job.cache, job.vae, job.device)
    scheduler = make_scheduler()
    torch.manual_seed(job.seed)
    model = Denoiser(tokenizer, data.channels, job.channels)
    if job.start is not None:
        model.load_finished(job.start)
    model.to(job.device).unet.to(memory_format=torch.channels_last)
    if job.device == "cpu":
        model.unet.set_attn_processor(AttnProcessor())  # 11% of a step faster than fused attention
    network = compile_denoiser(model) if job.compiled else model
    ema = Ema(model, RELEASE_EMA if job.release else EMA)
    optimizer = MuonWithAdamW(model, job.rate, job.rate / 20, plain=("unet.conv_in.", "unet.conv_out."))
    parts = {"model": model, "ema": ema, "optimizer": optimizer}
    rng = np.random.default_rng(job.seed)
    name = "release" if job.release else "unet"
    run = Run(name, _checkpoint(job), parts, rng, job.minutes, job.steps, job.stop_after)
    alphas_cumprod = scheduler.alphas_cumprod.to(job.device)
    next_sheet, first = run.elapsed + SHEET_EVERY, run.step
    for step in run:
        # Draws are a function of seed, step and process, so that a resumed run repeats them.
        rng = np.random.default_rng([job.seed + job.release, step, rank])
        torch.manual_seed(int(rng.integers(2**63)))
        optimizer.set_rate(1 - run.fraction if job.release else warm_constant(step, WARM_STEPS))
        x0, texts = data.draw(share, rng)
        ids = tokens(texts).to(job.device)
        t = stratified_timesteps(share).to(job.device)
        noise = torch.randn_like(x0)
        x_t = scheduler.add_noise(x0, noise, t).contiguous(memory_format=torch.channels_last)
        if job.compiled and step == first:
            check_gradients(network, model, x_t, t, ids)
        with in_bfloat16(job.device):
            eps = network(x_t, t, ids)
        error = F.mse_loss(eps.float(), noise, reduction="none").mean(dim=(1, 2, 3))
        loss = (loss_weight(alphas_cumprod, t) * error).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update()
        if job.device == "cpu" or step % 20 == 0:  # reading a value waits for the GPU
            run.report(loss=loss.item(), mse=error.mean().item())
        if run.leads and run.elapsed > next_sheet:
            next_sheet = run.elapsed + SHEET_EVERY
            name = f"unet-{int(run.elapsed / 60):04d}min.png"
            _save_sheet(ema, tokenizer, job, job.folder / name)
    if run.leads:
        _save_sheet(ema, tokenizer, job, job.folder / "unet.png")


def _save_sheet(ema: Ema, tokenizer: CLIPTokenizer, job: UnetJob, path: Path) -> None:
    averaged = ema.copy_to(Denoiser(tokenizer, job.vae.config.latent_channels, job.channels))
    sample_sheet(averaged, TokenCache(tokenizer), job.vae, path)


@torch.no_grad()
def sample(
    model: Denoiser, tokens: TokenCache, prompts: list[str], guidance_scale: float, steps: int, seed: int = 0
) -> torch.Tensor:
    """Latents [n, C, h, w] by DDIM with classifier-free guidance, eps_uncond + g (eps_text - eps_uncond)."""
    model.eval()
    scheduler = make_scheduler()
    scheduler.set_timesteps(steps)
    ids = torch.cat([tokens([""] * len(prompts)), tokens(prompts)])
    config = model.unet.config
    shape = (len(prompts), config.in_channels, config.sample_size, config.sample_size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    text = model.text_encoder(input_ids=ids)[0]
    for t in scheduler.timesteps:
        with in_bfloat16():
            both = model.unet(torch.cat([x, x]), t, encoder_hidden_states=text).sample
        eps_uncond, eps_text = both.float().chunk(2)
        x = scheduler.step(eps_uncond + guidance_scale * (eps_text - eps_uncond), t, x).prev_sample
    return x


@torch.no_grad()
def sample_sheet(
    model: Denoiser,
    tokens: TokenCache,
    vae: nn.Module,
    path: Path,
    guidance_scale: float = 3.0,
    steps: int = 25,
) -> None:
    """PNG of samples for `SHEET_PROMPTS`, always from the same noise."""
    from toybox.pictures import write_sheet

    x = sample(model, tokens, list(SHEET_PROMPTS), guidance_scale, steps)
    write_sheet(path, (vae.decoder(x) + 1) / 2, columns=8)
