"""Elementwise combinations of several values, concatenation, and repetition."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import tensorflow as tf

from model_export.layer_operations import MergeKind
from model_export.lowering.tensor_types import Pullback, Tensor, concatenate, plus, positive_mask

__all__ = ["ManyPullback", "add_all", "concatenate_all", "merge", "up_sample"]

ManyPullback: TypeAlias = Callable[[Tensor], list[Tensor]]
"""Gradient with respect to the result -> gradients with respect to each input."""


def add_all(inputs: Sequence[Tensor]) -> tuple[Tensor, ManyPullback]:
    """The sum of the inputs."""
    total = inputs[0]
    for value in inputs[1:]:
        total = total + value
    return total, lambda dy: [_unbroadcast(dy, value) for value in inputs]


def merge(kind: MergeKind, inputs: Sequence[Tensor]) -> tuple[Tensor, ManyPullback]:
    """Combines inputs from left to right; axes of length 1 are broadcast."""
    if kind == "average":
        share = 1.0 / len(inputs)
        total, pullback = add_all(inputs)
        return total * share, lambda dy: pullback(dy * share)
    value, pullbacks = inputs[0], []
    for other in inputs[1:]:
        value, pullback_of_two = _PAIRS[kind](value, other)
        pullbacks.append(pullback_of_two)

    def pull_back_all(dy: Tensor) -> list[Tensor]:
        gradients: list[Tensor] = []
        for pullback_of_two in reversed(pullbacks):
            dy, of_other = pullback_of_two(dy)
            gradients.insert(0, of_other)
        return [dy, *gradients]

    return value, pull_back_all


def concatenate_all(inputs: Sequence[Tensor], axis: int) -> tuple[Tensor, ManyPullback]:
    """Joins inputs along ``axis``."""

    def pullback(dy: Tensor) -> list[Tensor]:
        gradients, start = [], 0
        for value in inputs:
            begin = [0] * len(dy.shape)
            begin[axis] = start
            gradients.append(tf.slice(dy, begin, value.shape))
            start += value.shape[axis]
        return gradients

    return concatenate(inputs, axis), pullback


def up_sample(x: Tensor, rows: int, cols: int) -> tuple[Tensor, Pullback]:
    """Repeats every row and column of ``x`` [B, H, W, C]."""
    batch, height, width, channels = x.shape
    flat = tf.reshape(x, [batch * height, 1, width, channels])
    wide = tf.reshape(concatenate([flat] * cols, 3), [batch * height, 1, width * cols, channels])
    y = tf.reshape(concatenate([wide] * rows, 1), [batch, height * rows, width * cols, channels])

    def pullback(dy: Tensor) -> Tensor:
        cells = tf.reshape(dy, [batch * height, rows, width, cols * channels])
        total = None
        for i in range(rows):
            for j in range(cols):
                total = plus(total, tf.slice(cells, [0, i, 0, j * channels], flat.shape))
        return tf.reshape(total, x.shape)

    return y, pullback


def _multiply(a: Tensor, b: Tensor) -> tuple[Tensor, ManyPullback]:
    return a * b, lambda dy: [_unbroadcast(dy * b, a), _unbroadcast(dy * a, b)]


def _subtract(a: Tensor, b: Tensor) -> tuple[Tensor, ManyPullback]:
    return a - b, lambda dy: [_unbroadcast(dy, a), _unbroadcast(dy * -1.0, b)]


def _maximum(a: Tensor, b: Tensor) -> tuple[Tensor, ManyPullback]:
    """The gradient of a tie goes to the first, as in ``tf.maximum``."""
    y = tf.maximum(a, b)
    return y, lambda dy: _split(dy, positive_mask(y - a), a, b)


def _minimum(a: Tensor, b: Tensor) -> tuple[Tensor, ManyPullback]:
    y = tf.minimum(a, b)
    return y, lambda dy: _split(dy, positive_mask(a - y), a, b)


def _split(dy: Tensor, to_second: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    of_second = dy * to_second
    return [_unbroadcast(dy - of_second, a), _unbroadcast(of_second, b)]


_PAIRS: dict[MergeKind, Callable[[Tensor, Tensor], tuple[Tensor, ManyPullback]]] = {
    "maximum": _maximum,
    "minimum": _minimum,
    "multiply": _multiply,
    "subtract": _subtract,
}


def _unbroadcast(gradient: Tensor, value: Tensor) -> Tensor:
    """Sums a gradient over the axes along which ``value`` was broadcast."""
    axes = [axis for axis, size in enumerate(value.shape) if size != gradient.shape[axis]]
    return tf.reduce_sum(gradient, axes, keepdims=True) if axes else gradient
