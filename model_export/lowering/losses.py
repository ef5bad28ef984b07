"""Losses, what is measured beside them, and their gradients; one example's figures are [B, 1], in float32.

With z the output (of a cross-entropy: the logits), y the label, e = z - y, and k outputs:

| loss of an example | gradient by z |
|---|---|
| cross-entropy of classes: ``log sum exp z - sum(y * z)`` | ``softmax(z) - y`` |
| binary cross-entropy: mean of ``max(z, 0) - z * y + log(1 + exp(-abs(z)))`` | ``(sigmoid(z) - y) / k`` |
| squared error: mean of ``e^2`` | ``2 * e / k`` |
| absolute error: mean of ``abs(e)`` | ``sign(e) / k``, 0 at 0 |
| Huber (1964): mean of ``q * (abs(e) - q / 2)`` with ``q = min(abs(e), delta)`` | ``clip(e, -delta, delta) / k`` |

The second is stable for logits of any size: nothing overflows, and nothing is clipped as a probability would have to be.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from model_export.loss_spec import LossSpec
from model_export.lowering.tensor_types import Tensor, positive_mask

__all__ = ["Scores", "cross_entropy", "score"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What a loss says of a batch."""

    losses: Tensor
    """[B, 1]."""
    share_correct: Tensor | None
    """[B, 1], 0 to 1; ``None`` of a regression."""
    absolute_errors: Tensor | None
    """[B, 1], the mean over an example's outputs; ``None`` unless it is a regression."""
    pullback: Callable[[Tensor], Tensor]
    """Gradient of the losses [B, 1] -> gradient of the output [B, k]."""


def score(loss: LossSpec, output: Tensor, labels: Tensor) -> Scores:
    """Scores a batch.

    Args:
        loss: The loss.
        output: [B, k], of a cross-entropy the logits.
        labels: int32 [B] for sparse categorical cross-entropy, else float32 [B, k].
    """
    if loss.name == "sparse_categorical_crossentropy":
        numbers = tf.reshape(tf.cast(labels, tf.float32), [-1, 1])
        return _classes(output, _equals(numbers, _class_numbers(output)), numbers)
    if loss.name == "categorical_crossentropy":
        return _classes(output, labels, _first_largest(labels))
    if loss.name == "binary_crossentropy":
        return _binary(output, labels)
    return _regression(loss, output, labels)


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Softmax cross-entropy.

    Args:
        logits: [B, k].
        labels: [B, k], rows that sum to 1.

    Returns:
        losses [B, 1], and a pullback from their gradient to that of the logits.
    """
    shifted = logits - tf.reduce_max(logits, -1, keepdims=True)
    exponentials = tf.exp(shifted)
    totals = tf.reduce_sum(exponentials, -1, keepdims=True)
    losses = tf.math.log(totals) - tf.reduce_sum(shifted * labels, -1, keepdims=True)
    return losses, lambda dloss: (exponentials / totals - labels) * dloss


def _classes(logits: Tensor, labels: Tensor, numbers: Tensor) -> Scores:
    """Scores one of several classes; ``numbers`` [B, 1] are the right ones."""
    losses, pullback = cross_entropy(logits, labels)
    share_correct = _equals(_first_largest(logits), numbers)
    return Scores(losses=losses, share_correct=share_correct, absolute_errors=None, pullback=pullback)


def _class_numbers(values: Tensor) -> Tensor:
    """[1, k]: 0 .. k-1. Whole numbers below 2^24 are exact in float32."""
    return tf.range(float(values.shape[-1]))[None]


def _equals(a: Tensor, b: Tensor) -> Tensor:
    """1 where two whole numbers are equal and 0 elsewhere: EQUAL and ONE_HOT are refused (R2)."""
    return tf.nn.relu(1.0 - tf.abs(a - b))


def _first_largest(values: Tensor) -> Tensor:
    """[B, 1] the place of the first of the largest values [B, k], as ``tf.argmax`` has it: ARG_MAX is refused (R2)."""
    is_smaller = positive_mask(tf.reduce_max(values, -1, keepdims=True) - values)
    places = _class_numbers(values) + is_smaller * float(values.shape[-1])
    return tf.reduce_min(places, -1, keepdims=True)


def _binary(logits: Tensor, labels: Tensor) -> Scores:
    losses = tf.nn.relu(logits) - logits * labels + tf.math.log(1.0 + tf.exp(tf.abs(logits) * -1.0))
    says_yes, is_yes = positive_mask(tf.nn.relu(logits)), positive_mask(tf.nn.relu(labels - 0.5))
    share = 1.0 / logits.shape[-1]
    return Scores(
        losses=_mean(losses),
        share_correct=_mean(1.0 - tf.abs(says_yes - is_yes)),
        absolute_errors=None,
        pullback=lambda dloss: (tf.sigmoid(logits) - labels) * (dloss * share),
    )


def _regression(loss: LossSpec, output: Tensor, labels: Tensor) -> Scores:
    error = output - labels
    size = tf.abs(error)
    if loss.name == "mean_squared_error":
        losses, slopes = error * error, error * 2.0
    elif loss.name == "mean_absolute_error":
        losses, slopes = size, positive_mask(tf.nn.relu(error)) - positive_mask(tf.nn.relu(error * -1.0))
    else:
        near = tf.minimum(size, loss.huber_delta)
        losses, slopes = near * (size - near * 0.5), tf.maximum(tf.minimum(error, loss.huber_delta), -loss.huber_delta)
    share = 1.0 / output.shape[-1]
    return Scores(
        losses=_mean(losses),
        share_correct=None,
        absolute_errors=_mean(size),
        pullback=lambda dloss: slopes * (dloss * share),
    )


def _mean(values: Tensor) -> Tensor:
    return tf.reduce_mean(values, -1, keepdims=True)
