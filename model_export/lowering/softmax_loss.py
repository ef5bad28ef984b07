"""Softmax cross-entropy of integer labels, summed over the examples that count."""

import tensorflow as tf

from model_export.lowering.tensor_types import Pullback, Tensor

__all__ = ["cross_entropy"]


def cross_entropy(logits: Tensor, one_hot: Tensor, example_weight: Tensor) -> tuple[Tensor, Pullback]:
    """The weighted sum of cross-entropies.

    Args:
        logits: [B, num_classes].
        one_hot: [B, num_classes], the labels.
        example_weight: [B, 1]; 0 marks padding.

    Returns:
        loss_sum [1], and a pullback from a gradient of shape [1] to that of the logits.
    """
    shifted = logits - tf.reduce_max(logits, -1, keepdims=True)
    exponentials = tf.exp(shifted)
    totals = tf.reduce_sum(exponentials, -1, keepdims=True)
    losses = tf.math.log(totals) - tf.reduce_sum(shifted * one_hot, -1, keepdims=True)

    def pullback(dloss: Tensor) -> Tensor:
        return (exponentials / totals - one_hot) * (example_weight * dloss)

    return tf.reshape(tf.reduce_sum(losses * example_weight), [1]), pullback
