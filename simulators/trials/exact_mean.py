"""An aggregator that does not trust itself: every result is compared with the exact mean of what was folded.

Beside the real aggregation it keeps ``sum(weight * model_delta)`` and ``sum(weight)`` in float64, in fold order.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from coordinator.aggregation import ClientUpdate, EvaluationAccumulator, Leaf, RoundResult, ServerState
from coordinator.aggregation_spec import AggregationSpec
from coordinator.numpy_mean import NumpyMeanAggregator
from simulators.trials.errors import ReferenceMismatch
from wire_protocol.messages import Metrics
from wire_protocol.plan import TensorSpec
from wire_protocol.tensors import Tensors

__all__ = ["ExactMean", "FoldWatcher"]

TOLERANCE = 1e-6
"""Largest difference of a weight, relative to the larger of it and 1: some ten roundings of a float32."""


class FoldWatcher:
    """Told what an aggregator is given; does nothing itself."""

    def begun(self) -> None:
        """A round's accumulator was made; what an earlier one of the same round held is folded again."""

    def folded(self, update: ClientUpdate) -> None:
        """An update was added."""

    def folded_metrics(self, metrics: Metrics) -> None:
        """An evaluation was added."""

    def finished(self) -> None:
        """The round's sum is final."""


class ExactMean:
    """Federated averaging (server SGD) by `NumpyMeanAggregator`, checked round by round.

    Args:
        weights: The model's tensors.
        watcher: Told of every fold.
    """

    def __init__(self, weights: Sequence[TensorSpec], watcher: FoldWatcher | None = None) -> None:
        self._inner = NumpyMeanAggregator(weights, AggregationSpec())
        self._watcher = watcher or FoldWatcher()
        self.num_folded = 0
        """Updates folded in all rounds, those of rounds that were given up included."""
        self.num_checked = 0
        """Rounds whose result was compared."""
        self.max_error = 0.0
        """Largest difference seen."""

    def initialize(self, initial_weights: Tensors) -> ServerState:
        """The state before the first round."""
        return self._inner.initialize(initial_weights)

    def weights(self, state: ServerState) -> Tensors:
        """The global model in a state."""
        return self._inner.weights(state)

    def begin(self, state: ServerState) -> "_ExactRound":
        """Opens a training round."""
        self._watcher.begun()
        return _ExactRound(self, self._inner, state, self._watcher)

    def begin_evaluation(self) -> "_WatchedEvaluation":
        """Opens an evaluation round."""
        self._watcher.begun()
        return _WatchedEvaluation(self._inner.begin_evaluation(), self._watcher)

    def check(self, result: ServerState, expected: Sequence[npt.NDArray[np.float64]]) -> None:
        """Compares a result with the reference.

        Raises:
            ReferenceMismatch: A weight differs by more than ``TOLERANCE``, or is no number.
        """
        error = max(
            float((np.abs(ours - exact) / np.maximum(1.0, np.abs(exact))).max())
            for ours, exact in zip(result.weights, expected, strict=True)
        )
        self.num_checked += 1
        if not error <= TOLERANCE:
            raise ReferenceMismatch(f"commit {result.num_commits} differs from the exact mean by {error:.3g}")
        self.max_error = max(self.max_error, error)


class _ExactRound:
    """A round's sums, twice."""

    def __init__(self, owner: ExactMean, inner: NumpyMeanAggregator, state: ServerState, watcher: FoldWatcher) -> None:
        self._owner = owner
        self._inner = inner.begin(state)
        self._watcher = watcher
        self._start = [weight.astype(np.float64) for weight in state.weights]
        self._sums = [np.zeros_like(weight) for weight in self._start]
        self._weight_sum = 0.0

    @property
    def num_folded(self) -> int:
        """Updates folded so far."""
        return self._inner.num_folded

    def fold(self, update: ClientUpdate) -> None:
        """Adds an update."""
        self._inner.fold(update)
        for total, delta in zip(self._sums, update.model_delta, strict=True):
            np.add(total, update.aggregation_weight * delta.astype(np.float64), out=total)
        self._weight_sum += update.aggregation_weight
        self._owner.num_folded += 1
        self._watcher.folded(update)

    def finish(self) -> RoundResult:
        """Closes the round and compares its result."""
        result = self._inner.finish()
        expected = [start + total / self._weight_sum for start, total in zip(self._start, self._sums, strict=True)]
        self._owner.check(result.state, expected)
        self._watcher.finished()
        return result

    def snapshot(self) -> tuple[Leaf, ...]:
        """The running sums."""
        return self._inner.snapshot()

    def resume(self, snapshot: tuple[Leaf, ...], *, num_folded: int) -> None:
        """Continues from a snapshot; what it holds is taken for exact."""
        self._inner.resume(snapshot, num_folded=num_folded)
        *sums, scalars = snapshot
        self._sums = [total.astype(np.float64) for total in sums]
        self._weight_sum = float(scalars[0])


class _WatchedEvaluation:
    """An evaluation round whose folds are told on."""

    def __init__(self, inner: EvaluationAccumulator, watcher: FoldWatcher) -> None:
        self._inner = inner
        self._watcher = watcher

    @property
    def num_folded(self) -> int:
        """Reports folded so far."""
        return self._inner.num_folded

    def fold(self, metrics: Metrics) -> None:
        """Adds one device's sums."""
        self._inner.fold(metrics)
        self._watcher.folded_metrics(metrics)

    def finish(self) -> Mapping[str, float]:
        """Closes the round."""
        return self._inner.finish()
