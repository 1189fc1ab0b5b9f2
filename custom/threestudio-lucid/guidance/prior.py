"""The prior: a latent diffusion model in diffusers' format, behind five calls.

    encode, decode      images [B, 3, H, W] in [0, 1]  <->  latents [B, C, h, w], times the VAE's factor
    encode_text         prompts -> embeddings [n, T, D]
    predict, eps        noisy latents, timestep, embeddings -> the network's raw output, and the noise in it

Everything is frozen; only `encode` is differentiable. What goes in and comes out is float32; inside it is the
dtype of the card. Parts are loaded on first use: a run whose text embeddings are in the cache never loads the
text encoder.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import versions
from ..damaged import DAMAGED, reason
from ..errors import UserError, check_choice
from ..texts import shortened
from ..weights import check_finite
from . import folder as files
from .adapters import NONE, Adapters
from .cards import DTYPES, Card, announce, find_card, is_hub_id
from .embeddings import add_words, read_embedding, spell_out
from .graphs import Replayed, ReplayedWithGradient
from .joined import join_leading
from .layers import LARGEST_PRODUCT, multiply_wide_heads, normalise_by_channels
from .lora import merge_loras
from .recorded import Recorded, pays_off
from .schedule import PREDICTION_TYPES, NoiseSchedule
from .trajectory import x0_and_eps

_SHARED: weakref.WeakValueDictionary[tuple, Prior] = weakref.WeakValueDictionary()


def in_own_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of something with a `device` that keeps its own dtype, whatever autocast the trainer is in."""

    @functools.wraps(method)
    def plain(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return plain


class Prior:
    """A loaded prior. Make one with `Prior.load`, which gives the same object for the same request.

    Attributes:
        card: what is known about it; its vocabulary has the words of the adapters.
        adapters: LoRA and learned words that its weights have.
        device, dtype: where and in what arithmetic UNet and VAE run. The text encoder always runs in float32.
        schedule: its noise schedule.
        latent_channels, latent_size: shape of its latents.
    """

    def __init__(
        self, card: Card, device: torch.device, dtype: torch.dtype, adapters: Adapters = NONE
    ) -> None:
        """Checks that everything is there and fits together; loads no weights. See `load`."""
        self.card, self.device, self.dtype = adapters.taught(card), device, dtype
        self.adapters = adapters
        self.source = _find_source(card)
        self.single_file = self.source if self.source.is_file() else None
        self.configs = _config_folder(card) if self.single_file else self.source
        if card.vae is None:
            self.vae_folder, self.vae_config = None, files.read_config(self.configs, "vae")
        else:
            self.vae_folder, self.vae_config = files.find_vae(card.vae)
        unet = files.read_config(self.configs, "unet")
        self.latent_channels: int = unet.get("in_channels", 4)
        self.latent_size: int = card.latent_size
        self._compiled = self._replays = self._records = False
        self._check_sizes(unet)

    @classmethod
    def load(
        cls,
        prior: str | Path | Card = "auto",
        device: torch.device | str | None = None,
        dtype: str | torch.dtype | None = None,
        adapters: Adapters = NONE,
    ) -> Prior:
        """The prior of that name, shared by everyone in this process who asks for the same.

        Args:
            prior: a name, folder, file or hub id (see `cards`), or a card.
            device: None: CUDA where there is one.
            dtype: "auto", "float32", "bfloat16", "float16" or a torch dtype; None: as the card says.
            adapters: LoRA and learned words, see `adapters.find_adapters`.

        Raises:
            UserError: unknown name; files missing, damaged, or not fitting together; hub out of reach.
        """
        card = prior if isinstance(prior, Card) else find_card(prior)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = resolve_dtype(dtype or card.dtype, device)
        key = (repr(card), str(device), dtype, adapters.fingerprint, adapters.words)
        if (found := _SHARED.get(key)) is None:
            found = _SHARED[key] = cls(card, device, dtype, adapters)
        return found

    # --- the five calls -------------------------------------------------------------------------------------

    @in_own_precision
    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to latents [B, C, h, w], scaled; differentiable.

        Images of another size are resized to the card's. An AutoencoderKL's posterior is sampled with
        `generator` (on the prior's device; None: its mean), and the gradient reaches its mean and spread.
        """
        size = (self.card.image_size, self.card.image_size)
        if images.shape[-2:] != size:
            shrinks = images.shape[-2] > size[0]
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=shrinks)
        pixels = (2.0 * images - 1.0).to(self.dtype, memory_format=torch.channels_last)
        encoded = self._encoder(pixels).float()
        if not self._is_variational:
            return encoded * self.vae.config.scaling_factor
        latents, log_variance = encoded.chunk(2, dim=1)
        if generator is not None:
            fresh = torch.randn(latents.shape, generator=generator, device=latents.device)
            latents = latents + torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)) * fresh  # diffusers' bounds
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    @in_own_precision
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to images [B, 3, H, W] in [0, 1]."""
        latents = (latents / self.vae.config.scaling_factor).to(self.dtype, memory_format=torch.channels_last)
        return (self.vae.decode(latents).sample.float() / 2.0 + 0.5).clamp(0.0, 1.0)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Last hidden states [n, T, D] of prompts padded to the model's length; no attention mask.

        What is too long is cut, and said; see `reads_all_of`.
        """
        tokenizer, encoder = self._text
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        if self.adapters.embeddings:
            prompts = [spell_out(prompt, tokenizer) for prompt in prompts]
        ids = tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        with quiet():  # transformers would say it, too
            lengths = [len(tokenizer.tokenize(prompt)) for prompt in prompts]
        for prompt, n in zip(prompts, lengths, strict=True):
            if n > length - 2:
                announce(
                    f"The prior reads only the first {length - 2} of {n} tokens of {shortened(prompt)!r}."
                )
        return encoder(ids.input_ids.to(self.device)).last_hidden_state.float()

    def reads_all_of(self, prompt: str) -> bool:
        """Whether a prompt is short enough for the text encoder, which has two places less than it reads."""
        words = [(e.token, len(read_embedding(e.file, e.bundled)[1])) for e in self.adapters.embeddings]
        most = len(prompt.encode()) + sum(prompt.count(token) * vectors for token, vectors in words)
        if most <= self.text_length:  # there is no token of less than a byte
            return True
        tokenizer = self._text[0] if words else self._tokenizer
        with quiet():  # transformers would say that it is too long
            tokens = tokenizer.tokenize(spell_out(prompt, tokenizer) if words else prompt)
        return len(tokens) <= self.text_length

    @cached_property
    def text_length(self) -> int:
        """Tokens of a prompt that the text encoder reads, not counting those that mark its ends."""
        places = files.read_config(self.configs, "text_encoder").get("max_position_embeddings", 77)
        return min(self._tokenizer.model_max_length, places) - 2

    @torch.no_grad()
    @in_own_precision
    def predict(self, x: Tensor, tau: int, embeddings: Tensor, **residuals: Any) -> Tensor:
        """The network's raw output (noise or v) for noisy latents [B, C, h, w] at timestep `tau`.

        This is the `model` that the functions of `trajectory`, `ism` and `sds` take.

        Args:
            residuals: what a ControlNet adds to the UNet's features (see `control`).
        """
        # a full tensor, since diffusers would copy a python number to the GPU and wait
        timesteps = torch.full((x.shape[0],), tau, device=x.device)
        x = x.to(self.dtype, memory_format=self._unet_layout)
        arguments = x, timesteps, embeddings.to(self.dtype)
        if residuals:
            return self.unet(*arguments, **residuals).sample.float()
        return self._denoiser(*arguments).to(torch.float32, copy=self._replays)

    def eps(self, x: Tensor, tau: int, embeddings: Tensor) -> Tensor:
        """The noise predicted in x at timestep `tau`, converted when the network predicts v."""
        return x0_and_eps(self.schedule, self.predict(x, tau, embeddings), x, tau)[1]

    # --- its parts ------------------------------------------------------------------------------------------

    @property
    def alphas_cumprod(self) -> tuple[float, ...]:
        """ab of every timestep."""
        return self.schedule.alphas_cumprod

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule, from the scheduler's config."""
        from diffusers import DDIMScheduler

        config = files.read_config(self.configs, "scheduler")
        with quiet(), loading(self.configs / "scheduler"):
            scheduler = DDIMScheduler.from_config(config)
        prediction_type = self.card.prediction_type or scheduler.config.prediction_type
        if prediction_type not in PREDICTION_TYPES:
            raise UserError(
                f"The prior {self.card.name!r} predicts {prediction_type!r}; supported: "
                f"{', '.join(PREDICTION_TYPES)}."
            )
        leading = scheduler.config.timestep_spacing == "leading"
        return NoiseSchedule.from_table(
            scheduler.alphas_cumprod,
            prediction_type=prediction_type,
            steps_offset=scheduler.config.steps_offset if leading else 0,
            final_alpha_cumprod=float(scheduler.final_alpha_cumprod),
        )

    @property
    def _unet_layout(self) -> torch.memory_format:
        """On a CPU the plain layout is the faster one for the UNet (and the other for the VAE)."""
        return torch.channels_last if self.device.type == "cuda" else torch.contiguous_format

    @cached_property
    def unet(self) -> Any:
        """UNet2DConditionModel."""
        from diffusers import UNet2DConditionModel

        # LoRA is added in float32, and the sum rounded
        dtype = torch.float32 if self.adapters.loras else self.dtype
        unet = self._component("unet", UNet2DConditionModel, dtype)
        with quiet():
            merge_loras(unet, "unet", self.adapters.loras, self.card.name)
            unet = unet.to(dtype=self.dtype, memory_format=self._unet_layout)
        if self.adapters.loras:
            check_finite(unet, self.adapters.loras[0].files[0], "Lower the LoRA's weight, or use another.")
        return unet

    @cached_property
    def vae(self) -> Any:
        """AutoencoderKL or AutoencoderTiny."""
        import diffusers

        name = self.vae_config.get("_class_name", "AutoencoderKL")
        if name not in ("AutoencoderKL", "AutoencoderTiny"):
            raise UserError(
                f"The prior {self.card.name!r} has a VAE of class {name}; supported are AutoencoderKL and "
                "AutoencoderTiny."
            )
        if not hasattr(diffusers, name):
            raise versions.needs(f"The prior {self.card.name!r}, whose VAE is an {name},", "diffusers")
        vae = self._component("vae", getattr(diffusers, name), self.dtype, self.vae_folder)
        if self.device.type == "cuda" and self.latent_size <= LARGEST_PRODUCT:
            multiply_wide_heads(vae.encoder)
        if name == "AutoencoderTiny" and self.device.type == "cpu":
            vae.encoder.layers = join_leading(vae.encoder.layers)
        return vae.to(memory_format=torch.channels_last)

    def _new_tokenizer(self) -> Any:
        from transformers import CLIPTokenizer

        with quiet(), loading(self.configs):
            return CLIPTokenizer.from_pretrained(self.configs / "tokenizer", local_files_only=True)

    @cached_property
    def _tokenizer(self) -> Any:
        """CLIPTokenizer, without the words of adapters."""
        return self._new_tokenizer()

    @cached_property
    def _text(self) -> tuple[Any, Any]:
        """CLIPTokenizer and CLIPTextModel, with the words and LoRA of the adapters."""
        from transformers import CLIPTextModel

        tokenizer = self._new_tokenizer()
        encoder = self._component("text_encoder", CLIPTextModel, torch.float32)
        with quiet():
            merge_loras(encoder, "text_encoder", self.adapters.loras, self.card.name)
            add_words(tokenizer, encoder, self.adapters.embeddings, self.card.name)
        return tokenizer, encoder

    # --- how the networks are called ------------------------------------------------------------------------

    def speed_up(self, compiled: bool = False, graphs: bool = True) -> None:
        """Call the denoiser and the VAE's encoder faster from now on; what they compute stays the same.

        Args:
            compiled: through torch.compile: a minute or two when first called.
            graphs: on CUDA, as one launch each (see `graphs`); on a CPU, the denoiser as a list of operators
                (see `recorded`).
        """
        before = self._compiled, self._replays, self._records
        if compiled and not self._compiled:
            self._compiled = True
            if self.device.type == "cuda":
                normalise_by_channels(self.unet)
                normalise_by_channels(self.vae.encoder)
            self.unet.compile(dynamic=False)
            self.vae.encoder.compile(dynamic=False)
        self._replays = graphs and self.device.type == "cuda"
        # compiled, it is such a list already
        records = graphs and self.device.type == "cpu" and not self._compiled
        self._records = records and pays_off(self.unet, self.dtype)
        if (self._compiled, self._replays, self._records) != before:
            for name in ("_denoiser", "_encoder"):
                self.__dict__.pop(name, None)

    @cached_property
    def _denoiser(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Noisy latents, timesteps [B] and embeddings to the raw output."""
        denoise = _Denoiser(self.unet)
        if self._replays:
            return Replayed(denoise)
        return Recorded(denoise) if self._records else denoise

    @cached_property
    def _encoder(self) -> Callable[[Tensor], Tensor]:
        """Pixels to latents, or to the moments of their posterior."""
        vae = self.vae

        def encode(pixels: Tensor) -> Tensor:
            if not self._is_variational:
                return vae.encode(pixels, return_dict=False)[0]
            moments = vae.encoder(pixels)
            return moments if vae.quant_conv is None else vae.quant_conv(moments)

        return ReplayedWithGradient(encode) if self._replays else encode

    @cached_property
    def _is_variational(self) -> bool:
        """AutoencoderKL's encoder writes mean and log variance, AutoencoderTiny's latents."""
        return type(self.vae).__name__ == "AutoencoderKL"

    def release_text_encoder(self) -> None:
        """Gives its memory back; the next `encode_text` loads it again."""
        self.__dict__.pop("_text", None)

    def text_fingerprint(self) -> str:
        """A hash of tokenizer, text encoder and adapters: changes when embeddings of a text may change."""
        if self.single_file:
            own = files.fingerprint_file(self.single_file)
        else:
            own = files.fingerprint(self.source, ("tokenizer", "text_encoder"))
        return own + self.adapters.fingerprint

    # --- loading --------------------------------------------------------------------------------------------

    def _component(self, name: str, cls: type, dtype: torch.dtype, folder: Path | None = None) -> Any:
        """One part with its weights, frozen, on the device.

        Args:
            folder: where it is, if it is not a part of the prior's own.

        Raises:
            UserError: the weights do not fit, or are not finite.
        """
        from_file = self.single_file if folder is None else None
        folder = folder or self.source / name
        with quiet(), loading(from_file or folder):
            if from_file:
                model = self._from_single_file(name, cls).to(dtype)
            elif name == "text_encoder" and (state := _under_older_names(folder, cls)) is not None:
                model = cls(cls.config_class.from_pretrained(folder))
                missing, _ = model.load_state_dict(state, strict=False)
                check_report(folder, {"missing_keys": missing})
            else:
                if cls.__module__.startswith("diffusers"):
                    options = {"torch_dtype": dtype}
                else:  # ignoring them, the report names them
                    options = {"ignore_mismatched_sizes": True}
                model, report = cls.from_pretrained(
                    folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
                )
                check_report(folder, report)
            model = model.to(self.device, dtype).eval().requires_grad_(False)
            check_finite(model, from_file or folder)
            return model

    def _from_single_file(self, name: str, cls: type) -> Any:
        """One part of a checkpoint in the original layout."""
        where = {"config": str(self.configs), "local_files_only": True}
        if name != "text_encoder":
            return cls.from_single_file(str(self.single_file), subfolder=name, **where)
        from diffusers import StableDiffusionPipeline

        # only pipelines know how to convert a text encoder
        return StableDiffusionPipeline.from_single_file(
            str(self.single_file), unet=None, vae=None, safety_checker=None, **where
        ).text_encoder

    def _check_sizes(self, unet: dict) -> None:
        """UNet, VAE, text encoder and card must agree on sizes."""
        vae = self.vae_config
        text = files.read_config(self.configs, "text_encoder")
        where = f"The prior {self.card.name!r} ({self.source})"
        if vae.get("latent_channels", 4) != self.latent_channels:
            raise UserError(
                f"{where} does not fit together: its UNet reads {self.latent_channels} latent channels, "
                f"its VAE writes {vae.get('latent_channels', 4)}. Were its parts copied from two models?"
            )
        width = unet.get("cross_attention_dim", 1280)
        if text.get("hidden_size", 512) != width:
            raise UserError(
                f"{where} does not fit together: its UNet reads embeddings of width {width}, its text "
                f"encoder writes {text.get('hidden_size', 512)}. Were its parts copied from two models?"
            )
        size = self.card.image_size // files.downscaling(vae)
        if size != self.card.latent_size:
            raise UserError(
                f"The card of prior {self.card.name!r} says image_size {self.card.image_size} and "
                f"latent_size {self.card.latent_size}, but its VAE makes {size} of that. Correct the card."
            )


class _Denoiser(nn.Module):
    """A UNet2DConditionModel from three tensors to one."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        return self.unet(x, timesteps, embeddings, return_dict=False)[0]


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The torch dtype of a card's or config's choice on a device.

    auto is float16 on CUDA; on a CPU bfloat16 if it has AMX (see `has_amx`), else float32.

    Raises:
        UserError: an unknown name, or float16 without CUDA.
    """
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    check_choice("dtype", dtype, DTYPES)
    if dtype == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if device.type == "cpu" and has_amx() else torch.float32
    if dtype == "float16" and device.type != "cuda":
        raise UserError(
            f"dtype float16 needs CUDA, and the prior is on {device}. Use auto, bfloat16 or float32."
        )
    return getattr(torch, dtype)


def has_amx() -> bool:
    """Whether the CPU multiplies matrices of bfloat16.

    Then bfloat16 is two to four times as fast as float32. On a Xeon with AVX-512's instructions for it but
    without AMX, as some virtual machines are, it is half as fast; AMD's processors were not measured.
    """
    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def _find_source(card: Card) -> Path:
    """The folder or file with the weights, fetched from the hub if need be, and whole."""
    path = Path(card.path).expanduser()
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise UserError(f"The prior {card.name!r} is not at {path}. Correct its path.")
        files.check_safetensors(path, path)
        return path
    from_hub = is_hub_id(card.path) and not path.is_dir()
    source = files.fetch(card.path, weights=True) if from_hub else path
    files.check_folder(source)
    return source


def _config_folder(card: Card) -> Path:
    """Where a single file's configs and tokenizer are."""
    if card.config is None:
        raise UserError(
            f"The card of prior {card.name!r} names a single file; it must also say `config:`, a folder or "
            "hub id with the configs and the tokenizer of the same architecture."
        )
    path = Path(card.config).expanduser()
    return path if path.is_dir() else files.fetch(card.config, weights=False)


def _under_older_names(folder: Path, cls: type) -> dict[str, Tensor] | None:
    """The tensors of a text encoder that transformers 5 saved, for an older transformers to load.

    transformers 5 reads both names and writes `encoder.layers...`; before, they were `text_model.encoder...`
    and no other. None: the names are such as this transformers reads.
    """
    from safetensors import safe_open

    with torch.device("meta"):
        model = cls(cls.config_class.from_pretrained(folder))
    if not hasattr(model, "text_model"):
        return None
    state = {}
    for file in files.weight_files(folder.parent, folder.name):
        with safe_open(file, framework="pt") as weights:
            if any(name.startswith("text_model.") for name in weights.keys()):  # noqa: SIM118 (no mapping)
                return None
            state |= {f"text_model.{name}": weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    return state


def check_report(folder: Path, report: dict) -> None:
    """Nothing that the architecture needs may be missing from the weights."""
    wrong = [
        key for kind in ("missing_keys", "mismatched_keys", "error_msgs") for key in report.get(kind, ())
    ]
    wrong = [key if isinstance(key, str) else str(key[0]) for key in wrong if "position_ids" not in str(key)]
    if wrong:
        listed = ", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise UserError(
            f"The weights in {folder} do not fit its config.json: {listed} missing or of another shape. "
            "The two are from different models, or the file was not written to its end."
        )


@contextlib.contextmanager
def loading(path: Path) -> Iterator[None]:
    """Turns what diffusers and transformers raise about bad files into one message.

    Where they are older than what is tested, the message says that this may be why.
    """
    try:
        yield
    except UserError:
        raise
    except DAMAGED as error:
        too_old = versions.hint("diffusers", "transformers")
        if isinstance(error, AttributeError | ImportError) and not too_old:
            raise  # no file's fault
        said = reason(error, 300).split(" If you want")[0]
        raise UserError(
            f"{path} cannot be loaded: what it holds does not fit its config, or a file is damaged. "
            f"({type(error).__name__}: {said})" + (f"\n{too_old}" if too_old else "")
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, advice or reports from the model libraries while loading."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    before = [(library, library.get_verbosity()) for library in (diffusers_logging, transformers_logging)]
    bars = [library.is_progress_bar_enabled() for library, _ in before]
    root_level = logging.getLogger("huggingface_hub").level
    try:
        for library, _ in before:
            library.set_verbosity_error()
            library.disable_progress_bar()
        yield
    finally:
        for (library, verbosity), bar in zip(before, bars, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()
        logging.getLogger("huggingface_hub").setLevel(root_level)
