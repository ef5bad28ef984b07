"""One round through compiled MapReduce graphs: one report at a time, in memory that does not grow with the cohort."""

from collections.abc import Sequence
from typing import Any

from coordinator.aggregation import ClientUpdate, Leaf, check_leaves
from coordinator.errors import AccumulatorClosed, EmptyRound
from coordinator.tff.graph_function import GraphFunction, chain, to_leaf
from coordinator.tff.server_artefact import RoundGraphs
from wire_protocol.messages import Metrics

__all__ = ["CompiledRound", "RunningRound", "metric_leaves", "update_leaves"]


def metric_leaves(metrics: Metrics) -> list[float]:
    """A device's sums, in the order of the metrics' TFF type."""
    return [metrics.loss_sum, metrics.num_correct, metrics.weight_sum]


def update_leaves(update: ClientUpdate) -> list[Any]:
    """A client update, in the order of the report's TFF type."""
    return [*update.model_delta, update.aggregation_weight, *metric_leaves(update.metrics)]


class CompiledRound:
    """The graphs of a round, ready to be called. Made once, used for every round.

    Args:
        graphs: What to run.
    """

    def __init__(self, graphs: RoundGraphs) -> None:
        self.state_leaves = graphs.state_leaves
        self.accumulator_leaves = graphs.accumulator_leaves
        self.measurements = graphs.measurements
        self.prepare = GraphFunction(graphs.prepare)
        self.zero = GraphFunction(graphs.zero)
        self.report = GraphFunction(graphs.report)
        self.update = GraphFunction(graphs.update)
        work, accumulate = GraphFunction(graphs.work), GraphFunction(graphs.accumulate)
        # accumulator, report, broadcast -> accumulator, in one call: the uplink is never materialized.
        self.fold = chain(work, accumulate, num_passed=len(graphs.work.fetches))

    def begin(self, state: Sequence[Any]) -> "RunningRound":
        """Opens a round from a state's flat leaves."""
        return RunningRound(self, state)


class RunningRound:
    """A round that is being folded.

    Args:
        compiled: The graphs.
        state: Flat leaves of the server state.
    """

    def __init__(self, compiled: CompiledRound, state: Sequence[Any]) -> None:
        self._compiled = compiled
        self._state = tuple(state)
        self._broadcast = compiled.prepare(*state)
        self._accumulator = compiled.zero()
        self._is_closed = False
        self.num_folded = 0

    def fold(self, report: Sequence[Any]) -> None:
        """Adds one report's flat leaves.

        Raises:
            AccumulatorClosed: The round was finished.
        """
        self._check_open()
        self._accumulator = self._compiled.fold(*self._accumulator, *report, *self._broadcast)
        self.num_folded += 1

    def finish(self) -> tuple[Any, ...]:
        """Closes the round.

        Returns:
            Flat tensors: the next state, then the measurements.

        Raises:
            EmptyRound: Nothing was folded; TFF would divide zero by zero.
            AccumulatorClosed: The round was finished before.
        """
        self._check_open()
        if not self.num_folded:
            raise EmptyRound("no report was folded")
        self._is_closed = True
        aggregate = self._compiled.report(*self._accumulator)
        self._accumulator = ()
        return self._compiled.update(*self._state, *aggregate)

    def snapshot(self) -> tuple[Leaf, ...]:
        """The accumulator as arrays."""
        self._check_open()
        return tuple(map(to_leaf, self._accumulator))

    def resume(self, snapshot: tuple[Leaf, ...], *, num_folded: int) -> None:
        """Continues from a snapshot of a round that began with the same state.

        Raises:
            StateMismatch: The arrays are not this round's.
        """
        self._check_open()
        check_leaves(snapshot, self._compiled.accumulator_leaves)
        self._accumulator = snapshot
        self.num_folded = num_folded

    def _check_open(self) -> None:
        if self._is_closed:
            raise AccumulatorClosed("the round was finished")
