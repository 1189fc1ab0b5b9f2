"""A denoiser on a CPU, recorded as a flat list of operators and rewritten for oneDNN.

The arithmetic of a small UNet takes a quarter to a half of the time of a call. The rest goes into what
surrounds it: convolutions that bring weights and pictures into oneDNN's layout anew, Python between the
modules, operators that do nothing, text that was the same the last time. `torch.export` writes down the
operators of one call; here they become others that compute the same:

    1. what returns its input in evaluation (dropout, division by 1) is left out
    2. convolutions of single pixels become linear layers, linear layers of the same input one
    3. weights are laid out once as oneDNN wants them, and pictures stay in channels_last in between, in which
       they are also normalised (see `norms`)
    4. what depends on the text alone is computed when the text changes

No compiler is needed, and nothing here knows the architecture: an operator that is not recognised stays what
it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.dialect.common.cse_pass import CSEPass

from .cards import announce

aten, onednn = torch.ops.aten, torch.ops.mkldnn

# A larger network computes for so long that the rest is little, and each recording has a copy of its weights.
MOST_WEIGHTS = 200_000_000
_NORM_DEFAULTS = (None, None, 1e-5)  # weight, bias, eps
_CONV_DEFAULTS = ([1, 1], [0, 0], [1, 1], 1)  # stride, padding, dilation, groups

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


def pays_off(network: nn.Module) -> bool:
    """Whether PyTorch has oneDNN and the operators that its own compiler uses, and the size is right."""
    return (
        torch.backends.mkldnn.is_available()
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
            network = simplify(record(self.denoise, inputs), inputs[0].dtype)
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
            copies[node] = _hold(holder, graph, node.name, values[weights[node.name]])
        elif node.op == "output":
            graph.output(copies[node.args[0][0]])
        elif node.target is not aten._assert_tensor_metadata.default:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return GraphModule(holder, graph)


def simplify(network: GraphModule, dtype: torch.dtype) -> GraphModule:
    """The same in operators that take less time, for weights of that dtype."""
    drop_idle(network)
    multiply_points(network)
    network = share(network)
    normalise_by_pixels(network)
    pack(network, dtype)
    return network


def drop_idle(network: GraphModule) -> None:
    """Leaves out what returns its input: in evaluation, or but for the order in memory."""
    for node in network.graph.nodes:
        if _is_idle(node):
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)
        elif node.target is aten.view.default:
            node.target = aten.reshape.default  # which any order in memory suits


def _is_idle(node: Node) -> bool:
    if node.target is aten.dropout.default:
        return not node.args[2]
    if node.target is aten.div.Tensor:
        return node.args[1] == 1.0 and _value(node.args[0]).dtype.is_floating_point
    return node.target is aten.contiguous.default


def multiply_points(network: GraphModule) -> None:
    """Convolutions of single pixels become linear layers, which are called in half the time."""
    graph = network.graph
    for node in graph.nodes:
        if node.target is not aten.conv2d.default:
            continue
        x, weight, bias, *given = (*node.args, None)[: max(len(node.args), 3)]
        stride, padding, _, groups = _geometry(given)
        if weight.op != "get_attr" or _value(weight).shape[2:] != (1, 1):
            continue
        if stride != [1, 1] or padding != [0, 0] or groups != 1:
            continue
        with graph.inserting_before(node):
            values = _held(network, weight).flatten(1)
            flat = _hold(network, graph, f"flat_{weight.name}", values)
            x = graph.call_function(aten.contiguous.default, (x,), {"memory_format": torch.channels_last})
            x = graph.call_function(aten.permute.default, (x, [0, 2, 3, 1]))
            x.meta["val"] = _value(node.args[0]).permute(0, 2, 3, 1)
            y = graph.call_function(aten.linear.default, (x, flat, bias))
            y.meta["val"] = _value(node).permute(0, 2, 3, 1)
            y = graph.call_function(aten.permute.default, (y, [0, 3, 1, 2]))
            y.meta = node.meta
        node.replace_all_uses_with(y)
    graph.eliminate_dead_code()


def share(network: GraphModule) -> GraphModule:
    """What is computed twice is computed once; and linear layers of the same input become one.

    A UNet's residual blocks have a layer each for the same time, its attentions three for their own input.
    """
    network = CSEPass()(network).graph_module
    alike: dict[tuple, list[Node]] = {}
    for node in network.graph.nodes:
        if node.target is aten.linear.default:
            x, weight, bias = (*node.args, None)[:3]
            if weight.op == "get_attr" and (bias is None or bias.op == "get_attr"):
                alike.setdefault((x, _value(weight).dtype, bias is None), []).append(node)
    for nodes in alike.values():
        if len(nodes) > 1:
            _unite(network, nodes)
    network.graph.eliminate_dead_code()
    return network


def _unite(network: GraphModule, nodes: list[Node]) -> None:
    """One linear layer for several, whose outputs are parts of its own."""
    graph, first = network.graph, nodes[0]
    with graph.inserting_before(first):
        held = [
            _hold(network, graph, f"joint_{given[0].name}", torch.cat([_held(network, arg) for arg in given]))
            for given in zip(*(node.args[1:] for node in nodes), strict=True)
            if given[0] is not None
        ]
        joint = graph.call_function(first.target, (first.args[0], *held))
        joint.meta["val"] = torch.cat([_value(node) for node in nodes], dim=-1)
        start = 0
        for node in nodes:
            end = start + _value(node).shape[-1]
            part = graph.call_function(aten.slice.Tensor, (joint, -1, start, end))
            part.meta, start = node.meta, end
            node.replace_all_uses_with(part)


def normalise_by_pixels(network: GraphModule) -> None:
    """Group normalisations in float32, with the SiLU that often follows, in the order of channels_last."""
    from .norms import LANES, group_norm  # compiled when first imported

    graph = network.graph
    for node in graph.nodes:
        if node.target is not aten.group_norm.default:
            continue
        x, groups, weight, bias, eps = (*node.args, *_NORM_DEFAULTS[len(node.args) - 2 :])[:5]
        value = _value(x)
        if value.dtype != torch.float32 or value.ndim != 4 or value.shape[1] % LANES or weight is None:
            continue
        last, silu = node, len(node.users) == 1 and next(iter(node.users)).target is aten.silu.default
        if silu:
            (last,) = node.users
        with graph.inserting_before(last):
            fused = graph.call_function(group_norm, (x, groups, weight, bias, eps, silu))
        fused.meta = last.meta
        last.replace_all_uses_with(fused)
    graph.eliminate_dead_code()


def pack(network: GraphModule, dtype: torch.dtype) -> None:
    """Convolutions and linear layers with weights of that dtype as oneDNN wants them.

    Group normalisations that are left are given plain tensors: with few channels in a group they take ten
    times as long in channels_last as it takes to copy them.
    """
    graph = network.graph
    for node in graph.nodes:
        graph.inserting_before(node)
        if node.target is aten.group_norm.default:
            plain = graph.call_function(aten.contiguous.default, (node.args[0],))
            node.args = (plain, *node.args[1:])
        elif node.target in (aten.conv2d.default, aten.linear.default):
            x, weight, bias = (*node.args, None)[:3]
            if weight.op != "get_attr" or _value(weight).dtype != dtype:
                continue
            if node.target is aten.linear.default and dtype == torch.float32:
                continue  # PyTorch has another library for these, which is called in less time
            values, shape = getattr(network, weight.target), _value(x).shape
            if node.target is aten.linear.default:
                packed, geometry = onednn._reorder_linear_weight(values, math.prod(shape[:-1])), ()
                operator = onednn._linear_pointwise.default
            else:
                stride, padding, dilation, groups = _geometry(node.args[3:])
                geometry = padding, stride, dilation, groups  # the order that oneDNN's operators take
                packed = onednn._reorder_convolution_weight(values, *geometry, list(shape))
                operator = onednn._convolution_pointwise.default
                x = graph.call_function(aten.contiguous.default, (x,), {"memory_format": torch.channels_last})
            packed = _hold(network, graph, f"packed_{weight.name}", packed)
            fast = graph.call_function(operator, (x, packed, bias, *geometry, "none", [], ""))
            fast.meta = node.meta
            node.replace_all_uses_with(fast)
    graph.eliminate_dead_code()


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


def _hold(owner: nn.Module, graph: Graph, name: str, value: Tensor) -> Node:
    """A node that reads a tensor, which the module is given under that name."""
    owner.register_buffer(name, value.detach(), persistent=False)
    node = graph.create_node("get_attr", name, name=name)
    node.meta["val"] = value
    return node


def _geometry(given: Sequence) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding, dilation and groups of a convolution."""
    return (*given, *_CONV_DEFAULTS[len(given) :])


def _held(network: GraphModule, node: Node) -> Tensor:
    """The tensor that such a node reads."""
    return getattr(network, node.target)


def _value(node: Node) -> Tensor:
    """A tensor with the shape and dtype of the node's value."""
    return node.meta["val"]


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
