"""CUDA graphs: a network's thousand kernels launched as one.

At four views a denoiser's kernels are shorter than it takes Python to launch them, so that a GPU mostly
waits. A graph is recorded once for each shape of the inputs (a second each) and then replayed; what it
computes stays the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

WARM_UPS = 3  # calls before recording, in which cuDNN chooses and compilers compile


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class Replayed:
    """A function of CUDA tensors, without gradients, from recordings.

    Args:
        function: takes tensors and returns one; it must do the same for all inputs of the same shapes, and
            wait for nothing.
    """

    def __init__(self, function: Callable[..., Tensor]):
        self.function = function
        self._recordings: dict[tuple, _Recording] = {}

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's value, in memory that the next call with inputs of these shapes writes over."""
        key = tuple((x.shape, x.stride(), x.dtype) for x in inputs)
        if key not in self._recordings:
            self._recordings[key] = self._record(inputs)
        recording = self._recordings[key]
        for mine, given in zip(recording.inputs, inputs, strict=True):
            mine.copy_(given)
        recording.graph.replay()
        return recording.output

    def _record(self, inputs: tuple[Tensor, ...]) -> _Recording:
        inputs = tuple(x.detach().clone() for x in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.function(*inputs)
        return _Recording(graph, inputs, output)


class ReplayedWithGradient:
    """A function of one CUDA tensor with a gradient, from recordings of both passes.

    A recording holds one forward pass until its backward pass has been; another one of the same shape in the
    meantime, or one of an input that needs no gradient, is computed as ever.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]):
        self.function = function
        self._recordings: dict[tuple, Callable[[Tensor], Tensor]] = {}
        self._held: set[tuple] = set()

    def __call__(self, x: Tensor) -> Tensor:
        key = (x.shape, x.stride(), x.dtype)
        if key in self._held or not (x.requires_grad and torch.is_grad_enabled()):
            return self.function(x)
        if key not in self._recordings:
            sample = torch.zeros_like(x).requires_grad_()
            self._recordings[key] = torch.cuda.make_graphed_callables(
                self.function, (sample,), num_warmup_iters=WARM_UPS
            )
        value = self._recordings[key](x).clone()
        self._held.add(key)
        x.register_hook(lambda _: self._held.discard(key))
        return value
