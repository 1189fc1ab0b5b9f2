"""Muon for networks with convolutions: each kernel is shown to it as a matrix.

Orthogonalised momentum (Jordan et al. 2024) reaches AdamW's loss in half the steps or fewer on the small
networks here. Matrices and kernels go to Muon; biases, norms, embeddings and whatever is named in ``plain``
go to AdamW.

PyTorch's Muon orthogonalises in bfloat16, which a CPU without AMX only imitates: four fifths of a training
step went there. This one does it in float32 on such machines, and is the same otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from threestudio_lucid.guidance.prior import has_amx

MOMENTUM, WEIGHT_DECAY = 0.95, 0.01
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of a, b, c in x <- a x + (b xx' + c xx'xx') x


def orthogonalize(x: Tensor, steps: int = 5) -> Tensor:
    """About U V' of a matrix x = U S V' [m, n]: its singular values become some between 0.5 and 1.5."""
    a, b, c = NEWTON_SCHULZ
    y = x.bfloat16() if x.is_cuda or has_amx() else x.float()
    tall = len(y) > y.shape[1]
    y = y.T if tall else y
    y = y / y.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = y @ y.T
        y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return y.T if tall else y


class Muon(torch.optim.Optimizer):
    """Nesterov's momentum, orthogonalised; parameters are matrices [m, n]. See `torch.optim.Muon`."""

    def __init__(self, params: list[nn.Parameter], lr: float):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - MOMENTUM)
                update = orthogonalize(p.grad.lerp(momentum, MOMENTUM))
                p.mul_(1 - group["lr"] * WEIGHT_DECAY)
                p.add_(update, alpha=-group["lr"] * max(1.0, len(p) / p.shape[1]) ** 0.5)


class MuonWithAdamW:
    """Two optimisers behind one face.

    Args:
        module: its parameters that require gradients are optimised.
        rate: Muon's learning rate, per step and in units of an orthogonal matrix (0.02 is usual).
        adam_rate: AdamW's.
        plain: prefixes of names of matrices that AdamW takes all the same (first and last layers).
    """

    def __init__(self, module: nn.Module, rate: float, adam_rate: float, plain: tuple[str, ...] = ()):
        self.kernels: list[tuple[nn.Parameter, nn.Parameter]] = []
        others: list[nn.Parameter] = []
        for name, p in module.named_parameters():
            embedding = "embedding" in name and "linear" not in name
            if p.ndim >= 2 and not embedding and not name.startswith(plain):
                self.kernels.append((p, nn.Parameter(_matrix(p.detach()), requires_grad=True)))
            else:
                others.append(p)
        self.muon = Muon([view for _, view in self.kernels], lr=rate)
        self.adam = torch.optim.AdamW(others, lr=adam_rate, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.99))
        self.rates = rate, adam_rate

    def set_rate(self, factor: float) -> None:
        """Multiply both learning rates by a factor of the schedule."""
        for optimizer, rate in zip((self.muon, self.adam), self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor

    @torch.no_grad()
    def step(self) -> None:
        """One step of both."""
        for p, view in self.kernels:
            view.grad = _matrix(p.grad)
        self.muon.step()
        self.adam.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p, view in self.kernels:
            p.grad = view.grad = None
        self.adam.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def _matrix(x: Tensor) -> Tensor:
    """A kernel [out, in, h, w] as a matrix [out, in h w] sharing memory, whatever its format."""
    if x.ndim == 2:
        return x
    if x.is_contiguous():
        return x.view(len(x), -1)
    return x.permute(0, 2, 3, 1).reshape(len(x), -1)
