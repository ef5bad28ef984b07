"""The lowering of each operation of ``layer_operations``: reads its fields, gives its value and pullback."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import tensorflow as tf

from model_export.layer_operations import (
    Affine,
    Attention,
    BatchNorm,
    Concatenate,
    Conv2DTranspose,
    DepthwiseConv2D,
    Embedding,
    GlobalMaxPool,
    GroupNorm,
    LayerNorm,
    Merge,
    Pad,
    Permute,
    Recurrent,
    Standardize,
    UpSample,
)
from model_export.lowering.attention import attend
from model_export.lowering.batch_normalization import batch_normalize, moving_normalize
from model_export.lowering.convolution import convolve_transposed
from model_export.lowering.dense import DensePullback, LayerPullback, sum_to
from model_export.lowering.depthwise import convolve_depthwise
from model_export.lowering.embedding import embed
from model_export.lowering.merging import ManyPullback, concatenate_all, merge, up_sample
from model_export.lowering.normalization import group_normalize, layer_normalize
from model_export.lowering.phases import pad_image
from model_export.lowering.pooling import global_max_pool
from model_export.lowering.recurrent import run_recurrent
from model_export.lowering.tensor_types import Pullback, Tensor
from model_export.lowering.weight_gradients import Gradient, Pieces
from model_export.lowering.windows import WindowAxis, plan_axis

__all__ = ["LAYERS", "Call", "Gradients", "NodePullback", "kernel_on_images", "on_images", "unary", "with_kernel"]

Gradients: TypeAlias = tuple[Sequence[Tensor | None], dict[int, Gradient]]
NodePullback: TypeAlias = Callable[[Tensor], Gradients]
"""Gradient of a node's result -> gradients of its inputs (``None``: not wanted), and of its weights by position."""

_IMAGE_RANK: Final = 4


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One operation to lower."""

    operation: Any
    inputs: Sequence[Tensor]
    """[B, ...] each."""
    shape: tuple[int, ...]
    """Of the result for one example."""
    weights: Sequence[Tensor]
    """All the model's, by position, in their stored layout."""
    needs_dx: bool
    mask: Tensor | None = None
    """[B] 1 where an example counts, while training; ``None``: not training."""

    @property
    def x(self) -> Tensor:
        """The only input, or the first."""
        return self.inputs[0]


def unary(lowered: tuple[Tensor, Pullback]) -> tuple[Tensor, NodePullback]:
    """An operation of one input and no weights."""
    y, pullback = lowered
    return y, lambda dy: ((pullback(dy),), {})


def with_kernel(position: int, lowered: tuple[Tensor, LayerPullback | DensePullback]) -> tuple[Tensor, NodePullback]:
    """An operation of one input and one weight."""
    y, layer_pullback = lowered

    def pullback(dy: Tensor) -> Gradients:
        dx, dkernel = layer_pullback(dy)
        return (dx,), {position: dkernel}

    return y, pullback


def on_images(function: Callable[[Tensor], tuple[Tensor, Pullback]], x: Tensor) -> tuple[Tensor, Pullback]:
    """Applies a lowering for images [B, H, W, C] also to [B, length, C], as images of one row."""
    if len(x.shape) == _IMAGE_RANK:
        return function(x)
    y, pullback = function(tf.expand_dims(x, 1))
    return tf.reshape(y, [y.shape[0], *y.shape[2:]]), lambda dy: tf.reshape(pullback(tf.reshape(dy, y.shape)), x.shape)


def kernel_on_images(
    function: Callable[[Tensor, Tensor], tuple[Tensor, LayerPullback]], x: Tensor, kernel: Tensor
) -> tuple[Tensor, LayerPullback]:
    """As ``on_images``, for a lowering with a kernel."""
    if len(x.shape) == _IMAGE_RANK:
        return function(x, kernel)
    y, image_pullback = function(tf.expand_dims(x, 1), tf.expand_dims(kernel, 0))

    def pullback(dy: Tensor) -> tuple[Tensor | None, Pieces]:
        dx, dkernel = image_pullback(tf.reshape(dy, y.shape))
        return None if dx is None else tf.reshape(dx, x.shape), dkernel.then(lambda of: tf.reshape(of, kernel.shape))

    return tf.reshape(y, [y.shape[0], *y.shape[2:]]), pullback


