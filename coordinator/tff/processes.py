"""The server side as TFF defines it: one set of pieces, composed twice.

`sim` is a TFF learning process that trains simulated clients. `fleet` has the same distributor, aggregator, finalizer
and metrics aggregator, but its CLIENTS value is a device's *report*: the training happened elsewhere. So both have the
same state and, from the same local training, give the same numbers; and what TFF says about `sim` holds for `fleet`.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from coordinator.aggregation_spec import AggregationSpec
from wire_protocol.plan import TensorSpec

__all__ = [
    "ServerPieces",
    "build_evaluation",
    "build_fleet_process",
    "build_server_pieces",
    "compose_fleet_process",
    "metrics_functions",
    "model_weights_type",
    "report_type",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerPieces:
    """What `sim` and `fleet` have in common."""

    weights_type: tff.StructWithPythonType
    """``tff.learning.models.ModelWeights`` with the plan's tensors as trainable weights, and no others."""
    distributor: tff.learning.templates.DistributionProcess
    aggregator: tff.templates.AggregationProcess
    finalizer: tff.learning.templates.FinalizerProcess
    aggregate_metrics: Callable[..., Any]
    """TFF's ``sum_then_finalize``: given the finalizer, a computation from metrics at CLIENTS to metrics at SERVER."""


def build_server_pieces(weights: Sequence[TensorSpec], spec: AggregationSpec) -> ServerPieces:
    """Builds the pieces for a model of these shapes; the model itself is not needed.

    Args:
        weights: Its trainable tensors, in the plan's order.
        spec: How updates become the next model.
    """
    weights_type = model_weights_type(weights)
    factory = _aggregation_factory(spec)
    return ServerPieces(
        weights_type=weights_type,
        distributor=tff.learning.templates.build_broadcast_process(weights_type),
        aggregator=factory.create(weights_type.trainable, tff.TensorType(np.float32)),
        finalizer=tff.learning.templates.build_apply_optimizer_finalizer(_server_optimizer(spec), weights_type),
        aggregate_metrics=tff.learning.metrics.sum_then_finalize,
    )


def model_weights_type(weights: Sequence[TensorSpec]) -> tff.StructWithPythonType:
    """``tff.learning.models.ModelWeights`` with these trainable tensors and no others."""
    tensors = tuple(tf.TensorSpec(tensor.shape, tf.float32) for tensor in weights)
    return tff.types.tensorflow_to_type(tff.learning.models.ModelWeights(tensors, ()))


def _aggregation_factory(spec: AggregationSpec) -> tff.aggregators.WeightedAggregationFactory:
    """Clipping around a mean. An unweighted one takes a weight and ignores it, so that reports look the same."""
    if spec.clipping == "adaptive":
        factory = tff.learning.robust_aggregator(zeroing=True, clipping=True, weighted=spec.weighted)
    else:
        factory = tff.aggregators.MeanFactory() if spec.weighted else tff.aggregators.UnweightedMeanFactory()
        if spec.clipping_norm is not None:
            factory = tff.aggregators.clipping_factory(spec.clipping_norm, factory)
    return factory if spec.weighted else tff.aggregators.as_weighted_aggregator(factory)


def _server_optimizer(spec: AggregationSpec) -> tff.learning.optimizers.Optimizer:
    rate = spec.server_learning_rate
    match spec.server_optimizer:
        case "sgd":
            return tff.learning.optimizers.build_sgdm(rate)
        case "momentum":
            return tff.learning.optimizers.build_sgdm(rate, momentum=spec.momentum)
        case "adam":
            return tff.learning.optimizers.build_adam(rate, spec.beta_1, spec.beta_2, spec.epsilon)
        case "yogi":
            return tff.learning.optimizers.build_yogi(rate, spec.beta_1, spec.beta_2, spec.epsilon)
        case "adagrad":
            return tff.learning.optimizers.build_adagrad(rate, epsilon=spec.epsilon)


def metrics_functions() -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """The metrics' zero and finalizer, as TensorFlow functions over ``OrderedDict(loss_sum, num_correct, weight_sum)``.

    Returns:
        ``() -> sums`` and ``sums -> OrderedDict(loss, accuracy, weight_sum)``, all float32 scalars.
    """

    @tf.function
    def zero() -> Any:
        return collections.OrderedDict(
            loss_sum=tf.constant(0.0), num_correct=tf.constant(0.0), weight_sum=tf.constant(0.0)
        )

    @tf.function
    def finalize(sums: Any) -> Any:
        return collections.OrderedDict(
            loss=tf.math.divide_no_nan(sums["loss_sum"], sums["weight_sum"]),
            accuracy=tf.math.divide_no_nan(sums["num_correct"], sums["weight_sum"]),
            weight_sum=tf.identity(sums["weight_sum"]),
        )

    return zero, finalize


def _metrics_type() -> tff.StructWithPythonType:
    return tff.to_type(collections.OrderedDict(loss_sum=np.float32, num_correct=np.float32, weight_sum=np.float32))


