"""The forward and backward pass of a whole model, from the lowerings of its operations."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from model_export.dropout import dropout_mask
from model_export.lowering.activations import ACTIVATIONS, PARAMETRIC
from model_export.lowering.clipping import add_up, clip_and_add_up
from model_export.lowering.convolution import convolve, convolve_few_channels, convolve_pointwise
from model_export.lowering.dense import DensePullback, LayerPullback, add_bias, dense
from model_export.lowering.frozen import run_frozen
from model_export.lowering.fusion import fuse, suits_winograd
from model_export.lowering.layers import (
    LAYERS,
    Call,
    NodePullback,
    kernel_on_images,
    on_images,
    unary,
    with_kernel,
)
from model_export.lowering.merging import add_all
from model_export.lowering.parts import (
    PartsGradients,
    PartsPullback,
    count_parts,
    in_parts,
    keeps_parts,
    run_in_parts,
    splits,
)
from model_export.lowering.pooling import average_pool, global_average_pool, max_pool
from model_export.lowering.tensor_types import Pullback, Tensor
from model_export.lowering.weight_gradients import Gradient, OuterProducts
from model_export.lowering.windows import WindowAxis, plan_axis
from model_export.lowering.winograd import convolve_winograd, convolve_winograd_max_pool
from model_export.operations import (
    Activation,
    Add,
    AveragePool,
    Bias,
    Conv2D,
    Conv2DMaxPool,
    Dense,
    Dropout,
    GlobalAveragePool,
    Input,
    MaxPool,
    ModelGraph,
    Node,
    Reshape,
)

__all__ = ["ForwardPass", "LoweredModel"]

_MAX_FEW_CHANNELS = 4


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ForwardPass:
    """What a forward pass computed."""

    logits: Tensor
    """[B, num_classes]."""
    weight_gradients: Callable[[Tensor], list[Tensor]]
    """Gradient of the logits -> gradients of the travelling weights, in order and in their stored layout; of a moving
    statistic how far it falls."""
    clipped_gradients: Callable[[Tensor, float, Tensor], list[Tensor]]
    """Gradients of the examples' own losses by the logits, a clip C, and factors [B, 1] -> the sum over the examples of
    each one's gradient, scaled to a norm of at most C over all weights, times its factor (see ``clipping``)."""


