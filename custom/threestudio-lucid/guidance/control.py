"""ControlNet (Zhang et al. 2023, arXiv 2302.05543): a picture that says where what is to be, beside the text.

A ControlNet reads a picture with the noisy latents and adds to the features of the prior's UNet. The picture
is given for each view; what it shows is its maker's business (for avatars, maps of a posed body).

In score distillation there are scores with text and without. `scores` says which of them see the picture:

    conditional   The guided score at x_t alone, and of its terms all but the unconditional one. The picture
                  is part of the prompt: the gradient pulls towards it by the guidance scale, as to the text.
    both          All of them, the inversion to x_s and the score there too. What the picture says then
                  cancels to first order, in the interval and in the guidance: it pulls less.

The default is conditional: a cloud that has left the pose is brought back to it.

A mirrored batch has its pictures mirrored, no more: left and right keep their colours.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..damaged import DAMAGED
from ..errors import UserError, check_choice, check_range, closest
from ..weights import check_finite
from . import folder as files
from .cards import PRIORS_FOLDER, is_hub_id
from .prior import Prior, check_report, in_own_precision, loading, quiet
from .stock import check_schedule
from .trajectory import Model

SCORES = ("conditional", "both")
# Some of the published ones have the second alone. It is read with weights_only=True, which runs no code.
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
# What must be as in the prior's UNet for one's features to be added to the other's.
_SHARED_KEYS = ("cross_attention_dim", "in_channels", "block_out_channels", "layers_per_block")


@dataclass(frozen=True)
class ControlConfig:
    """The block `system.guidance.control`."""

    model: str = ""
    """mini (bundled, for the bundled prior), a folder in diffusers' format, or a hub id."""
    scores: str = "conditional"
    """conditional: the guided score sees the picture; both: the unguided ones too."""
    scale: Any = 1.0
    """Factor on what is added to the UNet's features, or a schedule of it; 0 is without."""
    start: float = 0.0
    """From which part of denoising on it takes part, as in diffusers: 0 is pure noise, 1 clean."""
    end: float = 1.0
    """Until which part."""

    def __post_init__(self) -> None:
        where = "system.guidance.control."
        if not self.model or not isinstance(self.model, str):
            raise UserError(
                f"{where}model is {self.model!r}; it must name a ControlNet: mini, a folder in diffusers' "
                "format, or a hub id such as organisation/model."
            )
        check_choice(where + "scores", self.scores, SCORES)
        check_schedule(where + "scale", self.scale, 0.0)
        check_range(where + "start", self.start, 0.0, 1.0)
        check_range(where + "end", self.end, 0.0, 1.0)
        if self.start >= self.end:
            raise UserError(f"{where}start is {self.start:g}, not before {where}end, {self.end:g}.")

    @classmethod
    def parse(cls, given: Any) -> ControlConfig:
        """From a mapping.

        Raises:
            UserError: no mapping, unknown keys, or values that it does not take.
        """
        if not isinstance(given, Mapping):
            raise UserError(
                f"system.guidance.control is {given!r}; it must be a mapping such as {{model: mini}}."
            )
        known = [field.name for field in fields(cls)]
        for key in given:
            if key not in known:
                near = closest(str(key), known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise UserError(
                    f"system.guidance.control has no key {key!r}.{hint} Keys: {', '.join(known)}."
                )
        return cls(**given)


class Control:
    """A ControlNet beside a prior.

    Attributes:
        scale: at present; `cfg.scale` may be a schedule, which whoever knows the step follows.
    """

    def __init__(self, net: Any, prior: Prior, cfg: ControlConfig) -> None:
        """`net` is a ControlNetModel on the prior's device; see `load`."""
        self.net, self.prior, self.cfg = net, prior, cfg
        self.scale = float(cfg.scale) if isinstance(cfg.scale, int | float) else 1.0

    @classmethod
    def load(cls, given: Any, prior: Prior) -> Control | None:
        """From the block of a config; None where it is null or empty.

        Raises:
            UserError: see `ControlConfig`; files missing or damaged; a ControlNet for another base model.
        """
        if not given:
            return None
        cfg = ControlConfig.parse(given)
        folder = find_controlnet(cfg.model)
        check_fits(read_config(folder), prior, cfg.model)
        return cls(_load(folder, prior), prior, cfg)

    def networks(self, picture: Tensor | None) -> tuple[Model, Model]:
        """The networks for the unguided scores and for the guided one, as `ism.ism_step` takes them.

        Args:
            picture: [B, 3, H, W] in [0, 1], one for each view of the batch.

        Raises:
            UserError: there is none.
        """
        if picture is None:
            raise UserError(
                "system.guidance.control needs a picture for each view, and the system gives none. For "
                "avatars: system_type: lucid-avatar-system."
            )
        picture = self._sized(picture)
        everywhere = self.cfg.scores == "both"
        unguided = self._model(picture, everywhere=True) if everywhere else self.prior.predict
        return unguided, self._model(picture, everywhere)

    def _model(self, picture: Tensor, everywhere: bool) -> Model:
        n = len(picture)

        def predict(x: Tensor, tau: int, embeddings: Tensor) -> Tensor:
            """Rows are terms of B views each; the first of several is the unconditional one."""
            if not self.active(tau):
                return self.prior.predict(x, tau, embeddings)
            terms = len(x) // n
            first = 0 if everywhere or terms == 1 else n
            down, mid = self._features(
                x[first:], tau, embeddings[first:], picture.repeat(terms - first // n, 1, 1, 1)
            )
            if first:
                down, mid = [_after_zeros(d, first) for d in down], _after_zeros(mid, first)
            return self.prior.predict(
                x,
                tau,
                embeddings,
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
            )

        return predict

    def active(self, tau: int) -> bool:
        """Whether the picture is seen at a timestep."""
        denoised = 1.0 - tau / len(self.prior.schedule)
        return self.scale > 0.0 and self.cfg.start <= denoised <= self.cfg.end

    @property
    def device(self) -> torch.device:
        """The prior's."""
        return self.prior.device

    @torch.no_grad()
    @in_own_precision
    def _features(
        self, x: Tensor, tau: int, embeddings: Tensor, picture: Tensor
    ) -> tuple[Sequence[Tensor], Tensor]:
        dtype = self.prior.dtype
        timesteps = torch.full((len(x),), tau, device=x.device)
        down, mid = self.net(
            x.to(dtype),
            timesteps,
            encoder_hidden_states=embeddings.to(dtype),
            controlnet_cond=picture.to(dtype),
            conditioning_scale=self.scale,
            return_dict=False,
        )
        return down, mid

    def _sized(self, picture: Tensor) -> Tensor:
        """At the prior's size; colours of parts are not mixed."""
        if picture.ndim != 4 or picture.shape[1] != 3:
            raise ValueError(f"pictures for a ControlNet are [B, 3, H, W], not {list(picture.shape)}")
        size = (self.prior.card.image_size,) * 2
        picture = picture.detach().to(self.prior.device)
        return picture if picture.shape[-2:] == size else F.interpolate(picture, size, mode="nearest-exact")


def _after_zeros(features: Tensor, n: int) -> Tensor:
    """[n + B, ...]: nothing for the first n."""
    return torch.cat([torch.zeros_like(features[:1]).expand(n, *features.shape[1:]), features])


# --- loading ------------------------------------------------------------------------------------------------


def find_controlnet(name: str) -> Path:
    """The folder of a ControlNet, fetched from the hub if need be.

    Args:
        name: see `ControlConfig.model`. Repositories often keep it in a folder `controlnet`, which is looked
            into; another one is named behind the repository, organisation/model/checkpoint-10000/controlnet.

    Raises:
        UserError: no such folder, files missing or damaged, hub out of reach.
    """
    path = PRIORS_FOLDER / "mini" / "controlnet" if name == "mini" else Path(name).expanduser()
    if path.is_dir():
        return _whole(path)
    if name == "mini":
        raise UserError(f"The bundled ControlNet is not at {path}. Train it: python -m toybox.train_control.")
    repository, inside = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    if not is_hub_id(repository) or name.startswith((".", "/", "~")):
        raise UserError(
            f"There is no ControlNet {name!r}: no such folder, and no hub id. Take mini (bundled, for the "
            "bundled prior), a folder in diffusers' format, or a hub id such as organisation/model."
        )
    return _fetch(repository, inside)


def _fetch(repository: str, inside: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HfHubHTTPError, LocalEntryNotFoundError

    folders = [inside] if inside else ["", "controlnet"]
    patterns = [str(Path(folder, file)) for folder in folders for file in ("config.json", *WEIGHTS)]
    with contextlib.suppress(LocalEntryNotFoundError, UserError):
        here = Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=True))
        return _whole(here / inside)
    try:
        here = Path(snapshot_download(repository, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).split(". ")[0][:160]
        raise UserError(
            f"The ControlNet {repository!r} is no folder here, not in the hub's local cache, and cannot be "
            f"fetched ({type(error).__name__}: {reason}). Check the name and the network, or fetch it on "
            f"another machine with `hf download {repository}` and give the folder."
        ) from error
    return _whole(here / inside)


def _whole(folder: Path) -> Path:
    """The folder, or `controlnet` in it, whichever holds a ControlNet.

    Raises:
        UserError: neither does, or its weights are missing or damaged.
    """
    inner = folder / "controlnet"
    folder = inner if not (folder / "config.json").is_file() and inner.is_dir() else folder
    read_config(folder)
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise UserError(
            f"The ControlNet in {folder} has no {' or '.join(WEIGHTS)}. Copy or download it again."
        )
    if (file := folder / WEIGHTS[0]).is_file():
        files.check_safetensors(file, folder)
    return folder


def read_config(folder: Path) -> dict:
    """config.json of a ControlNet.

    Raises:
        UserError: there is none, or it is of something else.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except DAMAGED:
        raise UserError(
            f"{folder} is no ControlNet in diffusers' format: its config.json is missing or damaged."
        ) from None
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind != "ControlNetModel":
        raise UserError(f"{folder} holds a {kind or 'model of no name'}, no ControlNetModel.")
    return config


def check_fits(config: dict, prior: Prior, name: str) -> None:
    """Raises UserError where a ControlNet, by its config, is for another base model or kind of picture."""
    unet = files.read_config(prior.configs, "unet")
    for key in _SHARED_KEYS:
        ours, theirs = _plain(config.get(key)), _plain(unet.get(key))
        if None not in (ours, theirs) and ours != theirs:
            raise UserError(
                f"The ControlNet {name!r} is for another base model than the prior {prior.card.name!r}: its "
                f"{key} is {ours}, the prior's {theirs}. (Stable Diffusion 1.5 has cross_attention_dim 768, "
                "2.1 has 1024.) Set system.guidance.control.model or system.guidance.prior."
            )
    if (channels := config.get("conditioning_channels", 3)) != 3:
        raise UserError(f"The ControlNet {name!r} reads pictures of {channels} channels; they have 3.")
    widths = config.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)
    if not isinstance(widths, Sequence):
        raise UserError(f"The config of the ControlNet {name!r} is damaged. Copy or download it again.")
    steps = len(widths) - 1
    reads = prior.card.latent_size * 2**steps
    if reads != prior.card.image_size:
        raise UserError(
            f"The ControlNet {name!r} reads pictures of {reads} pixels for the latents of the prior "
            f"{prior.card.name!r}, whose pictures have {prior.card.image_size}: it is for another base model."
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _load(folder: Path, prior: Prior) -> Any:
    from diffusers import ControlNetModel

    with quiet(), loading(folder):
        net, report = ControlNetModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=(folder / WEIGHTS[0]).is_file(),
            output_loading_info=True,
            torch_dtype=prior.dtype,
        )
        check_report(folder, report)
    net = net.to(prior.device).eval().requires_grad_(False)
    check_finite(net, folder)
    return net
