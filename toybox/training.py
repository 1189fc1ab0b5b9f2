"""What the training stages share: runs bounded by time that can be killed and resumed, averaged weights."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from threestudio_lucid.files import atomic_path
from threestudio_lucid.guidance.prior import has_amx
from toybox import parallel
from toybox.progress import Progress

CHECKPOINT_EVERY = 120.0  # seconds


class Stopped(SystemExit):
    """The run was asked to stop (SIGTERM, Ctrl-C); its checkpoint is written. Exit status 143."""

    def __init__(self, name: str):
        super().__init__(143)
        if parallel.rank() == 0:
            print(f"{name}: stopped; the same command continues from the checkpoint", flush=True)


def save_atomically(path: Path, value: Any) -> None:
    """`torch.save`, whole or not at all."""
    with atomic_path(path, durable=True) as temporary:
        torch.save(value, temporary)


class Ema:
    """Exponential moving average of a module's parameters, with the warm-up min(decay, (1 + n) / (10 + n)).

    Args:
        module: the module in training; buffers are not averaged.
        decay: weight of the past per step.
    """

    def __init__(self, module: torch.nn.Module, decay: float = 0.999):
        self.module, self.decay, self.updates = module, decay, 0
        self.shadow = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the module's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.module.parameters()], 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: torch.nn.Module) -> torch.nn.Module:
        """Write the averaged weights into `module` (of the same architecture) and return it."""
        for p, average in zip(module.parameters(), self.shadow, strict=True):
            p.copy_(average)
        return module

    def state_dict(self) -> dict:
        return {"shadow": self.shadow, "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for mine, saved in zip(self.shadow, state["shadow"], strict=True):
            mine.copy_(saved)


class Run:
    """Training steps until a budget is used up. Iterate over it; each item is the step's number.

    The budget is wall time, or a number of steps when `steps` is given. `fraction` says how much of it is
    used (0 to 1), and schedules are functions of it, so that they end when the budget ends, however fast the
    machine is. Time used before a resume counts. A checkpoint is written every two minutes, at the end, and
    when the process is asked to stop; it holds `parts`, both random generators and the time used.

    Inside `parallel.run` every process iterates over a Run of its own: all go on, stop and end as rank 0
    does, which alone shows progress and writes checkpoints.

    Args:
        name: for the log.
        path: the checkpoint; if it exists the run continues from it.
        parts: everything with `state_dict`/`load_state_dict` that training changes.
        rng: the NumPy generator that the data comes from.
        minutes: budget in all, resumed time included.
        steps: budget in steps instead (for tests: a resumed run then repeats an uninterrupted one exactly).
    """

    def __init__(
        self,
        name: str,
        path: Path,
        parts: dict[str, Any],
        rng: np.random.Generator,
        minutes: float,
        steps: int | None = None,
        stop_after: int | None = None,
    ):
        self.name, self.path, self.parts, self.rng = name, Path(path), parts, rng
        self.seconds, self.steps, self.stop_after = 60 * minutes, steps, stop_after
        self.step, self.elapsed, self.values = 0, 0.0, {}
        self.leads = parallel.rank() == 0
        self._fraction, self._stop = 0.0, False
        if self.path.exists():
            self._restore()

    # ------------------------------------------------------------------ state

    def _restore(self) -> None:
        state = torch.load(self.path, weights_only=True, map_location="cpu")
        for key, part in self.parts.items():
            part.load_state_dict(state["parts"][key])
        self.step, self.elapsed = state["step"], state["elapsed"]
        torch.set_rng_state(state["torch_rng"])
        self.rng.bit_generator.state = state["numpy_rng"]
        if self.leads:
            print(f"{self.name}: continues at step {self.step}, {self.elapsed / 60:.1f} min used", flush=True)

    def save(self) -> None:
        """Write the checkpoint, in the process that leads."""
        if not self.leads:
            return
        state = {
            "parts": {key: part.state_dict() for key, part in self.parts.items()},
            "step": self.step,
            "elapsed": self.elapsed,
            "torch_rng": torch.get_rng_state(),
            "numpy_rng": self.rng.bit_generator.state,
        }
        save_atomically(self.path, state)

    @property
    def fraction(self) -> float:
        """Share of the budget that is used, in [0, 1]; constant in a step and the same in all processes."""
        return self._fraction

    # ------------------------------------------------------------------ the loop

    def report(self, **values: float) -> None:
        """Values to show; averaged over about 50 steps so that a log line is not noise."""
        for key, value in values.items():
            old = self.values.get(key, value)
            self.values[key] = old + 0.02 * (value - old)

    def __iter__(self) -> Iterator[int]:
        previous = {s: signal.signal(s, self._ask_stop) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            with Progress(self.name, 1.0, hidden=not self.leads) as progress:
                yield from self._steps(progress)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _agree(self) -> None:
        """Take from rank 0 how much of the budget is used and whether to stop."""
        used = self.step / self.steps if self.steps else self.elapsed / self.seconds
        asked = self._stop or bool(self.stop_after and self.step >= self.stop_after)
        self._fraction, stop = parallel.agree(min(used, 1.0), asked)
        self._stop = bool(stop)

    def _steps(self, progress: Progress) -> Iterator[int]:
        first, last = self.step, time.monotonic()
        start = saved = last
        self._agree()
        while self.fraction < 1:
            yield self.step
            self.step += 1
            now = time.monotonic()
            self.elapsed, last = self.elapsed + now - last, now
            rate = (self.step - first) / (now - start)
            self._agree()
            progress.update(self.fraction, step=self.step, **self.values, per_second=rate)
            if self._stop:
                self.save()
                raise Stopped(self.name)
            if now - saved > CHECKPOINT_EVERY:
                self.save()
                saved = time.monotonic()
        self.save()

    def _ask_stop(self, *_: Any) -> None:
        self._stop = True


def in_bfloat16(device: torch.device | str = "cpu") -> torch.autocast:
    """bfloat16 where it is faster: on a GPU, and on a CPU with AMX."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu" or has_amx())


def warm_constant(step: int, warm: int) -> float:
    """Factor on the learning rate: linear to 1 over `warm` steps, then 1. It needs to know no end.

    >>> [warm_constant(step, 4) for step in (0, 1, 3, 100)]
    [0.25, 0.5, 1.0, 1.0]
    """
    return min((step + 1) / warm, 1.0)


def warm_cosine(fraction: float, warm: float = 0.02, floor: float = 0.0) -> float:
    """Factor on the learning rate: linear to 1 over `warm` of the budget, then half a cosine to `floor`."""
    if fraction < warm:
        return max(fraction / warm, 0.02)
    x = (fraction - warm) / (1 - warm)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * x))
