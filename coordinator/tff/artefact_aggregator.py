"""The aggregator that runs a compiled server: TensorFlow alone, TFF need not be installed."""

import ctypes
import functools
import logging
import math
import sys
from collections.abc import Mapping
from typing import Any

from coordinator.aggregation import ClientUpdate, Leaf, RoundResult, ServerState, check_leaves, check_tensors
from coordinator.aggregation_spec import AggregationSpec
from coordinator.tff.compiled_round import CompiledRound, RunningRound, metric_leaves, update_leaves
from coordinator.tff.graph_function import GraphFunction, to_leaf
from coordinator.tff.server_artefact import ServerArtefact
from wire_protocol.messages import Metrics
from wire_protocol.tensors import Tensors

__all__ = ["ArtefactAggregator", "keep_freed_memory"]

_LOG = logging.getLogger(__name__)

_TRAINING_METRICS = "client_work/train/"


class ArtefactAggregator:
    """Runs compiled aggregation in this process, report by report.

    Args:
        artefact: What TFF compiled.
    """

    def __init__(self, artefact: ServerArtefact) -> None:
        keep_freed_memory()
        self.artefact = artefact
        self._training = CompiledRound(artefact.training)

    @property
    def spec(self) -> AggregationSpec:
        """What is done with updates."""
        return self.artefact.spec

    @functools.cached_property
    def _evaluation(self) -> CompiledRound:
        return CompiledRound(self.artefact.evaluation)

    def initialize(self, initial_weights: Tensors) -> ServerState:
        """The state before the first round: TFF's own, with these weights in the place of its zeros."""
        check_tensors(initial_weights, self.artefact.weights)
        leaves = tuple(map(to_leaf, GraphFunction(self.artefact.initialize)()))
        num_weights = len(initial_weights)
        return ServerState(num_commits=0, num_weights=num_weights, leaves=(*initial_weights, *leaves[num_weights:]))

    def weights(self, state: ServerState) -> Tensors:
        """The global model in a state."""
        check_leaves(state.leaves, self._training.state_leaves)
        return state.weights

    def begin(self, state: ServerState) -> "_TrainingAccumulator":
        """Opens a training round."""
        check_leaves(state.leaves, self._training.state_leaves)
        return _TrainingAccumulator(self.artefact, self._training, state)

    def begin_evaluation(self) -> "_EvaluationAccumulator":
        """Opens an evaluation round."""
        return _EvaluationAccumulator(self._evaluation)


class _TrainingAccumulator:
    """A training round; see `coordinator.aggregation.RoundAccumulator`."""

    def __init__(self, artefact: ServerArtefact, compiled: CompiledRound, state: ServerState) -> None:
        self._weights = artefact.weights
        self._measurements = compiled.measurements
        self._state = state
        self._round = compiled.begin(state.leaves)

    @property
    def num_folded(self) -> int:
        """Updates folded so far."""
        return self._round.num_folded

    def fold(self, update: ClientUpdate) -> None:
        """Adds an update."""
        check_tensors(update.model_delta, self._weights)
        self._round.fold(update_leaves(update))

    def finish(self) -> RoundResult:
        """Closes the round."""
        leaves = tuple(map(to_leaf, self._round.finish()))
        num_state = len(self._state.leaves)
        state = ServerState(
            num_commits=self._state.num_commits + 1, num_weights=self._state.num_weights, leaves=leaves[:num_state]
        )
        return RoundResult(state=state, metrics=_named_metrics(self._measurements, leaves[num_state:]))

    def snapshot(self) -> tuple[Leaf, ...]:
        """The running sums."""
        return self._round.snapshot()

    def resume(self, snapshot: tuple[Leaf, ...], *, num_folded: int) -> None:
        """Continues from a snapshot."""
        self._round.resume(snapshot, num_folded=num_folded)


class _EvaluationAccumulator:
    """An evaluation round; see `coordinator.aggregation.EvaluationAccumulator`."""

    def __init__(self, compiled: CompiledRound) -> None:
        self._measurements = compiled.measurements
        self._round: RunningRound = compiled.begin([0])

    @property
    def num_folded(self) -> int:
        """Reports folded so far."""
        return self._round.num_folded

    def fold(self, metrics: Metrics) -> None:
        """Adds one device's sums."""
        self._round.fold(metric_leaves(metrics))

    def finish(self) -> Mapping[str, float]:
        """Closes the round."""
        return _named_metrics(self._measurements, tuple(map(to_leaf, self._round.finish()[1:])))


def _named_metrics(names: tuple[str, ...], values: tuple[Any, ...]) -> dict[str, float]:
    """Scalars by path; those of the training itself lose their prefix. Larger arrays are left out."""
    return {
        name.removeprefix(_TRAINING_METRICS): float(value)
        for name, value in zip(names, values, strict=True)
        if math.prod(value.shape) == 1
    }


@functools.cache
def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed, once per process.

    Folding an update of 40 MB allocates and frees 40 MB tensors; fresh pages from the kernel then cost four fifths of
    the time. The process keeps its peak memory instead, which is a few times the model, however large the cohort.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library: slower, not wrong
        _LOG.info("mallopt_missing")
        return
    for parameter, value in _MALLOPT:
        mallopt(parameter, value)


_MALLOPT = (
    (-4, 0),  # M_MMAP_MAX: no mmap for large blocks
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: give nothing back
    (-2, 64 << 20),  # M_TOP_PAD: grow in large steps
    (-8, 1),  # M_ARENA_MAX: threads share one heap, so that each does not keep its own peak
)
