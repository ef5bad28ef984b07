"""The operations of ``layer_operations`` in TensorFlow's own ops; none of the lowerings is used."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import tensorflow as tf

from model_export.layer_operations import (
    Affine,
    Attention,
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

__all__ = ["NATIVE_LAYERS", "native_activation", "on_image"]

_Weights = Sequence[Any]
_IMAGE_RANK: Final = 4


def native_activation(name: str, parameter: float) -> Callable[[Any], Any]:
    """The function of an ``Activation``."""
    match name:
        case "capped_relu":
            return lambda x: tf.clip_by_value(x, 0.0, parameter)
        case "gelu_tanh":
            return lambda x: tf.nn.gelu(x, approximate=True)
        case "leaky_relu":
            return lambda x: tf.nn.leaky_relu(x, parameter)
        case "scaled_elu":
            return lambda x: tf.keras.activations.elu(x, parameter)
        case _:
            function: Callable[[Any], Any] = getattr(tf.keras.activations, name)
            return function


def on_image(function: Callable[..., Any], x: Any, kernel: Any = None) -> Any:
    """Applies a function of images [n, H, W, C] (and a kernel) also to [n, length, C], as images of one row."""
    if len(x.shape) == _IMAGE_RANK:
        return function(x) if kernel is None else function(x, kernel)
    row = tf.expand_dims(x, 1)
    return tf.squeeze(function(row) if kernel is None else function(row, tf.expand_dims(kernel, 0)), 1)


def _attention(operation: Attention, inputs: Sequence[Any], weights: _Weights) -> Any:
    kernels = [weights[position] for position in operation.kernels]
    biases = [weights[position] for position in operation.biases] or [tf.zeros([1])] * 4
    query, value, key = inputs
    q, k, v = (
        tf.einsum("btc,chd->bthd", x, kernel) + bias
        for x, kernel, bias in zip((query, key, value), kernels, biases, strict=False)
    )
    scores = tf.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
    if operation.is_causal:
        sees = tf.range(scores.shape[2])[:, None] >= tf.range(scores.shape[3])[None]
        scores = tf.where(sees, scores, -math.inf)
    mixed = tf.einsum("bhts,bshd->bthd", tf.nn.softmax(scores), v)
    return tf.einsum("bthd,hdo->bto", mixed, kernels[3]) + biases[3]


def _depthwise(operation: DepthwiseConv2D, inputs: Sequence[Any], weights: _Weights) -> Any:
    def run(x: Any, kernel: Any) -> Any:
        # TensorFlow's own op wants equal strides; the general case is a convolution of one channel at a time.
        planes = tf.split(x, x.shape[-1], -1)
        filters = tf.split(kernel, kernel.shape[2], 2)
        return tf.concat(
            [
                tf.nn.conv2d(plane, one, operation.strides, operation.padding.upper(), dilations=operation.dilation)
                for plane, one in zip(planes, filters, strict=True)
            ],
            -1,
        )

    return on_image(run, inputs[0], weights[operation.kernel])


def _embedding(operation: Embedding, inputs: Sequence[Any], weights: _Weights) -> Any:
    table = weights[operation.table]
    # The gradient of a reshape is dense; that of a gather is sparse, and optimizers would have to know.
    return tf.gather(tf.reshape(table, table.shape), tf.cast(inputs[0], tf.int32))


def _transposed(operation: Conv2DTranspose, inputs: Sequence[Any], weights: _Weights) -> Any:
    def run(x: Any, kernel: Any) -> Any:
        extra = [max(kernel.shape[axis] - operation.strides[axis], 0) for axis in (0, 1)]
        size = [
            x.shape[1 + axis] * operation.strides[axis] + (extra[axis] if operation.padding == "valid" else 0)
            for axis in (0, 1)
        ]
        shape = tf.stack([tf.shape(x)[0], *size, kernel.shape[2]])
        return tf.nn.conv2d_transpose(x, kernel, shape, operation.strides, operation.padding.upper())

    return on_image(run, inputs[0], weights[operation.kernel])


def _scale_and_shift(h: Any, operation: LayerNorm | GroupNorm, weights: _Weights) -> Any:
    h = h if operation.gamma is None else h * weights[operation.gamma]
    return h if operation.beta is None else h + weights[operation.beta]


def _standardize(x: Any, axes: Sequence[int], epsilon: float) -> Any:
    mean, variance = tf.nn.moments(x, list(axes), keepdims=True)
    return (x - mean) / tf.sqrt(variance + epsilon)


def _layer_norm(operation: LayerNorm, inputs: Sequence[Any], weights: _Weights) -> Any:
    h = _standardize(inputs[0], range(-operation.num_axes, 0), operation.epsilon)
    return _scale_and_shift(h, operation, weights)


def _group_norm(operation: GroupNorm, inputs: Sequence[Any], weights: _Weights) -> Any:
    x = inputs[0]
    channels = x.shape[-1]
    grouped = tf.reshape(x, [-1, *x.shape[1:-1], operation.groups, channels // operation.groups])
    axes = [axis for axis in range(1, len(grouped.shape)) if axis != len(grouped.shape) - 2]
    h = tf.reshape(_standardize(grouped, axes, operation.epsilon), [-1, *x.shape[1:]])
    return _scale_and_shift(h, operation, weights)


def _merge(operation: Merge, inputs: Sequence[Any], _: _Weights) -> Any:
    if operation.kind == "average":
        return functools.reduce(tf.add, inputs) / len(inputs)
    return functools.reduce(getattr(tf, operation.kind), inputs)


def _pad(operation: Pad, inputs: Sequence[Any], _: _Weights) -> Any:
    def run(x: Any) -> Any:
        sides = ((0, 0), operation.rows, operation.cols, (0, 0))
        padded = tf.pad(x, [[max(side, 0) for side in pair] for pair in sides])
        crop = [slice(max(-before, 0), -max(-after, 0) or None) for before, after in sides]
        return padded[tuple(crop)]

    return on_image(run, inputs[0])


def _up_sample(operation: UpSample, inputs: Sequence[Any], _: _Weights) -> Any:
    return on_image(lambda x: tf.repeat(tf.repeat(x, operation.size[0], 1), operation.size[1], 2), inputs[0])


def _recurrent(operation: Recurrent, inputs: Sequence[Any], weights: _Weights) -> Any:
    kernel, recurrent = weights[operation.kernel], weights[operation.recurrent]
    bias = tf.zeros([1]) if operation.bias is None else weights[operation.bias]
    is_gru = operation.kind == "gru"
    of_input, of_state = (bias[0], bias[1]) if is_gru and operation.bias is not None else (bias, tf.zeros([1]))
    h = c = tf.zeros([tf.shape(inputs[0])[0], recurrent.shape[0]])
    steps = tf.unstack(inputs[0], axis=1)
    outputs = []
    for x in reversed(steps) if operation.is_reversed else steps:
        left, right = tf.matmul(x, kernel) + of_input, tf.matmul(h, recurrent) + of_state
        if is_gru:
            (xz, xr, xn), (hz, hr, hn) = tf.split(left, 3, 1), tf.split(right, 3, 1)
            z = tf.sigmoid(xz + hz)
            h = z * h + (1 - z) * tf.tanh(xn + tf.sigmoid(xr + hr) * hn)
        elif operation.kind == "lstm":
            i, f, g, o = tf.split(left + right, 4, 1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
            h = tf.sigmoid(o) * tf.tanh(c)
        else:
            h = tf.tanh(left + right)
        outputs.append(h)
    if operation.is_reversed and operation.gives_in_order:
        outputs.reverse()
    return tf.stack(outputs, 1) if operation.return_sequences else h


NATIVE_LAYERS: Final[Mapping[type, Callable[[Any, Sequence[Any], _Weights], Any]]] = {
    Affine: lambda operation, inputs, _: inputs[0] * operation.scale + operation.offset,
    Attention: _attention,
    Concatenate: lambda operation, inputs, _: tf.concat(list(inputs), operation.axis),
    Conv2DTranspose: _transposed,
    DepthwiseConv2D: _depthwise,
    Embedding: _embedding,
    GlobalMaxPool: lambda _, inputs, __: tf.reduce_max(inputs[0], list(range(1, len(inputs[0].shape) - 1))),
    GroupNorm: _group_norm,
    LayerNorm: _layer_norm,
    Merge: _merge,
    Pad: _pad,
    Permute: lambda operation, inputs, _: tf.transpose(inputs[0], (0, *operation.order)),
    Recurrent: _recurrent,
    Standardize: lambda operation, inputs, _: (
        (inputs[0] - tf.constant(operation.centre)) / tf.constant(operation.deviation)
    ),
    UpSample: _up_sample,
}
"""Kind of operation -> (operation, inputs, the model's weights) -> value."""
