"""A question as a task of one round: the bundle that devices get, the sum that rounds fold into, and the answer in it.

Everything between is what training rounds have: check-in, assignment, admission, journal, receipt. The checkpoint that
devices are sent is zeros, and the model file says that there is none.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from coordinator.aggregation import (
    Aggregator,
    ClientUpdate,
    EvaluationAccumulator,
    Leaf,
    LeafSpec,
    RoundResult,
    ServerState,
    check_leaves,
    check_tensors,
)
from coordinator.aggregation_spec import AggregationSpec
from coordinator.errors import AccumulatorClosed, InvalidConfig, QuorumMissed, StateMismatch, UpdateMismatch
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.sealed_sums import SealedSumAggregator
from coordinator.sum_modes import sum_mode_of
from coordinator.task_bundle import TaskBundle
from wire_protocol.integer_updates import decode_sum
from wire_protocol.plan import TensorSpec, TrainingPlan
from wire_protocol.query import Query
from wire_protocol.query_answer import QueryAnswer, answer_query
from wire_protocol.tensors import Tensors

__all__ = ["QueryAggregator", "answer_in", "query_aggregator", "query_bundle"]

_NO_MODEL: Final = b"a query needs no model file"


def query_bundle(query: Query) -> TaskBundle:
    """The task that asks a question. Its training settings mean nothing."""
    spec = TensorSpec(shape=(query.num_cells,))
    plan = TrainingPlan(
        batch_size=1,
        learning_rate=1.0,
        input_shape=(1,),
        num_classes=2,
        weights=(spec,),
        privacy=query.privacy_spec(),
        query=query,
    )
    return TaskBundle(plan=plan, model_bytes=_NO_MODEL, initial_weights=(np.zeros(spec.shape, np.float32),))


def query_aggregator(plan: TrainingPlan) -> Aggregator:
    """What a question's round is folded into; of sealed answers if its plan is confidential.

    Raises:
        InvalidConfig: The plan asks no question, or has a confidentiality that this coordinator does not have.
    """
    mode = sum_mode_of(plan)
    plain: Aggregator = QueryAggregator(plan)
    return plain if mode is None else SealedSumAggregator(plain, mode)


def answer_in(state: ServerState, query: Query, *, probabilities: Sequence[float] = (0.25, 0.5, 0.75)) -> QueryAnswer:
    """The answer that a committed round has left.

    Args:
        state: Of a `QueryAggregator`, after one commit.
        query: The question.
        probabilities: Of ``quantiles``: which ones.

    Raises:
        StateMismatch: The state is not one that this question's round leaves.
    """
    check_leaves(state.leaves, _leaf_specs(query))
    _, noisy_sum, num_reports = state.leaves
    return answer_query(query, noisy_sum.tolist(), num_reports=int(num_reports), probabilities=probabilities)


class QueryAggregator:
    """Keeps the noisy sum of one round and how many devices are in it; nothing is averaged or learnt.

    Args:
        plan: A plan with a query.

    Raises:
        InvalidConfig: The plan has none.
    """

    def __init__(self, plan: TrainingPlan) -> None:
        if plan.query is msgspec.UNSET:
            raise InvalidConfig("the plan asks no question")
        self._query = plan.query
        self._plan = plan

    def initialize(self, initial_weights: Tensors) -> ServerState:
        """The state before the round: zeros, a sum of nothing."""
        check_tensors(initial_weights, self._plan.weights)
        nothing: Leaf = np.zeros(self._query.num_cells, np.int64)
        nobody: Leaf = np.zeros((), np.int64)
        return ServerState(num_commits=0, num_weights=1, leaves=(*initial_weights, nothing, nobody))

    def weights(self, state: ServerState) -> Tensors:
        """The zeros that devices are sent."""
        check_leaves(state.leaves, _leaf_specs(self._query))
        return state.weights

    def begin(self, state: ServerState) -> "_QuerySum":
        """Opens the round."""
        return _QuerySum(self._query, self.weights(state), num_commits=state.num_commits)

    def begin_evaluation(self) -> EvaluationAccumulator:
        """Opens an evaluation round, which devices refuse."""
        return NumpyMeanAggregator(self._plan.weights, AggregationSpec()).begin_evaluation()


class _QuerySum:
    """A sum modulo 2^32."""

    def __init__(self, query: Query, weights: Tensors, *, num_commits: int) -> None:
        self._query = query
        self._weights = weights
        self._num_commits = num_commits
        self._total = np.zeros(query.num_cells, np.uint32)
        self._most = query.privacy_spec().max_contributors(query.num_cells)
        self._is_closed = False
        self.num_folded = 0

    def fold(self, update: ClientUpdate) -> None:
        """Adds a device's integers."""
        self._check_open()
        if update.integers is None or update.integers.shape != self._total.shape:
            raise UpdateMismatch("not an integer update of this query")
        if self.num_folded >= self._most:
            raise UpdateMismatch(f"after {self.num_folded} updates one more could leave the 32-bit words of the sum")
        np.add(self._total, update.integers, out=self._total)
        self.num_folded += 1

    def finish(self) -> RoundResult:
        """Closes the round.

        Raises:
            QuorumMissed: Fewer than ``min_contributors``: the noise is too small, and the sum is not looked at.
            AccumulatorClosed: The round was finished before.
        """
        self._check_open()
        if self.num_folded < self._query.min_contributors:
            raise QuorumMissed(
                f"{self.num_folded} answers; with fewer than {self._query.min_contributors} there is none"
            )
        self._is_closed = True
        num_reports: Leaf = np.asarray(self.num_folded, np.int64)
        leaves: tuple[Leaf, ...] = (*self._weights, decode_sum(self._total), num_reports)
        state = ServerState(num_commits=self._num_commits + 1, num_weights=1, leaves=leaves)
        return RoundResult(state=state, metrics={})

    def snapshot(self) -> tuple[Leaf, ...]:
        """A copy of the running sum."""
        self._check_open()
        return (self._total.copy(),)

    def resume(self, snapshot: tuple[Leaf, ...], *, num_folded: int) -> None:
        """Continues from a snapshot."""
        self._check_open()
        if len(snapshot) != 1 or snapshot[0].dtype != np.uint32 or snapshot[0].shape != self._total.shape:
            raise StateMismatch("not the running sum of this query")
        np.copyto(self._total, snapshot[0])
        self.num_folded = num_folded

    def _check_open(self) -> None:
        if self._is_closed:
            raise AccumulatorClosed("the round was finished")


def _leaf_specs(query: Query) -> tuple[LeafSpec, ...]:
    return (
        LeafSpec(name="zeros", dtype="float32", shape=(query.num_cells,)),
        LeafSpec(name="noisy_sum", dtype="int64", shape=(query.num_cells,)),
        LeafSpec(name="num_reports", dtype="int64", shape=()),
    )
