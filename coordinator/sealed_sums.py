"""Makes an aggregator one of sealed updates: it adds what it cannot read, and finishes when the sum has been opened.

The aggregator inside (`private_sum` or `query_round`) is given the opened sum as if it had added it up itself: its own
rules about too few contributors, denominators and noise hold as they always do.
"""

from collections.abc import Callable
from typing import Any

from coordinator.aggregation import (
    Aggregator,
    ClientUpdate,
    EvaluationAccumulator,
    Leaf,
    NumberedAggregator,
    RoundAccumulator,
    RoundResult,
    ServerState,
)
from coordinator.errors import AccumulatorClosed, StateMismatch, UpdateMismatch
from coordinator.sealed_admission import SealedAdmission
from coordinator.sum_mode import Opened, SealedSet, SumMode
from secure_sum.sealed_update import SealedHeader
from wire_protocol.tensors import Tensors

__all__ = ["SealedSum", "SealedSumAggregator"]


class SealedSumAggregator:
    """An aggregator whose rounds are `SealedSum`s.

    Args:
        inner: Aggregates the opened sum; its accumulators resume from (sum,).
        mode: How sealed updates are added.
    """

    def __init__(self, inner: Aggregator, mode: SumMode) -> None:
        self._inner = inner
        self._mode = mode

    def initialize(self, initial_weights: Tensors) -> ServerState:
        """The state before the first round."""
        return self._inner.initialize(initial_weights)

    def weights(self, state: ServerState) -> Tensors:
        """The global model in a state."""
        return self._inner.weights(state)

    def begin(self, state: ServerState) -> "SealedSum":
        """Opens a training round."""
        return SealedSum(self._inner.begin(state), self._mode)

    def begin_round(self, state: ServerState, *, round_id: int) -> "SealedSum":
        """Opens a training round by its number."""
        if isinstance(self._inner, NumberedAggregator):
            return SealedSum(self._inner.begin_round(state, round_id=round_id), self._mode)
        return self.begin(state)

    def begin_evaluation(self) -> EvaluationAccumulator:
        """Opens an evaluation round; devices refuse those of a private task."""
        return self._inner.begin_evaluation()


class SealedSum:
    """A total of sealed updates, and who is in it."""

    def __init__(self, inner: RoundAccumulator, mode: SumMode) -> None:
        self._inner = inner
        self._mode = mode
        self._total: Any = mode.empty()
        self._headers: dict[str, SealedHeader] = {}
        self._opened: Opened | None = None
        self._is_closed = False

    @property
    def num_folded(self) -> int:
        """Updates added so far."""
        return len(self._headers)

    def fold(self, update: ClientUpdate) -> None:
        """Adds a sealed update."""
        if self._is_closed:
            raise AccumulatorClosed("the round was finished")
        if update.sealed is None:
            raise UpdateMismatch("not a sealed update")
        device_id = update.sealed.device_id
        if device_id in self._headers:
            raise UpdateMismatch(f"{device_id} is in the total already")
        self._total = self._mode.add(self._total, update.sealed.update.payload)
        self._headers[device_id] = update.sealed.update.header(device_id)

    def sealed_set(
        self,
        admission: SealedAdmission,
        round_id: int,
        roster: tuple[str, ...],
        payload_of: Callable[[str], bytes],
    ) -> SealedSet:
        """What is to be opened."""
        return SealedSet(
            population=admission.population,
            task_id=admission.task_id,
            plan_sha256=admission.plan_sha256,
            round_id=round_id,
            num_values=admission.num_values,
            headers=tuple(header for _, header in sorted(self._headers.items())),
            roster=tuple(sorted(roster)),
            total=self._total,
            payload_of=payload_of,
            directory=admission.directory,
        )

    def take_opened(self, opened: Opened) -> None:
        """Takes the plain sum; from here on the round can be finished."""
        self._opened = opened

    def finish(self) -> RoundResult:
        """Closes the round with the opened sum.

        Raises:
            AccumulatorClosed: The round was finished before.
            StateMismatch: The sum has not been opened.
            AggregationError: As the inner aggregator raises, of too few contributors above all.
        """
        if self._is_closed:
            raise AccumulatorClosed("the round was finished")
        if self._opened is None:
            raise StateMismatch("the sum of sealed updates has not been opened")
        self._is_closed = True
        self._inner.resume((self._opened.total,), num_folded=self._opened.num_contributors)
        return self._inner.finish()

    def snapshot(self) -> tuple[Leaf, ...]:
        """Sealed sums are resumed from the journal alone.

        Raises:
            StateMismatch: Always.
        """
        raise StateMismatch("a sealed sum has no snapshot: it is added up again from the journal")

    def resume(self, snapshot: tuple[Leaf, ...], *, num_folded: int) -> None:
        """Sealed sums are resumed from the journal alone.

        Raises:
            StateMismatch: Always.
        """
        del snapshot, num_folded
        raise StateMismatch("a sealed sum has no snapshot: it is added up again from the journal")
