"""Aggregation of private updates: integers added modulo 2^32, read once, and handed on as one mean.

In central mode the sum is exact, and the coordinator adds the noise to it when the round is finished.

The aggregator inside (TFF's, compiled, or numpy's) sees a single update per round: the mean of the sum with a **fixed**
denominator, so that the released model says nothing about how many took part. Its server optimizer does the rest.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from coordinator.aggregation import (
    Aggregator,
    ClientUpdate,
    EvaluationAccumulator,
    Leaf,
    RoundResult,
    ServerState,
)
from coordinator.central_noise import check_central_noise
from coordinator.errors import AccumulatorClosed, EmptyRound, InvalidConfig, QuorumMissed, StateMismatch, UpdateMismatch
from coordinator.round_policy import RoundPolicy
from coordinator.sealed_sums import SealedSumAggregator
from coordinator.sum_modes import sum_mode_of
from coordinator.sum_release import SumRelease, sum_release
from wire_protocol.integer_updates import decode_sum, split_vector
from wire_protocol.plan import TrainingPlan
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.private_reports import PRIVATE_METRICS
from wire_protocol.tensors import Tensors

__all__ = ["PrivateSumAggregator", "check_private_rounds", "private_aggregator"]


def private_aggregator(inner: Aggregator, plan: TrainingPlan, policy: RoundPolicy) -> Aggregator:
    """The same aggregator for a private task, of sealed updates if it is confidential; itself for any other.

    Raises:
        InvalidConfig: As ``check_private_rounds``; or a confidentiality that this coordinator does not have.
    """
    check_private_rounds(plan, policy)
    if plan.privacy is None:
        return inner
    private: Aggregator = PrivateSumAggregator(inner, plan, denominator=policy.report_goal)
    mode = sum_mode_of(plan)
    return private if mode is None else SealedSumAggregator(private, mode)


def check_private_rounds(plan: TrainingPlan, policy: RoundPolicy) -> None:
    """Refuses rounds that a private task cannot have; a task that is not private can have any.

    Raises:
        InvalidConfig: Rounds could end with fewer reports than the task's noise was sized for, or with more than a sum
            modulo 2^32 can hold; or the noise is one that a coordinator does not draw.
    """
    spec = plan.privacy
    if spec is None:
        return
    if spec.mode == "central":
        check_central_noise(spec)
    if policy.min_reports < spec.min_contributors:
        raise InvalidConfig(
            f"min_reports is {policy.min_reports}; this task's noise needs {spec.min_contributors} reports at least"
        )
    # With over-selection a cohort grows to whom completion asks, and every one of them may report.
    largest = policy.report_goal if policy.over_selection == 1 else policy.max_waiting
    if largest > plan.max_contributors:
        raise InvalidConfig(
            f"a round could have {largest} reports, and their sum leave its 32-bit words after "
            f"{plan.max_contributors}: lower report_goal, over_selection or grid_bits"
        )


class PrivateSumAggregator:
    """Makes any aggregator one of private updates.

    Args:
        inner: Applies the mean to the model. Its clipping and weights play no part: it is given one update a round.
        plan: A plan with a privacy specification.
        denominator: What the sum is divided by, however many took part.

    Raises:
        ValueError: The plan is not private, or the denominator is less than the specification's ``min_contributors``.
    """

    def __init__(self, inner: Aggregator, plan: TrainingPlan, *, denominator: int) -> None:
        if plan.privacy is None:
            raise ValueError("the plan has no privacy specification")
        if denominator < plan.privacy.min_contributors:
            raise ValueError(
                f"a denominator of {denominator} for at least {plan.privacy.min_contributors} contributors"
            )
        self._inner = inner
        self._plan = plan
        self._spec = plan.privacy
        self._denominator = denominator
        self._release = sum_release(plan, num_devices=denominator)

    def initialize(self, initial_weights: Tensors) -> ServerState:
        """The state before the first round."""
        return _joined(self._inner.initialize(initial_weights), self._release.first_leaves())

    def weights(self, state: ServerState) -> Tensors:
        """The global model in a state."""
        return self._inner.weights(self._parted(state)[0])

    def begin(self, state: ServerState) -> "_PrivateSum":
        """Opens a training round, numbered by commits: for an owner who abandons none."""
        return self.begin_round(state, round_id=state.num_commits + 1)

    def begin_round(self, state: ServerState, *, round_id: int) -> "_PrivateSum":
        """Opens a training round by its number."""
        inner_state, leaves = self._parted(state)
        self._inner.weights(inner_state)
        self._release.check(leaves, round_id)
        start = _Start(state=inner_state, leaves=leaves, round_id=round_id, release=self._release)
        return _PrivateSum(self._inner, start, self._plan, self._spec, denominator=self._denominator)

    def begin_evaluation(self) -> EvaluationAccumulator:
        """Opens an evaluation round; devices refuse those of a private task."""
        return self._inner.begin_evaluation()

    def _parted(self, state: ServerState) -> tuple[ServerState, tuple[Leaf, ...]]:
        """The inner aggregator's state, and what is remembered behind it."""
        num_inner = len(state.leaves) - self._release.num_leaves
        if num_inner < state.num_weights:
            raise StateMismatch("the state does not hold what this task's sums are released by")
        inner = ServerState(
            num_commits=state.num_commits, num_weights=state.num_weights, leaves=state.leaves[:num_inner]
        )
        return inner, state.leaves[num_inner:]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Start:
    """What a round begins with."""

    state: ServerState
    """The inner aggregator's."""
    leaves: tuple[Leaf, ...]
    """The release's."""
    round_id: int
    release: SumRelease


