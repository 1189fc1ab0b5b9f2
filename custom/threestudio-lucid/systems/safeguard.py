"""`lucid-safeguard`: a training does not go on with numbers that are none, or that mean nothing any more.

Two things can be wrong with a step. Both are told at the step, with their cause:

    nothing can be learned   The score, the loss or a gradient is not finite or senselessly large, or no view
    of it                    shows anything. The step is **left out**: nothing moves.
    it made things worse     A parameter is not finite any more, or out of its bounds. The step is **undone**:
                             parameters, buffers and the optimizer's memory are what they were before it.

Either way the next step draws other cameras, timesteps and noise, for these are functions of the step. The
run ends, and names what to change and the checkpoint to go on from, after `PATIENCE` steps in a row that
were left out, or where another step would be undone after `RETURNS`, without `PATIENCE` good ones in a row
between them. Checkpoints are written behind these checks, so each holds a sound state, and what is counted
here is in them: an interrupted run ends like one that was not.

    score       root mean square of the difference of two scores at most 10,000; see `guidance.faults`
    loss        at most 1e12 in size (with guidance 100 and the published weights it stays below 1e9)
    gradients   at most 1e15 in size, for Adam squares them
    parameters  at most 1000 in size (logarithms of scales: 20), or ten times the largest at the start

It costs a copy of the parameters and of the optimizer's memory, made anew before each step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.utils.config import config_to_primitive

from .. import weights
from ..errors import UserError, check_finite
from ..guidance.faults import PATIENCE, Faults

# How many steps are undone before a run gives up; forgotten after `PATIENCE` good ones in a row.
RETURNS = 3
# So many may lack finite gradients where a GradScaler looks for a scale: it halves it each time.
SCALER_PATIENCE = 30
LARGEST_LOSS = 1e12
LARGEST_GRADIENT = 1e15
LARGEST_PARAMETER = 1000.0
LARGEST_LOG_SCALE = 20.0


class Safeguard:
    """Checks of one training, how often they failed in a row, and the last good state."""

    def __init__(self) -> None:
        self.left_out = self.undone = self.good = 0
        self.bounds: dict[str, float] = {}
        self._tensors: dict[str, Tensor] = {}
        self._memories: list[dict[Any, dict[str, Any]]] = []

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        counts = {name: getattr(self, name) for name in ("left_out", "undone", "good")}
        return {**counts, "bounds": dict(self.bounds)}

    def load_checkpoint(self, system: Any, checkpoint: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint.

        Raises:
            UserError: it holds numbers that are not finite.
        """
        path = Path(system.trainer.ckpt_path or "checkpoint")
        weights.check_finite(checkpoint["state_dict"], path, "Take an earlier one.")
        state = checkpoint.get("lucid_safeguard", {})
        for name in ("left_out", "undone", "good"):
            setattr(self, name, state.get(name, 0))
        self.bounds = dict(state.get("bounds", {}))

    # ---- before anything moves -----------------------------------------------------------------------------

    def fault(self, system: Any, loss: Tensor | None = None, seen: Tensor | None = None) -> str | None:
        """Why nothing can be learned of a step, as a clause; None if all is well. Waits for the device once.

        Args:
            system: after the backward pass.
            loss: the weighted sum.
            seen: the largest opacity of the step's pictures.
        """
        guidance = getattr(system, "guidance", None)
        faults = getattr(guidance, "faults", None)
        checks = {}
        if isinstance(faults, Faults):
            checks = {f"score {i}": ~flag for i, flag in enumerate(faults.flags())}
        if loss is not None:
            checks["the loss"] = loss.detach().abs() <= LARGEST_LOSS
        if seen is not None:
            checks["opacity"] = seen > 0.0
        for name, p in system.named_parameters():
            if p.grad is not None and p.grad.numel():
                checks[f"the gradient of {name}"] = _within(p.grad, LARGEST_GRADIENT)
        wrong = _failed(checks)
        if not wrong:
            if isinstance(faults, Faults):
                faults.forget()
            self.left_out = 0
            return None
        if cause := getattr(guidance, "explain_fault", lambda: None)():
            return cause
        if wrong[0].startswith("score"):
            return "the score of another process is not finite"
        if wrong[0] == "the loss":
            return f"the loss is {float(loss):.3g}"
        if wrong[0] == "opacity":
            return "no view shows anything: what is optimised has left the views, or is transparent"
        return f"{wrong[0]} is not finite, or above {LARGEST_GRADIENT:.0e}"

    def leave_out(self, system: Any, step: int, cause: str) -> None:
        """Tells of a step, counted from 1, that moves nothing.

        Raises:
            UserError: it is the last of `PATIENCE` in a row.
        """
        self.left_out += 1
        if self.left_out >= PATIENCE:
            raise UserError(
                f"Step {step}: {cause}. {self.left_out} steps in a row were left out, so nothing more can be "
                f"learned. {_advice(system)}"
            )
        threestudio.warn(f"Step {step}: {cause}; the step is left out.")

    # ---- and after -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def keep(self, system: Any) -> None:
        """Remembers parameters, buffers and the optimizers' memory, which are sound.

        Raises:
            UserError: before the first step they are not.
        """
        if not self.bounds:
            self._set_bounds(system)
        for name, value in _tensors_of(system):
            _copy(self._tensors, name, value)
        optimizers = system.trainer.optimizers
        self._memories = self._memories or [{} for _ in optimizers]
        for memory, optimizer in zip(self._memories, optimizers, strict=True):
            for p, values in optimizer.state.items():
                kept = memory.setdefault(p, {})
                for name, value in values.items():
                    _copy(kept, name, value)

    def _set_bounds(self, system: Any) -> None:
        parameters = {name: p for name, p in system.named_parameters() if p.requires_grad and p.numel()}
        if not parameters:
            return
        largest = torch.stack([p.detach().float().abs().amax() for p in parameters.values()]).tolist()
        for name, value in zip(parameters, largest, strict=True):
            if not value < torch.inf:
                raise UserError(
                    f"{name} holds numbers that are not finite before the first step: the file or checkpoint "
                    "that this run starts from is damaged, or is of a run that had gone wrong. Start from an "
                    "earlier one."
                )
            least = LARGEST_LOG_SCALE if name.endswith("log_scales") else LARGEST_PARAMETER
            self.bounds[name] = max(least, 10.0 * value)

    @torch.no_grad()
    def check(self, system: Any, step: int) -> bool:
        """Whether the step that has been made stays; otherwise it is undone. Waits for the device once.

        Raises:
            UserError: `RETURNS` were undone not long before it.
        """
        parameters = dict(system.named_parameters())
        checks = {
            name: _within(parameters[name], bound)
            for name, bound in self.bounds.items()
            if name in parameters
        }
        wrong = _failed(checks)
        if not wrong:
            self.good += 1
            self.undone = 0 if self.good >= PATIENCE else self.undone
            return True
        name = wrong[0]
        value = float(parameters[name].detach().abs().amax())
        bound = self.bounds[name]
        reached = f"is {value:.3g} large, above {bound:g}" if value < torch.inf else "is not finite"
        self._go_back(system)
        self.undone, self.good = self.undone + 1, 0
        if self.undone > RETURNS:
            raise UserError(
                f"Step {step}: {name} {reached}. The training diverges: {RETURNS} steps were undone before. "
                f"{_advice(system)}"
            )
        threestudio.warn(f"Step {step}: {name} {reached}; the step is undone, and the next one draws anew.")
        return False

    def _go_back(self, system: Any) -> None:
        for name, value in _tensors_of(system):
            value.copy_(self._tensors[name])
        for memory, optimizer in zip(self._memories, system.trainer.optimizers, strict=True):
            for p in list(optimizer.state):
                if p not in memory:  # this was its first step
                    del optimizer.state[p]
                    continue
                values = optimizer.state[p]
                for name, kept in memory[p].items():
                    values[name] = values[name].copy_(kept) if torch.is_tensor(kept) else kept


