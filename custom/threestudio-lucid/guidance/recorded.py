"""A denoiser on a CPU, recorded as a flat list of operators that take less time.

The arithmetic of a small UNet takes a quarter to a half of the time of a call. The rest goes into what
surrounds it: convolutions that bring weights and pictures into oneDNN's layout anew, Python between the
modules, operators that do nothing, text that was the same the last time. `torch.export` writes down the
operators of one call, `rewrites` makes others of them that compute the same, and what depends on the text
alone is computed when the text changes. No C++ compiler is needed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from .cards import announce
from .rewrites import aten, hold, onednn, simplify

# A larger network computes for so long that the rest is little, and each recording has a copy of its weights.
MOST_WEIGHTS = 200_000_000

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


def pays_off(network: nn.Module, dtype: torch.dtype) -> bool:
    """Whether PyTorch has oneDNN for that dtype, with its compiler's operators, and the size is right."""
    return (
        torch.backends.mkldnn.is_available()
        and (dtype == torch.float32 or (dtype == torch.bfloat16 and onednn._is_mkldnn_bf16_supported()))
        and hasattr(onednn, "_convolution_pointwise")
        and hasattr(onednn, "_linear_pointwise")
        and sum(p.numel() for p in network.parameters()) <= MOST_WEIGHTS
    )


class Recorded:
    """A denoiser from recordings, one for each shape of its inputs; each takes two seconds to make.

    Args:
        denoise: noisy latents [B, C, h, w], timesteps [B] and embeddings [B, T, D] to the raw output. Its
            weights go into the recordings as they are at the first call. Where it cannot be recorded it is
            called as ever.
    """

    def __init__(self, denoise: nn.Module) -> None:
        self.denoise = denoise
        self._recordings: dict[tuple, Denoiser] = {}

    @torch.no_grad()
    def __call__(self, x: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        inputs = x, timesteps, embeddings
        key = tuple((value.shape, value.dtype) for value in inputs)
        if key not in self._recordings:
            self._recordings[key] = self._record(inputs)
        return self._recordings[key](*inputs)

    def _record(self, inputs: tuple[Tensor, Tensor, Tensor]) -> Denoiser:
        try:
            network = simplify(record(self.denoise, inputs))
            recording = _Recording(*split_off(network, "embeddings"))
            recording(*inputs)
        except Exception as error:  # export raises all kinds, and nothing depends on it
            reason = " ".join(str(error).split())[:160]
            announce(f"The denoiser is not recorded, so its calls take longer than need be. ({reason})")
            return self.denoise
        return recording


class _Recording:
    """The two parts of a recording; keeps what the first made of the last text."""

    def __init__(self, read: GraphModule, denoise: GraphModule) -> None:
        self.read, self.denoise = read, denoise
        self._embeddings = torch.empty(0)
        self._text: tuple[Tensor, ...] = ()

    def __call__(self, x: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        if not torch.equal(embeddings, self._embeddings):
            self._embeddings = embeddings.clone()
            self._text = self.read(self._embeddings)
        return self.denoise(*self._text, x, timesteps)


def record(network: nn.Module, inputs: tuple[Tensor, ...]) -> GraphModule:
    """The operators of one call, with the weights as attributes; it returns one tensor.

    Raises:
        ValueError: some of them write into their inputs.
    """
    exported = torch.export.export(network, inputs, strict=False)
    signature, values = exported.graph_signature, exported.state_dict | exported.constants
    weights = (
        signature.inputs_to_parameters
        | signature.inputs_to_buffers
        | signature.inputs_to_lifted_tensor_constants
    )
    graph, holder, copies = Graph(), nn.Module(), {}
    for node in exported.graph.nodes:
        if node.op == "call_function" and _writes(node):
            raise ValueError(f"{node.target} writes into its input")
        if node.name in weights:
            copies[node] = hold(holder, graph, node.name, values[weights[node.name]])
        elif node.op == "output":
            graph.output(copies[node.args[0][0]])
        elif node.target is not aten._assert_tensor_metadata.default:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return GraphModule(holder, graph)


def split_off(network: GraphModule, name: str) -> tuple[GraphModule, GraphModule]:
    """What depends on one input alone, and the rest.

    Returns:
        From that input to a tuple of what the rest needs of it, and from these and the other inputs to the
        output.
    """
    own: set[Node] = set()
    for node in network.graph.nodes:
        if node.name == name if node.op == "placeholder" else own.issuperset(node.all_input_nodes):
            own.add(node)
    calls = (node for node in network.graph.nodes if node in own and node.op != "get_attr")
    passed = [node for node in calls if not own.issuperset(node.users)]

    first, copies = Graph(), {}
    for node in network.graph.nodes:
        if node in own:
            copies[node] = first.node_copy(node, copies.__getitem__)
    first.output(tuple(copies[node] for node in passed))

    rest = Graph()
    copies = {node: rest.placeholder(node.name) for node in passed}
    for node in network.graph.nodes:
        if node not in own or node.op == "get_attr":
            copies[node] = rest.node_copy(node, copies.__getitem__)
    for graph in (first, rest):
        graph.eliminate_dead_code()
    return GraphModule(network, first), GraphModule(network, rest)


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