class _PrivateSum:
    """A sum modulo 2^32: as large as one update, whatever the cohort."""

    def __init__(
        self, inner: Aggregator, start: _Start, plan: TrainingPlan, spec: PrivacySpec, *, denominator: int
    ) -> None:
        self._inner = inner
        self._start = start
        self._plan = plan
        self._spec = spec
        self._denominator = denominator
        self._total = np.zeros(plan.num_update_numbers, np.uint32)
        self._is_closed = False
        self.num_folded = 0

    def fold(self, update: ClientUpdate) -> None:
        """Adds an update."""
        self._check_open()
        if update.integers is None or update.integers.shape != self._total.shape:
            raise UpdateMismatch("not an integer update of this model")
        if self.num_folded >= self._plan.max_contributors:
            raise UpdateMismatch(f"after {self.num_folded} updates one more could leave the 32-bit words of the sum")
        np.add(self._total, update.integers, out=self._total)
        self.num_folded += 1

    def finish(self) -> RoundResult:
        """Closes the round: the mean of the sum is applied as one update.

        Raises:
            EmptyRound: Nothing was folded.
            QuorumMissed: Fewer than ``min_contributors``: the noise is too small, and the sum is not looked at.
            AccumulatorClosed: The round was finished before.
        """
        self._check_open()
        if not self.num_folded:
            raise EmptyRound("no update was folded")
        if self.num_folded < self._spec.min_contributors:
            raise QuorumMissed(
                f"{self.num_folded} private updates; with fewer than {self._spec.min_contributors} the noise is too small"
            )
        self._is_closed = True
        start = self._start
        released = start.release.release(decode_sum(self._total), start.leaves, start.round_id)
        mean = released.total / self._denominator
        accumulator = self._inner.begin(start.state)
        accumulator.fold(
            ClientUpdate(
                model_delta=split_vector(mean.astype(np.float32), self._plan.weights),
                aggregation_weight=1.0,
                metrics=PRIVATE_METRICS,
            )
        )
        result = accumulator.finish()
        figures = {**_without_local_figures(result.metrics), **released.figures}
        return RoundResult(state=_joined(result.state, released.leaves), metrics=figures)

    def snapshot(self) -> tuple[Leaf, ...]:
        """A copy of the running sum."""
        self._check_open()
        return (self._total.copy(),)

    def resume(self, snapshot: tuple[Leaf, ...], *, num_folded: int) -> None:
        """Continues from a snapshot."""
        self._check_open()
        if len(snapshot) != 1 or snapshot[0].dtype != np.uint32 or snapshot[0].shape != self._total.shape:
            raise StateMismatch("not the running sum of private updates of this model")
        np.copyto(self._total, snapshot[0])
        self.num_folded = num_folded

    def _check_open(self) -> None:
        if self._is_closed:
            raise AccumulatorClosed("the round was finished")


def _joined(state: ServerState, leaves: tuple[Leaf, ...]) -> ServerState:
    """One state, stored in one step: the model, and what the next round's release depends on."""
    return ServerState(num_commits=state.num_commits, num_weights=state.num_weights, leaves=(*state.leaves, *leaves))


def _without_local_figures(metrics: Mapping[str, float]) -> dict[str, float]:
    """Devices of a private task report no losses; zeros would look like some."""
    return {name: value for name, value in metrics.items() if name not in {"loss", "accuracy", "weight_sum"}}
