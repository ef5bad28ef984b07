"""Activations and their gradients."""

import tensorflow as tf

from model_export.lowering.tensor_types import Pullback, Tensor, positive_mask

__all__ = ["ACTIVATIONS", "relu", "sigmoid", "softmax", "tanh"]


def relu(x: Tensor) -> tuple[Tensor, Pullback]:
    """max(x, 0). The gradient at 0 is 0, as in Keras."""
    y = tf.nn.relu(x)
    return y, lambda dy: dy * positive_mask(y)


def sigmoid(x: Tensor) -> tuple[Tensor, Pullback]:
    """1 / (1 + exp(-x))."""
    y = tf.sigmoid(x)
    return y, lambda dy: dy * (y * (1.0 - y))


def tanh(x: Tensor) -> tuple[Tensor, Pullback]:
    """Hyperbolic tangent."""
    y = tf.tanh(x)
    return y, lambda dy: dy * (1.0 - y * y)


def softmax(x: Tensor) -> tuple[Tensor, Pullback]:
    """Softmax over the last axis, shifted by the maximum so that exp cannot overflow."""
    exponentials = tf.exp(x - tf.reduce_max(x, -1, keepdims=True))
    y = exponentials / tf.reduce_sum(exponentials, -1, keepdims=True)
    return y, lambda dy: y * (dy - tf.reduce_sum(dy * y, -1, keepdims=True))


ACTIVATIONS = {"relu": relu, "sigmoid": sigmoid, "softmax": softmax, "tanh": tanh}
"""Keras's name of the activation -> its lowering."""
