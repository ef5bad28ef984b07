"""Batch normalisation: by the statistics of the examples that count while training, by the moving ones otherwise.

With m the mask of the examples that count, n the number of their pixels, and sums over those alone:
``mean = sum(m * x) / n``, ``variance = sum(m * (x - mean)^2) / n``, ``h = (x - mean) / sqrt(variance + epsilon)`` and
``dx = (dh - m * (sum(dh) + h * sum(dh * h)) / n) / sqrt(variance + epsilon)`` (Ioffe and Szegedy 2015,
arXiv:1502.03167, section 3). Padding has ``dh = 0``: the loss gives it weight 0, and every layer passes that on.

| edge case | what happens |
|---|---|
| no example counts | the moving statistics stay; the mean is 0, the variance 0 |
| one value counts | its variance is 0, and so is what is learnt of it |
| a moving variance below 0 (noise may leave one) | counts as 0; Keras gives NaN |
"""

import dataclasses

import tensorflow as tf

from model_export.lowering.tensor_types import Pullback, Tensor

__all__ = ["BatchStatistics", "batch_normalize", "moving_normalize"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BatchStatistics:
    """What a batch says of its channels, [C] each, and how much of it to believe."""

    mean: Tensor
    variance: Tensor
    correction: Tensor
    """[1] Bessel's n / (n - 1)."""
    is_real: Tensor
    """[1] 1, or 0 if no example counts."""


def batch_normalize(x: Tensor, mask: Tensor, epsilon: float) -> tuple[Tensor, Pullback, BatchStatistics]:
    """Zero mean and unit variance of each channel over the examples that count.

    Args:
        x: [B, ..., C].
        mask: [B], 1 where an example counts and 0 where it is padding.
        epsilon: Added to the variance.
    """
    batch, channels = x.shape[0], x.shape[-1]
    flat = tf.reshape(x, [batch, -1, channels])
    rows = tf.reshape(mask, [batch, 1, 1])
    num_real = tf.reduce_sum(rows, [0, 1, 2], keepdims=True)
    count = tf.maximum(num_real, 1.0) * float(flat.shape[1])

    def mean_of(values: Tensor) -> Tensor:
        # An image at a time, then over the batch, as for a bias.
        return tf.reduce_sum(tf.reduce_sum(values, 1, keepdims=True), 0, keepdims=True) / count

    mean = mean_of(flat * rows)
    centred = flat - mean
    variance = mean_of(centred * centred * rows)
    inverse = tf.math.rsqrt(variance + epsilon)
    h = centred * inverse

    def pullback(dy: Tensor) -> Tensor:
        dh = tf.reshape(dy, flat.shape)
        return tf.reshape(inverse * (dh - rows * (mean_of(dh) + h * mean_of(dh * h))), x.shape)

    statistics = BatchStatistics(
        mean=tf.reshape(mean, [channels]),
        variance=tf.reshape(variance, [channels]),
        correction=tf.reshape(count / tf.maximum(count - 1.0, 1.0), [1]),
        is_real=tf.reshape(tf.minimum(num_real, 1.0), [1]),
    )
    return tf.reshape(h, x.shape), pullback, statistics


def moving_normalize(x: Tensor, mean: Tensor, variance: Tensor, epsilon: float) -> tuple[Tensor, Pullback]:
    """Shifts and scales by given statistics [C], which no gradient reaches."""
    inverse = tf.math.rsqrt(tf.nn.relu(variance) + epsilon)
    return (x - mean) * inverse, lambda dy: dy * inverse
