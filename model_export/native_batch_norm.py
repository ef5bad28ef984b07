"""Batch normalisation in TensorFlow's own ops, differentiable by TensorFlow."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from model_export.layer_operations import BatchNorm

__all__ = ["native_batch_norm"]


def native_batch_norm(operation: BatchNorm, x: Any, weights: Sequence[Any], *, training: bool) -> Any:
    """Normalises ``x`` [n, ..., C].

    While training, TensorFlow finds as the gradient of a moving statistic how far a step moves it towards the batch's:
    an update that needs no state, and that whoever trains takes with a rate of 1 (see ``TrainingPlan.num_statistics``).
    """
    mean, variance = weights[operation.mean], weights[operation.variance]
    gamma = None if operation.gamma is None else weights[operation.gamma]
    beta = None if operation.beta is None else weights[operation.beta]
    if not (training and operation.is_training):
        return tf.nn.batch_normalization(x, mean, tf.nn.relu(variance), beta, gamma, operation.epsilon)
    of_batch = tf.nn.moments(x, list(range(len(x.shape) - 1)))
    y = tf.nn.batch_normalization(x, *of_batch, beta, gamma, operation.epsilon)
    count = tf.cast(tf.size(x), tf.float32) / x.shape[-1]
    correction = count / tf.maximum(count - 1.0, 1.0) if operation.has_correction else 1.0
    rate = 1.0 - operation.momentum
    moves = (mean - of_batch[0]) * rate, (variance - of_batch[1] * correction) * rate
    return _carry_moves(y, mean, variance, *(tf.stop_gradient(move) for move in moves))


@tf.custom_gradient
def _carry_moves(y: Any, mean: Any, variance: Any, mean_move: Any, variance_move: Any) -> Any:
    """``y``, with ``mean_move`` and ``variance_move`` as the gradients of ``mean`` and ``variance``."""
    del mean, variance

    def pullback(dy: Any) -> Any:
        return dy, mean_move, variance_move, tf.zeros_like(mean_move), tf.zeros_like(variance_move)

    return tf.identity(y), pullback
