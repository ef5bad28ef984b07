"""The device without I/O: events and the time go in, actions come out.

The same agent runs in the daemon and, by the thousand and on virtual time, in simulated fleets. Whatever the network
sends is checked against the session's state first; what does not fit is counted and ignored.
"""

import collections
import math
from collections.abc import Callable

from broker_link.link import Incoming, LinkDown, LinkUp
from edge_client.channel import DeviceChannel
from edge_client.check_ins import CheckIns
from edge_client.counts import DeviceCount, RoundEnding, RoundOutcome
from edge_client.eligibility.verdict import Eligible, Ineligible, Verdict
from edge_client.events import (
    Action,
    DeviceEvent,
    EligibilityChanged,
    HealthChanged,
    ReportNotStored,
    Tick,
    TrainingFailed,
    TrainingFinished,
)
from edge_client.health import HealthReporter
from edge_client.pending_report import PendingReport
from edge_client.round_blobs import BlobReader
from edge_client.round_work import DeviceContext, RoundWork
from edge_client.session import DeviceSession, SessionEvent, SessionState
from edge_client.settings import AgentSettings
from wire_protocol.errors import WireError
from wire_protocol.limits import DEFAULT_PIECE_BYTES, MIN_PIECE_BYTES, PIECE_OVERHEAD_BYTES
from wire_protocol.messages import (
    Assignment,
    CoordinatorMessage,
    DeviceHealth,
    DeviceMode,
    Piece,
    PieceList,
    Receipt,
    Refusal,
    RoundClosed,
    TaskAnnouncement,
    Withdrawal,
    WithdrawalReason,
)

__all__ = ["DeviceAgent"]

_TOPIC_ALLOWANCE_BYTES = 512


