"""Layers that no gradient passes: with constant filters, TensorFlow Lite's own convolutions are XNNPACK's fastest."""

from collections.abc import Sequence
from typing import Final

import tensorflow as tf

from model_export.layer_operations import DepthwiseConv2D
from model_export.lowering.tensor_types import Tensor
from model_export.operations import Conv2D, Conv2DMaxPool, Operation

__all__ = ["run_frozen"]

_IMAGE_RANK: Final = 4


def run_frozen(operation: Operation, x: Tensor, weights: Sequence[Tensor]) -> Tensor | None:
    """The result of a convolution of images whose weights are constants.

    Args:
        operation: What lies below the lowest trainable layer.
        x: Its input.
        weights: All weights, by position.

    Returns:
        The result; ``None`` for an operation that is run as anywhere else.
    """
    if len(x.shape) != _IMAGE_RANK:  # Conv1D's [batch, steps, channels]
        return None
    match operation:
        case Conv2DMaxPool(convolution=convolution, pool=pool):
            return tf.nn.max_pool2d(_convolve(convolution, x, weights), pool.window, pool.strides, "VALID")
        case Conv2D():
            return _convolve(operation, x, weights)
        case DepthwiseConv2D(kernel=kernel, strides=(rows, cols), dilation=dilation) if rows == cols and (
            rows == 1 or dilation == (1, 1)
        ):
            # TensorFlow's op knows no others.
            padding = operation.padding.upper()
            return tf.nn.depthwise_conv2d(x, weights[kernel], (1, rows, cols, 1), padding, dilations=dilation)
    return None


def _convolve(operation: Conv2D, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    kernel, padding = weights[operation.kernel], operation.padding.upper()
    return tf.nn.conv2d(x, kernel, operation.strides, padding, dilations=operation.dilation)