@threestudio.register("lucid-safeguard")
class LucidSafeguard:
    """For systems that Lightning optimises, as `system_type: dreamfusion-system:lucid-safeguard`."""

    def configure(self) -> None:
        check_finite("system", config_to_primitive(self.cfg))
        super().configure()
        self.safeguard = Safeguard()
        self._loss: Tensor | None = None
        self._moves = True

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        out = super().training_step(batch, batch_idx)
        loss = out.get("loss") if isinstance(out, Mapping) else out
        self._loss = loss.detach() if torch.is_tensor(loss) else None
        return out

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self._moves = self._may_move()
        if not self._moves:
            self.zero_grad(set_to_none=True)
        super().on_before_optimizer_step(optimizer)

    def _may_move(self) -> bool:
        cause = self.safeguard.fault(self, self._loss)
        if cause is None:
            return True
        scales = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if scales and "gradient" in cause and self.safeguard.left_out < SCALER_PATIENCE - PATIENCE:
            self.safeguard.left_out += 1  # the GradScaler leaves it out, and takes a smaller scale
            return False
        self.safeguard.leave_out(self, self.global_step + 1, cause)
        return False

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The whole step: Lightning renders, asks and goes back in here."""
        with saying_what_saves_memory(self):
            self.safeguard.keep(self)
            super().optimizer_step(*args, **kwargs)
        if self._moves:
            self.safeguard.check(self, self.global_step + 1)  # Lightning has not counted it yet

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["lucid_safeguard"] = self.safeguard.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.safeguard.load_checkpoint(self, checkpoint)


# ---- messages ----------------------------------------------------------------------------------------------


def _advice(system: Any) -> str:
    """What to change, with the present values, and where to go on from."""
    parts = [f"{key} (now {rate:.3g})" for key, rate in learning_rates(system).items()]
    parts.append("the weights of system.loss")
    guidance = getattr(system, "guidance", None)
    given = getattr(system.cfg, "guidance", {}).get("guidance_scale")
    if hasattr(guidance, "what_helps"):
        parts.append(guidance.what_helps())
    elif given is not None:
        parts.append(f"system.guidance.guidance_scale (now {given:g})")
    return f"Lower the learning rates or the guidance's scale: {', '.join(parts)}. {_checkpoint(system)}"


def learning_rates(system: Any) -> dict[str, float]:
    """Present learning rates by the config's key; a system with keys of its own has `rate_key`."""
    key_of = getattr(system, "rate_key", lambda name: "system.optimizer.args.lr")
    groups = [group for optimizer in system.trainer.optimizers for group in optimizer.param_groups]
    return {key_of(group.get("name", "")): float(group["lr"]) for group in groups}


