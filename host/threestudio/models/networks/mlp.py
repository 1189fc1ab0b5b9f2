"""Multilayer perceptrons."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from threestudio.utils.errors import ConfigValueError
from threestudio.utils.ops import get_activation

TCNN_OTYPES = ("FullyFusedMLP", "CutlassMLP")
"""Networks of tiny-cuda-nn; `TinyMLP` stands in for them."""

_HIDDEN_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class _MLP(nn.Module):
    """``layers`` and an output activation, in float32 under autocast too."""

    def __init__(self, layers: list[nn.Module], dim_out: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.output_activation = get_activation(config.get("output_activation"))
        self.n_output_dims = dim_out

    def forward(self, x: Tensor) -> Tensor:
        """[N, dim_out] of [N, dim_in]."""
        with torch.autocast(x.device.type, enabled=False):
            return self.output_activation(self.layers(x.float()))


class VanillaMLP(_MLP):
    """Linear layers without bias and ReLU between them.

    Args:
        dim_in, dim_out: features in and out.
        config: n_neurons, n_hidden_layers, output_activation (none).
    """

    def __init__(self, dim_in: int, dim_out: int, config: dict[str, Any]) -> None:
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(_widths(dim_in, config)):
            layers += [nn.Linear(before, after, bias=False), nn.ReLU(inplace=True)]
        layers.append(nn.Linear(_widths(dim_in, config)[-1], dim_out, bias=False))
        super().__init__(layers, dim_out, config)


class TinyMLP(_MLP):
    """What tiny-cuda-nn's FullyFusedMLP and CutlassMLP compute, in PyTorch and in float32.

    Args:
        config: n_neurons (128), n_hidden_layers (5), activation (ReLU), output_activation (None).
    """

    def __init__(self, dim_in: int, dim_out: int, config: dict[str, Any]) -> None:
        name = str(config.get("activation", "ReLU"))
        if name.lower() not in _HIDDEN_ACTIVATIONS:
            raise ConfigValueError(
                f"activation of {config.get('otype')} is {name!r}: choose one of "
                f"{', '.join(_HIDDEN_ACTIVATIONS)}."
            )
        config = {"n_neurons": 128, "n_hidden_layers": 5} | config
        widths = _widths(dim_in, config)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after, bias=False), _HIDDEN_ACTIVATIONS[name.lower()]()]
        layers.append(nn.Linear(widths[-1], dim_out, bias=False))
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
        super().__init__(layers, dim_out, config)


class SphereInitVanillaMLP(_MLP):
    """Starts as the signed distance to a sphere around the origin (Atzmon and Lipman, SAL, 2020).

    The first three inputs are to be the point's coordinates.  Biases, softplus between the layers, weights
    normalised (a length and a direction for each neuron).

    Args:
        config: n_neurons, n_hidden_layers, sphere_init_radius, inside_out (false: negative inside),
            output_activation (none).
    """

    def __init__(self, dim_in: int, dim_out: int, config: dict[str, Any]) -> None:
        widths = _widths(dim_in, config)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layer = nn.Linear(before, after)
            nn.init.zeros_(layer.bias)
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / after))
            if not layers:
                nn.init.zeros_(layer.weight[:, 3:])  # the encoding's other features say nothing at first
            layers += [nn.utils.parametrizations.weight_norm(layer), nn.Softplus(beta=100)]
        last = nn.Linear(widths[-1], dim_out)
        sign = -1.0 if config["inside_out"] else 1.0
        nn.init.constant_(last.bias, -sign * config["sphere_init_radius"])
        nn.init.normal_(last.weight, sign * math.sqrt(math.pi / widths[-1]), 1e-4)
        layers.append(nn.utils.parametrizations.weight_norm(last))
        super().__init__(layers, dim_out, config)


def _widths(dim_in: int, config: dict[str, Any]) -> list[int]:
    """Neurons before each linear layer."""
    return [dim_in] + [config["n_neurons"]] * config["n_hidden_layers"]
