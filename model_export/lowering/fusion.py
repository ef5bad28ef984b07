"""Rewrites of the graph that change nothing but speed.

A max-pool moves in front of the bias and ReLU it follows: both are monotone, so the maximum commutes with them
exactly, and they then run on a quarter of the values. (A gradient can differ from Keras only where two values of a
window are equal after the bias is added and not before, that is, differ by one rounding.) A max-pool that alone reads
a Winograd convolution joins it: the pixels of its windows are the phases that Winograd computes.
"""

import dataclasses

from model_export.lowering.winograd import MIN_CHANNELS
from model_export.operations import Activation, Bias, Conv2D, Conv2DMaxPool, MaxPool, ModelGraph, Node, Operation

__all__ = ["fuse", "suits_winograd"]

_WINOGRAD_KERNEL = (3, 3)
_ONE = (1, 1)
_TWO = (2, 2)


def fuse(graph: ModelGraph) -> ModelGraph:
    """The graph with max-pools moved forward and joined to convolutions where possible."""
    return _join_pools(_move_pools_forward(graph))


def suits_winograd(convolution: Conv2D, kernel_shape: tuple[int, ...]) -> bool:
    """Whether F(2x2, 3x3) computes this convolution, and pays."""
    is_3x3 = kernel_shape[:-2] == _WINOGRAD_KERNEL and convolution.strides == convolution.dilation == _ONE
    return is_3x3 and min(kernel_shape[2:]) >= MIN_CHANNELS


def _move_pools_forward(graph: ModelGraph) -> ModelGraph:
    nodes = list(graph.nodes)
    for position, node in enumerate(graph.nodes):
        if not isinstance(node.operation, MaxPool) or node.operation.padding != "valid":
            continue
        chain = _monotone_chain(graph, position)
        if not chain:
            continue
        # The links stay; the operations rotate: [bias, relu, pool] becomes [pool, bias, relu].
        operations: list[Operation] = [node.operation, *(nodes[index].operation for index in chain)]
        for index, operation in zip([*chain, position], operations, strict=True):
            nodes[index] = dataclasses.replace(nodes[index], operation=operation, shape=node.shape)
    return dataclasses.replace(graph, nodes=tuple(nodes))


def _monotone_chain(graph: ModelGraph, pool: int) -> list[int]:
    """Positions of the bias and ReLU between a convolution and its pool, in order; empty if there is no such thing."""
    num_consumers = graph.num_consumers()
    chain: list[int] = []
    current = graph.nodes[pool].inputs[0]
    while num_consumers[current] == 1 and _is_monotone(graph.nodes[current].operation):
        chain.insert(0, current)
        current = graph.nodes[current].inputs[0]
    reached_convolution = isinstance(graph.nodes[current].operation, Conv2D) and num_consumers[current] == 1
    return chain if reached_convolution else []


def _is_monotone(operation: Operation) -> bool:
    return isinstance(operation, Bias) or operation == Activation(name="relu")


def _join_pools(graph: ModelGraph) -> ModelGraph:
    pairs = {position: pair for position in range(len(graph.nodes)) if (pair := _joined_pair(graph, position))}
    absorbed = {graph.nodes[pool].inputs[0] for pool in pairs}
    nodes: list[Node] = []
    new_position: dict[int, int] = {}
    for position, node in enumerate(graph.nodes):
        if position in absorbed:
            continue
        # A joined pool reads what its convolution read.
        sources = graph.nodes[node.inputs[0]].inputs if position in pairs else node.inputs
        operation = pairs.get(position, node.operation)
        inputs = tuple(new_position[source] for source in sources)
        nodes.append(dataclasses.replace(node, operation=operation, inputs=inputs))
        new_position[position] = len(nodes) - 1
    return dataclasses.replace(graph, nodes=tuple(nodes), logits=new_position[graph.logits])


def _joined_pair(graph: ModelGraph, position: int) -> Conv2DMaxPool | None:
    """The pool at ``position`` and its convolution as one operation, if Winograd's phases are the pool's windows."""
    pool = graph.nodes[position].operation
    if not isinstance(pool, MaxPool) or (pool.window, pool.strides, pool.padding) != (_TWO, _TWO, "valid"):
        return None
    source = graph.nodes[position].inputs[0]
    convolution = graph.nodes[source].operation
    if not isinstance(convolution, Conv2D) or graph.num_consumers()[source] != 1:
        return None
    suits = suits_winograd(convolution, graph.weight_shape(convolution.kernel))
    return Conv2DMaxPool(convolution=convolution, pool=pool) if suits else None
