"""The running sums of the round under way. They may be behind the journal; at the round's end they equal it.

A report counts once it is in the journal for good. While the aggregator is still being made, that is all that happens
to it. When the aggregator is there, what the journal holds is folded, in the journal's order; from then on each report
as it comes. Two numbers say it all: how many of the journal's contributions count, and how many of these, from the
first on, are in the sum. So nothing is folded twice and nothing is left out.
"""

import itertools
from collections.abc import Mapping

import msgspec

from coordinator.actions import Fold, FoldMetrics
from coordinator.admission import decode_client_update, decode_sealed_part
from coordinator.aggregation import (
    Aggregator,
    EvaluationAccumulator,
    NumberedAggregator,
    RoundAccumulator,
    RoundResult,
    ServerState,
)
from coordinator.errors import UpdateMismatch
from coordinator.late_aggregator import LateAggregator
from coordinator.round_journal import Contribution, Journal
from coordinator.sealed_admission import SealedAdmission
from coordinator.sealed_sums import SealedSum
from coordinator.sum_mode import Opened, SealedSet
from secure_sum.errors import OpeningFailed
from secure_sum.sealed_update import decode_sealed_update
from wire_protocol.messages import RoundKind
from wire_protocol.plan import TrainingPlan

__all__ = ["RoundSums"]


class RoundSums:
    """Folds what counts, at once or later.

    Args:
        aggregator: Makes the accumulators.
        journal: Where contributions are found again.
        plan: What an update looks like.
    """

    def __init__(self, *, aggregator: LateAggregator, journal: Journal, plan: TrainingPlan) -> None:
        self._aggregator = aggregator
        self._journal = journal
        self._plan = plan
        self._round_id = 0
        self._kind = RoundKind.TRAIN
        self._state: ServerState | None = None
        self._num_counted = 0
        self._training: RoundAccumulator | None = None
        self._evaluation: EvaluationAccumulator | None = None

    @property
    def is_open(self) -> bool:
        """Whether the aggregator is there, and the round has its accumulator."""
        return self._training is not None or self._evaluation is not None

    @property
    def is_complete(self) -> bool:
        """Whether the sum holds everything that counts."""
        return self.is_open and self._num_folded == self._num_counted

    @property
    def _num_folded(self) -> int:
        accumulator = self._training or self._evaluation
        return 0 if accumulator is None else accumulator.num_folded

    def begin(self, round_id: int, kind: RoundKind, state: ServerState, *, num_counted: int = 0) -> None:
        """Begins a round; those contributions of the journal count that an earlier life has counted."""
        self._round_id, self._kind, self._state = round_id, kind, state
        self._num_counted = num_counted
        self._training = self._evaluation = None
        self.open()

    def open(self) -> bool:
        """Makes the round's accumulator if the aggregator is there; says whether there is one.

        Raises:
            StateMismatch: The state is not one of this aggregator's (the aggregation settings were changed).
            Exception: Whatever making the aggregator raised.
        """
        if self.is_open:
            return True
        aggregator = self._aggregator.get()
        if aggregator is None or self._state is None:
            return False
        # Before the first commit there are the weights alone; what else a state holds is as this aggregator begins it.
        state = self._state if self._state.num_commits else aggregator.initialize(self._state.weights)
        aggregator.weights(state)
        if self._kind is RoundKind.TRAIN:
            self._training = self._begun(aggregator, state)
        else:
            self._evaluation = aggregator.begin_evaluation()
        return True

    def _begun(self, aggregator: Aggregator, state: ServerState) -> RoundAccumulator:
        if isinstance(aggregator, NumberedAggregator):
            return aggregator.begin_round(state, round_id=self._round_id)
        return aggregator.begin(state)

    def count(self, action: Fold | FoldMetrics) -> None:
        """Takes the next contribution that is in the journal for good: folds it, or leaves it to `catch_up`."""
        was_complete = self.is_complete
        self._num_counted += 1
        if was_complete:
            self._fold(action)

    def catch_up(self) -> None:
        """Folds what the journal holds and the sum does not.

        Raises:
            WireError: A contribution cannot be read again.
            AggregationError: A contribution cannot be added.
        """
        if self.is_complete:
            return
        rows = self._journal.contributions(self._round_id)
        for contribution in itertools.islice(rows, self._num_folded, self._num_counted):
            self._fold(self._as_action(contribution))

    def sealed_set(self, admission: SealedAdmission, roster: tuple[str, ...]) -> SealedSet:
        """What of a confidential round is to be opened.

        Raises:
            UpdateMismatch: The round's updates are not sealed.
        """
        self._check_complete()
        if not isinstance(self._training, SealedSum):
            raise UpdateMismatch("the updates of this round are not sealed")
        return self._training.sealed_set(admission, self._round_id, roster, self._payload_of)

    def take_opened(self, opened: Opened) -> None:
        """Takes the plain sum of a confidential round."""
        if not isinstance(self._training, SealedSum):
            raise UpdateMismatch("the updates of this round are not sealed")
        self._training.take_opened(opened)

    def _payload_of(self, device_id: str) -> bytes:
        for contribution in self._journal.contributions(self._round_id):
            if contribution.device_id == device_id and contribution.model_delta is not None:
                return decode_sealed_update(contribution.model_delta, max_bytes=len(contribution.model_delta)).payload
        raise OpeningFailed(f"the sealed update of {device_id} is not kept")

    def finish_training(self) -> RoundResult:
        """Computes the next state.

        Raises:
            AggregationError: The aggregator refuses.
        """
        self._check_complete()
        if self._training is None:
            raise AssertionError("not a training round")
        return self._training.finish()

    def finish_evaluation(self) -> Mapping[str, float]:
        """Computes the figures of an evaluation round.

        Raises:
            AggregationError: The aggregator refuses.
        """
        self._check_complete()
        if self._evaluation is None:
            raise AssertionError("not an evaluation round")
        return self._evaluation.finish()

    def _check_complete(self) -> None:
        if not self.is_complete:
            raise AssertionError(f"{self._num_folded} of {self._num_counted} counted updates are in the sum")

    def _fold(self, action: Fold | FoldMetrics) -> None:
        if isinstance(action, Fold) and self._training is not None:
            self._training.fold(action.update)
        elif isinstance(action, FoldMetrics) and self._evaluation is not None:
            self._evaluation.fold(action.metrics)
        else:
            raise AssertionError(f"{type(action).__name__} in a round of the other kind")

    def _as_action(self, contribution: Contribution) -> Fold | FoldMetrics:
        if contribution.model_delta is None:
            return FoldMetrics(device_id=contribution.device_id, metrics=contribution.metrics)
        weight, metrics = contribution.aggregation_weight, contribution.metrics
        if self._plan.confidentiality is not msgspec.UNSET:
            update = decode_sealed_part(
                contribution.model_delta, contribution.device_id, aggregation_weight=weight, metrics=metrics
            )
        else:
            update = decode_client_update(
                contribution.model_delta, self._plan, aggregation_weight=weight, metrics=metrics
            )
        return Fold(device_id=contribution.device_id, update=update, encoded=contribution.model_delta)
