"""The forward pass in TensorFlow's own ops, differentiable by TensorFlow: what a simulation runs.

None of the lowerings is used, so that comparing an exported file with a simulation compares two implementations.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from model_export.dropout import dropout_mask
from model_export.layer_operations import BatchNorm
from model_export.lowering.tensor_types import Tensor
from model_export.native_batch_norm import native_batch_norm
from model_export.native_layers import NATIVE_LAYERS, native_activation, on_image
from model_export.operations import (
    Activation,
    Add,
    AveragePool,
    Bias,
    Conv2D,
    Dense,
    Dropout,
    GlobalAveragePool,
    Input,
    MaxPool,
    ModelGraph,
    Node,
    Reshape,
)

__all__ = ["native_logits"]


def native_logits(
    graph: ModelGraph,
    weights: Sequence[Tensor],
    x: Tensor,
    tickets: Tensor | None,
    *,
    training: bool = False,
    layers: Mapping[type, Callable[[Any, Sequence[Any], Sequence[Any]], Any]] = NATIVE_LAYERS,
) -> Tensor:
    """The model's logits.

    Args:
        graph: The model.
        weights: The travelling ones in the plan's order and Keras's layout.
        x: [n, ...] float32; n may be unknown.
        tickets: [n] int32, or ``None`` to leave dropout out.
        training: Whether batch normalisation is by the batch's statistics.
        layers: How the less common operations are computed.

    Returns:
        [n, num_classes]: the model's output, or, if that is a softmax, what goes into it.
    """
    weights = [*weights, *graph.frozen_weights]
    values: list[Tensor] = []
    for node in graph.nodes[: graph.logits + 1]:
        inputs = [values[source] for source in node.inputs] or [x]
        if isinstance(node.operation, BatchNorm):
            values.append(native_batch_norm(node.operation, inputs[0], weights, training=training))
            continue
        if type(node.operation) in layers:
            values.append(layers[type(node.operation)](node.operation, inputs, weights))
            continue
        values.append(_run(node, inputs, weights, tickets))
    return values[-1]


def _run(node: Node, inputs: Sequence[Tensor], weights: Sequence[Tensor], tickets: Tensor | None) -> Tensor:
    x = inputs[0]
    match node.operation:
        case Input():
            return x
        case Dense(kernel=kernel):
            return tf.tensordot(x, weights[kernel], 1)
        case Conv2D(kernel=kernel, strides=strides, dilation=dilation, padding=padding):
            return on_image(
                lambda image, filters: tf.nn.conv2d(image, filters, strides, padding.upper(), dilations=dilation),
                x,
                weights[kernel],
            )
        case Bias(bias=bias):
            return tf.nn.bias_add(x, weights[bias])
        case Add():
            return functools.reduce(tf.add, inputs)
        case _:
            return _run_without_weights(node, x, tickets)


def _run_without_weights(node: Node, x: Tensor, tickets: Tensor | None) -> Tensor:
    match node.operation:
        case Activation(name=name, parameter=parameter):
            return native_activation(name, parameter)(x)
        case MaxPool(window=window, strides=strides, padding=padding):
            return on_image(lambda image: tf.nn.max_pool2d(image, window, strides, padding.upper()), x)
        case AveragePool(window=window, strides=strides, padding=padding):
            return on_image(lambda image: tf.nn.avg_pool2d(image, window, strides, padding.upper()), x)
        case GlobalAveragePool():
            return tf.reduce_mean(x, list(range(1, len(x.shape) - 1)))
        case Reshape():
            return tf.reshape(x, [-1, *node.shape])
        case Dropout(index=index, rate=rate):
            if tickets is None:
                return x
            mask = dropout_mask(tickets, math.prod(node.mask_shape), index, rate)
            return x * tf.reshape(mask, [-1, *node.mask_shape])
        case other:
            raise AssertionError(f"no native operation for {other}")  # the layer table admits nothing else
