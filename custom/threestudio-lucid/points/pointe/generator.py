"""Text to points in one or two stages: few points from a text, and perhaps more from those.

stage 1   text vector -> 1024 points, guided
stage 2   those       -> 3072 more
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError, check_choice, check_range
from ...files import write_text
from ...guidance.prior import resolve_dtype
from ..cloud import PointCloud
from .checkpoints import BASE_URL, UPSAMPLER_URL, find_checkpoint, load_weights
from .diffusion import SCHEDULES, guide, make_denoiser
from .sampler import karras_sigmas, sample_heun
from .text import CLIP, TextVectors, known_words
from .transformer import PointsToPoints, PointTransformer, TextToPoints

MINI = Path(__file__).parents[2] / "priors" / "mini" / "points"
CONFIG, WEIGHTS, TEXT_ENCODER, TOKENIZER = "config.json", "model.safetensors", "text_encoder", "tokenizer"
MAX_POINTS = 100_000

# Point-E's objects look along -y. A quarter turn about z brings that to our +x: (x, y, z) -> (-y, x, z).
# (LucidDreamer flips y instead, which makes them mirror images.)
Rotation = tuple[tuple[float, float, float], ...]
POINTE_TO_WORLD: Rotation = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
NO_TURN: Rotation = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True)
class Stage:
    """How a network's clouds are drawn. The defaults are those of the public text model."""

    points: int = 1024
    """Points to draw."""
    schedule: str = "cosine"
    """Noise schedule that it was trained with: cosine, linear."""
    steps: int = 64
    """Heun steps; each but the last calls the network twice."""
    sigma_min: float = 1e-3
    sigma_max: float = 120.0
    """Last and first noise level."""
    s_churn: float = 3.0
    """Noise added on the way."""
    guidance_scale: float = 3.0
    """uncond + g (text - uncond); 1: the text alone."""
    xyz_scale: float = 2.0
    """The network sees xyz times this, and rgb from 0 ... 255 as -1 ... 1."""

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, SCHEDULES)
        check_range("points", self.points, low=1, high=MAX_POINTS)
        check_range("steps", self.steps, low=1)
        check_range("sigma_min", self.sigma_min, low=0.0, above=True)
        check_range("sigma_max", self.sigma_max, low=self.sigma_min, above=True)
        check_range("s_churn", self.s_churn, low=0.0)
        check_range("guidance_scale", self.guidance_scale, low=0.0)
        check_range("xyz_scale", self.xyz_scale, low=0.0, above=True)

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """The schedule, float64 [1024]."""
        return SCHEDULES[self.schedule]()

    @property
    def sigmas(self) -> list[float]:
        """Noise levels of the sampler, the last one 0."""
        return karras_sigmas(self.steps, self.sigma_min, self.sigma_max)

    def encode(self, cloud: Tensor) -> Tensor:
        """Data [..., 6, N] (xyz, rgb to 255) to what the network sees."""
        scales, biases = self._channels(cloud)
        return cloud * scales + biases

    def decode(self, x: Tensor) -> Tensor:
        """The inverse of `encode`."""
        scales, biases = self._channels(x)
        return (x - biases) / scales

    def _channels(self, like: Tensor) -> tuple[Tensor, Tensor]:
        scales = like.new_tensor([self.xyz_scale] * 3 + [2.0 / 255.0] * 3)
        return scales[:, None], like.new_tensor([0.0] * 3 + [-1.0] * 3)[:, None]


PUBLIC_BASE = Stage()
PUBLIC_UPSAMPLER = Stage(points=3072, schedule="linear", sigma_max=160.0, s_churn=0.0, guidance_scale=1.0)


