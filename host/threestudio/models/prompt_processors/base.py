"""Prompts as embeddings, with a direction for each view: `PromptProcessor` and what calling it returns."""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

import threestudio
from threestudio.utils.base import BaseObject
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.files import atomic_path, make_folder
from threestudio.utils.misc import barrier, cleanup
from threestudio.utils.ops import shifted_expotional_decay

CACHE_DIR = ".threestudio_cache/text_embeddings"
PROMPT_LIBRARY = "load/prompt_library.json"


# ---- the cache ---------------------------------------------------------------------------------------------


def hash_prompt(model: str, prompt: str) -> str:
    """The name of a prompt's embedding in the cache.

    A model folder counts with its files' names, sizes and times, so that a model made anew at the same path
    is not answered with the old one's embeddings.
    """
    return hashlib.md5(f"{model_identity(model)}-{prompt}".encode(), usedforsecurity=False).hexdigest()


def model_identity(model: str) -> str:
    """``model`` itself for a hub id; for a folder, its path and what is in its text encoder and tokenizer."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    parts = [folder / name for name in ("tokenizer", "text_encoder") if (folder / name).is_dir()] or [folder]
    files = sorted(file for part in parts for file in part.rglob("*") if file.is_file())
    stats = [(file, file.stat()) for file in files]
    listed = [f"{file.relative_to(folder)}:{stat.st_size}:{stat.st_mtime_ns}" for file, stat in stats]
    return f"{folder.resolve()}-{';'.join(listed)}"


def save_embedding(embedding: Tensor, model: str, prompt: str, cache_dir: str) -> None:
    """Put a prompt's embedding [T, D] into the cache, on the CPU, whole or not at all."""
    with atomic_path(os.path.join(cache_dir, f"{hash_prompt(model, prompt)}.pt")) as temporary:
        torch.save(embedding.detach().cpu().clone(), temporary)


# ---- directions --------------------------------------------------------------------------------------------


@dataclass
class DirectionConfig:
    """A direction of view in words."""

    name: str
    prompt: Callable[[str], str]
    """The prompt with the direction's words."""
    negative_prompt: Callable[[str], str]
    """The negative prompt likewise."""
    condition: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Which cameras (elevation, azimuth in degrees, distances: [B] each) look from it: bool [B]."""


def shift_azimuth_deg(azimuth: Tensor) -> Tensor:
    """Degrees wrapped to [-180, 180)."""
    return (azimuth + 180) % 360 - 180


def standard_directions(
    overhead: float, front: float, back: float, words_in_front: bool = False
) -> list[DirectionConfig]:
    """Side, front, back, overhead; a later one wins where several apply.

    Args:
        overhead: elevations above this many degrees are overhead.
        front, back: azimuths within so many degrees of 0 and of 180 are front and back, strictly.
        words_in_front: "side view of a mug" rather than "a mug, side view".
    """

    def words(name: str) -> Callable[[str], str]:
        if words_in_front:
            first = "backside" if name == "back" else name
            return lambda prompt: f"{first} view of {prompt}"
        return lambda prompt: f"{prompt}, {name} view"

    conditions: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "side": lambda elevation, azimuth, distances: torch.ones_like(elevation, dtype=torch.bool),
        "front": lambda elevation, azimuth, distances: shift_azimuth_deg(azimuth).abs() < front,
        "back": lambda elevation, azimuth, distances: shift_azimuth_deg(azimuth).abs() > 180 - back,
        "overhead": lambda elevation, azimuth, distances: elevation > overhead,
    }
    return [
        DirectionConfig(name, words(name), lambda s: s, condition) for name, condition in conditions.items()
    ]


# ---- prompts that are too long -----------------------------------------------------------------------------

_DIRECTION = re.compile(r", (side|front|back|overhead) view$")


def fit_prompts(prompts: Sequence[str], fits: Callable[[str], bool]) -> list[str]:
    """The prompts, cut to what a text encoder reads, but for their directions: ``a very long, side view``.

    Says once of each what is left out.

    Args:
        fits: whether the encoder reads all of a text; where it does, it reads all of a shorter one too.
    """
    fitting = []
    left_out: dict[str, str] = {}
    for prompt in prompts:
        found = _DIRECTION.search(prompt)
        said, words = (prompt[: found.start()], found[0]) if found else (prompt, "")
        cut = _longest(said, lambda text, words=words: fits(text + words))
        if not cut and words:  # the encoder reads hardly more than a direction
            said, words = prompt, ""
            cut = _longest(said, fits)
        fitting.append(cut + words)
        if cut != said:
            left_out[said] = max(said[len(cut) :].strip(" ,"), left_out.get(said, ""), key=len)
    for said, rest in left_out.items():
        threestudio.warn(
            f"A prompt of {len(said.split())} words is too long for the text encoder, which does not read: "
            f"{shorten(rest)!r}"
        )
    return fitting


def _longest(text: str, fits: Callable[[str], bool]) -> str:
    """The longest beginning that fits, of whole words unless there is only one."""
    if fits(text):
        return text
    longest = bisect.bisect_left(range(1, len(text)), True, key=lambda n: not fits(text[:n]))
    cut = text[:longest]
    if text[longest] not in " ,":  # within a word
        cut = cut.rpartition(" ")[0] or cut
    return cut.rstrip(" ,")


def shorten(text: str, longest: int = 100) -> str:
    """For a line of the log: with an ellipsis in the middle where it is longer."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} … {text[-half:]}"


