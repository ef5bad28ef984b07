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
    is_3x3 = kernel_shape[:2] == _WINOGRAD_KERNEL and convolution.strides == convolution.dilation == _ONE
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
    joined = {node.inputs[0] for node in graph.nodes if _joins(graph, node)}
    nodes: list[Node] = []
    new_position: dict[int, int] = {}
    for position, node in enumerate(graph.nodes):
        if position in joined:
            continue
        if node.inputs and node.inputs[0] in joined:
            node = _joined_node(graph, node)  # noqa: PLW2901 - from here on the joined node is the node
        nodes.append(dataclasses.replace(node, inputs=tuple(new_position[source] for source in node.inputs)))
        new_position[position] = len(nodes) - 1
    return dataclasses.replace(graph, nodes=tuple(nodes), logits=new_position[graph.logits])


def _joins(graph: ModelGraph, node: Node) -> bool:
    pool = node.operation
    if not isinstance(pool, MaxPool) or (pool.window, pool.strides, pool.padding) != (_TWO, _TWO, "valid"):
        return False
    convolution = graph.nodes[node.inputs[0]].operation
    is_alone = graph.num_consumers()[node.inputs[0]] == 1
    return (
        isinstance(convolution, Conv2D)
        and is_alone
        and suits_winograd(convolution, graph.weight_shapes[convolution.kernel])
    )


def _joined_node(graph: ModelGraph, pool_node: Node) -> Node:
    source = graph.nodes[pool_node.inputs[0]]
    convolution, pool = source.operation, pool_node.operation
    assert isinstance(convolution, Conv2D)  # noqa: S101 - narrows for mypy what _joins has checked
    assert isinstance(pool, MaxPool)  # noqa: S101 - the same
    return dataclasses.replace(
        pool_node, operation=Conv2DMaxPool(convolution=convolution, pool=pool), inputs=source.inputs
    )
