"""The prompt processor: one prompt in, text embeddings for any view out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

import threestudio
from threestudio.utils.base import BaseObject

from ..errors import UserError, check_choice, check_range
from ..files import OutputError, atomic_path
from ..guidance.adapters import NONE, Adapters, find_adapters, without_words
from ..guidance.cards import find_card
from ..guidance.combine import Conditioning
from ..guidance.prior import Prior
from ..guidance.vocabulary import check_words, normalise
from ..texts import check_prompt, check_text, cut_to_fit, shortened
from . import view

BLENDS = ("linear", "nearest")


@dataclass
class ViewPrompts:
    """Text embeddings of a prompt, ready for any batch of views. Tensors [T, D] unless noted.

    Takes the place of threestudio's PromptProcessorOutput: the two methods that its guidances call are here,
    with its order of the batch.

    plain, negative, inverse: the prompt without view words, the negative prompt, the inversion's text.
    views: [4, T, D], the prompt as seen from `view.VIEWS`.
    source, source_views: the same of what an edit starts from, or None.
    prior_path, adapters: of the prior that made them.
    prompts: the texts behind the embeddings, by name.
    """

    plain: Tensor
    negative: Tensor
    inverse: Tensor
    views: Tensor
    prior_path: str
    prompts: dict[str, str]
    adapters: Adapters = NONE
    use_perp_neg: bool = False
    view_dependent: bool = True
    blend: str = "linear"
    front_threshold: float = 45.0
    back_threshold: float = 45.0
    overhead_threshold: Optional[float] = None
    perp_neg_weight: float = -2.0
    perp_neg_front_decay: float = 2.0
    perp_neg_side_decay: float = 10.0
    source: Optional[Tensor] = None
    source_views: Optional[Tensor] = None

    def embeddings_for(
        self, elevation: Tensor, azimuth: Tensor, view_dependent_prompting: bool = True
    ) -> Conditioning:
        """Embeddings of B views.

        Args:
            elevation, azimuth: [B], degrees; azimuth 0 is the front.
            view_dependent_prompting: False: the plain prompt from everywhere, and no Perp-Neg.
        """
        batch = len(azimuth)
        uncond, inverse = (e.expand(batch, -1, -1) for e in (self.negative, self.inverse))
        if not (self.view_dependent and view_dependent_prompting):
            source = None if self.source is None else self.source.expand(batch, -1, -1)
            return Conditioning(self.plain.expand(batch, -1, -1), uncond, inverse, source=source)

        elevation, azimuth = elevation.to(self.views), azimuth.to(self.views)
        if self.blend == "linear":
            weights = view.linear_weights(azimuth)
        else:
            weights = view.nearest_weights(azimuth, self.front_threshold, self.back_threshold)
        if self.overhead_threshold is not None:
            weights = view.with_overhead(weights, elevation, self.overhead_threshold)
        text = torch.einsum("bv,vtd->btd", weights, self.views)
        source = None
        if self.source_views is not None:
            source = torch.einsum("bv,vtd->btd", weights, self.source_views)
        if not self.use_perp_neg:
            return Conditioning(text, uncond, inverse, source=source)

        away = view.perp_neg_weights(
            azimuth, self.perp_neg_weight, self.perp_neg_front_decay, self.perp_neg_side_decay
        )
        # seen from above there is no wrong side to be kept away from
        away = away * (1.0 - weights[:, view.VIEWS.index("overhead")])
        negatives = self.views[:2].unsqueeze(1).expand(-1, batch, -1, -1)  # front, side
        return Conditioning(text, uncond, inverse, negatives, away, source)

    # --- as threestudio's guidances call it -----------------------------------------------------------------

    def get_text_embeddings(
        self,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        view_dependent_prompting: bool = True,
    ) -> Tensor:
        """[2 B, T, D]: the B texts, then the B negative prompts."""
        cond = self.embeddings_for(elevation, azimuth, view_dependent_prompting)
        return torch.cat([cond.text, cond.uncond])

    def get_text_embeddings_perp_neg(
        self,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        view_dependent_prompting: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """[4 B, T, D]: B texts, B unconditional, 2 B negatives (two per view, together); weights [B, 2]."""
        if not view_dependent_prompting:
            raise UserError("Perp-Neg needs view-dependent prompts: set view_dependent_prompting=true.")
        cond = self.embeddings_for(elevation, azimuth)
        if cond.negatives is None:
            raise UserError("Perp-Neg is asked for but off: set system.prompt_processor.use_perp_neg=true.")
        negatives = cond.negatives.transpose(0, 1).flatten(0, 1)
        return torch.cat([cond.text, cond.uncond, negatives]), cond.weights.T

    @property
    def prompt(self) -> str:
        return self.prompts["plain"]

    @property
    def prompts_vd(self) -> list[str]:
        """In threestudio's order: side, front, back, overhead."""
        return [self.prompts[name] for name in ("side", "front", "back", "overhead")]

    @property
    def text_embeddings(self) -> Tensor:
        """[1, T, D]."""
        return self.plain.unsqueeze(0)

    @property
    def uncond_text_embeddings(self) -> Tensor:
        """[1, T, D]."""
        return self.negative.unsqueeze(0)

    @property
    def text_embeddings_vd(self) -> Tensor:
        """[4, T, D] in threestudio's order: side, front, back, overhead."""
        return self.views[[1, 0, 2, 3]]

    @property
    def uncond_text_embeddings_vd(self) -> Tensor:
        """[4, T, D]."""
        return self.negative.expand(4, -1, -1)