def _many(lowered: tuple[Tensor, ManyPullback]) -> tuple[Tensor, NodePullback]:
    y, pullback = lowered
    return y, lambda dy: (pullback(dy), {})


def _depthwise(call: Call) -> tuple[Tensor, NodePullback]:
    operation: DepthwiseConv2D = call.operation

    def run(x: Tensor, kernel: Tensor) -> tuple[Tensor, LayerPullback]:
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
        return convolve_depthwise(x, kernel, rows, cols)

    return with_kernel(operation.kernel, kernel_on_images(run, call.x, call.weights[operation.kernel]))


def _attention(call: Call) -> tuple[Tensor, NodePullback]:
    operation: Attention = call.operation
    kernels = [call.weights[position] for position in operation.kernels]
    biases = [call.weights[position] for position in operation.biases]
    y, attention_pullback = attend(call.inputs, kernels, biases, is_causal=operation.is_causal)

    def pullback(dy: Tensor) -> Gradients:
        of_inputs, of_weights = attention_pullback(dy)
        return of_inputs, dict(zip((*operation.kernels, *operation.biases), of_weights, strict=True))

    return y, pullback


def _embedding(call: Call) -> tuple[Tensor, NodePullback]:
    operation: Embedding = call.operation
    y, table_gradient = embed(call.x, call.weights[operation.table])
    return y, lambda dy: ((None,), {operation.table: table_gradient(dy)})


def _transposed(call: Call) -> tuple[Tensor, NodePullback]:
    operation: Conv2DTranspose = call.operation

    def run(x: Tensor, kernel: Tensor) -> tuple[Tensor, LayerPullback]:
        rows, cols = (_result_axis(operation, x.shape[1 + axis], kernel.shape[axis], axis) for axis in (0, 1))
        return convolve_transposed(x, kernel, rows, cols, needs_dx=call.needs_dx)

    return with_kernel(operation.kernel, kernel_on_images(run, call.x, call.weights[operation.kernel]))


def _result_axis(operation: Conv2DTranspose, size: int, window: int, axis: int) -> WindowAxis:
    """The axis of the result: what Keras's ``deconv_output_length`` says, as the input of a convolution."""
    stride = operation.strides[axis]
    length = size * stride + (max(window - stride, 0) if operation.padding == "valid" else 0)
    return plan_axis(size=length, window=window, stride=stride, padding=operation.padding)


def _normalized(call: Call, lowered: tuple[Tensor, Pullback]) -> tuple[Tensor, NodePullback]:
    """Scale and shift after a normalisation."""
    operation: LayerNorm | GroupNorm | BatchNorm = call.operation
    h, pullback_of_h = lowered
    gamma = None if operation.gamma is None else call.weights[operation.gamma]
    y = h if gamma is None else h * gamma
    y = y if operation.beta is None else y + call.weights[operation.beta]

    def pullback(dy: Tensor) -> Gradients:
        of_weights: dict[int, Gradient] = {}
        if operation.beta is not None:
            of_weights[operation.beta] = sum_to(dy, call.weights[operation.beta])
        if operation.gamma is not None:
            of_weights[operation.gamma] = sum_to(dy * h, gamma)
        return (pullback_of_h(dy if gamma is None else dy * gamma),), of_weights

    return y, pullback


def _affine(call: Call) -> tuple[Tensor, NodePullback]:
    scale, offset = call.operation.scale, call.operation.offset
    scaled = call.x if scale == 1 else call.x * scale
    return unary((scaled + offset if offset else scaled, lambda dy: dy if scale == 1 else dy * scale))


