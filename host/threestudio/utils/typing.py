"""What threestudio code star-imports: typing, jaxtyping's array types, ``Tensor``, ``DictConfig``."""

from typing import (  # noqa: UP035 (these very names are the point)
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    Sized,
    Tuple,
    Type,
    TypeVar,
    Union,
)

from jaxtyping import Bool, Complex, Float, Inexact, Int, Integer, Num, Shaped, UInt
from omegaconf import DictConfig
from torch import Tensor

__all__ = [
    "Any",
    "Bool",
    "Callable",
    "Complex",
    "Dict",
    "DictConfig",
    "Float",
    "Inexact",
    "Int",
    "Integer",
    "Iterable",
    "List",
    "Literal",
    "NamedTuple",
    "NewType",
    "Num",
    "Optional",
    "Shaped",
    "Sized",
    "Tensor",
    "Tuple",
    "Type",
    "TypeVar",
    "UInt",
    "Union",
]
