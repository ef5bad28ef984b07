"""The plan's optimizer in TFF's form, for simulated clients: what the device's model file does.

TFF's own SGD has no Nesterov momentum and none of its optimizers a proximal term, so the rules are written here, with
``tf.keras.optimizers``' formulas. A client's optimizer is initialised afresh in every round; the proximal term's
anchor is the weights that its first step sees, which are those the client received.
"""

import collections
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from coordinator.errors import UnsupportedAggregation
from wire_protocol.plan import TrainingPlan

__all__ = ["ClientOptimizer"]


class ClientOptimizer(tff.learning.optimizers.Optimizer[Any, Any, Any]):
    """A plan's optimizer as pure functions.

    Args:
        plan: Names the optimizer and its constants.

    Raises:
        UnsupportedAggregation: The plan clips each example's gradient, and TFF gives a batch's alone.
    """

    def __init__(self, plan: TrainingPlan) -> None:
        if plan.example_clip is not None:
            raise UnsupportedAggregation(
                "TFF's simulation sees the gradient of a whole batch and cannot clip each example's; simulate the plan "
                "without per_example_clipping_norm, or run its devices (flockwise demo)"
            )
        self._plan = plan

    def initialize(self, specs: Any) -> Any:
        """The state before the first step: a counter, and two slots and an anchor per weight where they are used."""
        plan = self._plan

        def zeros(wanted: float) -> Any:
            return tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), specs if wanted else ())

        return collections.OrderedDict(
            step=tf.constant(0),
            first=zeros(bool(plan.momentum) or plan.optimizer != "sgd"),
            second=zeros(plan.optimizer != "sgd"),
            anchor=zeros(plan.proximal_mu),
        )

    def next(self, state: Any, weights: Any, gradients: Any) -> tuple[Any, Any]:
        """One step.

        Args:
            state: What ``initialize`` or the step before gave.
            weights: The weights to update, in any structure.
            gradients: Of the mean loss, in the same structure.

        Returns:
            The new state, and the weights after the step.
        """
        state, moved = self._trained(state, weights, gradients)
        return state, self._with_statistics(weights, gradients, moved)

    def _with_statistics(self, weights: Any, gradients: Any, moved: Any) -> Any:
        """Moving statistics fall by what stands in their gradient's place, whatever the optimizer."""
        if not self._plan.num_statistics:
            return moved
        flat = tf.nest.flatten(moved)
        first = len(flat) - self._plan.num_statistics
        pairs = zip(tf.nest.flatten(weights)[first:], tf.nest.flatten(gradients)[first:], strict=True)
        return tf.nest.pack_sequence_as(moved, [*flat[:first], *(weight - fall for weight, fall in pairs)])

    def _trained(self, state: Any, weights: Any, gradients: Any) -> tuple[Any, Any]:
        plan, step = self._plan, state["step"] + 1
        anchor = state["anchor"]
        if plan.proximal_mu:
            anchor = _map(lambda kept, w: tf.where(step > 1, kept, w), anchor, weights)
            gradients = _map(lambda g, w, a: g + plan.proximal_mu * (w - a), gradients, weights, anchor)
        if plan.optimizer == "sgd":
            first, moved = self._sgd(state, weights, gradients)
            second = state["second"]
        else:
            first, second, moved = self._adam(state, weights, gradients, tf.cast(step, tf.float32))
        return collections.OrderedDict(step=step, first=first, second=second, anchor=anchor), moved

    def _sgd(self, state: Any, weights: Any, gradients: Any) -> tuple[Any, Any]:
        rate, momentum = self._plan.learning_rate, self._plan.momentum
        if not momentum:
            return state["first"], _map(lambda w, g: w - rate * g, weights, gradients)
        velocity = _map(lambda v, g: momentum * v - rate * g, state["first"], gradients)
        if not self._plan.nesterov:
            return velocity, _map(lambda w, v: w + v, weights, velocity)
        return velocity, _map(lambda w, v, g: w + (momentum * v - rate * g), weights, velocity, gradients)

    def _adam(self, state: Any, weights: Any, gradients: Any, step: Any) -> tuple[Any, Any, Any]:
        plan = self._plan
        first = _map(lambda m, g: m + (g - m) * (1 - plan.beta_1), state["first"], gradients)
        second = _map(lambda s, g: s + (g * g - s) * (1 - plan.beta_2), state["second"], gradients)
        rate = plan.learning_rate * tf.sqrt(_bias(plan.beta_2, step)) / _bias(plan.beta_1, step)
        decay = plan.learning_rate * plan.weight_decay
        moved = _map(lambda w, m, s: w - decay * w - rate * m / (tf.sqrt(s) + plan.epsilon), weights, first, second)
        return first, second, moved


def _bias(beta: float, step: Any) -> Any:
    """``1 - beta^step`` without the cancellation that costs float32 five digits."""
    return -tf.math.expm1(step * math.log(beta)) if beta else tf.ones_like(step)


def _map(function: Callable[..., Any], *structures: Any) -> Any:
    return tf.nest.map_structure(function, *structures)