@dataclass
class TextToPointCloud:
    """Prompts to clouds. Made by `load_public` and `load_folder`.

    Attributes:
        text: prompts to vectors.
        model, stage: the network that draws the first cloud from a text vector.
        upsampler, upsampler_stage: what adds points to it; None: nothing.
        to_world: rotation [3, 3] from the network's axes to ours (z up, front +x).
        vocabulary: every word it knows, if it knows only these; None: open.
        name: for messages.
    """

    text: TextVectors
    model: TextToPoints
    stage: Stage
    upsampler: PointsToPoints | None = None
    upsampler_stage: Stage = PUBLIC_UPSAMPLER
    to_world: Rotation = POINTE_TO_WORLD
    vocabulary: Sequence[str] | None = None
    name: str = "Point-E"

    def __call__(
        self,
        prompts: Sequence[str],
        generator: torch.Generator,
        progress: Callable[[float], None] | None = None,
    ) -> list[PointCloud]:
        """A cloud for each prompt.

        Args:
            generator: on the CPU; all randomness comes from it.
            progress: told after each step what share of the work is done.

        Raises:
            UserError: a word that is not in its vocabulary.
        """
        if self.vocabulary is not None:
            prompts = [known_words(prompt, self.vocabulary, self.name) for prompt in prompts]
        total = self.stage.steps + (self.upsampler_stage.steps if self.upsampler else 0)
        done = 0

        def on_step() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done / total)

        with torch.no_grad():
            cloud = self._draw(self.text(prompts), generator, on_step)
            if self.upsampler is not None:
                cloud = torch.cat([cloud, self._upsample(cloud, generator, on_step)], dim=2)
        return [_to_cloud(one, self.to_world) for one in cloud.float().cpu()]

    def _draw(self, text: Tensor, generator: torch.Generator, on_step: Callable[[], None]) -> Tensor:
        """Clouds [B, 6, N] in units of the data, from text vectors [B, D]."""
        stage, shape = self.stage, (len(text), 6, self.stage.points)
        denoise = guide(self.model, stage.alphas_cumprod, stage.guidance_scale, "text", text)
        return stage.decode(
            sample_heun(denoise, shape, stage.sigmas, generator, stage.s_churn, text.device, on_step)
        )

    def _upsample(self, low_res: Tensor, generator: torch.Generator, on_step: Callable[[], None]) -> Tensor:
        """More points [B, 6, M] for clouds [B, 6, N], both in units of the data."""
        stage, shape = self.upsampler_stage, (len(low_res), 6, self.upsampler_stage.points)
        denoise = make_denoiser(self.upsampler, stage.alphas_cumprod, low_res=low_res)
        return stage.decode(
            sample_heun(denoise, shape, stage.sigmas, generator, stage.s_churn, low_res.device, on_step)
        )


def _to_cloud(cloud: Tensor, to_world: Rotation) -> PointCloud:
    """One cloud [6, N] in units of the data: xyz turned into our axes, rgb rounded to 1/255."""
    xyz, rgb = cloud.split(3)
    return PointCloud((torch.tensor(to_world) @ xyz).T.contiguous(), rgb.T.clamp(0, 255).round() / 255)


# --- loading ------------------------------------------------------------------------------------------------


def load_public(
    base: str | Path = BASE_URL,
    upsampler: str | Path | None = UPSAMPLER_URL,
    text_encoder: str | Path = CLIP,
    device: torch.device | str = "cpu",
) -> TextToPointCloud:
    """OpenAI's text models (40 million parameters each), 4096 points.

    Args:
        base, upsampler: checkpoints, each a path or an address. None: no upsampler, 1024 points.
        text_encoder: folder or hub id of CLIP ViT-L/14.

    Raises:
        UserError: something is not there, cannot be fetched, is damaged or is something else.
    """
    path = find_checkpoint(base, BASE_URL)
    fine_path = None if upsampler is None else find_checkpoint(upsampler, UPSAMPLER_URL)
    with torch.device("meta"):
        model, fine = TextToPoints(), PointsToPoints()
    model = _placed(load_weights(model, path), device)
    fine = None if fine_path is None else _placed(load_weights(fine, fine_path), device)
    return TextToPointCloud(TextVectors.load(text_encoder, text_encoder, device), model, PUBLIC_BASE, fine)


@dataclass(frozen=True)
class FolderConfig:
    """What `config.json` of a point prior's folder says."""

    network: dict
    """Arguments of `TextToPoints`."""
    stage: Stage
    """How it is sampled."""
    vocabulary: list[str]
    """Every word it knows."""
    name: str = "The bundled point prior"

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=1)
        write_text(folder / CONFIG, text + "\n")

    @classmethod
    def read(cls, folder: Path) -> FolderConfig:
        """Raises UserError: there is none, or it is damaged."""
        file = folder / CONFIG
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return cls(**{**content, "stage": Stage(**content["stage"])})
        except FileNotFoundError:
            raise UserError(_no_folder(folder)) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{file} is damaged: {str(error).splitlines()[0]}. {_next_step(folder)}"
            ) from None


