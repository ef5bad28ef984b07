"""The plan's optimizer in numpy: the steps of ``tf.keras.optimizers``, for trainers that have no model file.

``g`` is the gradient of the mean loss plus FedProx's ``mu * (w - received)`` (Li et al. 2020, equation 2). SGD:
``v = momentum * v - rate * g``, then ``w + v``, or Nesterov's ``w + momentum * v - rate * g``. Adam (Kingma and Ba
2015, algorithm 1, epsilon as in its section 2's last line): running means ``m`` of ``g`` and ``s`` of ``g^2``,
``w - rate * sqrt(1 - beta_2^t) / (1 - beta_1^t) * m / (sqrt(s) + epsilon)``; AdamW first takes
``rate * weight_decay * w`` away.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from wire_protocol.plan import TrainingPlan
from wire_protocol.tensors import Tensors

__all__ = ["NumpyOptimizer"]

_Array = npt.NDArray[np.float32]


class NumpyOptimizer:
    """Slots of one round.

    Args:
        plan: Names the optimizer.
        received: The weights the round starts from: shapes of the slots, and the proximal term's anchor.
    """

    def __init__(self, plan: TrainingPlan, received: Tensors) -> None:
        self._plan = plan
        self._received = received
        self._first = tuple(np.zeros_like(tensor) for tensor in received)
        self._second = tuple(np.zeros_like(tensor) for tensor in received)
        self._num_steps = 0

    def step(self, weights: Tensors, gradients: Sequence[_Array]) -> Tensors:
        """The weights after one step; diverging ones are infinite or NaN, without a warning."""
        self._num_steps += 1
        rule = self._sgd if self._plan.optimizer == "sgd" else self._adam
        mu = np.float32(self._plan.proximal_mu)
        with np.errstate(over="ignore", invalid="ignore"):
            pulled = [
                gradient + mu * (weight - start) if mu else gradient
                for gradient, weight, start in zip(gradients, weights, self._received, strict=True)
            ]
            return rule(weights, pulled)

    def _sgd(self, weights: Tensors, gradients: Sequence[_Array]) -> Tensors:
        rate, momentum = np.float32(self._plan.learning_rate), np.float32(self._plan.momentum)
        descents = [rate * gradient for gradient in gradients]
        self._first = tuple(momentum * v - descent for v, descent in zip(self._first, descents, strict=True))
        if not self._plan.nesterov:
            return tuple(weight + v for weight, v in zip(weights, self._first, strict=True))
        triples = zip(weights, self._first, descents, strict=True)
        return tuple(weight + (momentum * v - descent) for weight, v, descent in triples)

    def _adam(self, weights: Tensors, gradients: Sequence[_Array]) -> Tensors:
        plan, t = self._plan, self._num_steps
        self._first = _averaged(self._first, gradients, plan.beta_1)
        self._second = _averaged(self._second, [gradient * gradient for gradient in gradients], plan.beta_2)
        rate = np.float32(plan.learning_rate * np.sqrt(1 - plan.beta_2**t) / (1 - plan.beta_1**t))
        decay, epsilon = np.float32(plan.learning_rate * plan.weight_decay), np.float32(plan.epsilon)
        triples = zip(weights, self._first, self._second, strict=True)
        return tuple(weight - decay * weight - rate * m / (np.sqrt(s) + epsilon) for weight, m, s in triples)


def _averaged(means: Tensors, values: Sequence[_Array], beta: float) -> Tensors:
    share = np.float32(1 - beta)
    return tuple(mean + (value - mean) * share for mean, value in zip(means, values, strict=True))
