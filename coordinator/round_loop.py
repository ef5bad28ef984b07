"""Round after round: opens them, counts what the fleet delivers, stores the result, and only then opens the next.

Without a clock or a thread of its own: `server` drives it with a real link and monotonic time, `simulators` with an
in-memory broker and virtual time. The aggregator may come later than the first reports: these are journalled and
acknowledged without it; only the end of a training or evaluation round waits for it.
"""

import collections
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from broker_link.failpoints import hit
from broker_link.link import LinkEvent
from coordinator.actions import Action, CohortAssigned, Fold, FoldMetrics, Publish, RoundEnded, RoundOrder
from coordinator.aggregation import Aggregator, ServerState
from coordinator.errors import AggregationError, OpeningLost, OpeningTimedOut
from coordinator.fleet import FleetCoordinator
from coordinator.late_aggregator import LateAggregator
from coordinator.participation_spacing import ParticipationSpacing
from coordinator.round_ids import RoundIds
from coordinator.round_journal import Contribution, ForgetfulJournal, Journal, JournaledRound
from coordinator.round_recovery import recover
from coordinator.round_schedule import RoundSchedule, RoundSummary
from coordinator.round_sums import RoundSums
from coordinator.round_table import Round, RoundEvent, RoundState
from coordinator.sum_mode import Opened
from coordinator.sum_openings import SumOpenings
from coordinator.sum_release import round_clip
from wire_protocol.errors import WireError
from wire_protocol.messages import RejectionReason, RoundKind
from wire_protocol.tensors import encode_tensors

__all__ = ["RoundLoop", "RoundPrices", "RoundSchedule", "RoundSummary", "StateStore"]

_LOG = logging.getLogger(__name__)
_WATCHED_KINDS = frozenset({"assignment", "opening-request", "receipt"})


class StateStore(Protocol):
    """Where committed server states go. ``save`` returns when the state is durable."""

    def save(self, state: ServerState) -> None:
        """Makes a state durable."""


class RoundPrices(Protocol):
    """What the rounds of a private task cost its devices, and which of them are still allowed."""

    def allows(self, round_id: int) -> bool:
        """Whether this round may be opened."""

    def epsilon_after(self, round_id: int) -> float:
        """What every round up to this one has cost a device."""


