"""The same server side over simulated clients: TFF trains them itself, on `tf.data` datasets."""

import collections
import dataclasses
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from coordinator.aggregation_spec import AggregationSpec
from coordinator.tff.client_optimizer import ClientOptimizer
from coordinator.tff.processes import (
    ServerPieces,
    build_server_pieces,
    compose_fleet_process,
    metrics_functions,
)
from wire_protocol.plan import REGRESSION_LOSSES, TrainingPlan
from wire_protocol.tensors import Tensors

__all__ = ["LearningProcesses", "SimulatedModel", "build_learning_processes", "build_simulation_process"]

_HALF = 0.5


class SimulatedModel(Protocol):
    """A model as pure functions of its weights: what a device's model file does, in TensorFlow."""

    @property
    def plan(self) -> TrainingPlan:
        """What a device would be asked to run."""

    def initial_weights(self) -> Tensors:
        """Weights before the first round, in the plan's order."""

    def predict(self, weights: tuple[Any, ...], x: Any, tickets: Any | None, *, training: bool) -> Any:
        """The model's output.

        Args:
            weights: Tensors in the plan's order.
            x: float32 [n, ...], 1 <= n <= batch_size.
            tickets: int32 [n] dropout tickets; None if the plan has no dropout.
            training: Whether dropout is active.

        Returns:
            float32 [n, num_classes].
        """

    def example_loss(self, output: Any, y: Any) -> Any:
        """Loss per example, float32 [n], from the output and labels as the plan has them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearningProcesses:
    """One set of server pieces, composed twice. Both have the same state type."""

    sim: tff.learning.templates.LearningProcess
    """CLIENTS are datasets of ``((x, tickets), y)`` batches."""
    fleet: tff.learning.templates.LearningProcess
    """CLIENTS are reports."""


def build_learning_processes(model: SimulatedModel, spec: AggregationSpec) -> LearningProcesses:
    """Builds both processes over the same pieces.

    Args:
        model: What simulated clients train.
        spec: How updates become the next model.
    """
    pieces = build_server_pieces(model.plan.weights, spec)
    return LearningProcesses(sim=_compose_simulation(model, spec, pieces), fleet=compose_fleet_process(pieces))


def build_simulation_process(model: SimulatedModel, spec: AggregationSpec) -> tff.learning.templates.LearningProcess:
    """Builds the simulation alone.

    Args:
        model: What simulated clients train, as a device would: the plan's optimizer, its state
            fresh in every round, on the mean loss over each batch.
        spec: How updates become the next model.
    """
    return _compose_simulation(model, spec, build_server_pieces(model.plan.weights, spec))


def _compose_simulation(
    model: SimulatedModel, spec: AggregationSpec, pieces: ServerPieces
) -> tff.learning.templates.LearningProcess:
    plan = model.plan
    weighting = tff.learning.ClientWeighting.NUM_EXAMPLES if spec.weighted else tff.learning.ClientWeighting.UNIFORM
    client_work = tff.learning.templates.build_functional_model_delta_client_work(
        model=_functional_model(model),
        optimizer=ClientOptimizer(plan),
        client_weighting=weighting,
        metrics_aggregator=pieces.aggregate_metrics,
    )

    @tff.tensorflow.computation
    def initial_weights() -> Any:
        return tff.learning.models.ModelWeights(tuple(map(tf.constant, model.initial_weights())), ())

    return tff.learning.templates.compose_learning_process(
        initial_weights, pieces.distributor, client_work, pieces.aggregator, pieces.finalizer
    )


def _functional_model(model: SimulatedModel) -> tff.learning.models.FunctionalModel:
    """The model in the form that TFF's client work trains."""
    plan = model.plan

    @tf.function
    def predict(weights: Any, inputs: Any, training: bool = True) -> Any:  # noqa: FBT001, FBT002 - TFF calls it so
        x, tickets = inputs
        return model.predict(tuple(weights[0]), x, tickets if plan.has_dropout else None, training=training)

    def mean_loss(output: Any, label: Any, sample_weight: Any = None) -> Any:
        del sample_weight  # a simulated batch has no padding
        return tf.reduce_mean(model.example_loss(output, label))

    zero, finalize = metrics_functions()

    @tf.function
    def update(sums: Any, labels: Any, batch_output: Any, sample_weight: Any = None) -> Any:
        del sample_weight
        output = batch_output.predictions
        return collections.OrderedDict(
            loss_sum=sums["loss_sum"] + tf.reduce_sum(model.example_loss(output, labels)),
            num_correct=sums["num_correct"] + tf.reduce_sum(_share_correct(plan, output, labels)),
            weight_sum=sums["weight_sum"] + tf.cast(tf.shape(labels)[0], tf.float32),
        )

    # The last batch of an epoch is as long as it is: a device pads it with weight 0, which comes to the same.
    x_spec = tf.TensorSpec([None, *plan.input_shape], tf.float32)
    labels_spec = tf.TensorSpec([None, *plan.label_shape], plan.label_dtype)
    return tff.learning.models.FunctionalModel(
        initial_weights=(tuple(np.asarray(weight) for weight in model.initial_weights()), ()),
        predict_on_batch_fn=predict,
        loss_fn=mean_loss,
        metrics_fns=(zero, update, finalize),
        input_spec=((x_spec, labels_spec), labels_spec),
    )


def _share_correct(plan: TrainingPlan, output: Any, labels: Any) -> Any:
    """[n] what ``num_correct`` counts of each example; see ``wire_protocol.model_contract``."""
    if plan.loss in REGRESSION_LOSSES:
        return tf.zeros(tf.shape(output)[:1])
    if plan.loss == "binary_crossentropy":
        return tf.reduce_mean(tf.cast(tf.equal(output > 0.0, labels > _HALF), tf.float32), -1)
    classes = labels if plan.loss == "sparse_categorical_crossentropy" else tf.argmax(labels, -1, tf.int32)
    return tf.cast(tf.equal(tf.argmax(output, -1, tf.int32), classes), tf.float32)
