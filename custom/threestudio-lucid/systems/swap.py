"""`lucid-guidance-swap`: makes guidances that do not know our keys work with a config of ours."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import threestudio

from ..guidance.lucid_guidance import LucidGuidance
from ..guidance.stock import GRAD_SCALE
from ..guidance.swap import fit_autoencoder, translate, weigh


@threestudio.register("lucid-guidance-swap")
class GuidanceSwap:
    """For any system, as `system_type: dreamfusion-system:lucid-guidance-swap`.

    Where `guidance_type` names a class that is not ours, the guidance block is translated before anything is
    made of it (see `threestudio_lucid.guidance.swap`), and one line of the log tells how.
    """

    cfg: Any

    def configure(self) -> None:
        self._translate_guidance()
        super().configure()

    def on_train_start(self) -> None:
        """By now every system has made its guidance."""
        super().on_train_start()
        parts = [getattr(getattr(self, "guidance", None), name, None) for name in ("vae", "unet")]
        if None not in parts and not isinstance(self.guidance, LucidGuidance):
            vae, unet = parts
            fit_autoencoder(vae, unet.config.sample_size)

    def _translate_guidance(self) -> None:
        try:
            cls = threestudio.find(self.cfg.guidance_type)
        except KeyError:  # told where it is made, and only there is it needed
            return
        config = getattr(cls, "Config", None)
        if not is_dataclass(config) or issubclass(cls, LucidGuidance):
            return
        own = {field.name for field in fields(LucidGuidance.Config)}
        theirs = {field.name for field in fields(config)}
        block = dict(self.cfg.guidance)
        if not own.intersection(block) - theirs:
            return
        self.cfg.guidance, left_out = translate(block, own, theirs)
        notes = []
        scale = self.cfg.guidance.get("guidance_scale")
        factor = GRAD_SCALE if block.get("grad_scale") is None else block["grad_scale"]
        if scale is not None:
            notes.append(f"guidance_scale is {scale:g} in text + s (text - uncond)")
        if "lambda_sds" in self.cfg.loss:
            self.cfg.loss.lambda_sds = weigh(self.cfg.loss.lambda_sds, factor)
            notes.append(f"loss.lambda_sds is multiplied by grad_scale, {factor:g}")
        if left_out:
            notes.append(f"left out: {', '.join(left_out)}")
        told = "; ".join(["Guidance: a block of ours, read for " + self.cfg.guidance_type, *notes])
        threestudio.info(told)
