"""Muon against PyTorch's, and what its orthogonalisation does to singular values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from toybox.muon import MOMENTUM, WEIGHT_DECAY, Muon, orthogonalize


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (8, 8)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    found = u.T @ orthogonalize(x).float() @ vh.T
    singular = found.diagonal()
    assert singular.min() > 0.4 and singular.max() < 1.6
    assert (found - torch.diag(singular)).abs().max() < 0.05


def test_steps_are_those_of_pytorch_up_to_its_bfloat16():
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(12, 30, generator=generator)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = (
        Muon([mine], lr=0.02),
        torch.optim.Muon([theirs], lr=0.02, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY),
    )
    for _ in range(5):
        grad = torch.randn(12, 30, generator=generator)
        for p, optimizer in zip((mine, theirs), optimizers, strict=True):
            p.grad = grad.clone()
            optimizer.step()
    moved, difference = (theirs - start).norm(), (mine - theirs).norm()
    assert difference < 0.03 * moved
