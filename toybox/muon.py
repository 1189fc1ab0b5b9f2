"""Muon for networks with convolutions: PyTorch's takes matrices only, so each kernel is shown to it as one.

Orthogonalised momentum (Jordan et al. 2024) reaches AdamW's loss in half the steps or fewer on the small
networks here. Matrices and kernels go to Muon; biases, norms, embeddings and whatever is named in ``plain``
go to AdamW.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
        self.muon = torch.optim.Muon([view for _, view in self.kernels], lr=rate, weight_decay=0.01)
        self.adam = torch.optim.AdamW(others, lr=adam_rate, weight_decay=0.01, betas=(0.9, 0.99))
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
