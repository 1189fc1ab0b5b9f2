"""`lucid-edit-guidance`: Interval Score Matching from what is there to what a prompt says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from torch import Tensor

import threestudio

from ..errors import UserError, check_choice
from .edit import REFERENCES, edit_step
from .ism import Distillation
from .lucid_guidance import LucidGuidance, LucidISMGuidance


@threestudio.register("lucid-edit-guidance")
class LucidEditGuidance(LucidISMGuidance):
    """ISM whose reference is the source prompt, or the source picture too. See `guidance.edit`."""

    @dataclass
    class Config(LucidGuidance.Config):
        reference: Optional[str] = None
        """empty, source or delta, see guidance/edit.py; null: delta with a source prompt, else empty."""

    cfg: Config

    def configure(self) -> None:
        check_choice("system.guidance.reference", self.cfg.reference, (None, *REFERENCES))
        super().configure()

    def reference_for(self, prompt_utils: Any) -> str:
        """The reference that this prompt is edited with.

        Raises:
            UserError: it needs a source prompt and there is none.
        """
        has_source = getattr(prompt_utils, "source", None) is not None
        reference = self.cfg.reference or ("delta" if has_source else "empty")
        if reference != "empty" and not has_source:
            raise UserError(
                f"system.guidance.reference is {reference!r}, which compares with what is there now: say it, "
                'system.prompt_processor.source_prompt="a red mug", or take reference=empty.'
            )
        return reference

    def __call__(
        self, rgb: Tensor, prompt_utils: Any, *args: Any, source_rgb: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As `LucidGuidance.__call__`; delta needs `source_rgb`."""
        self._reference = self.reference_for(prompt_utils)
        source_rgb = source_rgb if self._reference == "delta" else None
        return super().__call__(rgb, prompt_utils, *args, source_rgb=source_rgb, **kwargs)

    def distill(self, latents, noise, index, cond, delta_t, generator, source=None) -> Distillation:
        unguided, guided = self.networks(cond)
        return edit_step(
            unguided,
            self.prior.schedule,
            latents,
            noise,
            index,
            cond,
            reference=self._reference,
            source=source,
            guided=guided,
            **self._ism_arguments(index, delta_t, generator),
        )
