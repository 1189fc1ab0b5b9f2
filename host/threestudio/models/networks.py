"""Small networks from their configs."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from threestudio.utils.config import config_to_primitive
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.ops import get_activation


class VanillaMLP(nn.Module):
    """Linear layers without bias and ReLU between them, in float32 under autocast too.

    Args:
        dim_in, dim_out: features in and out.
        config: n_neurons, n_hidden_layers, output_activation (none).
    """

    def __init__(self, dim_in: int, dim_out: int, config: dict[str, Any]) -> None:
        super().__init__()
        n_neurons, n_hidden_layers = config["n_neurons"], config["n_hidden_layers"]
        widths = [dim_in] + [n_neurons] * n_hidden_layers
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after, bias=False), nn.ReLU(inplace=True)]
        layers.append(nn.Linear(widths[-1], dim_out, bias=False))
        self.layers = nn.Sequential(*layers)
        self.output_activation = get_activation(config.get("output_activation"))
        self.n_output_dims = dim_out

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.output_activation(self.layers(x.float()))


def get_mlp(n_input_dims: int, n_output_dims: int, config: Any) -> nn.Module:
    """The network of ``config.otype``.

    Raises:
        ConfigValueError: an otype that this host does not have, or a missing key.
    """
    config = config_to_primitive(config)
    otype = config.get("otype")
    if otype != "VanillaMLP":
        raise ConfigValueError(f"Unknown network otype {otype!r}: this host has VanillaMLP.")
    missing = [key for key in ("n_neurons", "n_hidden_layers") if key not in config]
    if missing:
        raise ConfigValueError(f"VanillaMLP needs {' and '.join(missing)}.")
    return VanillaMLP(n_input_dims, n_output_dims, config)