# ---- what a processor gives --------------------------------------------------------------------------------


@dataclass
class PromptProcessorOutput:
    """Embeddings [.., T, D] of a prompt (T tokens of D numbers), alone and with each direction's words."""

    text_embeddings: Tensor
    """[1, T, D]"""
    uncond_text_embeddings: Tensor
    """[1, T, D], of the negative prompt."""
    text_embeddings_vd: Tensor
    """[4, T, D], one a direction."""
    uncond_text_embeddings_vd: Tensor
    """[4, T, D]"""
    directions: list[DirectionConfig]
    direction2idx: dict[str, int]
    """side 0, front 1, back 2, overhead 3."""
    use_perp_neg: bool = False
    perp_neg_f_sb: tuple[float, float, float] = (1, 0.5, -0.606)
    perp_neg_f_fsb: tuple[float, float, float] = (1, 0.5, 0.967)
    perp_neg_f_fs: tuple[float, float, float] = (4, 0.5, -2.426)
    perp_neg_f_sf: tuple[float, float, float] = (4, 0.5, -2.426)
    prompt: str = ""
    prompts_vd: list[str] | None = None

    def direction_index(self, elevation: Tensor, azimuth: Tensor, camera_distances: Tensor) -> Tensor:
        """The direction of each camera, as an index [B] into ``text_embeddings_vd``."""
        index = torch.zeros_like(elevation, dtype=torch.long)
        for direction in self.directions:
            looks = direction.condition(elevation, azimuth, camera_distances)
            index[looks] = self.direction2idx[direction.name]
        return index

    def get_text_embeddings(
        self,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        view_dependent_prompting: bool = True,
    ) -> Tensor:
        """Embeddings of each camera's prompt: [2B, T, D], the prompts first, then the negative prompts.

        Args:
            elevation, azimuth: degrees [B].
            camera_distances: [B].
            view_dependent_prompting: with the direction's words.
        """
        if view_dependent_prompting:
            index = self.direction_index(elevation, azimuth, camera_distances)
            index = index.to(self.text_embeddings_vd.device)
            return torch.cat([self.text_embeddings_vd[index], self.uncond_text_embeddings_vd[index]], dim=0)
        size = (elevation.shape[0], -1, -1)
        return torch.cat([self.text_embeddings.expand(size), self.uncond_text_embeddings.expand(size)], dim=0)

    def get_text_embeddings_perp_neg(
        self,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        view_dependent_prompting: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings and weights of Perp-Neg (arXiv 2304.04968): directions mixed, wrong ones negated.

        Between front and side, r = 1 - |azimuth|/90 goes from 0 (side) to 1 (front); between side and back,
        r = 2 - |azimuth|/90 goes from 0 (back) to 1 (side).  Overhead is not interpolated, and has weights 0.

        Args:
            elevation, azimuth: degrees [B].
            camera_distances: [B].
            view_dependent_prompting: must be true.

        Returns:
            Embeddings [4B, T, D]: B prompts, B negative prompts, then 2 directions to negate for each item in
            turn; and their weights [B, 2], <= 0.

        Raises:
            AssertionError: without view-dependent prompting there are no directions to negate.
        """
        assert view_dependent_prompting, "Perp-Neg needs view_dependent_prompting."
        device = self.text_embeddings_vd.device
        index = self.direction_index(elevation, azimuth, camera_distances).to(device)
        side, front, back, overhead = self.text_embeddings_vd[:4]
        uncond = self.uncond_text_embeddings_vd[index]

        positive, negative, weights = [], [], []
        for i, azi in enumerate(shift_azimuth_deg(azimuth).abs().tolist()):
            if index[i] == self.direction2idx["overhead"]:
                positive.append(overhead)
                negative += [uncond[i], uncond[i]]
                weights.append([0.0, 0.0])
            elif azi < 90:
                r = 1 - azi / 90
                positive.append(r * front + (1 - r) * side)
                negative += [front, side]
                weights.append([_weight(self.perp_neg_f_fs, r), _weight(self.perp_neg_f_sf, 1 - r)])
            else:
                r = 2 - azi / 90
                positive.append(r * side + (1 - r) * back)
                negative += [side, front]
                weights.append([_weight(self.perp_neg_f_sb, r), _weight(self.perp_neg_f_fsb, r)])
        embeddings = torch.cat([torch.stack(positive), uncond, torch.stack(negative)], dim=0)
        return embeddings, torch.tensor(weights, device=device)


def _weight(abc: Any, r: float) -> float:
    return -shifted_expotional_decay(*abc, r)


# ---- the processor -----------------------------------------------------------------------------------------


class PromptProcessor(BaseObject):
    """Encodes a prompt for all directions once, keeps the embeddings on disk, and gives them when called.

    Subclasses write `spawn_func`.
    """

    @dataclass
    class Config(BaseObject.Config):
        prompt: str = "a hamburger"
        """What to make; "lib:word_word" is the one prompt of load/prompt_library.json with these words."""
        prompt_front: str | None = None
        """Instead of the prompt with its direction, seen from the front."""
        prompt_side: str | None = None
        """From the side."""
        prompt_back: str | None = None
        """From the back."""
        prompt_overhead: str | None = None
        """From above."""
        negative_prompt: str = ""
        """What not to make."""
        pretrained_model_name_or_path: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
        """Folder or hub id of the model whose text encoder is used."""
        overhead_threshold: float = 60.0
        """Elevations above this many degrees are overhead."""
        front_threshold: float = 45.0
        """Azimuths within so many degrees of 0 are front."""
        back_threshold: float = 45.0
        """Azimuths within so many degrees of 180 are back."""
        view_dependent_prompt_front: bool = False
        """ "side view of a mug" rather than "a mug, side view"."""
        use_cache: bool = True
        """Reuse embeddings on disk; false encodes anew."""
        spawn: bool = True
        """Encode in a process of its own where there is a GPU, so that its memory comes back."""
        use_perp_neg: bool = False
        """Ask guidances to use Perp-Neg."""
        perp_neg_f_sb: Any = (1, 0.5, -0.606)
        """a, b, c of the weight -(a exp(-b r) + c) of "side" between side and back."""
        perp_neg_f_fsb: Any = (1, 0.5, 0.967)
        """Of "front" between side and back."""
        perp_neg_f_fs: Any = (4, 0.5, -2.426)
        """Of "front" between front and side; a b c as published."""
        perp_neg_f_sf: Any = (4, 0.5, -2.426)
        """Of "side" between front and side."""
        use_prompt_debiasing: bool = False
        """Not in this host."""
        pretrained_model_name_or_path_prompt_debiasing: str = "bert-base-uncased"
        """Not in this host."""
        prompt_debiasing_mask_ids: list[int] | None = None
        """Not in this host."""

        def __post_init__(self) -> None:
            if self.use_prompt_debiasing:
                raise ConfigValueError(
                    "use_prompt_debiasing: this host has no prompt debiasing; set it to false."
                )
            for name in ("perp_neg_f_sb", "perp_neg_f_fsb", "perp_neg_f_fs", "perp_neg_f_sf"):
                if len(getattr(self, name)) != 3:
                    raise ConfigValueError(f"{name} is three numbers [a, b, c], got {getattr(self, name)}.")

    cfg: Config

    def configure(self) -> None:
        self._cache_dir = CACHE_DIR
        self.directions = standard_directions(
            self.cfg.overhead_threshold,
            self.cfg.front_threshold,
            self.cfg.back_threshold,
            self.cfg.view_dependent_prompt_front,
        )
        self.direction2idx = {direction.name: i for i, direction in enumerate(self.directions)}
        self.prompt = self.preprocess_prompt(self.cfg.prompt)
        self.negative_prompt = self.cfg.negative_prompt
        self.prompts_vd = [self.cfg.get(f"prompt_{d.name}") or d.prompt(self.prompt) for d in self.directions]
        self.negative_prompts_vd = [d.negative_prompt(self.negative_prompt) for d in self.directions]
        threestudio.info(
            f"Using prompt [{shorten(self.prompt)}] and negative prompt [{shorten(self.negative_prompt)}]"
        )
        self.prepare_text_embeddings()
        self.load_text_embeddings()

    def preprocess_prompt(self, prompt: str) -> str:
        """The prompt itself, or the one of the library that "lib:word_word" means.

        Raises:
            ConfigValueError: no prompt, or not exactly one in the library.
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise ConfigValueError("system.prompt_processor.prompt is empty: say what to make.")
        if "\0" in prompt:
            raise ConfigValueError(f"system.prompt_processor.prompt is no text: {prompt!r}.")
        prompt = " ".join(prompt.split())  # of several lines, as text encoders read it
        if not prompt.startswith("lib:"):
            return prompt
        if not os.path.isfile(PROMPT_LIBRARY):
            raise ConfigValueError(
                f"prompt {prompt!r} needs {PROMPT_LIBRARY}, which is not here; write the prompt out."
            )
        words = prompt[4:].lower().split("_")
        library = json.loads(Path(PROMPT_LIBRARY).read_text(encoding="utf-8"))["dreamfusion"]
        found = [candidate for candidate in library if all(word in candidate.lower() for word in words)]
        if len(found) != 1:
            listed = "; ".join(found[:5]) if found else "none"
            raise ConfigValueError(
                f"prompt {prompt!r}: {len(found)} prompts of {PROMPT_LIBRARY} match ({listed})."
            )
        threestudio.info(f"Prompt found in the library: {found[0]}")
        return found[0]

    @staticmethod
    def spawn_func(pretrained_model_name_or_path: str, prompts: list[str], cache_dir: str) -> None:
        """Encode ``prompts`` and `save_embedding` each.  Runs in another process; cut what is too long."""
        raise NotImplementedError

    def check_model(self) -> None:
        """Called before encoding, in this process: whatever is wrong with the model is an error here."""

    @rank_zero_only
    def prepare_text_embeddings(self) -> None:
        """Encode what the cache does not have.

        Raises:
            RuntimeError: the process that encodes failed; its own message stands above.
        """
        make_folder(self._cache_dir)
        prompts = [self.prompt, self.negative_prompt, *self.prompts_vd, *self.negative_prompts_vd]
        wanted = [
            p for p in dict.fromkeys(prompts) if not (self.cfg.use_cache and self._read_cache(p) is not None)
        ]
        if not wanted:
            return
        self.check_model()
        arguments = (self.cfg.pretrained_model_name_or_path, wanted, self._cache_dir)
        if self.cfg.spawn and self.device.type == "cuda":
            process = mp.get_context("spawn").Process(target=self.spawn_func, args=arguments)
            process.start()
            process.join()
            if process.exitcode != 0:
                raise RuntimeError(
                    f"The text encoder's process ended with code {process.exitcode}; "
                    "system.prompt_processor.spawn=false runs it here."
                )
        else:
            self.spawn_func(*arguments)
            if self.device.type == "cuda":
                cleanup()

    def load_text_embeddings(self) -> None:
        """Read all embeddings, when they are there."""
        barrier()
        self.text_embeddings = self.load_from_cache(self.prompt)[None]
        self.uncond_text_embeddings = self.load_from_cache(self.negative_prompt)[None]
        self.text_embeddings_vd = torch.stack([self.load_from_cache(p) for p in self.prompts_vd])
        self.uncond_text_embeddings_vd = torch.stack(
            [self.load_from_cache(p) for p in self.negative_prompts_vd]
        )

    def load_from_cache(self, prompt: str) -> Tensor:
        """The embedding [T, D] of ``prompt``, on the processor's device.

        Raises:
            FileNotFoundError: it was never encoded.
        """
        embedding = self._read_cache(prompt)
        if embedding is None:
            raise FileNotFoundError(
                f"No embedding of [{prompt}] in {self._cache_dir} "
                f"by {self.cfg.pretrained_model_name_or_path}."
            )
        return embedding.to(self.device)

    def _read_cache(self, prompt: str) -> Tensor | None:
        path = os.path.join(
            self._cache_dir, f"{hash_prompt(self.cfg.pretrained_model_name_or_path, prompt)}.pt"
        )
        if not os.path.isfile(path):
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError):
            threestudio.warn(f"The cached embedding {path} is damaged; encoding it again.")
            os.unlink(path)
            return None

    def __call__(self) -> PromptProcessorOutput:
        return PromptProcessorOutput(
            text_embeddings=self.text_embeddings,
            uncond_text_embeddings=self.uncond_text_embeddings,
            text_embeddings_vd=self.text_embeddings_vd,
            uncond_text_embeddings_vd=self.uncond_text_embeddings_vd,
            directions=self.directions,
            direction2idx=self.direction2idx,
            use_perp_neg=self.cfg.use_perp_neg,
            perp_neg_f_sb=tuple(self.cfg.perp_neg_f_sb),
            perp_neg_f_fsb=tuple(self.cfg.perp_neg_f_fsb),
            perp_neg_f_fs=tuple(self.cfg.perp_neg_f_fs),
            perp_neg_f_sf=tuple(self.cfg.perp_neg_f_sf),
            prompt=self.prompt,
            prompts_vd=self.prompts_vd,
        )
