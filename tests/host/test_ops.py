"""Small tensor operations."""

from __future__ import annotations

import pytest
import torch

from threestudio.models.geometry.base import contract_to_unisphere
from threestudio.utils.loss import tv_loss
from threestudio.utils.ops import (
    SpecifyGradient,
    binary_cross_entropy,
    chunk_batch,
    dot,
    get_activation,
    perpendicular_component,
    reflect,
    scale_tensor,
    trunc_exp,
)


def test_vectors():
    x, n = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    assert dot(x, n).tolist() == [[3.0]]
    assert reflect(x, n).tolist() == [[-1.0, -2.0, 3.0]]


def test_perpendicular_component():
    x, y = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    left = perpendicular_component(x, y)
    torch.testing.assert_close((left * y).sum(dim=(1, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(perpendicular_component(y, y), torch.zeros_like(y), atol=1e-5, rtol=0)
    assert torch.equal(perpendicular_component(x, torch.zeros_like(x)), x)


def test_scale_tensor():
    values = torch.tensor([-1.0, 0.0, 1.0])
    assert scale_tensor(values, (-1, 1), None).tolist() == [0.0, 0.5, 1.0]
    assert scale_tensor(values, None, (0, 10)).tolist() == [-10.0, 0.0, 10.0]


def test_trunc_exp_gradient_stays_finite():
    x = torch.tensor([0.0, 80.0], requires_grad=True)
    trunc_exp(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.exp(torch.tensor([0.0, 15.0])))


def test_specified_gradient():
    x = torch.zeros(2, requires_grad=True)
    (3 * SpecifyGradient.apply(x, torch.tensor([1.0, -2.0]))).backward()
    assert x.grad.tolist() == [3.0, -6.0]


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        (None, -2.0, -2.0),
        ("none", -2.0, -2.0),
        ("relu", -2.0, 0.0),
        ("Sigmoid", 0.0, 0.5),
        ("scale_-11_01", -1.0, 0.0),
        ("shifted_exp", 1.0, 1.0),
        ("lin2srgb", 1.0, 1.0),
        ("lin2srgb", 0.0, 0.0),
    ],
)
def test_activations(name, x, y):
    assert get_activation(name)(torch.tensor(x)).item() == pytest.approx(y, abs=1e-6)


def test_unknown_activation():
    with pytest.raises(ValueError, match="'swishy'"):
        get_activation("swishy")


@pytest.mark.parametrize("kind", ["tensor", "tuple", "list", "dict"])
@pytest.mark.parametrize("chunk", [0, 1, 3, 100])
def test_chunks_make_no_difference(kind, chunk):
    def func(x, scale, y=None):
        double, total = x * scale, (x + y).sum(-1)
        forms = {
            "tensor": double,
            "tuple": (double, total),
            "list": [double, None],
            "dict": {"a": double, "b": total, "c": None},
        }
        return forms[kind]

    x, y = torch.randn(7, 2), torch.randn(7, 2)
    whole, pieces = func(x, 2.0, y=y), chunk_batch(func, chunk, x, 2.0, y=y)
    assert type(pieces) is type(whole)
    torch.testing.assert_close(pieces, whole)


def test_chunks_without_gradient_are_detached():
    weight = torch.ones(1, requires_grad=True)
    assert chunk_batch(lambda x: x * weight, 2, torch.ones(3)).requires_grad
    with torch.no_grad():
        assert not chunk_batch(lambda x: x * weight, 2, torch.ones(3)).requires_grad
    with pytest.raises(ValueError, match="tensor"):
        chunk_batch(lambda x: x, 2, 3)


def test_tv_loss_by_hand():
    """[[0, 1], [0, 1]]: two horizontal differences of 1 of two pairs; none vertical: 2 * (2/2 + 0)."""
    img = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    assert tv_loss(img).item() == 2.0
    assert tv_loss(img.repeat(3, 1, 1, 1)).item() == 2.0
    assert tv_loss(torch.ones(1, 3, 4, 4)).item() == 0.0


def test_binary_cross_entropy():
    p, target = torch.rand(10).clamp(0.01, 0.99), torch.rand(10)
    torch.testing.assert_close(
        binary_cross_entropy(p, target), torch.nn.functional.binary_cross_entropy(p, target)
    )


def test_contraction():
    bbox = torch.tensor([[-2.0] * 3, [2.0] * 3])
    inside = torch.tensor([[-2.0, 0.0, 2.0]])
    assert contract_to_unisphere(inside, bbox).tolist() == [[0.0, 0.5, 1.0]]
    far = torch.tensor([[1e6, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    contracted = contract_to_unisphere(far, bbox, unbounded=True)
    assert contracted[:, 0].tolist() == pytest.approx([1.0, 0.625, 0.5])
    contracted.sum().backward()
    assert torch.isfinite(far.grad).all()
