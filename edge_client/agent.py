"""The device without I/O: events and the time go in, actions come out.

The same agent runs in the daemon and, by the thousand and on virtual time, in simulated fleets. Whatever the network
sends is checked against the session's state first; what does not fit is counted and ignored.
"""

import collections
import math
from collections.abc import Callable, Sequence

from broker_link.link import Incoming, LinkDown, LinkUp
from edge_client.assigned_work import AssignedWork, BlobReader
from edge_client.channel import DeviceChannel
from edge_client.check_ins import CheckIns
from edge_client.counts import DeviceCount, RoundEnding, RoundOutcome
from edge_client.errors import IllegalTransition
from edge_client.events import (
    Action,
    DeviceEvent,
    SaveBlob,
    StartJob,
    StopJob,
    Tick,
    TrainingFailed,
    TrainingFinished,
)
from edge_client.session import DeviceSession, SessionEvent, SessionState
from edge_client.settings import AgentSettings
from wire_protocol.errors import BlobError, WireError
from wire_protocol.limits import DEFAULT_PIECE_BYTES, MIN_PIECE_BYTES, PIECE_OVERHEAD_BYTES
from wire_protocol.messages import (
    Assignment,
    CoordinatorMessage,
    DeviceMessage,
    Piece,
    PieceList,
    Receipt,
    ReceiptStatus,
    Refusal,
    RejectionReason,
    RoundClosed,
    RoundKind,
    TaskAnnouncement,
    Withdrawal,
    WithdrawalReason,
)
from wire_protocol.plan import TrainingPlan, decode_plan

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

    Raises:
        InvalidIdentifier: ``population`` or ``device_id`` may not be part of a topic.
    """

    __slots__ = (
        "_blobs",
        "_check_ins",
        "_is_up",
        "_piece_bytes",
        "_plan",
        "_session",
        "_settings",
        "_uniform",
        "_work",
        "channel",
        "counts",
        "last_outcome",
    )

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
    ) -> None:
        self._settings = settings or AgentSettings()
        self._blobs = blobs
        self._uniform = uniform
        self._session = DeviceSession()
        self._check_ins = CheckIns(settings=self._settings, uniform=uniform, token=token)
        self._is_up = False
        self._work: AssignedWork | None = None
        self._plan: tuple[bytes, TrainingPlan] | None = None
        self._piece_bytes = DEFAULT_PIECE_BYTES
        self.channel = DeviceChannel(population=population, device_id=device_id, client_version=client_version)
        """The device's topics: what to subscribe to, and its last will."""
        self.counts: collections.Counter[str] = collections.Counter()
        """`DeviceCount` and `RoundEnding` -> how often."""
        self.last_outcome: RoundOutcome | None = None
        """How the last assignment ended."""

    @property
    def state(self) -> SessionState:
        """Where the session stands."""
        return self._session.state

    @property
    def round_id(self) -> int | None:
        """The round this device is assigned to, if any."""
        return self._work.assignment.round_id if self._work is not None else None

    def next_wakeup(self) -> float:
        """When a ``Tick`` is due, on the clock of ``now``: a time past is at once, infinity is never."""
        work = self._work
        if work is None:
            return self._check_ins.due_at if self._is_up else math.inf
        if self._is_up and work.fetcher is not None:
            return min(work.deadline_at, work.fetcher.next_wakeup())
        if self._is_up and work.upload is not None:
            return min(work.deadline_at, work.upload.next_wakeup())
        return work.deadline_at

    def handle(self, event: DeviceEvent, now: float) -> list[Action]:
        """Takes one event.

        Args:
            event: What happened.
            now: Monotonic time in seconds.

        Returns:
            What to do, in this order. Nothing that the network sends makes this raise.
        """
        match event:
            case Incoming():
                return self._incoming(event, now)
            case Tick():
                return self._tick(now)
            case TrainingFinished() | TrainingFailed():
                return self._job_over(event, now)
            case LinkUp():
                return self._link_up(event, now)
            case LinkDown():
                self._is_up = False
        return []

    def shut_down(self, now: float) -> list[Action]:
        """Says goodbye: gives an unfinished assignment back and goes offline. Call it once, last."""
        farewell: list[Action] = []
        if self.state in {SessionState.ASSIGNED, SessionState.TRAINING}:
            farewell = [*self._stop_job(), *self._withdraw(WithdrawalReason.SHUTTING_DOWN, now)]
        return [*farewell, self.channel.status(is_online=False)]

    # -- time and connection

    def _tick(self, now: float) -> list[Action]:
        if now < self.next_wakeup():
            return []
        if self._work is None:
            return self._check_in(now)
        if now >= self._work.deadline_at:
            return self._deadline_passed(now)
        return self._send(self._work, now)

    def _link_up(self, event: LinkUp, now: float) -> list[Action]:
        self._is_up = True
        if event.max_packet_bytes is not None:
            room = event.max_packet_bytes - PIECE_OVERHEAD_BYTES - _TOPIC_ALLOWANCE_BYTES
            self._piece_bytes = max(MIN_PIECE_BYTES, min(DEFAULT_PIECE_BYTES, room))
        if self._work is not None:
            # A check-in needs nothing here: every new connection brings the retained task, and that repeats it.
            for transfer in (self._work.fetcher, self._work.upload):
                if transfer is not None:
                    transfer.reconnect()
        return [self.channel.status(is_online=True), *self._tick(now)]

    def _send(self, work: AssignedWork, now: float) -> list[Action]:
        """Whatever the transfer under way has to say now."""
        messages: Sequence[DeviceMessage] = ()
        if self._is_up and work.fetcher is not None:
            messages = work.fetcher.requests(now)
        elif self._is_up and work.upload is not None:
            messages = work.upload.messages(now)
        return [self.channel.publish(message) for message in messages]

    # -- messages

    def _incoming(self, event: Incoming, now: float) -> list[Action]:
        try:
            message = self.channel.decode(event)
        except WireError:
            self.counts[DeviceCount.UNDECODABLE] += 1
            return []
        return self._another_task(None, now) if message is None else self._dispatch(message, now)

    def _dispatch(self, message: CoordinatorMessage, now: float) -> list[Action]:
        match message:
            case Piece() | PieceList():
                return self._piece(message, now)
            case RoundClosed():
                return self._round_closed(message, now)
            case Assignment():
                return self._assigned(message, now)
            case Refusal():
                return self._refused(message, now)
            case Receipt():
                return self._receipt(message, now)
            case TaskAnnouncement():
                return self._task_announced(message, now)

    def _task_announced(self, message: TaskAnnouncement, now: float) -> list[Action]:
        if not self._check_ins.is_for_task(message.task_id):
            return self._another_task(message, now)
        if self.state is SessionState.CHECKED_IN:
            self._check_ins.task_repeated(message, now)
        return []

    def _another_task(self, task: TaskAnnouncement | None, now: float) -> list[Action]:
        stop = self._stop_job()
        if self._work is not None:
            self._end_round(SessionEvent.TASK_CHANGED, RoundEnding.TASK_CHANGED)
        elif self.state is SessionState.CHECKED_IN:
            self._session.move(SessionEvent.TASK_CHANGED)
        self._check_ins.set_task(task, now)
        return stop

    def _check_in(self, now: float) -> list[Action]:
        """The first check-in, or the same one again."""
        task = self._check_ins.task
        if task is None:
            return []
        count = DeviceCount.CHECK_INS_REPEATED
        if self.state is SessionState.IDLE:
            self._session.move(SessionEvent.CHECK_IN)
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
        self._session.move(SessionEvent.REFUSAL)
        self.counts[DeviceCount.REFUSALS] += 1
        self._check_ins.refused(message, now)
        return []

    def _assigned(self, message: Assignment, now: float) -> list[Action]:
        if not (self._is_answer(message.check_in) and self._check_ins.is_for_task(message.task_id)):
            return self._ignore(DeviceCount.STALE_ASSIGNMENT)
        self._session.move(SessionEvent.ASSIGNMENT)
        self.counts[DeviceCount.ASSIGNMENTS] += 1
        self._work = AssignedWork(message, deadline_at=now + message.deadline_s, blobs=self._blobs)
        if self._work.is_ready:
            return self._start_job(self._work, now)
        self._work.begin_fetch(settings=self._settings.fetch, uniform=self._uniform)
        return self._send(self._work, now)

    def _piece(self, message: Piece | PieceList, now: float) -> list[Action]:
        work = self._work
        if work is None or work.fetcher is None:
            return self._ignore(DeviceCount.STRAY_PIECE)
        try:
            taken = work.fetcher.take(message, now)
        except BlobError:
            # Every piece was right and the whole is wrong: this assignment can never be fulfilled.
            self.counts[DeviceCount.BAD_PIECE] += 1
            return self._withdraw(WithdrawalReason.TRAINING_FAILED, now)
        if taken.is_bad:
            return self._ignore(DeviceCount.BAD_PIECE)
        if taken.blob is None:
            return self._send(work, now)
        ref, data = taken.blob
        work.add_blob(ref.sha256, data)
        rest = self._start_job(work, now) if work.is_ready else self._send(work, now)
        return [SaveBlob(ref=ref, data=data), *rest]

    def _round_closed(self, message: RoundClosed, now: float) -> list[Action]:
        if self.round_id != message.round_id:
            # Said to the whole population; a device outside the cohort has nothing to do.
            return []
        stop = self._stop_job()
        self._end_round(SessionEvent.ROUND_CLOSED, RoundEnding.ROUND_CLOSED)
        self._check_ins.round_over(now)
        return stop

    def _receipt(self, message: Receipt, now: float) -> list[Action]:
        work = self._work
        upload = work.upload if work is not None else None
        if work is None or upload is None or (message.round_id, message.nonce) != work.key:
            return self._ignore(DeviceCount.STALE_RECEIPT)
        if not upload.take_receipt(message, now):
            return self._send(work, now)
        if message.status is ReceiptStatus.ACCEPTED:
            self._end_round(SessionEvent.FINAL_RECEIPT, RoundEnding.ACCEPTED)
            self._check_ins.report_counted()
            self._check_ins.round_over(now, retry_after_s=message.retry_after_s)
        else:
            self._end_round(SessionEvent.FINAL_RECEIPT, RoundEnding.REJECTED, reason=message.reason)
            self._check_ins.round_failed(now)
        return []

    # -- the job

    def _start_job(self, work: AssignedWork, now: float) -> list[Action]:
        try:
            job = work.make_job(self._decoded_plan(work), device_id=self.channel.device_id)
        except WireError:
            return self._withdraw(WithdrawalReason.TRAINING_FAILED, now)
        self._session.move(SessionEvent.BLOBS_READY)
        return [StartJob(job=job)]

    def _decoded_plan(self, work: AssignedWork) -> TrainingPlan:
        """The plan, decoded once for as long as it stays the same."""
        sha256 = work.assignment.plan.sha256
        if self._plan is None or self._plan[0] != sha256:
            self._plan = (sha256, decode_plan(work.plan_bytes))
        return self._plan[1]

    def _job_over(self, event: TrainingFinished | TrainingFailed, now: float) -> list[Action]:
        work = self._work
        if work is None or self.state is not SessionState.TRAINING or event.round_id != work.assignment.round_id:
            return self._ignore(DeviceCount.STALE_RESULT)
        if isinstance(event, TrainingFailed):
            return self._withdraw(event.reason, now)
        is_training = work.assignment.kind is RoundKind.TRAIN
        if is_training == (event.result.model_delta is None):
            raise IllegalTransition(f"a {work.assignment.kind.value} job came back with the other kind of result")
        try:
            work.begin_upload(
                event.result,
                piece_bytes=self._piece_bytes,
                settings=self._settings.upload,
                uniform=self._uniform,
            )
        except BlobError:
            return self._withdraw(WithdrawalReason.TRAINING_FAILED, now)
        self._session.move(SessionEvent.JOB_FINISHED)
        return self._send(work, now)

    def _stop_job(self) -> list[Action]:
        if self._work is None or self.state is not SessionState.TRAINING:
            return []
        return [StopJob(round_id=self._work.assignment.round_id)]

    # -- ways out of a round

    def _deadline_passed(self, now: float) -> list[Action]:
        if self.state is SessionState.REPORTING:
            # The report may have been counted: nothing is taken back.
            self._end_round(SessionEvent.DEADLINE_PASSED, RoundEnding.DEADLINE_PASSED)
            self._check_ins.round_over(now)
            return []
        return [*self._stop_job(), *self._withdraw(WithdrawalReason.DEADLINE, now)]

    def _withdraw(self, reason: WithdrawalReason, now: float) -> list[Action]:
        round_id, nonce = self._end_round(SessionEvent.WITHDRAWAL, RoundEnding.WITHDRAWN, reason=reason)
        self._check_ins.round_failed(now)
        return [self.channel.publish(Withdrawal(round_id=round_id, nonce=nonce, reason=reason))]

    def _end_round(
        self,
        event: SessionEvent,
        ending: RoundEnding,
        *,
        reason: RejectionReason | WithdrawalReason | None = None,
    ) -> tuple[int, bytes]:
        """Moves to idle, drops everything held for the round and notes how it ended; returns round id and nonce."""
        if self._work is None:
            raise IllegalTransition(f"no round is under way that could take {event.name}")
        key = self._work.key
        self._session.move(event)
        self._work = None
        self.counts[ending] += 1
        self.last_outcome = RoundOutcome(round_id=key[0], ending=ending, reason=reason)
        return key

    def _ignore(self, count: DeviceCount) -> list[Action]:
        self.counts[count] += 1
        return []