def load_folder(folder: str | Path = MINI, device: torch.device | str = "cpu") -> TextToPointCloud:
    """A point prior in a folder, such as the bundled one (made by `python -m toybox.train_points`).

    It has everything it needs, its text encoder too, so that no change to another prior can spoil it:
    config.json, model.safetensors, text_encoder/, tokenizer/.

    Raises:
        UserError: a file is missing or damaged, or they do not fit together.
    """
    folder = Path(folder).expanduser()
    config = FolderConfig.read(folder)
    for file in (folder / WEIGHTS, folder / TEXT_ENCODER / WEIGHTS, folder / TOKENIZER / "tokenizer.json"):
        if not file.is_file():
            raise UserError(f"{file} does not exist. {_next_step(folder)}")
    try:
        with torch.device("meta"):
            model = TextToPoints(**config.network)
    except TypeError as error:
        raise UserError(f"{folder / CONFIG}, network: {error}. {_next_step(folder)}") from None
    model = _placed(load_weights(model, folder / WEIGHTS), device)
    text = TextVectors.load(folder / TOKENIZER, folder / TEXT_ENCODER, device, _next_step(folder))
    if text.model.config.projection_dim != model.clip_embed.in_features:
        raise UserError(
            f"{folder} does not fit together: its text encoder writes vectors of "
            f"{text.model.config.projection_dim} numbers, its network reads {model.clip_embed.in_features}."
        )
    return TextToPointCloud(
        text,
        model,
        config.stage,
        to_world=NO_TURN,
        vocabulary=config.vocabulary,
        name=config.name,
    )


def _placed(model: PointTransformer, device: torch.device | str) -> PointTransformer:
    """The network on its device; on a CPU in bfloat16 where that is faster."""
    device = torch.device(device)
    model.half = device.type == "cpu" and resolve_dtype("auto", device) is torch.bfloat16
    return model.to(device)


def _no_folder(folder: Path) -> str:
    return f"There is no point prior in {folder} ({CONFIG} is missing). {_next_step(folder)}"


def _next_step(folder: Path) -> str:
    if folder.resolve() == MINI.resolve():
        return (
            "Get it back with `git checkout -- custom/threestudio-lucid/priors/mini/points`, or train it: "
            "`python -m toybox.train_points`."
        )
    return (
        "Copy it again, train one with `python -m toybox.train_points --out FOLDER`, or take another: "
        "system.geometry.text_model=mini (bundled) or pointe (OpenAI's)."
    )


def generate(
    prompt: str,
    generator: torch.Generator,
    model: str | Path = "mini",
    *,
    points: int | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    base: str | Path = BASE_URL,
    upsampler: str | Path | None = UPSAMPLER_URL,
    text_encoder: str | Path = CLIP,
    device: torch.device | str | None = None,
    progress: Callable[[float], None] | None = None,
) -> PointCloud:
    """Coloured points for a prompt, z up, front +x.

    Args:
        prompt: what it should be, without words about the view.
        generator: on the CPU; same state, same points.
        model: "mini", the bundled prior (about 1000 points in the unit ball); "pointe", the public models
            (4096 points, within +-0.5); or a folder in the bundled one's format.
        points: how many the first stage draws; None: as the model is meant. Point-E knows 1024 only.
        steps, guidance_scale: of the first stage; None: the model's own.
        base, upsampler, text_encoder: for "pointe", see `load_public`.
        device: None: CUDA where there is one.
        progress: told after each step what share of the work is done.

    Raises:
        UserError: an unknown word, or a model that is missing, damaged or out of reach.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if str(model) == "pointe":
        loaded = load_public(base, upsampler, text_encoder, device)
    else:
        loaded = load_folder(MINI if str(model) == "mini" else model, device)
    wanted = {"points": points, "steps": steps, "guidance_scale": guidance_scale}
    loaded.stage = replace(loaded.stage, **{k: v for k, v in wanted.items() if v is not None})
    return loaded([prompt], generator, progress)[0]
