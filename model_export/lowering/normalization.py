"""Normalisations that need no memory of other batches.

With ``h = (x - mean) / sqrt(variance + epsilon)`` over the same axes, the gradient is
``dx = (dh - mean(dh) - h * mean(dh * h)) / sqrt(variance + epsilon)`` (Ba, Kiros, Hinton 2016, arXiv:1607.06450).
"""

import math
from collections.abc import Sequence

import tensorflow as tf

from model_export.lowering.tensor_types import Pullback, Tensor

__all__ = ["group_normalize", "layer_normalize"]


def layer_normalize(x: Tensor, num_axes: int, epsilon: float) -> tuple[Tensor, Pullback]:
    """Zero mean and unit variance over the last ``num_axes`` axes of ``x`` [B, ...]."""
    rows = math.prod(x.shape[:-num_axes])
    flat = tf.reshape(x, [rows, -1]) if num_axes > 1 or len(x.shape) > 4 else x  # noqa: PLR2004 - rule R6
    y, pullback = _standardize(flat, [-1], epsilon)
    return tf.reshape(y, x.shape), lambda dy: tf.reshape(pullback(tf.reshape(dy, flat.shape)), x.shape)


def group_normalize(x: Tensor, groups: int, epsilon: float) -> tuple[Tensor, Pullback]:
    """Zero mean and unit variance over all pixels of ``x`` [B, ..., C] and each of ``groups`` groups of channels."""
    batch, channels = x.shape[0], x.shape[-1]
    grouped = tf.reshape(x, [batch, -1, groups, channels // groups])
    y, pullback = _standardize(grouped, [1, 3], epsilon)
    return tf.reshape(y, x.shape), lambda dy: tf.reshape(pullback(tf.reshape(dy, grouped.shape)), x.shape)


def _standardize(x: Tensor, axes: Sequence[int], epsilon: float) -> tuple[Tensor, Pullback]:
    def mean(value: Tensor) -> Tensor:
        return tf.reduce_mean(value, axes, keepdims=True)

    centred = x - mean(x)
    inverse = tf.math.rsqrt(mean(centred * centred) + epsilon)
    y = centred * inverse
    return y, lambda dy: inverse * (dy - mean(dy) - y * mean(dy * y))
