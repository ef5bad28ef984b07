"""Optimizers as TFLite builtins: the steps of ``tf.keras.optimizers`` (Keras 2.14), and FedProx's proximal term.

Everything is elementwise, so the layout in which a weight is stored does not matter. Slots are variables that
``reset`` (the file's ``restore``) clears; the learning rate is an input of every step.

Adam's bias corrections ``1 - beta^t`` (Kingma and Ba 2015, algorithm 1) are kept as running means of ones,
``c = c + (1 - c) * (1 - beta)``, which start at 0: no step counter, no POW (which would leave XNNPACK), and no
cancellation in ``1 - beta^t``. Keras computes the power in float32; the two differ by up to 1e-5 of the step.

| edge case | what happens, as in Keras |
|---|---|
| gradient 0 (a batch of padding) | plain SGD stands still; momentum and Adam's means move on; weight decay decays |
| gradient 0 in every step so far | Adam divides 0 by epsilon: no step |
| NaN or infinite gradient | the weights become NaN; the device refuses the update |
"""

from collections.abc import Sequence
from typing import TypeAlias

import tensorflow as tf

from model_export.lowering.tensor_types import Tensor
from wire_protocol.plan import TrainingPlan

__all__ = ["Adam", "Momentum", "Optimizer", "PlainSgd", "ProximalTerm", "build_optimizer"]


class PlainSgd(tf.Module):
    """``w = w - learning_rate * g``."""

    takes_descents = True
    """Whether ``step`` takes ``learning_rate * g`` for g: multiplied in at the loss, it costs no product per weight."""

    def reset(self, weights: Sequence[Tensor]) -> None:
        """There is nothing to reset."""

    def step(self, weights: Sequence[Tensor], gradients: Sequence[Tensor], learning_rate: Tensor) -> list[Tensor]:
        """The weights after one step, from descents."""
        del learning_rate  # it is in the descents
        return [weight - gradient for weight, gradient in zip(weights, gradients, strict=True)]


class Momentum(tf.Module):
    """``v = momentum * v - learning_rate * g``, then ``w + v``, or Nesterov's ``w + momentum * v - learning_rate * g``.

    Args:
        variables: The weights; slots take their shapes.
        momentum: 0 < momentum < 1.
        nesterov: Whether to look ahead (Sutskever et al. 2013, equations 3 and 4, rewritten as Keras has them).
    """

    takes_descents = True

    def __init__(self, variables: Sequence[Tensor], *, momentum: float, nesterov: bool) -> None:
        super().__init__()
        self._momentum = momentum
        self._nesterov = nesterov
        self._velocities = _slots(variables, "velocity")

    def reset(self, weights: Sequence[Tensor]) -> None:
        """Sets the velocities to zero."""
        _clear(self._velocities, weights)

    def step(self, weights: Sequence[Tensor], gradients: Sequence[Tensor], learning_rate: Tensor) -> list[Tensor]:
        """The weights after one step, from descents."""
        del learning_rate  # it is in the descents
        moved = []
        for weight, descent, slot in zip(weights, gradients, self._velocities, strict=True):
            velocity = self._momentum * slot.read_value() - descent
            slot.assign(velocity)
            moved.append(weight + (self._momentum * velocity - descent if self._nesterov else velocity))
        return moved


class Adam(tf.Module):
    """Adam, and with ``weight_decay`` AdamW (Loshchilov and Hutter 2019, algorithm 2, with Keras's order).

    Args:
        variables: The weights; slots take their shapes.
        plan: Gives ``beta_1``, ``beta_2``, ``epsilon`` and ``weight_decay``.
    """

    takes_descents = False  # it is not linear in the gradient

    def __init__(self, variables: Sequence[Tensor], plan: TrainingPlan) -> None:
        super().__init__()
        self._plan = plan
        self._means = _slots(variables, "mean")
        self._squares = _slots(variables, "square")
        self._corrections = [tf.Variable(tf.zeros([1]), name=f"correction_{i}") for i in (1, 2)]

    def reset(self, weights: Sequence[Tensor]) -> None:
        """Sets the means and their corrections to zero."""
        _clear(self._means, weights)
        _clear(self._squares, weights)
        for correction in self._corrections:
            correction.assign(tf.zeros([1]))

    def step(self, weights: Sequence[Tensor], gradients: Sequence[Tensor], learning_rate: Tensor) -> list[Tensor]:
        """The weights after one step."""
        plan = self._plan
        first, second = (
            _average(slot, 1.0, beta) for slot, beta in zip(self._corrections, (plan.beta_1, plan.beta_2), strict=True)
        )
        rate = learning_rate * tf.sqrt(second) / first
        moved = []
        for weight, gradient, mean_slot, square_slot in zip(
            weights, gradients, self._means, self._squares, strict=True
        ):
            kept = weight - weight * plan.weight_decay * learning_rate if plan.weight_decay else weight
            mean = _average(mean_slot, gradient, plan.beta_1)
            square = _average(square_slot, gradient * gradient, plan.beta_2)
            moved.append(kept - (mean * rate) / (tf.sqrt(square) + plan.epsilon))
        return moved


Optimizer: TypeAlias = PlainSgd | Momentum | Adam


class ProximalTerm(tf.Module):
    """FedProx: ``mu / 2 * |w - anchor|^2`` in the loss is ``mu * (w - anchor)`` in the gradient.

    Li et al. 2020, "Federated Optimization in Heterogeneous Networks", equation 2. The anchor is what ``restore`` set.

    Args:
        variables: The weights; the anchor takes their shapes.
    """

    def __init__(self, variables: Sequence[Tensor]) -> None:
        super().__init__()
        self._anchor = _slots(variables, "anchor")

    def reset(self, weights: Sequence[Tensor]) -> None:
        """Makes ``weights`` the anchor."""
        for slot, weight in zip(self._anchor, weights, strict=True):
            slot.assign(weight)

    def add_to(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], proximal_mu: Tensor) -> list[Tensor]:
        """The gradients of loss and term together; for descents, ``proximal_mu`` is times the learning rate too."""
        triples = zip(gradients, weights, self._anchor, strict=True)
        return [gradient + proximal_mu * (weight - anchor.read_value()) for gradient, weight, anchor in triples]


def build_optimizer(plan: TrainingPlan, variables: Sequence[Tensor]) -> Optimizer:
    """The optimizer that a plan names, for variables of these shapes."""
    if plan.optimizer != "sgd":
        return Adam(variables, plan)
    if plan.momentum:
        return Momentum(variables, momentum=plan.momentum, nesterov=plan.nesterov)
    return PlainSgd()


def _slots(variables: Sequence[Tensor], name: str) -> list[Tensor]:
    return [tf.Variable(tf.zeros(variable.shape), name=f"w{i}_{name}") for i, variable in enumerate(variables)]


def _clear(slots: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    for slot, weight in zip(slots, weights, strict=True):
        # Not tf.zeros: the converter would keep a constant as large as the model.
        slot.assign(weight * 0.0)


def _average(slot: Tensor, value: Tensor | float, beta: float) -> Tensor:
    """Moves a running mean towards ``value`` by ``1 - beta``, and stores it."""
    old = slot.read_value()
    new = old + (value - old) * (1.0 - beta)
    slot.assign(new)
    return new
