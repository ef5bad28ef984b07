"""Federated averaging in numpy: the yardstick that TFF's compiled aggregation is measured against.

It does FedAvg with plain SGD on the server, weighted or not, and refuses everything else.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from coordinator.aggregation import (
    ClientUpdate,
    Leaf,
    LeafSpec,
    RoundResult,
    ServerState,
    check_leaves,
    check_tensors,
    finalize_metrics,
)
from coordinator.aggregation_spec import AggregationSpec
from coordinator.errors import AccumulatorClosed, EmptyRound, UnsupportedAggregation
from wire_protocol.messages import Metrics
from wire_protocol.plan import TensorSpec
from wire_protocol.tensors import Tensors

__all__ = ["NumpyMeanAggregator"]


class NumpyMeanAggregator:
    """A mean of client updates in float32, added up in the order of arrival.

    Args:
        weights: The model's tensors.
        spec: FedAvg with server SGD; anything else is refused.

    Raises:
        UnsupportedAggregation: The specification asks for another optimizer, or for clipping.
    """

    def __init__(self, weights: Sequence[TensorSpec], spec: AggregationSpec) -> None:
        if spec.server_optimizer != "sgd" or spec.clipping != "none":
            raise UnsupportedAggregation(
                f"the numpy mean does server SGD without clipping, not {spec.server_optimizer} with {spec.clipping} "
                "clipping; use the TFF aggregator"
            )
        self._specs = tuple(weights)
        self._spec = spec
        self._leaf_specs = tuple(
            LeafSpec(name=f"weights/{index}", dtype="float32", shape=spec.shape)
            for index, spec in enumerate(self._specs)
        )

    def initialize(self, initial_weights: Tensors) -> ServerState:
        """The state before the first round: the weights and nothing else."""
        check_tensors(initial_weights, self._specs)
        return ServerState(num_commits=0, num_weights=len(self._specs), leaves=tuple(initial_weights))

    def weights(self, state: ServerState) -> Tensors:
        """The global model in a state."""
        check_leaves(state.leaves, self._leaf_specs)
        return state.weights

    def begin(self, state: ServerState) -> "_MeanAccumulator":
        """Opens a training round."""
        check_leaves(state.leaves, self._leaf_specs)
        return _MeanAccumulator(state, self._specs, self._spec)

    def begin_evaluation(self) -> "_MetricsSum":
        """Opens an evaluation round."""
        return _MetricsSum()


class _MetricsSum:
    """Sums of metrics in float64."""

    def __init__(self) -> None:
        self.sums = np.zeros(3)
        self.num_folded = 0
        self._is_closed = False

    def fold(self, metrics: Metrics) -> None:
        """Adds one device's sums."""
        if self._is_closed:
            raise AccumulatorClosed("the evaluation round was finished")
        self.sums += (metrics.loss_sum, metrics.num_correct, metrics.weight_sum)
        self.num_folded += 1

    def finish(self) -> Mapping[str, float]:
        """Closes the round."""
        if self._is_closed:
            raise AccumulatorClosed("the evaluation round was finished before")
        if not self.num_folded:
            raise EmptyRound("no evaluation was folded")
        self._is_closed = True
        return finalize_metrics(*self.sums.tolist())


class _MeanAccumulator:
    """``sum(weight * model_delta)`` and ``sum(weight)``; two copies of the model in memory."""

    def __init__(self, state: ServerState, specs: tuple[TensorSpec, ...], spec: AggregationSpec) -> None:
        self._state = state
        self._specs = specs
        self._spec = spec
        self._sums = tuple(np.zeros(spec.shape, np.float32) for spec in specs)
        self._scratch = tuple(np.empty_like(total) for total in self._sums)
        self._weight_sum = 0.0
        self._metrics = _MetricsSum()
        self._is_closed = False

    @property
    def num_folded(self) -> int:
        """Updates folded so far."""
        return self._metrics.num_folded

    def fold(self, update: ClientUpdate) -> None:
        """Adds an update."""
        self._check_open()
        check_tensors(update.model_delta, self._specs)
        weight = np.float32(update.aggregation_weight if self._spec.weighted else 1.0)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found once, by `finish`
            for total, delta, scratch in zip(self._sums, update.model_delta, self._scratch, strict=True):
                np.multiply(delta, weight, out=scratch)
                np.add(total, scratch, out=total)
        self._weight_sum += float(weight)
        self._metrics.fold(update.metrics)

    def finish(self) -> RoundResult:
        """Closes the round: ``weights + server_learning_rate * mean(model_delta)``; as they were if that overflows."""
        self._check_open()
        if not self.num_folded:
            raise EmptyRound("no update was folded")
        self._is_closed = True
        leaves = tuple(map(self._stepped, self._state.weights, self._sums))
        is_finite = all(np.isfinite(total).all() for total in self._sums)
        state = ServerState(
            num_commits=self._state.num_commits + 1,
            num_weights=self._state.num_weights,
            leaves=leaves if is_finite else self._state.weights,
        )
        metrics = {**self._metrics.finish(), "finalizer/update_non_finite": float(not is_finite)}
        return RoundResult(state=state, metrics=metrics)

    def _stepped(self, weight: Leaf, total: Leaf) -> Leaf:
        mean = total / np.float32(self._weight_sum)
        stepped: Leaf = weight + np.float32(self._spec.server_learning_rate) * mean
        return stepped

    def snapshot(self) -> tuple[Leaf, ...]:
        """Copies of the running sums, then one array [4]: the weights' sum and the metrics' three."""
        self._check_open()
        scalars = np.concatenate([[self._weight_sum], self._metrics.sums])
        return (*(total.copy() for total in self._sums), scalars)

    def resume(self, snapshot: tuple[Leaf, ...], *, num_folded: int) -> None:
        """Continues from a snapshot."""
        self._check_open()
        sums = tuple(LeafSpec(name=f"sum/{i}", dtype="float32", shape=s.shape) for i, s in enumerate(self._specs))
        check_leaves(snapshot, (*sums, LeafSpec(name="scalars", dtype="float64", shape=(4,))))
        for total, saved in zip(self._sums, snapshot, strict=False):
            np.copyto(total, saved)
        self._weight_sum = float(snapshot[-1][0])
        self._metrics.sums[:] = snapshot[-1][1:]
        self._metrics.num_folded = num_folded

    def _check_open(self) -> None:
        if self._is_closed:
            raise AccumulatorClosed("the round was finished")
