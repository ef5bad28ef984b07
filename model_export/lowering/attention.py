"""Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2) as matrix products of rank 3 and 4.

With ``q = (x_q W_q + b_q) / sqrt(d)``, ``k``, ``v`` split into heads, ``p = softmax(q k^T)`` and ``m = p v``, the
gradients are ``dv = p^T dm``, ``ds = p * (dp - sum(dp * p))`` with ``dp = dm v^T``, ``dq = ds k`` and ``dk = ds^T q``. A
bias of the keys adds the same to all scores of a query, which softmax does not see: its true gradient is zero.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from model_export.lowering.activations import softmax
from model_export.lowering.tensor_types import Tensor

__all__ = ["attend"]

_HIDDEN = -1e9
"""Added to the scores of what a position does not see, as Keras does."""

_Pullback: TypeAlias = Callable[[Tensor], tuple[list[Tensor], list[Tensor]]]
"""Gradient of the result -> gradients of query, value and key, and of the weights."""
_ProjectionPullback: TypeAlias = Callable[[Tensor], tuple[Tensor, ...]]
"""Gradient of a projection -> of its input, of its kernel, and of its bias, if it has one."""


def attend(
    inputs: Sequence[Tensor], kernels: Sequence[Tensor], biases: Sequence[Tensor], *, is_causal: bool
) -> tuple[Tensor, _Pullback]:
    """Attention of queries over keys and values.

    Args:
        inputs: Query [B, T, C], value [B, S, C'], key [B, S, C''].
        kernels: Of query, key and value [in, H, D], and of the output [H, D, O].
        biases: Of the four [H, D], and of the output [O]; empty: there are none.
        is_causal: Whether a position sees only itself and those before it.

    Returns:
        y [B, T, O], and a pullback; it gives the weights' gradients in the order of ``kernels``, then ``biases``.
    """
    query, value, key = inputs
    heads, size = kernels[0].shape[1:]
    scale = 1.0 / math.sqrt(size)
    bias_of = [[bias] for bias in biases] or [[] for _ in kernels]
    to_q, to_k, to_v = (
        _project(x, tf.reshape(kernel, [1, kernel.shape[0], -1]), bias)
        for x, kernel, bias in zip((query, key, value), kernels[:3], bias_of[:3], strict=True)
    )
    q, k, v = (_split_heads(projected, heads) for projected, _ in (to_q, to_k, to_v))
    q = q * scale
    scores = tf.matmul(q, k, transpose_b=True)
    p, of_softmax = softmax(scores + _causal_mask(scores) if is_causal else scores)
    joined = _join_heads(tf.matmul(p, v))
    y, of_output = _project(joined, tf.reshape(kernels[3], [1, joined.shape[2], -1]), bias_of[3])

    def pullback(dy: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        d_joined, *of_output_weights = of_output(dy)
        dm = _split_heads(d_joined, heads)
        ds = of_softmax(tf.matmul(dm, v, transpose_b=True))
        d_query, *of_query = to_q[1](_join_heads(tf.matmul(ds, k) * scale))
        d_key, *of_key = to_k[1](_join_heads(tf.matmul(ds, q, transpose_a=True)))
        d_value, *of_value = to_v[1](_join_heads(tf.matmul(p, dm, transpose_a=True)))
        in_order = (of_query, of_key, of_value, of_output_weights)
        of_kernels = [tf.reshape(of[0], kernel.shape) for of, kernel in zip(in_order, kernels, strict=True)]
        of_biases = [tf.reshape(of[1], bias.shape) for of, bias in zip(in_order, biases, strict=False)]
        return [d_query, d_value, d_key], of_kernels + of_biases

    return y, pullback


def _project(x: Tensor, kernel: Tensor, biases: Sequence[Tensor]) -> tuple[Tensor, _ProjectionPullback]:
    """Multiplies x [B, T, in] with a kernel [1, in, out], all positions in one product; adds ``biases``, one or none."""
    batch, length, num_in = x.shape
    num_out = kernel.shape[2]
    rows = tf.reshape(x, [1, batch * length, num_in])
    y = tf.matmul(rows, kernel)
    for bias in biases:
        y = y + tf.reshape(bias, [num_out])

    def pullback(dy: Tensor) -> tuple[Tensor, ...]:
        d_rows = tf.reshape(dy, [1, batch * length, num_out])
        dx = tf.reshape(tf.matmul(d_rows, kernel, transpose_b=True), x.shape)
        # A sequence at a time, then over the batch, as for any bias.
        of_bias = [tf.reduce_sum(tf.reduce_sum(dy, 1), 0) for _ in biases]
        return dx, tf.matmul(rows, d_rows, transpose_a=True), *of_bias

    return tf.reshape(y, [batch, length, num_out]), pullback


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, H * D] -> [B, H, T, D]."""
    batch, length, size = x.shape
    return tf.transpose(tf.reshape(x, [batch, length, heads, size // heads]), [0, 2, 1, 3])


def _join_heads(x: Tensor) -> Tensor:
    """[B, H, T, D] -> [B, T, H * D]."""
    batch, heads, length, size = x.shape
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [batch, length, heads * size])


def _causal_mask(scores: Tensor) -> npt.NDArray[Any]:
    """[1, 1, T, S]: 0 where a position may look, ``_HIDDEN`` after it."""
    length, seen = scores.shape[2:]
    return (np.triu(np.ones((length, seen), np.float32), 1) * np.float32(_HIDDEN))[None, None]
