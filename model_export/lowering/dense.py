"""Dense layers.

A kernel is stored as [1, out, in], transposed from Keras: as the first operand of BATCH_MATMUL it is then never
packed in the forward pass, and a big kernel costs one read (1.1 ms against 1.9 ms for 9216 x 128 at batch 32).
"""

from collections.abc import Callable
from typing import TypeAlias

import tensorflow as tf

from model_export.lowering.tensor_types import Tensor
from model_export.lowering.weight_gradients import OuterProducts, Pieces

__all__ = ["DensePullback", "LayerPullback", "add_bias", "dense", "sum_to"]

LayerPullback: TypeAlias = Callable[[Tensor], tuple[Tensor | None, Pieces]]
"""Gradient with respect to the output -> gradients with respect to the input (``None`` if not wanted) and kernel."""

DensePullback: TypeAlias = Callable[[Tensor], tuple[Tensor | None, OuterProducts]]
"""The same, of a Dense layer."""


def dense(x: Tensor, kernel: Tensor, *, num_examples: int, needs_dx: bool) -> tuple[Tensor, DensePullback]:
    """Matrix product of a Dense layer, without its bias.

    Args:
        x: [N, in].
        kernel: [1, out, in].
        num_examples: B; each has N / B rows, one after another.
        needs_dx: Whether anything trainable lies before this layer.

    Returns:
        y [N, out], and a pullback giving (dx [N, in], gradient of the kernel).
    """
    num_rows, num_in = x.shape
    num_out = kernel.shape[1]
    rows = tf.reshape(x, [1, num_rows, num_in])
    y = tf.transpose(tf.reshape(tf.matmul(kernel, rows, transpose_b=True), [num_out, num_rows]))

    def product(dy: Tensor) -> Tensor:
        return tf.matmul(tf.reshape(tf.transpose(dy), [1, num_out, num_rows]), rows)

    def pullback(dy: Tensor) -> tuple[Tensor | None, OuterProducts]:
        dkernel = OuterProducts(x=x, dy=dy, num_examples=num_examples, product=product)
        if not needs_dx:
            return None, dkernel
        if num_rows == 1:
            # TensorFlow 2.14's converter folds the other form's reshapes into a BATCH_MATMUL of the wrong rank.
            column = tf.matmul(kernel, tf.reshape(dy, [1, num_out, 1]), transpose_a=True)
            return tf.reshape(column, [1, num_in]), dkernel
        dx = tf.matmul(tf.reshape(dy, [1, num_rows, num_out]), kernel)
        return tf.reshape(dx, [num_rows, num_in]), dkernel

    return y, pullback


def add_bias(x: Tensor, bias: Tensor) -> tuple[Tensor, Callable[[Tensor], Pieces]]:
    """Adds ``bias`` [C] to ``x`` [..., C]; the pullback gives the bias's gradient (the input's is ``dy`` itself)."""
    return x + bias, lambda dy: sum_to(dy, bias)


def sum_to(value: Tensor, weight: Tensor) -> Pieces:
    """Sums over the leading axes: the gradient of a ``weight`` that is broadcast to ``value`` [B, ...]."""
    # An image at a time, then over the batch: one running sum over a large batch rounds by 1e-5
    inner = list(range(1, len(value.shape) - len(weight.shape)))
    piece = tf.reduce_sum(value, inner) if inner else value
    return Pieces(pieces=[piece], assemble=lambda sums: sums[0])
