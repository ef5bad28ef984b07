"""Adding up the gradients of a batch, plainly or with each example's clipped first.

Clipping (Abadi et al. 2016, "Deep Learning with Differential Privacy", arXiv:1607.00133, algorithm 1): the gradient
g of one example over all trained weights becomes ``g * C / max(norm(g), C)``.

| edge case | what happens |
|---|---|
| a gradient of 0 | stays 0: nothing is divided by it |
| a norm above 1.8e19, whose square is infinite | the example counts nothing; where 0 meets that square, as next |
| NaN, or an infinite value in a gradient | the weights become NaN; the device refuses the update |
| padding | its factor is 0; its own gradient is computed, and is nothing |
"""

from collections.abc import Sequence

import tensorflow as tf

from model_export.lowering.parts import in_parts
from model_export.lowering.tensor_types import Tensor, plus
from model_export.lowering.weight_gradients import Gradient, total

__all__ = ["add_up", "clip_and_add_up"]


def add_up(gradients: Sequence[Sequence[Gradient]]) -> list[Tensor]:
    """Each weight's gradient over the whole batch.

    Args:
        gradients: Of each weight those of the batch's parts, or of several uses.
    """
    return [_sum([total(gradient) for gradient in of_weight]) for of_weight in gradients]


def clip_and_add_up(gradients: Sequence[Sequence[Gradient]], clip: float, factors: Tensor) -> list[Tensor]:
    """The sum over the examples of each one's clipped gradient times its factor.

    Args:
        gradients: Of each weight those of the batch's parts; all ``WeightGradient``s, each weight used once.
        clip: C, the largest norm of an example's gradient over all weights. Rounding may exceed it by a millionth.
        factors: [B, 1].
    """
    squares = _sum([in_parts([g.squared_norms() for g in of_weight], 1)[0] for of_weight in gradients])
    scales = factors * (clip / tf.maximum(tf.sqrt(squares), clip))
    return [
        _sum([g.weighted(part) for g, part in zip(of_weight, in_parts([scales], len(of_weight)), strict=True)])
        for of_weight in gradients
    ]


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    result = None
    for tensor in tensors:
        result = plus(result, tensor)
    return result
