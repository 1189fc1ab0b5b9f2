"""Adan: adaptive Nesterov momentum (Xie et al. 2022, arXiv 2208.06677, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class Adan(Optimizer):
    """Adan with decoupled weight decay.

    Args:
        params: parameters or groups.
        lr: learning rate, > 0.
        betas: kept fractions of the means of the gradient, of its differences, and of their squares.
        eps: added to the denominator.
        weight_decay: decoupled; divides the weights by ``1 + lr * weight_decay``.
        max_grad_norm: gradients of all groups together are scaled down to this norm; 0 leaves them.
        no_prox: multiply the weights by ``1 - lr * weight_decay`` before the step, not divide after it.

    Raises:
        ValueError: a negative rate or eps, or a beta outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        no_prox: bool = False,
        **unused: Any,
    ) -> None:
        if lr < 0 or eps < 0 or max_grad_norm < 0:
            raise ValueError(f"lr {lr}, eps {eps} and max_grad_norm {max_grad_norm} must not be negative.")
        if len(betas) != 3 or not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas are three numbers in [0, 1), not {betas}.")
        if set(unused) - {"foreach", "fused"}:
            raise TypeError(f"Adan has no argument {', '.join(sorted(set(unused) - {'foreach', 'fused'}))}.")
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
            "no_prox": no_prox,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        clip = self._clip_factor()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad * clip, group)
        return loss

    def _clip_factor(self) -> float | torch.Tensor:
        max_norm = self.defaults["max_grad_norm"]
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if max_norm <= 0 or not grads:
            return 1.0
        norm = torch.sqrt(sum((grad.float() ** 2).sum() for grad in grads))
        return (max_norm / (norm + self.defaults["eps"])).clamp(max=1.0)

    def _update(self, param: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        beta1, beta2, beta3 = group["betas"]
        state = self.state[param]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_diff"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
            state["previous_grad"] = grad.clone()
        state["step"] += 1
        step = state["step"]

        # 1. the three running means, of g, of g - g_previous, and of (g + beta2 (g - g_previous))^2
        diff = grad - state["previous_grad"]
        nesterov = grad + beta2 * diff
        state["exp_avg"].mul_(beta1).add_(grad, alpha=1 - beta1)
        state["exp_avg_diff"].mul_(beta2).add_(diff, alpha=1 - beta2)
        state["exp_avg_sq"].mul_(beta3).addcmul_(nesterov, nesterov, value=1 - beta3)
        state["previous_grad"].copy_(grad)

        # 2. the step, each mean corrected for its start at zero
        denominator = (state["exp_avg_sq"].sqrt() / math.sqrt(1 - beta3**step)).add_(group["eps"])
        move = state["exp_avg"] / (1 - beta1**step) + state["exp_avg_diff"] * (beta2 / (1 - beta2**step))
        decay = group["lr"] * group["weight_decay"]
        if group["no_prox"]:
            param.mul_(1 - decay)
        param.addcdiv_(move, denominator, value=-group["lr"])
        if not group["no_prox"]:
            param.div_(1 + decay)
