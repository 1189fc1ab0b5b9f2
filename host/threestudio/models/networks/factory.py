"""Encodings and networks from their configs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from threestudio.models.networks.encodings import (
    BackendEncoding,
    CompositeEncoding,
    Frequency,
    Identity,
    ProgressiveBandFrequency,
    ProgressiveBandHashGrid,
    SphericalHarmonics,
)
from threestudio.models.networks.hash_grid import HashGrid
from threestudio.models.networks.hash_layout import DEFAULTS, OTHER_KEYS
from threestudio.models.networks.mlp import TCNN_OTYPES, SphereInitVanillaMLP, TinyMLP, VanillaMLP
from threestudio.utils.base import Updateable
from threestudio.utils.config import config_to_primitive
from threestudio.utils.errors import ConfigValueError, UnknownKeyError, did_you_mean
from threestudio.utils.misc import get_device

_PLAIN = {"Frequency": Frequency, "SphericalHarmonics": SphericalHarmonics, "Identity": Identity}
_GRIDS = ("HashGrid", "Grid")
_PROGRESSIVE = ("ProgressiveBandHashGrid", "ProgressiveBandFrequency")
_BANDS = ("start_level", "start_step", "update_steps")
_ENCODINGS = (*_GRIDS, *_PLAIN, *_PROGRESSIVE)
LEFT_OUT = {"HashGridSpatialTime": "it is for scenes that move, and all here stand still"}
_ENCODING_KEYS = (
    *DEFAULTS,
    *OTHER_KEYS,
    *_BANDS,
    "scale",
    "offset",
    "n_frequencies",
    "n_masking_step",
    "degree",
)
_MLP_KEYS = (
    "otype",
    "activation",
    "output_activation",
    "n_neurons",
    "n_hidden_layers",
    "sphere_init",
    "sphere_init_radius",
    "inside_out",
    "weight_norm",
)
_MLPS = ("VanillaMLP", "SphereInitVanillaMLP", *TCNN_OTYPES)


@functools.cache
def tcnn() -> ModuleType | None:
    """tiny-cuda-nn where there is a CUDA device and the library, else None."""
    if not torch.cuda.is_available():
        return None
    try:
        import tinycudann
    except (ImportError, OSError):  # the library itself raises OSError on a GPU it was not built for
        return None
    return tinycudann


def _plain(config: Any, role: str) -> dict[str, Any]:
    """A config as a dict, with its otype."""
    config = config_to_primitive(config) if OmegaConf.is_config(config) else config
    if not isinstance(config, Mapping) or not isinstance(config.get("otype"), str):
        raise ConfigValueError(f"The config of {role} is a mapping with otype, got {config!r}.")
    return dict(config)


def _unknown(role: str, otype: str, choices: tuple[str, ...]) -> ConfigValueError:
    hint = "" if tcnn() else " (tiny-cuda-nn, which may have more, is not installed.)"
    return ConfigValueError(
        f"Unknown otype {otype!r} of {role}.{did_you_mean(otype, choices)} "
        f"There is: {', '.join(choices)}.{hint}"
    )


def _check_keys(config: dict[str, Any], role: str, known: tuple[str, ...]) -> None:
    """Every key is one that some otype reads; those of another otype may stay behind when it is changed.

    Raises:
        UnknownKeyError: one is not.
    """
    for key in config:
        if key not in known:
            raise UnknownKeyError(
                f"Unknown key {key!r} of {role} ({config['otype']}).{did_you_mean(str(key), known)} "
                f"There is: {', '.join(known)}."
            )


def _needs(config: dict[str, Any], *keys: str) -> None:
    missing = [key for key in keys if key not in config]
    if missing:
        raise ConfigValueError(f"{config['otype']} needs {' and '.join(missing)}.")


# ---- encodings ---------------------------------------------------------------------------------------------


def get_encoding(n_input_dims: int, config: Any) -> CompositeEncoding:
    """The encoding of ``config.otype``: a module from [N, n_input_dims] in [0, 1] to [N, n_output_dims].

    Args:
        config: otype, and that encoding's keys; include_xyz (false) puts the coordinates, scaled to
            [-1, 1], before the features.

    Raises:
        ConfigValueError: an otype that is not there, or a value out of range.
        UnknownKeyError: a key that no encoding, or not a hash grid, has.
    """
    config = _plain(config, "an encoding")
    _check_otype(config["otype"])
    include_xyz = bool(config.pop("include_xyz", False))
    if tcnn() is None:
        _check_keys(config, "an encoding", _ENCODING_KEYS)
    return CompositeEncoding(_encoding(n_input_dims, config), include_xyz=include_xyz)


def _check_otype(otype: str) -> None:
    if otype in LEFT_OUT:
        raise ConfigValueError(
            f"threestudio has the encoding {otype!r}, and this host leaves it out: {LEFT_OUT[otype]}."
        )


def _encoding(n_input_dims: int, config: dict[str, Any]) -> nn.Module:
    otype = config["otype"]
    if otype == "ProgressiveBandFrequency":
        return ProgressiveBandFrequency(n_input_dims, config)
    if otype == "ProgressiveBandHashGrid":
        _needs(config, *_BANDS)
        grid = {key: value for key, value in config.items() if key not in _BANDS}
        return ProgressiveBandHashGrid(_grid(n_input_dims, grid), n_input_dims, DEFAULTS | config)
    if otype in _GRIDS:
        return BackendEncoding(_grid(n_input_dims, config), n_input_dims)
    if otype in _PLAIN:
        return BackendEncoding(_PLAIN[otype](n_input_dims, config), n_input_dims)
    library = tcnn()
    if library is None:
        raise _unknown("an encoding", otype, _ENCODINGS)
    with torch.cuda.device(get_device()):
        return BackendEncoding(library.Encoding(n_input_dims, config, dtype=torch.float32), n_input_dims)


def _grid(n_input_dims: int, config: dict[str, Any]) -> nn.Module:
    library = tcnn()
    if library is None:
        return HashGrid(n_input_dims, config)
    with torch.cuda.device(get_device()):
        return library.Encoding(
            n_input_dims, config | {"otype": "Grid", "type": config.get("type", "Hash")}, dtype=torch.float32
        )


# ---- networks ----------------------------------------------------------------------------------------------


class TCNNNetwork(nn.Module):
    """A network of tiny-cuda-nn, with float32 results."""

    def __init__(self, n_input_dims: int, n_output_dims: int, config: dict[str, Any]) -> None:
        super().__init__()
        with torch.cuda.device(get_device()):
            self.network = tcnn().Network(n_input_dims, n_output_dims, config)
        self.n_output_dims = n_output_dims

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).float()


def get_mlp(n_input_dims: int, n_output_dims: int, config: Any) -> nn.Module:
    """The network of ``config.otype``: a module from [N, n_input_dims] to [N, n_output_dims], float32.

    FullyFusedMLP and CutlassMLP are tiny-cuda-nn's where it is installed and there is CUDA, else PyTorch's;
    their weights are not interchangeable.

    Raises:
        ConfigValueError: an otype that is not there, or a missing key.
        UnknownKeyError: a key that no network has.
    """
    config = _plain(config, "a network")
    otype = config["otype"]
    if tcnn() is None:
        _check_keys(config, "a network", _MLP_KEYS)
    if otype == "VanillaMLP":
        _needs(config, "n_neurons", "n_hidden_layers")
        return VanillaMLP(n_input_dims, n_output_dims, config)
    if otype == "SphereInitVanillaMLP":
        _needs(config, "n_neurons", "n_hidden_layers", "sphere_init_radius", "inside_out")
        return SphereInitVanillaMLP(n_input_dims, n_output_dims, config)
    if config.get("sphere_init", False):
        raise ConfigValueError(f"sphere_init needs otype SphereInitVanillaMLP, not {otype!r}.")
    if tcnn() is not None:
        return TCNNNetwork(n_input_dims, n_output_dims, config)
    if otype in TCNN_OTYPES:
        return TinyMLP(n_input_dims, n_output_dims, config)
    raise _unknown("a network", otype, _MLPS)


class NetworkWithInputEncoding(nn.Module, Updateable):
    """A network of an encoding's features."""

    def __init__(self, encoding: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.encoding, self.network = encoding, network
        self.n_output_dims = network.n_output_dims

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.encoding(x))


def create_network_with_input_encoding(
    n_input_dims: int, n_output_dims: int, encoding_config: Any, network_config: Any
) -> NetworkWithInputEncoding:
    """`get_encoding` and `get_mlp` as one module, from [N, n_input_dims] in [0, 1] to [N, n_output_dims]."""
    encoding = get_encoding(n_input_dims, encoding_config)
    return NetworkWithInputEncoding(encoding, get_mlp(encoding.n_output_dims, n_output_dims, network_config))