class DeviceAgent:
    """One device. Its owner gives every event to ``handle``, performs the actions, and calls again by ``next_wakeup``.

    Args:
        population: The population it belongs to.
        device_id: Its id.
        blobs: Where blobs may already be.
        uniform: ``uniform(low, high)``: all the randomness in waiting times.
        token: Makes 16 unguessable bytes for a check-in: ``os.urandom(16)`` in the daemon.
        client_version: What it tells the coordinator about itself.
        settings: Its patience.
        pending: A report from before a restart: it is sent before anything else is done.
        answered: Round and nonce of the last assignment that was reported for before a restart, if any.
        bytes_written: How much was written within the last hour, for the health message.

    Raises:
        InvalidIdentifier: ``population`` or ``device_id`` may not be part of a topic.
    """

    __slots__ = ("_bytes_written", "_check_ins", "_context", "_eligibility", "_work", "health", "last_outcome")

    def __init__(
        self,
        *,
        population: str,
        device_id: str,
        blobs: BlobReader,
        uniform: Callable[[float, float], float],
        token: Callable[[], bytes],
        client_version: str = "",
        settings: AgentSettings | None = None,
        pending: PendingReport | None = None,
        answered: tuple[int, bytes] | None = None,
        bytes_written: Callable[[], int] = lambda: 0,
    ) -> None:
        settings = settings or AgentSettings()
        self._context = DeviceContext(
            channel=DeviceChannel(population=population, device_id=device_id, client_version=client_version),
            session=DeviceSession(),
            settings=settings,
            blobs=blobs,
            uniform=uniform,
            answered=answered,
        )
        self._check_ins = CheckIns(settings=settings, uniform=uniform, token=token)
        self._work: RoundWork | None = None
        self._bytes_written = bytes_written
        self.health = HealthReporter(uniform=uniform)
        """The device's mode; ``HealthChanged`` and ``EligibilityChanged`` change it."""
        self._eligibility: Verdict = Eligible()
        self.last_outcome: RoundOutcome | None = None
        """How the last assignment ended."""
        if pending is not None:
            self.resume(pending)

    @property
    def channel(self) -> DeviceChannel:
        """The device's topics: what to subscribe to, and its last will."""
        return self._context.channel

    @property
    def counts(self) -> collections.Counter[str]:
        """`DeviceCount` and `RoundEnding` -> how often."""
        return self._context.counts

    @property
    def state(self) -> SessionState:
        """Where the session stands."""
        return self._context.session.state

    @property
    def round_id(self) -> int | None:
        """The round this device is assigned to, if any."""
        return self._work.round_id if self._work is not None else None

    @property
    def task_id(self) -> str:
        """The task announced last; empty if there is none."""
        return self._check_ins.task.task_id if self._check_ins.task is not None else ""

    def resume(self, pending: PendingReport) -> None:
        """Takes a report from the outbox, to be sent before anything else is done. Only for a device that is idle.

        Raises:
            IllegalTransition: It is not idle.
        """
        self._context.session.move(SessionEvent.OUTBOX_RESUMED)
        self.counts[DeviceCount.REPORTS_RESUMED] += 1
        self._work = RoundWork.resumed(self._context, pending)

    def next_wakeup(self) -> float:
        """When a ``Tick`` is due, on the clock of ``now``: a time past is at once, infinity is never."""
        health_at = self.health.next_wakeup() if self._context.is_up else math.inf
        return min(self._round_wakeup(), health_at)

    def _round_wakeup(self) -> float:
        if self._work is not None:
            return self._work.next_wakeup()
        return self._check_ins.due_at if self._context.is_up and self._may_take_part else math.inf

    def handle(self, event: DeviceEvent, now: float) -> list[Action]:
        """Takes one event.

        Args:
            event: What happened.
            now: Monotonic time in seconds.

        Returns:
            What to do, in this order. Nothing that the network sends makes this raise.
        """
        self.health.start(now)
        actions = self._handle(event, now)
        if self._work is not None and self._work.outcome is not None:
            self._settle(self._work.outcome, now)
        if self._context.is_up and now >= self.health.next_wakeup():
            # First: what follows a report that cannot be stored is not done.
            return [self.channel.publish(self._health(now)), *actions]
        return actions

    def shut_down(self) -> list[Action]:
        """Says goodbye: gives an unfinished assignment back and goes offline. Call it once, last."""
        farewell: list[Action] = []
        if self._work is not None and self.state is not SessionState.REPORTING:
            farewell = self._work.withdraw(WithdrawalReason.SHUTTING_DOWN)
            self._work = None
        return [*farewell, self.channel.status(is_online=False)]

    def _handle(self, event: DeviceEvent, now: float) -> list[Action]:
        match event:
            case Incoming():
                return self._incoming(event, now)
            case Tick():
                return self._tick(now)
            case TrainingFinished() | TrainingFailed():
                return self._job_over(event, now)
            case ReportNotStored():
                work = self._work
                return work.not_stored(event.round_id) if work is not None else self._ignore(DeviceCount.STALE_RESULT)
            case EligibilityChanged():
                return self._eligibility_changed(event.verdict, now)
            case LinkUp():
                return self._link_up(event, now)
            case HealthChanged():
                return self._health_changed(event)
            case LinkDown():
                self._context.is_up = False
        return []

    @property
    def _may_take_part(self) -> bool:
        return self.health.mode is DeviceMode.OK

    def _health_changed(self, event: HealthChanged) -> list[Action]:
        """A device that is not ok gives back what it has not finished; a finished report it still sends."""
        self.health.change(event.mode, event.reason)
        if self._may_take_part or self._work is None or self.state is SessionState.REPORTING:
            return []
        return self._work.withdraw(WithdrawalReason.NOT_ELIGIBLE)

    def _health(self, now: float) -> DeviceHealth:
        accepted = self.counts[RoundEnding.ACCEPTED]
        return self.health.message(now, bytes_written=self._bytes_written(), num_rounds_accepted=accepted)

    def _settle(self, outcome: RoundOutcome, now: float) -> None:
        """Drops everything held for the round, and decides when to come back."""
        self._work = None
        self.last_outcome = outcome
        match outcome.ending:
            case RoundEnding.ACCEPTED:
                self._check_ins.report_counted()
                self._check_ins.round_over(now, retry_after_s=outcome.retry_after_s)
            case RoundEnding.REJECTED | RoundEnding.WITHDRAWN:
                self._check_ins.round_failed(now, retry_after_s=outcome.retry_after_s)
            case RoundEnding.ROUND_CLOSED | RoundEnding.DEADLINE_PASSED | RoundEnding.UNANSWERED:
                self._check_ins.round_over(now)
            case RoundEnding.TASK_CHANGED:
                pass

    def _tick(self, now: float) -> list[Action]:
        if now < self._round_wakeup():
            return []
        return self._work.tick(now) if self._work is not None else self._check_in(now)

    def _link_up(self, event: LinkUp, now: float) -> list[Action]:
        self._context.is_up = True
        if event.max_packet_bytes is not None:
            room = event.max_packet_bytes - PIECE_OVERHEAD_BYTES - _TOPIC_ALLOWANCE_BYTES
            self._context.piece_bytes = max(MIN_PIECE_BYTES, min(DEFAULT_PIECE_BYTES, room))
        # A check-in needs nothing here: every new connection brings the retained task, and that repeats it.
        rest = self._work.reconnect(now) if self._work is not None else self._tick(now)
        return [self.channel.status(is_online=True), *rest]

    @property
    def _is_eligible(self) -> bool:
        return isinstance(self._eligibility, Eligible)

    def _eligibility_changed(self, verdict: Verdict, now: float) -> list[Action]:
        """Work that is not done yet is given back; a finished report goes on, unless the network itself is barred.

        A check-in that is out stays out, unrepeated: should an assignment come, that is given back at once.
        """
        self._eligibility = verdict
        why = f"{verdict.reason.value}: {verdict.detail}" if isinstance(verdict, Ineligible) else ""
        self.health.change(DeviceMode.INELIGIBLE, why)
        was_barred = self._context.is_network_barred
        self._context.is_network_barred = isinstance(verdict, Ineligible) and verdict.is_network_barred
        if self._work is None:
            return []
        if isinstance(verdict, Ineligible) and self.state is not SessionState.REPORTING:
            return self._work.withdraw(WithdrawalReason.NOT_ELIGIBLE)
        return self._work.reconnect(now) if was_barred and not self._context.is_network_barred else []

    def _job_over(self, event: TrainingFinished | TrainingFailed, now: float) -> list[Action]:
        return self._work.job_over(event, now) if self._work is not None else self._ignore(DeviceCount.STALE_RESULT)

    # -- messages

    def _incoming(self, event: Incoming, now: float) -> list[Action]:
        try:
            message = self.channel.decode(event)
        except WireError:
            return self._ignore(DeviceCount.UNDECODABLE)
        return self._another_task(None, now) if message is None else self._dispatch(message, now)

    def _dispatch(self, message: CoordinatorMessage, now: float) -> list[Action]:
        work = self._work
        match message:
            case Piece() | PieceList():
                return work.take_piece(message, now) if work is not None else self._ignore(DeviceCount.STRAY_PIECE)
            case RoundClosed():
                # Said to the whole population; a device outside the cohort has nothing to do.
                return work.close() if work is not None and self.round_id == message.round_id else []
            case Receipt():
                return work.take_receipt(message, now) if work is not None else self._ignore(DeviceCount.STALE_RECEIPT)
            case Assignment():
                return self._assigned(message, now)
            case Refusal():
                return self._refused(message, now)
            case TaskAnnouncement():
                return self._task_announced(message, now)

    def _task_announced(self, message: TaskAnnouncement, now: float) -> list[Action]:
        if not self._check_ins.is_for_task(message.task_id):
            return self._another_task(message, now)
        if self.state is SessionState.CHECKED_IN:
            self._check_ins.task_repeated(message, now)
        return []

    def _another_task(self, task: TaskAnnouncement | None, now: float) -> list[Action]:
        self._check_ins.set_task(task, now)
        if self._work is not None:
            # A report from the outbox is older than the first announcement that this process hears.
            is_same = task is not None and task.task_id == self._work.task_id
            return [] if is_same else self._work.supersede()
        if self.state is SessionState.CHECKED_IN:
            self._context.session.move(SessionEvent.TASK_CHANGED)
        return []

    def _check_in(self, now: float) -> list[Action]:
        """The first check-in, or the same one again."""
        task = self._check_ins.task
        if task is None:
            return []
        count = DeviceCount.CHECK_INS_REPEATED
        if self.state is SessionState.IDLE:
            self._context.session.move(SessionEvent.CHECK_IN)
            self._check_ins.renew()
            count = DeviceCount.CHECK_INS
        self.counts[count] += 1
        message = self._check_ins.message(task, now, client_version=self.channel.client_version)
        return [self.channel.publish(message)]

    def _is_answer(self, check_in: bytes) -> bool:
        return self.state is SessionState.CHECKED_IN and self._check_ins.is_answered_by(check_in)

    def _refused(self, message: Refusal, now: float) -> list[Action]:
        if not self._is_answer(message.check_in):
            return self._ignore(DeviceCount.STALE_REFUSAL)
        self._context.session.move(SessionEvent.REFUSAL)
        self.counts[DeviceCount.REFUSALS] += 1
        self._check_ins.refused(message, now)
        return []

    def _assigned(self, message: Assignment, now: float) -> list[Action]:
        if not (self._is_answer(message.check_in) and self._check_ins.is_for_task(message.task_id)):
            return self._ignore(DeviceCount.STALE_ASSIGNMENT)
        self._context.session.move(SessionEvent.ASSIGNMENT)
        self.counts[DeviceCount.ASSIGNMENTS] += 1
        if self.health.mode is DeviceMode.SAFE_MODE:
            # It was fit when it checked in. Nothing is read or fetched for a round that it gives back.
            self._context.session.move(SessionEvent.WITHDRAWAL)
            self.counts[RoundEnding.WITHDRAWN] += 1
            self._check_ins.round_over(now)
            reason = WithdrawalReason.NOT_ELIGIBLE
            return [self.channel.publish(Withdrawal(round_id=message.round_id, nonce=message.nonce, reason=reason))]
        self._work = RoundWork.assigned(self._context, message, now)
        if not self._is_eligible:
            return self._work.withdraw(WithdrawalReason.NOT_ELIGIBLE)
        if (message.round_id, message.nonce) == self._context.answered:
            # Reported for, and given up (a deadline, a notice). Training again would make other bytes of one assignment.
            return self._work.withdraw(WithdrawalReason.NOT_ELIGIBLE)
        return self._work.begin(now)

    def _ignore(self, count: DeviceCount) -> list[Action]:
        self.counts[count] += 1
        return []
