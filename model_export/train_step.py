"""The five signatures of a trainable model file, as one TensorFlow module."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from model_export.lowering.forward import LoweredModel
from model_export.lowering.losses import score
from model_export.lowering.tensor_types import Pullback, Tensor, positive_mask
from model_export.operations import ModelGraph
from model_export.optimizers import ProximalTerm, build_optimizer
from wire_protocol import model_contract as contract
from wire_protocol.plan import TrainingPlan

__all__ = ["TrainStep"]

_LEAST_WEIGHT_SUM = 1e-30
"""Keeps a batch of padding alone from dividing by zero; its gradient is zero either way."""


_Function: TypeAlias = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class TrainStep(tf.Module):
    """Trains a model with the plan's optimizer (see ``optimizers``).

    Variables start at zero: the file holds no weights, they come by ``restore``. Kernels of Dense layers are stored
    as [1, out, in] (see ``lowering.dense``); ``save`` and ``restore`` speak Keras's layout.

    Args:
        graph: The model.
        plan: Gives B and the optimizer.
    """

    def __init__(self, graph: ModelGraph, plan: TrainingPlan) -> None:
        super().__init__()
        self._graph = graph
        self._batch_size = plan.batch_size
        self._label_shape = plan.label_shape
        self._label_dtype = plan.label_dtype
        self._lowered = LoweredModel(graph, plan.batch_size)
        shapes = [self._stored_shape(index) for index in range(len(graph.weight_shapes))]
        names = [contract.weight_name(index) for index in range(len(shapes))]
        self._weights = [tf.Variable(tf.zeros(s), name=n) for n, s in zip(names, shapes, strict=True)]
        self._num_trainable = graph.num_trainable
        trainable = self._weights[: self._num_trainable]
        self._clip = plan.example_clip
        self._optimizer = build_optimizer(plan, trainable)
        self._proximal_term = ProximalTerm(trainable) if plan.proximal_mu else None

    def signatures(self, names: Sequence[str] = contract.SIGNATURES) -> dict[str, Any]:
        """Concrete functions of the signatures, by name; those asked for."""
        batch = self._batch_size
        x = tf.TensorSpec([batch, *self._graph.input_shape], tf.float32, contract.X)
        y = tf.TensorSpec([batch, *self._label_shape], self._label_dtype, contract.LABEL)
        weight = tf.TensorSpec([batch], tf.float32, contract.EXAMPLE_WEIGHT)
        train_inputs = [x, y, weight, tf.TensorSpec([1], tf.float32, contract.LEARNING_RATE)]
        if self._proximal_term is not None:
            train_inputs.append(tf.TensorSpec([1], tf.float32, contract.PROXIMAL_MU))
        if self._graph.dropouts:
            train_inputs.append(tf.TensorSpec([batch], tf.int32, contract.DROPOUT_TICKET))
        restored = [
            tf.TensorSpec(shape, tf.float32, contract.weight_name(index))
            for index, shape in enumerate(self._graph.weight_shapes)
        ]
        functions: dict[str, tuple[_Function, Sequence[Any]]] = {
            contract.TRAIN: (self._train, train_inputs),
            contract.EVALUATE: (self._evaluate, [x, y, weight]),
            contract.INFER: (self._infer, [x]),
            contract.SAVE: (self._save, []),
            contract.RESTORE: (self._restore, restored),
        }
        return {name: _concrete(*functions[name]) for name in names}

    def _train(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = [variable.read_value() for variable in self._weights]
        mask = positive_mask(inputs[contract.EXAMPLE_WEIGHT])
        run = self._lowered.forward(weights, inputs[contract.X], inputs.get(contract.DROPOUT_TICKET), mask)
        figures, factors, pullback = self._score(run.logits, inputs)
        rate = inputs[contract.LEARNING_RATE]
        are_descents = self._optimizer.takes_descents
        factors = factors * rate if are_descents else factors
        if self._clip is None:
            gradients = run.weight_gradients(pullback(factors))
        else:
            gradients = run.clipped_gradients(pullback(tf.ones_like(factors)), self._clip, factors)
        trained, statistics = weights[: self._num_trainable], weights[self._num_trainable :]
        gradients, falls = gradients[: self._num_trainable], gradients[self._num_trainable :]
        if self._proximal_term is not None:
            mu = inputs[contract.PROXIMAL_MU]
            gradients = self._proximal_term.add_to(gradients, trained, mu * rate if are_descents else mu)
        moved = self._optimizer.step(trained, gradients, rate)
        followed = [statistic - fall for statistic, fall in zip(statistics, falls, strict=True)]
        for variable, value in zip(self._weights, [*moved, *followed], strict=True):
            variable.assign(value)
        return figures

    def _evaluate(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = [variable.read_value() for variable in self._weights]
        run = self._lowered.forward(weights, inputs[contract.X], None)
        return self._score(run.logits, inputs)[0]

    def _infer(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = [variable.read_value() for variable in self._weights]
        run = self._lowered.forward(weights, inputs[contract.X], None)
        return {contract.OUTPUT: self._lowered.output(run.logits)}

    def _save(self, _: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            contract.weight_name(index): self._to_keras(index, variable.read_value())
            for index, variable in enumerate(self._weights)
        }

    def _restore(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = [self._to_stored(i, inputs[contract.weight_name(i)]) for i in range(len(self._weights))]
        for variable, value in zip(self._weights, weights, strict=True):
            variable.assign(value)
        self._optimizer.reset(weights[: self._num_trainable])
        if self._proximal_term is not None:
            self._proximal_term.reset(weights[: self._num_trainable])
        return {contract.OK: tf.constant([1], tf.int32)}

    def _score(self, logits: Tensor, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Pullback]:
        """The figures of a batch, each example's share in the mean loss, [B, 1], and the losses' pullback to the logits."""
        weight = tf.reshape(inputs[contract.EXAMPLE_WEIGHT], [self._batch_size, 1])
        scores = score(self._graph.loss, logits, inputs[contract.LABEL])
        weight_sum = tf.reshape(tf.reduce_sum(weight), [1])

        def weighted_sum(values: Tensor) -> Tensor:
            return tf.reshape(tf.reduce_sum(values * weight), [1])

        figures = {
            contract.LOSS_SUM: weighted_sum(scores.losses),
            contract.NUM_CORRECT: weight_sum * 0.0
            if scores.share_correct is None
            else weighted_sum(scores.share_correct),
            contract.WEIGHT_SUM: weight_sum,
        }
        if scores.absolute_errors is not None:
            figures[contract.ABSOLUTE_ERROR_SUM] = weighted_sum(scores.absolute_errors)
        return figures, weight * (1.0 / tf.maximum(weight_sum, _LEAST_WEIGHT_SUM)), scores.pullback

    def _stored_shape(self, index: int) -> list[int]:
        shape = list(self._graph.weight_shapes[index])
        return [1, shape[1], shape[0]] if index in self._graph.dense_kernels else shape

    def _to_stored(self, index: int, value: Tensor) -> Tensor:
        if index not in self._graph.dense_kernels:
            return value
        return tf.reshape(tf.transpose(value), self._stored_shape(index))

    def _to_keras(self, index: int, value: Tensor) -> Tensor:
        if index not in self._graph.dense_kernels:
            return value
        return tf.transpose(tf.reshape(value, self._stored_shape(index)[1:]))


def _concrete(function: _Function, inputs: Sequence[Any]) -> Any:
    """Traces ``function``, which takes one mapping, as a signature of named inputs."""
    names = [spec.name for spec in inputs]

    def signature(**tensors: Tensor) -> dict[str, Tensor]:
        return function({name: tensors[name] for name in names})

    return tf.function(signature, autograph=False).get_concrete_function(**{spec.name: spec for spec in inputs})
