"""The gradient of one weight, before it is settled how much each example counts in it.

A plain step adds the examples' gradients up. Clipping each example's gradient (DP-SGD; Abadi et al. 2016,
arXiv:1607.00133, algorithm 1) first needs their norms over all weights, and then a weighted sum. No weight's gradient
is held once per example where that would be large:

| weight | an example's gradient | its squared norm |
|---|---|---|
| convolution, bias, scale, shift (``Pieces``) | the batched products of the plain step, before their sum | their sum of squares |
| Dense (``OuterProducts``), x [T, in], dy [T, out] | ``x^T dy``, never formed | ``sum((x x^T) * (dy dy^T))``, for T = 1 ``norm(x)^2 * norm(dy)^2`` |

The second is Goodfellow's trick (2015, arXiv:1510.01799), for sequences Li et al. 2021 (arXiv:2110.05679, section 4).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import tensorflow as tf

from model_export.lowering.tensor_types import Tensor, plus

__all__ = ["Gradient", "OuterProducts", "Pieces", "WeightGradient", "total"]


class WeightGradient(Protocol):
    """A weight's gradient by each of B examples. What is not asked for adds nothing to the graph."""

    def total(self) -> Tensor:
        """The sum over the examples, in the weight's stored layout."""

    def weighted(self, factors: Tensor) -> Tensor:
        """The sum of each example's gradient times its factor, [B, 1]."""

    def squared_norms(self) -> Tensor:
        """[B, 1]."""


Gradient: TypeAlias = Tensor | WeightGradient
"""A tensor: summed over the examples already, as of weights whose examples' shares cannot be told apart."""


def total(gradient: Gradient) -> Tensor:
    """The sum over the examples."""
    return gradient.total() if isinstance(gradient, Pieces | OuterProducts) else gradient


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """A gradient in pieces that hold the examples side by side."""

    pieces: Sequence[Tensor]
    """Each with B along ``axis``."""
    assemble: Callable[[list[Tensor]], Tensor]
    """The pieces summed over their examples (``axis`` is gone) -> the gradient in the weight's stored layout."""
    axis: int = 0
    unmix: Callable[[Sequence[Tensor]], Sequence[Tensor]] = lambda pieces: pieces
    """The pieces -> tensors of the same form that hold the gradient's own values, each once. Only Winograd's differ."""

    def total(self) -> Tensor:
        """See ``WeightGradient``."""
        return self.assemble([tf.reduce_sum(piece, self.axis) for piece in self.pieces])

    def weighted(self, factors: Tensor) -> Tensor:
        """See ``WeightGradient``."""
        return self.assemble([
            tf.reduce_sum(piece * tf.reshape(factors, self._broadcast(piece)), self.axis) for piece in self.pieces
        ])  # fmt: skip

    def squared_norms(self) -> Tensor:
        """See ``WeightGradient``."""
        squares = None
        for piece in self.unmix(self.pieces):
            rows = tf.reshape(piece, [piece.shape[self.axis], -1])
            squares = plus(squares, tf.reduce_sum(rows * rows, 1, keepdims=True))
        return squares

    def then(self, function: Callable[[Tensor], Tensor]) -> "Pieces":
        """The same gradient, reshaped or transposed by ``function`` once it is assembled."""
        assemble = self.assemble
        return dataclasses.replace(self, assemble=lambda sums: function(assemble(sums)))

    def _broadcast(self, piece: Tensor) -> list[int]:
        return [size if axis == self.axis else 1 for axis, size in enumerate(piece.shape)]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OuterProducts:
    """The gradient of a Dense kernel: of each example the sum over its T rows of the products of ``x`` and ``dy``."""

    x: Tensor
    """[B * T, in]."""
    dy: Tensor
    """[B * T, out]."""
    num_examples: int
    """B."""
    product: Callable[[Tensor], Tensor]
    """Gradient with respect to the output, [B * T, out] -> the kernel's gradient in its stored layout."""

    def total(self) -> Tensor:
        """See ``WeightGradient``."""
        return self.product(self.dy)

    def weighted(self, factors: Tensor) -> Tensor:
        """See ``WeightGradient``."""
        if self._num_rows == 1:
            return self.product(self.dy * factors)
        scaled = self._by_example(self.dy) * tf.reshape(factors, [-1, 1, 1])
        return self.product(tf.reshape(scaled, self.dy.shape))

    def squared_norms(self) -> Tensor:
        """See ``WeightGradient``."""
        if self._num_rows == 1:
            squares = [tf.reduce_sum(value * value, 1, keepdims=True) for value in (self.x, self.dy)]
            return squares[0] * squares[1]
        of_x, of_dy = (
            tf.matmul(rows, rows, transpose_b=True) for rows in (self._by_example(self.x), self._by_example(self.dy))
        )
        # Rounding may leave a sum of products of two matrices a little below 0.
        products = tf.reshape(of_x * of_dy, [self.num_examples, -1])
        return tf.nn.relu(tf.reduce_sum(products, 1, keepdims=True))

    @property
    def _num_rows(self) -> int:
        num_rows: int = self.x.shape[0] // self.num_examples
        return num_rows

    def _by_example(self, values: Tensor) -> Tensor:
        return tf.reshape(values, [self.num_examples, self._num_rows, values.shape[1]])
