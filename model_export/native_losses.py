"""Each example's loss in TensorFlow's own ops: what a simulation minimises. None of the lowerings is used."""

from typing import Any

import tensorflow as tf

from model_export.loss_spec import LossSpec

__all__ = ["native_losses"]


def native_losses(loss: LossSpec, output: Any, labels: Any) -> Any:
    """[n] the losses.

    Args:
        loss: The loss.
        output: [n, k], of a cross-entropy the logits.
        labels: int32 [n] for sparse categorical cross-entropy, else float32 [n, k].
    """
    match loss.name:
        case "sparse_categorical_crossentropy":
            return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=output)
        case "categorical_crossentropy":
            return tf.nn.softmax_cross_entropy_with_logits(labels=labels, logits=output)
        case "binary_crossentropy":
            return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=output), -1)
        case "mean_squared_error":
            return tf.reduce_mean(tf.math.squared_difference(output, labels), -1)
        case "mean_absolute_error":
            return tf.reduce_mean(tf.abs(output - labels), -1)
        case "huber":
            error = tf.abs(output - labels)
            linear = loss.huber_delta * error - 0.5 * loss.huber_delta**2
            return tf.reduce_mean(tf.where(error <= loss.huber_delta, 0.5 * error**2, linear), -1)