class RoundLoop:
    """Drives the rounds of one population.

    Args:
        fleet: The coordinator's talk with the devices.
        aggregator: Folds updates and computes the next state; it may still be in the making.
        state: Where to start from; without commits its weights are enough.
        schedule: Which rounds to run.
        store: Committed states are durable here before the next round is opened.
        publish: Sends a message: (topic, payload, retain).
        round_ids: Numbers the rounds.
        on_round: Told of every round that is over, with the state that it left.
        budget: Of a private task: no round is opened that would pass it.
        journal: What was assigned and counted is durable here before a device is told so.
        openings: Of a confidential task: gets the sums of its rounds opened.
        flushes_itself: Whether each call ends with a `flush`; an owner that says False calls it, and so lets many
            updates share one disk flush.
    """

    def __init__(
        self,
        *,
        fleet: FleetCoordinator,
        aggregator: Aggregator | LateAggregator,
        state: ServerState,
        schedule: RoundSchedule,
        store: StateStore,
        publish: Callable[[str, bytes, bool], None],
        round_ids: RoundIds,
        on_round: Callable[[RoundSummary, ServerState], None],
        budget: RoundPrices | None = None,
        journal: Journal | None = None,
        openings: SumOpenings | None = None,
        flushes_itself: bool = True,
    ) -> None:
        self._fleet = fleet
        self._schedule = schedule
        self._store = store
        self._publish = publish
        self._round_ids = round_ids
        self._on_round = on_round
        self._budget = budget
        self._journal = journal or ForgetfulJournal()
        self._openings = openings
        self._flushes_itself = flushes_itself
        self._noted: list[Fold | FoldMetrics] = []
        late = aggregator if isinstance(aggregator, LateAggregator) else LateAggregator.ready(aggregator)
        self._sums = RoundSums(aggregator=late, journal=self._journal, plan=fleet.plan)
        privacy = fleet.plan.privacy
        self._spacing = ParticipationSpacing(1 if privacy is None else privacy.num_bands)
        self._evaluation_is_due = False
        self._abandoned_in_a_row = 0
        self.state = state
        self.num_commits = state.num_commits
        self.is_done = False
        self.budget_is_spent = False
        """Whether the loop ended because one more round would have cost the devices too much."""

    @property
    def gave_up(self) -> bool:
        """Whether the loop ended because too many rounds in a row were abandoned."""
        return self._abandoned_in_a_row >= self._schedule.max_abandoned_in_a_row

    @property
    def rejections(self) -> Mapping[RejectionReason, int]:
        """Reports refused so far, by reason."""
        return self._fleet.intake.rejections

    def start(self, *, now: float) -> None:
        """Goes on with the round that a restart interrupted, or opens the first one."""
        hit("coordinator.start.before_recovery")
        recovery = recover(self._journal.rounds(), num_commits=self.state.num_commits)
        for known in recovery.newly_over:
            self._journal.close_round(known.round_id, known.state)
        for known in recovery.over:
            self._fleet.remember(self._as_round(known, now))
            self._spacing.note(known.round_id, known.members)
        self._evaluation_is_due = self._is_evaluation_missing(recovery.over)
        self._journal.sync()
        hit("coordinator.start.after_recovery")
        unfinished = recovery.unfinished
        self._run(self._open_next(now) if unfinished is None else self._resume(unfinished, now), now)
        self._run(self._catch_up(now), now)

    def handle(self, event: LinkEvent, *, now: float) -> None:
        """Takes a link event."""
        taken = None if self._openings is None else self._openings.take(event, now=now)
        if taken is None:
            self._run(self._fleet.handle(event, now=now), now)
            return
        self._run(list(taken), now)
        if taken:
            self._run(self._catch_up(now), now)

    def tick(self, *, now: float) -> None:
        """Lets time pass."""
        self.flush(now=now)
        self._run(self._catch_up(now), now)
        self._run(self._fleet.tick(now=now), now)

    def expel(self, device_id: str, *, now: float) -> None:
        """Drops a device whose identity has been revoked."""
        _LOG.info("device_expelled device_id=%s", device_id)
        self._run(self._fleet.expel(device_id, now=now), now)

    def flush(self, *, now: float) -> None:
        """Makes the updates taken since the last flush durable, all at once; then counts and acknowledges them."""
        while self._noted:
            noted, self._noted = self._noted, []
            self._journal.sync()
            for action in noted:
                hit("coordinator.fold.before")
                self._sums.count(action)
                hit("coordinator.fold.after")
                self._carry_out(self._fleet.folded(action.device_id, now=now), now)

    def next_wakeup(self) -> float | None:
        """When ``tick`` must be called at the latest."""
        opening_at = None if self._openings is None else self._openings.next_wakeup()
        return self._fleet.next_wakeup() if opening_at is None else opening_at

    def _run(self, actions: list[Action], now: float) -> None:
        self._carry_out(actions, now)
        if self._flushes_itself:
            self.flush(now=now)

    def _carry_out(self, actions: list[Action], now: float) -> None:
        """Carries out actions, and those that follow from them."""
        todo = collections.deque(actions)
        while todo:
            action = todo.popleft()
            match action:
                case Publish():
                    self._send(action)
                case CohortAssigned():
                    self._journal.assign(action.round.round_id, action.round.cohort)
                    self._journal.sync()
                case Fold() | FoldMetrics():
                    self._note(action)
                case RoundEnded():
                    todo.extend(self._end_round(action.round, now))

    def _send(self, action: Publish) -> None:
        kind = action.topic.rpartition("/")[2]
        if kind in _WATCHED_KINDS:
            hit(f"coordinator.{kind}.before")
        self._publish(action.topic, action.payload, action.retain)
        if kind in _WATCHED_KINDS:
            hit(f"coordinator.{kind}.after")

    def _note(self, action: Fold | FoldMetrics) -> None:
        """Writes a contribution into the journal; it counts from the next flush on."""
        round_ = self._fleet.current_round
        if round_ is None:
            raise AssertionError(f"{type(action).__name__} outside a round")
        self._journal.add(round_.round_id, _contribution(action))
        self._noted.append(action)

    def _checkpoint(self) -> bytes:
        """The weights that a round's cohort starts from."""
        return encode_tensors(self.state.weights)

    def _resume(self, known: JournaledRound, now: float) -> list[Action]:
        """Goes on with an interrupted round; what it has counted is folded again by `_catch_up`."""
        self._evaluation_is_due = known.kind is RoundKind.EVALUATE
        round_ = self._as_round(known, now)
        self._sums.begin(known.round_id, known.kind, self.state, num_counted=round_.num_folded)
        _LOG.info("round_resumed round_id=%d updates=%d", known.round_id, round_.num_folded)
        clip = round_clip(self._fleet.plan, self.state)
        return self._fleet.restore_round(round_, self._checkpoint(), clipping_norm=clip, now=now)

    def _catch_up(self, now: float) -> list[Action]:
        """Folds what was counted before the aggregator was there, and ends the round that has waited for it."""
        round_ = self._fleet.current_round
        if round_ is None or (self._sums.is_complete and round_.state is not RoundState.AGGREGATING):
            return []
        if not self._sums.open():
            return []
        if round_.state is RoundState.AGGREGATING:
            return self._end_round(round_, now)
        try:
            self._sums.catch_up()
        except (WireError, AggregationError):
            _LOG.exception("round_not_resumed round_id=%d", round_.round_id)
            return self._close_round(round_, RoundEvent.AGGREGATION_FAILED, {}, now)
        return []

    def _as_round(self, known: JournaledRound, now: float) -> Round:
        """A round of an earlier life; an unfinished one has its whole report time again."""
        round_ = Round(round_id=known.round_id, kind=known.kind, policy=self._fleet.policy, now=now)
        round_.state = known.state
        round_.cohort = dict(known.members)
        round_.deadline = now + self._fleet.policy.report_timeout_s
        return round_

    def _open_next(self, now: float) -> list[Action]:
        if self.num_commits >= self._schedule.num_commits and not self._evaluation_is_due:
            self.is_done = True
        if self._budget is not None and not self._budget.allows(self._round_ids.last_id + 1):
            self.budget_is_spent = not self.is_done
            self.is_done = True
        if self.gave_up:
            self.is_done = True
        if self.is_done:
            return self._fleet.dismiss()
        kind = RoundKind.EVALUATE if self._evaluation_is_due else RoundKind.TRAIN
        clip = round_clip(self._fleet.plan, self.state)
        order = RoundOrder(
            round_id=self._round_ids.next_id(), kind=kind, checkpoint=self._checkpoint(), clipping_norm=clip
        )
        self._sums.begin(order.round_id, kind, self.state)
        self._fleet.population.rest(self._spacing.resting(order.round_id))
        self._journal.open_round(order.round_id, kind, base_commits=self.state.num_commits)
        hit("coordinator.round.opened")
        _LOG.info("round_opened round_id=%d kind=%s", order.round_id, kind.value)
        return self._fleet.open_round(order, now=now)

    def _end_round(self, round_: Round, now: float) -> list[Action]:
        hit("coordinator.round.ended")
        if round_.state is not RoundState.AGGREGATING:
            return self._close_round(round_, RoundEvent.CANCELLED, {}, now)
        if not self._sums.open():
            self._stop_reporting(round_)
            return []
        metrics: Mapping[str, float] = {}
        event = RoundEvent.RESULT_STORED
        try:
            self._sums.catch_up()
            if self._openings is not None and round_.kind is RoundKind.TRAIN:
                asked = self._open_sum(self._openings, round_, now)
                if asked is not None:
                    return asked
            metrics = self._aggregate(round_)
        except (OpeningLost, OpeningTimedOut) as error:
            is_lost = isinstance(error, OpeningLost)
            event = RoundEvent.OPENING_LOST if is_lost else RoundEvent.OPENING_TIMED_OUT
            _LOG.warning("%s round_id=%d: %s", event.name.lower(), round_.round_id, error)
        except (WireError, AggregationError):
            _LOG.exception("aggregation_failed round_id=%d", round_.round_id)
            event = RoundEvent.AGGREGATION_FAILED
        return self._close_round(round_, event, metrics, now)

    def _stop_reporting(self, round_: Round) -> None:
        """The round takes no report from here on, and says so to late ones: no restart may open it again."""
        self._journal.stop_reporting(round_.round_id)
        self._journal.sync()
        hit("coordinator.round.waiting")

    def _open_sum(self, openings: SumOpenings, round_: Round, now: float) -> list[Action] | None:
        """Goes on with opening a confidential sum; None when it is open."""
        if not openings.has_begun(round_.round_id):
            # Durable before the first opener is asked: it answers for one set of contributors, and this must stay it.
            self._stop_reporting(round_)
        sealed = self._sums.sealed_set(openings.admission, tuple(round_.cohort))
        advanced = openings.advance(sealed, now=now)
        if not isinstance(advanced, Opened):
            return list(advanced)
        hit("coordinator.opening.opened")
        self._sums.take_opened(advanced)
        return None

    def _close_round(self, round_: Round, event: RoundEvent, metrics: Mapping[str, float], now: float) -> list[Action]:
        """Writes down how a round ended (``event`` is of no matter if it is abandoned already); opens the next."""
        notices = self._fleet.close_round(event, now=now)
        if self._openings is not None:
            self._openings.close()
        self._journal.close_round(round_.round_id, round_.state)
        self._journal.sync()
        self._note_outcome(round_)
        self._spacing.note(round_.round_id, round_.cohort)
        summary = RoundSummary(
            round_id=round_.round_id,
            kind=round_.kind,
            state=round_.state,
            abandon_reason=None if round_.abandon_reason is None else round_.abandon_reason.value,
            num_assigned=len(round_.cohort),
            num_reports=round_.num_folded,
            metrics=metrics,
            duration_s=now - round_.opened_at,
            num_commits=self.num_commits,
            epsilon=None if self._budget is None else self._budget.epsilon_after(round_.round_id),
        )
        _LOG.info(
            "round_%s round_id=%d kind=%s updates=%d assigned=%d",
            *(round_.state.value, round_.round_id, round_.kind.value, summary.num_reports, summary.num_assigned),
        )
        self._on_round(summary, self.state)
        return [*notices, *self._open_next(now)]

    def _aggregate(self, round_: Round) -> Mapping[str, float]:
        if round_.kind is RoundKind.EVALUATE:
            return self._sums.finish_evaluation()
        hit("coordinator.aggregate.before")
        result = self._sums.finish_training()
        hit("coordinator.aggregate.after")
        # Durable first: no device may ever see a checkpoint that a crash could take back.
        self._store.save(result.state)
        self.state = result.state
        return result.metrics

    def _is_evaluation_missing(self, over: Sequence[JournaledRound]) -> bool:
        """Whether an earlier life ended between the commit that calls for an evaluation and that evaluation."""
        every = self._schedule.evaluate_every
        return (
            every > 0
            and self.num_commits > 0
            and self.num_commits % every == 0
            and not any(
                known.kind is RoundKind.EVALUATE
                and known.state is RoundState.COMMITTED
                and known.base_commits == self.num_commits
                for known in over
            )
        )

    def _note_outcome(self, round_: Round) -> None:
        if round_.state is RoundState.ABANDONED:
            self._abandoned_in_a_row += 1
            return
        self._abandoned_in_a_row = 0
        if round_.kind is RoundKind.EVALUATE:
            self._evaluation_is_due = False
        else:
            self.num_commits += 1
            every = self._schedule.evaluate_every
            self._evaluation_is_due = every > 0 and self.num_commits % every == 0


def _contribution(action: Fold | FoldMetrics) -> Contribution:
    if isinstance(action, FoldMetrics):
        return Contribution(
            device_id=action.device_id, model_delta=None, aggregation_weight=1.0, metrics=action.metrics
        )
    return Contribution(
        device_id=action.device_id,
        model_delta=action.encoded,
        aggregation_weight=action.update.aggregation_weight,
        metrics=action.update.metrics,
    )
