"""Runs of convolutions over a part of the batch at a time, so that what one op writes is still in the cache for the next.

Winograd's transforms are many cheap ops over tensors as large as the image. At batch 32 such a tensor of a small image
model is 1.2 MB, and three of them do not fit a core's second-level cache: the sums then run at the speed of memory.
Half of the batch at a time they take a third less time. Every operation here treats each example by itself, so parts
change no value; gradients of weights are sums over the parts.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import tensorflow as tf

from model_export.lowering.fusion import suits_winograd
from model_export.lowering.layers import NodePullback
from model_export.lowering.tensor_types import Tensor
from model_export.lowering.weight_gradients import Gradient
from model_export.operations import (
    Activation,
    Add,
    AveragePool,
    Bias,
    Conv2D,
    Conv2DMaxPool,
    MaxPool,
    ModelGraph,
    Node,
)

__all__ = ["PartsGradients", "PartsPullback", "count_parts", "in_parts", "keeps_parts", "run_in_parts", "splits"]

PartsGradients: TypeAlias = tuple[Sequence[list[Tensor] | None], dict[int, list[Gradient]]]
PartsPullback: TypeAlias = Callable[[Sequence[Tensor]], PartsGradients]
"""As ``NodePullback``, of a batch that lies in parts; a weight has a gradient in each."""

_MAX_PART_BYTES: Final = 400 * 1024
"""Of one Winograd product: two that are read and one that is written about fill a second-level cache of 1 MB."""
_MAX_PARTS: Final = 4
"""Each part repeats every op; more of them cost more in calls than they save."""
_BYTES: Final = 4
_KEEPING: Final = (Activation, Add, AveragePool, Bias, Conv2D, Conv2DMaxPool, MaxPool)
_IMAGE_RANK: Final = 3


def count_parts(graph: ModelGraph, batch_size: int) -> int:
    """Into how many parts the batch is split where a convolution is trained: 1, 2 or 4."""
    largest = max((_product_bytes(graph, node) for node in graph.nodes), default=0) * batch_size
    parts = 1
    while largest / parts > _MAX_PART_BYTES and parts < _MAX_PARTS and batch_size % (2 * parts) == 0:
        parts *= 2
    return parts


def splits(node: Node, graph: ModelGraph) -> bool:
    """Whether a whole batch is split before this node: a convolution over images."""
    is_convolution = isinstance(node.operation, Conv2D | Conv2DMaxPool)
    return is_convolution and len(graph.nodes[node.inputs[0]].shape) == _IMAGE_RANK


def keeps_parts(node: Node) -> bool:
    """Whether the node can run on parts: it treats each example by itself."""
    return isinstance(node.operation, _KEEPING)


def in_parts(parts: Sequence[Tensor], count: int) -> list[Tensor]:
    """A batch that lies in some number of parts, in ``count`` parts; one of the two numbers is 1, or they are equal."""
    if len(parts) == count:
        return list(parts)
    if count == 1:
        return [tf.concat(parts, 0)]
    (whole,) = parts
    size = [whole.shape[0] // count, *whole.shape[1:]]
    return [tf.slice(whole, [part * size[0], *[0] * (len(size) - 1)], size) for part in range(count)]


def run_in_parts(
    run: Callable[[Sequence[Tensor]], tuple[Tensor, NodePullback]], inputs: Sequence[Sequence[Tensor]], count: int
) -> tuple[list[Tensor], PartsPullback]:
    """Runs a node on each of ``count`` parts of the batch; its inputs' parts are joined or split as need be."""
    arranged = zip(*(in_parts(parts, count) for parts in inputs), strict=True)
    values, pullbacks = zip(*(run(part) for part in arranged), strict=True)

    def pullback(dys: Sequence[Tensor]) -> PartsGradients:
        results = [part_pullback(dy) for part_pullback, dy in zip(pullbacks, dys, strict=True)]
        to_inputs = zip(*(to_inputs for to_inputs, _ in results), strict=True)
        of_weights: dict[int, list[Gradient]] = {}
        for _, to_weights in results:
            for position, gradient in to_weights.items():
                of_weights.setdefault(position, []).append(gradient)
        return [
            None if parts[0] is None else in_parts(parts, len(given))
            for parts, given in zip(to_inputs, inputs, strict=False)
        ], of_weights

    return list(values), pullback


def _product_bytes(graph: ModelGraph, node: Node) -> int:
    """Size of one of the sixteen products of a node's Winograd convolution, for one example; 0: it is none."""
    operation = node.operation.convolution if isinstance(node.operation, Conv2DMaxPool) else node.operation
    if not isinstance(operation, Conv2D) or not splits(node, graph):
        return 0
    kernel_shape = graph.weight_shape(operation.kernel)
    if not suits_winograd(operation, kernel_shape):
        return 0
    height, width, _ = graph.nodes[node.inputs[0]].shape
    return -(-height // 2) * -(-width // 2) * max(kernel_shape[2:]) * _BYTES
