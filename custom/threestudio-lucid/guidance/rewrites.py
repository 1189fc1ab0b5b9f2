"""Rewrites of a network that was recorded as a list of operators, for a CPU: the same values in less time.

    1. what returns its input in evaluation (dropout, division by 1) is left out
    2. convolutions of single pixels become linear layers
    3. what is computed twice is computed once, and linear layers of the same input become one
    4. pictures are normalised in channels_last (see `norms`), and stay in it throughout
    5. weights are laid out once as oneDNN wants them

Nothing here knows the architecture: an operator that is not recognised stays what it is. Every node has its
value, or one of the same shape and dtype, in `node.meta["val"]`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.dialect.common.cse_pass import CSEPass, get_CSE_banned_ops

aten, onednn = torch.ops.aten, torch.ops.mkldnn

MOST_THREADS = 4  # with more, PyTorch's own group normalisation has a chance: `norms` has one
_CHANNELS_LAST = {"memory_format": torch.channels_last}


class Layer(NamedTuple):
    """A convolution or linear layer with weights of its own, nodes of the graph."""

    x: Node
    weight: Node
    bias: Node | None = None
    stride: list[int] | tuple[int, ...] = (1, 1)
    padding: list[int] | tuple[int, ...] = (0, 0)
    dilation: list[int] | tuple[int, ...] = (1, 1)
    groups: int = 1


def simplify(network: GraphModule) -> GraphModule:
    """All of the above; the network given is used up. What comes back has yet to write its code."""
    drop_idle(network)
    multiply_points(network)
    network = share(network)
    if torch.get_num_threads() <= MOST_THREADS:
        normalise_by_pixels(network)
    pack(network)
    return network


# --- the rewrites -------------------------------------------------------------------------------------------


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
        return node.args[1] == 1.0 and value(node.args[0]).dtype.is_floating_point
    return node.target is aten.contiguous.default


def multiply_points(network: GraphModule) -> None:
    """Convolutions of single pixels become linear layers, which are called in half the time."""
    graph = network.graph
    for node in graph.nodes:
        layer = layer_of(node, aten.conv2d.default)
        if layer is None or value(layer.weight).shape[2:] != (1, 1) or layer.groups != 1:
            continue
        if [*layer.stride, *layer.padding] != [1, 1, 0, 0]:
            continue
        weight = value(layer.weight).flatten(1)
        with graph.inserting_before(node):
            x = graph.call_function(aten.contiguous.default, (layer.x,), _CHANNELS_LAST)
            x = graph.call_function(aten.permute.default, (x, [0, 2, 3, 1]))
            x.meta["val"] = value(layer.x).permute(0, 2, 3, 1)
            flat = hold(network, graph, f"{node.name}_flat", weight)
            y = graph.call_function(aten.linear.default, (x, flat, layer.bias))
            y.meta["val"] = value(node).permute(0, 2, 3, 1)
            y = graph.call_function(aten.permute.default, (y, [0, 3, 1, 2]))
        y.meta = node.meta
        node.replace_all_uses_with(y)
    graph.eliminate_dead_code()


def share(network: GraphModule) -> GraphModule:
    """What is computed twice is computed once, and linear layers of the same input become one.

    A UNet's residual blocks have a layer each for the same time, its attentions three for their own input.
    """
    network = CSEPass(get_CSE_banned_ops())(network).graph_module
    alike: dict[tuple, list[tuple[Node, Layer]]] = {}
    for node in network.graph.nodes:
        if layer := layer_of(node, aten.linear.default):
            kind = layer.x, value(layer.weight).dtype, layer.bias is None
            alike.setdefault(kind, []).append((node, layer))
    for layers in alike.values():
        if len(layers) > 1:
            _unite(network, *zip(*layers, strict=True))
    network.graph.eliminate_dead_code()
    return network


def _unite(network: GraphModule, nodes: tuple[Node, ...], layers: tuple[Layer, ...]) -> None:
    """One linear layer for several, whose outputs are parts of its own."""
    graph, first = network.graph, nodes[0]
    weight, bias = torch.cat([value(layer.weight) for layer in layers]), None
    with graph.inserting_before(first):
        weight = hold(network, graph, f"{first.name}_joint_weight", weight)
        if layers[0].bias is not None:
            bias = torch.cat([value(layer.bias) for layer in layers])
            bias = hold(network, graph, f"{first.name}_joint_bias", bias)
        joint = graph.call_function(aten.linear.default, (layers[0].x, weight, bias))
        joint.meta["val"] = torch.cat([value(node) for node in nodes], dim=-1)
        start = 0
        for node in nodes:
            end = start + value(node).shape[-1]
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
        x, groups, weight, bias, eps = (*node.args, *(None, None, 1e-5)[len(node.args) - 2 :])[:5]
        if value(x).dtype != torch.float32 or value(x).ndim != 4 or value(x).shape[1] % LANES:
            continue
        if weight is None or bias is None:
            continue
        (last,) = node.users if len(node.users) == 1 else (node,)
        silu = last.target is aten.silu.default
        last = last if silu else node
        with graph.inserting_before(last):
            fused = graph.call_function(group_norm, (x, groups, weight, bias, eps, silu))
        fused.meta = last.meta
        last.replace_all_uses_with(fused)
    graph.eliminate_dead_code()


def pack(network: GraphModule) -> None:
    """Convolutions, and in bfloat16 linear layers, with weights as oneDNN wants them.

    In float32 PyTorch gives linear layers to another library, which is called in less time. Group
    normalisations that are left are given plain tensors: with few channels in a group they take ten times as
    long in channels_last as it takes to copy them.
    """
    graph = network.graph
    for node in graph.nodes:
        graph.inserting_before(node)
        if node.target is aten.group_norm.default:
            plain = graph.call_function(aten.contiguous.default, (node.args[0],))
            node.args = (plain, *node.args[1:])
            continue
        layer = layer_of(node, aten.conv2d.default) or layer_of(node, aten.linear.default)
        if layer is None:
            continue
        x, weight = layer.x, value(layer.weight)
        if node.target is aten.conv2d.default and weight.dtype in (torch.float32, torch.bfloat16):
            # in the order that oneDNN's operators take
            geometry = layer.padding, layer.stride, layer.dilation, layer.groups
            packed = onednn._reorder_convolution_weight(weight, *geometry, list(value(x).shape))
            operator = onednn._convolution_pointwise.default
            x = graph.call_function(aten.contiguous.default, (x,), _CHANNELS_LAST)
        elif node.target is aten.linear.default and weight.dtype == torch.bfloat16:
            packed, geometry = onednn._reorder_linear_weight(weight, math.prod(value(x).shape[:-1])), ()
            operator = onednn._linear_pointwise.default
        else:
            continue
        packed = hold(network, graph, f"{node.name}_packed", packed)
        fast = graph.call_function(operator, (x, packed, layer.bias, *geometry, "none", [], ""))
        fast.meta = node.meta
        node.replace_all_uses_with(fast)
    graph.eliminate_dead_code()


# --- nodes --------------------------------------------------------------------------------------------------


def layer_of(node: Node, target: torch._ops.OpOverload) -> Layer | None:
    """The layer that a node computes, if it is that operator on weights that the network holds."""
    if node.target is not target:
        return None
    layer = Layer(*node.args)
    owned = all(part is None or part.op == "get_attr" for part in (layer.weight, layer.bias))
    return layer if owned else None


def hold(owner: nn.Module, graph: Graph, name: str, tensor: Tensor) -> Node:
    """A node that reads a tensor, which the module is given under that name.

    Raises:
        KeyError: the name is taken.
    """
    if hasattr(owner, name):
        raise KeyError(f"{name} is taken")
    owner.register_buffer(name, tensor.detach(), persistent=False)
    node = graph.create_node("get_attr", name, name=name)
    node.meta["val"] = tensor.detach()
    return node


def value(node: Node) -> Tensor:
    """A tensor with the shape and dtype of the node's value; of a weight the weight itself."""
    return node.meta["val"]