class LoweredModel:
    """A model's operations as TFLite builtins, at a fixed batch size.

    Args:
        graph: The model.
        batch_size: B.
    """

    def __init__(self, graph: ModelGraph, batch_size: int) -> None:
        self._graph = fuse(graph)
        self._batch_size = batch_size
        self._wanted = self._graph.reaches_weights()
        self._frozen = _frozen_in_stored_layout(graph)
        self._num_parts = count_parts(self._graph, batch_size)

    def forward(
        self, weights: Sequence[Tensor], x: Tensor, tickets: Tensor | None, mask: Tensor | None = None
    ) -> ForwardPass:
        """Runs the model up to its logits.

        Args:
            weights: The travelling ones in the plan's order, in their stored layout.
            x: [B, ...] float32.
            tickets: [B] int32, or ``None`` to leave dropout out.
            mask: [B] float32, 1 where an example counts, while training; ``None``: batch normalisation is by its
                moving statistics.
        """
        weights = [*weights, *map(tf.constant, self._frozen)]
        values: list[list[Tensor]] = []
        pullbacks: list[PartsPullback] = []
        for node, is_wanted in zip(self._graph.nodes[: self._graph.logits + 1], self._wanted, strict=False):
            inputs = [values[source] for source in node.inputs] or [[x]]
            frozen = None if is_wanted else run_frozen(node.operation, inputs[0][0], weights)
            if frozen is not None:
                values.append([frozen])
                pullbacks.append(_no_gradients)
                continue
            run = functools.partial(self._run, node, weights=weights, tickets=tickets, mask=mask)
            value, pullback = run_in_parts(run, inputs, self._parts_of(node, inputs) if is_wanted else 1)
            values.append(value)
            pullbacks.append(pullback)
        (logits,) = in_parts(values[-1], 1)
        return ForwardPass(
            logits=logits,
            weight_gradients=lambda dy: add_up(self._backward(pullbacks, values, dy)),
            clipped_gradients=lambda dy, clip, factors: clip_and_add_up(
                self._backward(pullbacks, values, dy), clip, factors
            ),
        )

    def output(self, logits: Tensor) -> Tensor:
        """What the Keras model gives: the logits, or their softmax or sigmoid."""
        activation = self._graph.output_activation
        return logits if activation is None else ACTIVATIONS[activation](logits)[0]

    def _parts_of(self, node: Node, inputs: Sequence[Sequence[Tensor]]) -> int:
        """In how many parts of the batch a node runs."""
        if self._num_parts == 1 or splits(node, self._graph):
            return self._num_parts
        return len(inputs[0]) if keeps_parts(node) and len({len(parts) for parts in inputs}) == 1 else 1

    def _backward(
        self, pullbacks: Sequence[PartsPullback], values: Sequence[Sequence[Tensor]], dlogits: Tensor
    ) -> list[list[Gradient]]:
        """Of each travelling weight, the gradients of the batch's parts (of a weight that is used twice, of both uses)."""
        gradients: dict[int, list[Tensor]] = {self._graph.logits: in_parts([dlogits], len(values[-1]))}
        of_weights: dict[int, list[Gradient]] = {}
        for position in reversed(range(self._graph.logits + 1)):
            if not self._wanted[position] or position not in gradients:
                continue
            to_inputs, to_weights = pullbacks[position](gradients.pop(position))
            for source, gradient in zip(self._graph.nodes[position].inputs, to_inputs, strict=True):
                if gradient is not None and self._wanted[source]:
                    met = gradients.get(source)
                    gradients[source] = gradient if met is None else [a + b for a, b in zip(met, gradient, strict=True)]
            for weight, in_parts_of_batch in to_weights.items():
                of_weights.setdefault(weight, []).extend(in_parts_of_batch)
        return [of_weights[position] for position in range(len(self._graph.weight_shapes))]

    def _run(
        self,
        node: Node,
        inputs: Sequence[Tensor],
        *,
        weights: Sequence[Tensor],
        tickets: Tensor | None,
        mask: Tensor | None,
    ) -> tuple[Tensor, NodePullback]:
        needs_dx = any(self._wanted[source] for source in node.inputs)
        operation, x = node.operation, inputs[0]
        match operation:
            case Input():
                return x, lambda _: ((), {})
            case Dense(kernel=kernel):
                return with_kernel(kernel, _dense(x, weights[kernel], needs_dx=needs_dx))
            case Conv2D(kernel=kernel):
                convolve_images = functools.partial(_convolution, operation, needs_dx=needs_dx)
                return with_kernel(kernel, kernel_on_images(convolve_images, x, weights[kernel]))
            case Conv2DMaxPool(convolution=convolution):
                rows, cols = _convolution_windows(convolution, x, weights[convolution.kernel])
                pooled = convolve_winograd_max_pool(x, weights[convolution.kernel], rows, cols, needs_dx=needs_dx)
                return with_kernel(convolution.kernel, pooled)
            case Bias(bias=bias):
                y, bias_gradient = add_bias(x, weights[bias])
                return y, lambda dy: ((dy,), {bias: bias_gradient(dy)})
            case Add():
                total, to_each = add_all(inputs)
                return total, lambda dy: (to_each(dy), {})
            case _ if type(operation) in LAYERS:
                return LAYERS[type(operation)](
                    Call(
                        operation=operation,
                        inputs=inputs,
                        shape=node.shape,
                        weights=weights,
                        needs_dx=needs_dx,
                        mask=mask,
                    )
                )
            case _:
                return unary(self._run_unary(node, x, tickets))

    def _run_unary(self, node: Node, x: Tensor, tickets: Tensor | None) -> tuple[Tensor, Pullback]:
        match node.operation:
            case Activation(name=name, parameter=parameter):
                return PARAMETRIC[name](x, parameter) if name in PARAMETRIC else ACTIVATIONS[name](x)
            case MaxPool() as pool:
                return on_images(lambda image: max_pool(image, *_pool_windows(image, pool)), x)
            case AveragePool() as pool:
                return on_images(lambda image: average_pool(image, *_pool_windows(image, pool)), x)
            case GlobalAveragePool():
                return global_average_pool(x)
            case Reshape():
                return tf.reshape(x, [self._batch_size, *node.shape]), lambda dy: tf.reshape(dy, x.shape)
            case Dropout(index=index, rate=rate):
                if tickets is None:
                    return x, lambda dy: dy
                mask = dropout_mask(tickets, math.prod(node.mask_shape), index, rate)
                mask = tf.reshape(mask, [self._batch_size, *node.mask_shape])
                return x * mask, lambda dy: dy * mask
            case other:
                raise AssertionError(f"no lowering for {other}")  # the layer table admits nothing else