def report_type(weights_type: tff.StructWithPythonType) -> tff.StructWithPythonType:
    """What one device brings to `fleet`: ``OrderedDict(model_delta, aggregation_weight, metrics)``."""
    return tff.to_type(
        collections.OrderedDict(
            model_delta=weights_type.trainable, aggregation_weight=np.float32, metrics=_metrics_type()
        )
    )


def build_fleet_process(weights: Sequence[TensorSpec], spec: AggregationSpec) -> tff.learning.templates.LearningProcess:
    """Builds the process whose clients are real devices, from nothing but shapes.

    Args:
        weights: The model's trainable tensors, in the plan's order.
        spec: How updates become the next model.

    Returns:
        See `compose_fleet_process`.
    """
    return compose_fleet_process(build_server_pieces(weights, spec))


def compose_fleet_process(pieces: ServerPieces) -> tff.learning.templates.LearningProcess:
    """Composes the process whose clients are real devices.

    Args:
        pieces: The server side.

    Returns:
        A learning process; its ``next`` takes the state at SERVER and reports at CLIENTS, its initial weights are 0.
    """
    state_of = tff.learning.templates.LearningAlgorithmState

    @tff.tensorflow.computation
    def zero_weights() -> Any:
        zeros = tuple(tf.zeros(tensor.shape) for tensor in pieces.weights_type.trainable)
        return tff.learning.models.ModelWeights(zeros, ())

    @tff.federated_computation
    def initialize() -> Any:
        return tff.federated_zip(
            state_of(
                tff.federated_eval(zero_weights, tff.SERVER),
                pieces.distributor.initialize(),
                tff.federated_value((), tff.SERVER),
                pieces.aggregator.initialize(),
                pieces.finalizer.initialize(),
            )
        )

    state_type = initialize.type_signature.result
    get_weights, set_weights = _weights_accessors(state_type.member)
    return tff.learning.templates.LearningProcess(
        initialize, _fleet_next(pieces, state_type), get_model_weights=get_weights, set_model_weights=set_weights
    )


def _fleet_next(pieces: ServerPieces, state_type: tff.FederatedType) -> tff.Computation:
    """One round over reports: what ``compose_learning_process`` does, with the client work left to the devices."""
    client_type = report_type(pieces.weights_type)
    _, finalize = metrics_functions()
    aggregate_metrics = pieces.aggregate_metrics(finalize)

    @tff.tensorflow.computation(client_type)
    def tff_update(report: Any) -> Any:
        # The one place where our sign (trained - received) becomes TFF's (received - trained, a gradient's).
        return tf.nest.map_structure(tf.negative, report["model_delta"])

    @tff.tensorflow.computation(client_type)
    def weight(report: Any) -> Any:
        return report["aggregation_weight"]

    @tff.tensorflow.computation(client_type)
    def metrics(report: Any) -> Any:
        return report["metrics"]

    @tff.federated_computation(state_type, tff.FederatedType(client_type, tff.CLIENTS))
    def fleet_next(state: Any, reports: Any) -> Any:
        distributed = pieces.distributor.next(state.distributor, state.global_model_weights)
        train = aggregate_metrics(tff.federated_map(metrics, reports))
        aggregated = pieces.aggregator.next(
            state.aggregator, tff.federated_map(tff_update, reports), tff.federated_map(weight, reports)
        )
        finalized = pieces.finalizer.next(state.finalizer, state.global_model_weights, aggregated.result)
        new_state = tff.learning.templates.LearningAlgorithmState(
            finalized.result, distributed.state, state.client_work, aggregated.state, finalized.state
        )
        measurements = collections.OrderedDict(
            distributor=distributed.measurements,
            client_work=tff.federated_zip(collections.OrderedDict(train=train)),
            aggregator=aggregated.measurements,
            finalizer=finalized.measurements,
        )
        return tff.learning.templates.LearningProcessOutput(
            tff.federated_zip(new_state), tff.federated_zip(measurements)
        )

    return fleet_next


def _weights_accessors(state_type: tff.Type) -> tuple[tff.Computation, tff.Computation]:
    @tff.tensorflow.computation(state_type)
    def get_weights(state: Any) -> Any:
        return state.global_model_weights

    @tff.tensorflow.computation(state_type, state_type.global_model_weights)
    def set_weights(state: Any, weights: Any) -> Any:
        return tff.learning.templates.LearningAlgorithmState(
            weights, state.distributor, state.client_work, state.aggregator, state.finalizer
        )

    return get_weights, set_weights


def build_evaluation() -> tff.Computation:
    """Federated evaluation: metrics at CLIENTS are added up and finalized by TFF.

    Returns:
        ``(int32@SERVER, metrics@CLIENTS) -> (int32@SERVER, metrics@SERVER)``; the number counts evaluations, because a
        MapReduceForm must have a state.
    """
    _, finalize = metrics_functions()
    aggregate_metrics = tff.learning.metrics.sum_then_finalize(finalize)

    @tff.tensorflow.computation(np.int32)
    def count(number: Any) -> Any:
        return number + 1

    @tff.federated_computation(tff.FederatedType(np.int32, tff.SERVER), tff.FederatedType(_metrics_type(), tff.CLIENTS))
    def evaluate(number: Any, metrics: Any) -> Any:
        return tff.federated_map(count, number), aggregate_metrics(metrics)

    return evaluate
