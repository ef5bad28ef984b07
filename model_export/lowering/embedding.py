"""Embeddings: rows of a table by number, and the sum of what each row is told.

Both ops are TFLite's own, not XNNPACK's. They copy and add a few thousand numbers; a matrix product with one-hot rows
would multiply the whole table for every token.
"""

from collections.abc import Callable

import tensorflow as tf

from model_export.lowering.tensor_types import Tensor

__all__ = ["embed"]


def embed(x: Tensor, table: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Looks up rows.

    Args:
        x: [B, ...] token numbers in float32. What is outside of the table is moved to its ends: a wrong number must not
            read other memory.
        table: [n, D].

    Returns:
        y [B, ..., D], and a function from its gradient to the table's [n, D].
    """
    num_tokens, size = table.shape
    numbers = tf.cast(tf.minimum(tf.nn.relu(x), float(num_tokens - 1)), tf.int32)

    def table_gradient(dy: Tensor) -> Tensor:
        return tf.math.unsorted_segment_sum(tf.reshape(dy, [-1, size]), tf.reshape(numbers, [-1]), num_tokens)

    return tf.gather(table, numbers), table_gradient
