"""Small networks and their input encodings."""

from threestudio.models.networks.encodings import (
    CompositeEncoding,
    ProgressiveBandFrequency,
    ProgressiveBandHashGrid,
    with_slope,
)
from threestudio.models.networks.factory import (
    NetworkWithInputEncoding,
    create_network_with_input_encoding,
    get_encoding,
    get_mlp,
)
from threestudio.models.networks.hash_grid import HashGrid
from threestudio.models.networks.mlp import SphereInitVanillaMLP, VanillaMLP

__all__ = [
    "get_encoding",
    "get_mlp",
    "create_network_with_input_encoding",
    "NetworkWithInputEncoding",
    "CompositeEncoding",
    "HashGrid",
    "ProgressiveBandFrequency",
    "ProgressiveBandHashGrid",
    "SphereInitVanillaMLP",
    "VanillaMLP",
    "with_slope",
]
