"""Steps whose score is no number: found without waiting for the device, left out, and explained.

A network with a damaged weight, float16 that overflows, a guidance scale of 1e9: what comes out is not
finite, or so large that nothing can be learned of it. Such a gradient must reach nothing that is optimised,
and nobody should have to guess where it came from. So each call of a guidance has a `Witness`. It keeps
references to what was computed, in order; on the device it replaces a bad gradient by zeros and sets a flag.
Only when the flag is read, which waits for the device, and only if it is set, the witness looks for the first
value that went wrong.

Numbers that are finite pass through unchanged, to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .combine import Conditioning
from .ism import Distillation
from .trajectory import Model

# Root mean square, over a view's latents, of the difference of two scores above which a step is left out.
# Scores are noise of about 1, and guidance multiplies their difference: by 7.5 in ISM, by 100 in SDS.
LARGEST_SCORE = 1e4
# How many steps in a row may be left out before a run gives up.
PATIENCE = 10


class Witness:
    """What one call of a guidance computed."""

    def __init__(self) -> None:
        self._seen: list[tuple[str, Tensor]] = []
        self._size: Tensor | None = None
        self._overflow: Tensor | None = None
        self.fault: Tensor | None = None
        """After `screen`, a bool on the device: the gradient was replaced by zeros."""

    def note(self, what: str, value: Tensor) -> None:
        """Takes in a value; what is noted first is blamed first."""
        self._seen.append((what, value.detach()))

    def note_texts(self, cond: Conditioning) -> None:
        """Takes in the embeddings of a step."""
        for value in (cond.text, cond.uncond, cond.inverse, cond.negatives, cond.source):
            if value is not None:
                self.note("the embedding of the text", value)

    def watched(self, what: str, model: Model) -> Model:
        """The same network, whose outputs are noted."""

        def call(x: Tensor, tau: int, cond: Any) -> Tensor:
            output = model(x, tau, cond)
            self.note(f"{what} at timestep {tau}", output)
            return output

        return call

    def guarded(self, images: Tensor) -> Tensor:
        """The same images; no gradient comes back through them from a step that is left out.

        Zeros on the latents alone would not do: the encoder's backward pass multiplies them by what it has
        computed of the images, and 0 * NaN is NaN.
        """
        return _Guarded.apply(images, self)

    @torch.no_grad()
    def screen(self, step: Distillation) -> Tensor:
        """The step's gradient, or zeros where it is not finite or its score is too large."""
        self._size = (step.pred - step.target).square().flatten(1).mean(1).amax().sqrt()
        self.fault = ~(step.grad.isfinite().all() & (self._size <= LARGEST_SCORE))
        return torch.where(self.fault, torch.zeros_like(step.grad), step.grad)

    def gradient(self, grad: Tensor) -> Tensor:
        """What goes back to the images of the gradient `grad` on them."""
        # What overflows here is let through: it is the sign that a GradScaler waits for.
        self._overflow = ~grad.isfinite().all()
        return torch.where(self.fault, torch.zeros_like(grad), grad)

    def explain(self, dtype: torch.dtype) -> str | None:
        """What went wrong, as a clause; None if nothing did. Waits for the device.

        Args:
            dtype: the networks'.
        """
        if self.fault is None:
            return None
        arithmetic = str(dtype).removeprefix("torch.")
        if not bool(self.fault):
            overflown = self._overflow is not None and bool(self._overflow)
            return f"the gradient through the encoder is not finite ({arithmetic})" if overflown else None
        for what, value in self._seen:
            if bad := value.numel() - int(value.isfinite().sum()):
                return f"{what} is not finite ({bad:,} of {value.numel():,} numbers, {arithmetic})"
        return (
            f"the difference of the scores is {float(self._size):.2g} a number, where it should be about 1 "
            f"({arithmetic})"
        )


class Faults:
    """The witnesses of a step, and how many steps in a row were left out.

    Whoever asks `explain` also tells the user. What nobody has asked about when the step ends, the guidance
    tells itself by `settle`: so it is told in systems that know nothing of this, too.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._witnesses: list[Witness] = []
        self._in_a_row = 0

    def add(self, witness: Witness) -> None:
        """Takes in a call that has been screened."""
        self._witnesses.append(witness)

    def flags(self) -> list[Tensor]:
        """Of each call since the last `explain` or `forget`, a bool on the device: it was left out."""
        return [witness.fault for witness in self._witnesses]

    def forget(self) -> None:
        """For whoever has read the flags and found none set."""
        self._witnesses = []

    def explain(self) -> str | None:
        """What went wrong in these calls, None if nothing did; and forgets them. Waits for the device."""
        witnesses, self._witnesses = self._witnesses, []
        causes = (witness.explain(self.dtype) for witness in witnesses)
        return next((cause for cause in causes if cause is not None), None)

    def settle(self, step: int, what_helps: str) -> str | None:
        """What to tell of the calls that nobody has asked about; None if nothing went wrong.

        Args:
            step: of the run, from 1.
            what_helps: the settings to look at.

        Raises:
            UserError: it was the last of `PATIENCE` steps in a row.
        """
        if not self._witnesses:
            return None
        if not any(bool(flag) for flag in self.flags()):
            self._in_a_row = 0
            self.forget()
            return None
        self._in_a_row += 1
        told = f"Step {step}: {self.explain()}; its gradient is left out."
        if self._in_a_row >= PATIENCE:
            raise UserError(f"{told} So were those of {PATIENCE} steps in a row. Look at {what_helps}.")
        return told


class _Guarded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, witness: Witness) -> Tensor:
        ctx.witness = witness
        return images.view_as(images)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.witness.gradient(grad), None