@threestudio.register("lucid-prompt-processor")
class LucidPromptProcessor(BaseObject):
    """Encodes a prompt and its view-dependent forms with the text encoder of the prior.

    Call it for the `ViewPrompts`. Embeddings are kept on disk under a hash of what makes them (the files of
    the text encoder and the text), so the text encoder is loaded only for texts it has not seen.
    """

    @dataclass
    class Config(BaseObject.Config):
        prior: str = "auto"
        """Whose text encoder; the same as the guidance's."""
        lora: Any = None
        """LoRA of the text encoder; the same as the guidance's."""
        embeddings: Any = None
        """Words learned by textual inversion; the same as the guidance's."""
        prompt: str = ""
        """What to make."""
        negative_prompt: str = ""
        """What guidance moves away from."""
        source_prompt: str = ""
        """What an edit starts from; empty: nothing is edited, or nobody says."""
        inverse_text: str = ""
        """What the inversion is conditioned on; empty as released."""
        view_dependent: bool = True
        """Add ", front view" and so on to the prompt, by azimuth."""
        view_blend: str = "linear"
        """linear: blend the embeddings by azimuth, as released; nearest: one, by threestudio's rule."""
        front_threshold: float = 45.0
        """With nearest: front within so many degrees of azimuth 0."""
        back_threshold: float = 45.0
        """With nearest: back within so many degrees of azimuth 180."""
        overhead_threshold: Optional[float] = None
        """Elevation in degrees above which it is ", overhead view"; null: never, as released."""
        prompt_front: Optional[str] = None
        """The whole text of the front view, in place of the prompt with ", front view"."""
        prompt_side: Optional[str] = None
        """The same for the side."""
        prompt_back: Optional[str] = None
        """The same for the back."""
        prompt_overhead: Optional[str] = None
        """The same from above."""
        use_perp_neg: bool = False
        """Perp-Neg: keep away from the front and side texts where they would make a second face."""
        perp_neg_weight: float = -2.0
        """Weight of its negative prompts; not above 0."""
        perp_neg_front_decay: float = 2.0
        """How fast the front's weight fades towards the front."""
        perp_neg_side_decay: float = 10.0
        """How fast the side's weight fades away from the side."""
        use_cache: bool = True
        """Read embeddings from the disk, and write them."""
        cache_dir: str = ".threestudio_cache/text_embeddings"
        """Where."""

    cfg: Config

    def configure(self) -> None:
        self._check_config()
        card, where = find_card(self.cfg.prior), "system.prompt_processor."
        adapters = find_adapters(self.cfg.lora, self.cfg.embeddings, card, where=where)
        self.prior = Prior.load(card, self.device, adapters=adapters)
        for field, text in self._given().items():
            check_words(text, self.prior.card, where=where + field)
        self.prompts = self._texts()
        texts = list(dict.fromkeys(self.prompts.values()))
        found = dict(zip(texts, self._encode(texts), strict=True))
        self.prior.release_text_encoder()
        embeddings = {name: found[text] for name, text in self.prompts.items()}
        self._output = ViewPrompts(
            plain=embeddings["plain"],
            negative=embeddings["negative"],
            inverse=embeddings["inverse"],
            views=self._views(embeddings),
            prior_path=self.prior.card.path,
            prompts=self.prompts,
            adapters=adapters,
            use_perp_neg=self.cfg.use_perp_neg,
            view_dependent=self.cfg.view_dependent,
            blend=self.cfg.view_blend,
            front_threshold=self.cfg.front_threshold,
            back_threshold=self.cfg.back_threshold,
            overhead_threshold=self.cfg.overhead_threshold,
            perp_neg_weight=self.cfg.perp_neg_weight,
            perp_neg_front_decay=self.cfg.perp_neg_front_decay,
            perp_neg_side_decay=self.cfg.perp_neg_side_decay,
            source=embeddings.get("source"),
            source_views=self._views(embeddings, "source ") if self.cfg.source_prompt else None,
        )
        threestudio.info(f"Prompt: {shortened(self.prompts['plain'])!r}, seen by {self.prior.card.name}")
        said = " ".join(self.prompts.get(name, "") for name in ("plain", "negative", "source"))
        if adapters.words and without_words(said, adapters.words) == " ".join(said.split()):
            threestudio.warn(
                f"The prompts say none of the words that were learned: {', '.join(adapters.words)}."
            )

    def __call__(self) -> ViewPrompts:
        return self._output

    # --- texts ----------------------------------------------------------------------------------------------

    def _check_config(self) -> None:
        where = "system.prompt_processor."
        check_choice(where + "view_blend", self.cfg.view_blend, BLENDS)
        check_range(where + "front_threshold", self.cfg.front_threshold, 0.0, 180.0)
        check_range(where + "back_threshold", self.cfg.back_threshold, 0.0, 180.0)
        if self.cfg.front_threshold + self.cfg.back_threshold > 180.0:
            raise UserError(
                f"{where}front_threshold ({self.cfg.front_threshold:g}) and back_threshold "
                f"({self.cfg.back_threshold:g}) make more than 180 degrees: some would be front and back."
            )
        check_range(where + "perp_neg_weight", self.cfg.perp_neg_weight, high=0.0)
        if self.cfg.overhead_threshold is not None:
            check_range(where + "overhead_threshold", self.cfg.overhead_threshold, -90.0, 90.0)
        check_prompt(self.cfg.prompt, where + "prompt")
        for field, text in self._given().items():
            check_text(text, where + field)
        if self.cfg.use_perp_neg and not self.cfg.view_dependent:
            raise UserError(where + "use_perp_neg needs view_dependent prompts: set view_dependent=true.")

    def _given(self) -> dict[str, str]:
        """The texts of the config, by field."""
        fields = ["prompt", "negative_prompt", "source_prompt", "inverse_text"]
        fields += [f"prompt_{name}" for name in view.VIEWS]
        return {name: getattr(self.cfg, name) for name in fields if getattr(self.cfg, name)}

    def _texts(self) -> dict[str, str]:
        """What is encoded, by name: plain, negative, inverse, front, side, back, overhead.

        With a source prompt also source, source front, source side, ...
        """
        words = {name: f", {name} view" if self.cfg.view_dependent else "" for name in view.VIEWS}
        plain = self._fitting("prompt", words)
        texts = {"plain": plain}
        texts["negative"] = self._fitting("negative_prompt")
        texts["inverse"] = self._fitting("inverse_text")
        for name in view.VIEWS:
            own = getattr(self.cfg, f"prompt_{name}") is not None
            texts[name] = self._fitting(f"prompt_{name}") if own else plain + words[name]
        if self.cfg.source_prompt:
            texts["source"] = source = self._fitting("source_prompt", words)
            texts |= {f"source {name}": source + words[name] for name in view.VIEWS}
        return texts

    def _fitting(self, field: str, endings: Mapping[str, str] | None = None) -> str:
        """The text of a field, normalised, and cut where the text encoder would not read all of it.

        The encoder itself would cut the end, which says what the view is.

        Args:
            endings: what it is followed by, by view.
        """
        text = normalise(getattr(self.cfg, field), self.prior.card)
        ends = [""] if endings is None else list(endings.values())
        fitting = cut_to_fit(text, lambda cut: all(self.prior.reads_all_of(cut + end) for end in ends))
        if fitting != text:
            threestudio.warn(
                f"system.prompt_processor.{field} is too long: of its {len(text.split())} words the prior "
                f"reads the first {len(fitting.split())}. It does not read: "
                f"{shortened(text[len(fitting) :].lstrip(' ,'))!r}"
            )
        return fitting

    @staticmethod
    def _views(embeddings: dict[str, Tensor], prefix: str = "") -> Tensor:
        """[4, T, D], in the order of `view.VIEWS`."""
        return torch.stack([embeddings[prefix + name] for name in view.VIEWS])

    # --- embeddings -----------------------------------------------------------------------------------------

    def _encode(self, texts: list[str]) -> list[Tensor]:
        """Embeddings [T, D] on the device, from the cache as far as it has them."""
        key = self.prior.text_fingerprint() if self.cfg.use_cache else ""
        files = [Path(self.cfg.cache_dir) / cache_name(key, text) for text in texts]
        found = [read_embedding(file) if self.cfg.use_cache else None for file in files]
        missing = [i for i, embedding in enumerate(found) if embedding is None]
        if missing:
            fresh = self.prior.encode_text([texts[i] for i in missing]).cpu()
            for i, embedding in zip(missing, fresh, strict=True):
                found[i] = embedding
                if self.cfg.use_cache:
                    write_embedding(files[i], embedding)
        return [embedding.to(self.device) for embedding in found]


def cache_name(key: str, text: str) -> str:
    """File name of a text's embedding: a hash of the model's fingerprint and the text."""
    return hashlib.blake2b(f"{key}\0{text}".encode(), digest_size=16).hexdigest() + ".safetensors"


def read_embedding(file: Path) -> Tensor | None:
    """The embedding [T, D] in a cache file; None when there is none, or when the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        embedding = load(file.read_bytes())["embedding"]
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return embedding if embedding.ndim == 2 and bool(embedding.isfinite().all()) else None


def write_embedding(file: Path, embedding: Tensor) -> None:
    """Whole or not at all; a cache that cannot be written is no error."""
    from safetensors.torch import save

    try:
        with atomic_path(file) as temporary:
            Path(temporary).write_bytes(save({"embedding": embedding.contiguous()}))
    except OutputError as error:
        threestudio.warn(f"Text embeddings are not kept: {error}")