def _standardize(call: Call) -> tuple[Tensor, NodePullback]:
    inverse = 1.0 / np.asarray(call.operation.deviation, np.float32)
    return unary(((call.x - np.asarray(call.operation.centre, np.float32)) * inverse, lambda dy: dy * inverse))


def _permute(call: Call) -> tuple[Tensor, NodePullback]:
    order = (0, *call.operation.order)
    inverse = [order.index(axis) for axis in range(len(order))]
    return unary((tf.transpose(call.x, order), lambda dy: tf.transpose(dy, inverse)))


def _recurrent(call: Call) -> tuple[Tensor, NodePullback]:
    operation: Recurrent = call.operation
    bias = None if operation.bias is None else call.weights[operation.bias]
    length = call.x.shape[1]
    y, recurrent_pullback = run_recurrent(
        operation.kind,
        call.x,
        call.weights[operation.kernel],
        call.weights[operation.recurrent],
        bias,
        order=range(length - 1, -1, -1) if operation.is_reversed else range(length),
        gives_in_order=operation.gives_in_order,
        return_sequences=operation.return_sequences,
        needs_dx=call.needs_dx,
    )

    def pullback(dy: Tensor) -> Gradients:
        dx, of_kernel, of_recurrent, of_bias = recurrent_pullback(dy)
        of_weights = {operation.kernel: of_kernel, operation.recurrent: of_recurrent}
        if operation.bias is not None:
            of_weights[operation.bias] = of_bias
        return (dx,), of_weights

    return y, pullback


def _layer_norm(call: Call) -> tuple[Tensor, NodePullback]:
    return _normalized(call, layer_normalize(call.x, call.operation.num_axes, call.operation.epsilon))


def _group_norm(call: Call) -> tuple[Tensor, NodePullback]:
    return _normalized(call, group_normalize(call.x, call.operation.groups, call.operation.epsilon))


def _batch_norm(call: Call) -> tuple[Tensor, NodePullback]:
    operation: BatchNorm = call.operation
    mean, variance = call.weights[operation.mean], call.weights[operation.variance]
    if call.mask is None or not operation.is_training:
        return _normalized(call, moving_normalize(call.x, mean, variance, operation.epsilon))
    h, pullback_of_h, of_batch = batch_normalize(call.x, call.mask, operation.epsilon)
    y, normalized_pullback = _normalized(call, (h, pullback_of_h))
    rate = of_batch.is_real * (1.0 - operation.momentum)
    seen = of_batch.variance * of_batch.correction if operation.has_correction else of_batch.variance

    def pullback(dy: Tensor) -> Gradients:
        to_inputs, to_weights = normalized_pullback(dy)
        # How far the step takes them: `w - this` is Keras's moving average.
        moves = {operation.mean: (mean - of_batch.mean) * rate, operation.variance: (variance - seen) * rate}
        return to_inputs, {**to_weights, **moves}

    return y, pullback


def _pad(call: Call) -> tuple[Tensor, NodePullback]:
    return unary(on_images(lambda x: pad_image(x, call.operation.rows, call.operation.cols), call.x))


def _up_sample(call: Call) -> tuple[Tensor, NodePullback]:
    return unary(on_images(lambda x: up_sample(x, *call.operation.size), call.x))


LAYERS: Final[Mapping[type, Callable[[Call], tuple[Tensor, NodePullback]]]] = {
    Affine: _affine,
    Attention: _attention,
    BatchNorm: _batch_norm,
    Concatenate: lambda call: _many(concatenate_all(call.inputs, call.operation.axis)),
    Conv2DTranspose: _transposed,
    DepthwiseConv2D: _depthwise,
    Embedding: _embedding,
    GlobalMaxPool: lambda call: unary(global_max_pool(call.x)),
    GroupNorm: _group_norm,
    LayerNorm: _layer_norm,
    Merge: lambda call: _many(merge(call.operation.kind, call.inputs)),
    Pad: _pad,
    Permute: _permute,
    Recurrent: _recurrent,
    Standardize: _standardize,
    UpSample: _up_sample,
}
"""Kind of operation -> its lowering."""