def _no_gradients(_: Sequence[Tensor]) -> PartsGradients:
    raise AssertionError("a gradient was asked for below the lowest trainable layer")


def _frozen_in_stored_layout(graph: ModelGraph) -> list[npt.NDArray[np.float32]]:
    """Constants for the file: kernels of Dense layers as [1, out, in], as ``dense`` reads them."""
    num_trainable = len(graph.weight_shapes)
    return [
        np.ascontiguousarray(weight.T[None]) if num_trainable + index in graph.dense_kernels else weight
        for index, weight in enumerate(graph.frozen_weights)
    ]


def _dense(x: Tensor, kernel: Tensor, *, needs_dx: bool) -> tuple[Tensor, DensePullback]:
    """A Dense layer on inputs of any rank: all axes but the last are rows."""
    if len(x.shape) == 2:  # noqa: PLR2004 - [batch, features]
        return dense(x, kernel, num_examples=x.shape[0], needs_dx=needs_dx)
    rows = tf.reshape(x, [-1, x.shape[-1]])
    y, rows_pullback = dense(rows, kernel, num_examples=x.shape[0], needs_dx=needs_dx)

    def pullback(dy: Tensor) -> tuple[Tensor | None, OuterProducts]:
        dx, dkernel = rows_pullback(tf.reshape(dy, y.shape))
        return (None if dx is None else tf.reshape(dx, x.shape)), dkernel

    return tf.reshape(y, [*x.shape[:-1], y.shape[-1]]), pullback


def _convolution(operation: Conv2D, x: Tensor, kernel: Tensor, *, needs_dx: bool) -> tuple[Tensor, LayerPullback]:
    """Chooses the lowering of a convolution."""
    rows, cols = _convolution_windows(operation, x, kernel)
    is_dense_window = operation.strides == operation.dilation == (1, 1)
    if is_dense_window and kernel.shape[:2].as_list() == [1, 1]:
        return convolve_pointwise(x, kernel, needs_dx=needs_dx)
    if not needs_dx and x.shape[-1] <= _MAX_FEW_CHANNELS:
        return convolve_few_channels(x, kernel, rows, cols)
    if suits_winograd(operation, tuple(kernel.shape)):
        return convolve_winograd(x, kernel, rows, cols, needs_dx=needs_dx)
    return convolve(x, kernel, rows, cols, needs_dx=needs_dx)


def _convolution_windows(operation: Conv2D, x: Tensor, kernel: Tensor) -> tuple[WindowAxis, WindowAxis]:
    rows, cols = (
        plan_axis(
            size=x.shape[1 + axis],
            window=kernel.shape[axis],
            stride=operation.strides[axis],
            dilation=operation.dilation[axis],
            padding=operation.padding,
        )
        for axis in (0, 1)
    )
    return rows, cols


def _pool_windows(x: Tensor, pool: MaxPool | AveragePool) -> tuple[WindowAxis, WindowAxis]:
    rows, cols = (
        plan_axis(size=x.shape[1 + axis], window=pool.window[axis], stride=pool.strides[axis], padding=pool.padding)
        for axis in (0, 1)
    )
    return rows, cols
