"""Names for TensorFlow's untyped values, and the shape arithmetic all lowerings share.

The rules the lowerings obey, so that XNNPACK takes the whole training step:

R1 every matrix product is a BATCH_MATMUL of rank >= 3; CONV_2D or FULLY_CONNECTED with a variable filter is refused
R2 masks are arithmetic, ``min(v * LARGE, 1)``; GREATER, EQUAL, CAST, SELECT, ONE_HOT and ARG_MAX are refused
R3 strides come from a phase split and slices of stride 1; CONCATENATION takes at most 5 inputs
R4 RESHAPE is free only where its input and its output each have one consumer
R5 a TRANSPOSE of the last two axes is folded into every user; perm [1, 0, 3, 2] is not
R6 rank <= 4 wherever something is broadcast
R7 gradients by formula, never TensorFlow's gradient ops
R8 gradients that meet are added by ADD, not ADD_N
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import tensorflow as tf

__all__ = ["LARGE", "Pullback", "Tensor", "concatenate", "plus", "positive_mask"]

Tensor: TypeAlias = Any
"""A ``tf.Tensor`` of static shape, float32 unless said otherwise."""

Pullback: TypeAlias = Callable[[Tensor], Tensor]
"""Gradient with respect to a unary op's output -> gradient with respect to its input."""

LARGE: Final = 3e38
"""Close to the largest float32: makes ``min(v * LARGE, 1)`` a mask for every v that is 0 or above 3.4e-39."""

_MAX_CONCAT_INPUTS: Final = 5


def positive_mask(value: Tensor) -> Tensor:
    """1 where ``value`` > 0 and 0 where it is 0, for ``value`` >= 0 (R2)."""
    return tf.minimum(value * LARGE, 1.0)


def plus(left: Tensor | None, right: Tensor) -> Tensor:
    """``left + right``; ``None`` is zero."""
    return right if left is None else left + right


def concatenate(tensors: Sequence[Tensor], axis: int) -> Tensor:
    """Concatenates any number of tensors in groups that XNNPACK accepts (R3)."""
    parts = list(tensors)
    while len(parts) > _MAX_CONCAT_INPUTS:
        num_groups = -(-len(parts) // _MAX_CONCAT_INPUTS)
        size = max(2, min(_MAX_CONCAT_INPUTS, -(-len(parts) // num_groups)))
        parts = [_concat(parts[start : start + size], axis) for start in range(0, len(parts), size)]
    return _concat(parts, axis)


def _concat(parts: Sequence[Tensor], axis: int) -> Tensor:
    return tf.concat(parts, axis) if len(parts) > 1 else parts[0]