def _checkpoint(system: Any) -> str:
    callback = system.trainer.checkpoint_callback
    path = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
    path = path or system.trainer.ckpt_path
    return f"The last good state is saved: resume={path}" if path else "No checkpoint had been saved yet."


@contextlib.contextmanager
def saying_what_saves_memory(system: Any) -> Iterator[None]:
    """A GPU without memory left becomes one message with the settings that need less of it."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        reason = str(error).split(". ")[0].strip()
        raise UserError(
            f"The GPU has not enough memory ({reason}). What needs less, best first: "
            f"{', '.join(_memory_settings(system))}."
        ) from error


def _memory_settings(system: Any) -> list[str]:
    guidance = getattr(system, "guidance", None)
    prior = getattr(guidance, "prior", None)
    parts = []
    if hasattr(system.cfg, "accumulate"):
        parts.append(f"system.accumulate (now {system.cfg.accumulate}): a step in more parts")
    parts.append("data.batch_size: fewer views a step")
    parts.append("system.guidance.vae=madebyollin/taesd: a small autoencoder")
    parts.append("data.height and data.width: smaller views")
    dtype = str(getattr(prior, "dtype", "") or "").removeprefix("torch.")
    parts.append("system.guidance.dtype=float16" + (f" (now {dtype})" if dtype else ""))
    return parts


# ---- helpers -----------------------------------------------------------------------------------------------


def _within(value: Tensor, bound: float) -> Tensor:
    """Whether all of |value| is at most `bound`, a bool on the device; not a number is not."""
    low, high = torch.aminmax(value.detach())
    return (low >= -bound) & (high <= bound)


def _failed(checks: Mapping[str, Tensor]) -> list[str]:
    """The names of those that are false, in any process. Waits for the device once."""
    if not checks:
        return []
    sound = torch.stack([check.reshape(()) for check in checks.values()]).float()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sound, torch.distributed.ReduceOp.MIN)
    return [name for name, flag in zip(checks, sound.tolist(), strict=True) if not flag]


def _tensors_of(system: Any) -> Iterator[tuple[str, Tensor]]:
    """What a step may change: parameters that are trained, and buffers."""
    for name, p in system.named_parameters():
        if p.requires_grad:
            yield name, p.detach()
    yield from system.named_buffers()


def _copy(store: dict[str, Any], name: str, value: Any) -> None:
    """Puts a copy of `value` into `store`, into the memory of the one before where that fits."""
    kept = store.get(name)
    if not torch.is_tensor(value):
        store[name] = value
    elif torch.is_tensor(kept) and kept.shape == value.shape and kept.dtype == value.dtype:
        kept.copy_(value)
    else:
        store[name] = value.detach().clone()
