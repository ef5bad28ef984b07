"""One assignment from its arrival to its end: fetch, job, report; or, after a restart, the report alone. No I/O.

Moves the device's session, and says by ``outcome`` when the round is over for this device.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence

from edge_client.channel import DeviceChannel
from edge_client.counts import DeviceCount, RoundEnding, RoundOutcome
from edge_client.errors import IllegalTransition
from edge_client.events import (
    Action,
    DropReport,
    SaveBlob,
    StartJob,
    StopJob,
    StoreReport,
    TrainingFailed,
    TrainingFinished,
)
from edge_client.fetch import Taken
from edge_client.pending_report import PendingReport
from edge_client.round_blobs import BlobReader, PlanReader, RoundBlobs
from edge_client.session import DeviceSession, SessionEvent, SessionState
from edge_client.settings import AgentSettings
from edge_client.upload import ReportUpload, make_report
from wire_protocol.errors import BlobError, WireError
from wire_protocol.limits import DEFAULT_PIECE_BYTES
from wire_protocol.messages import (
    Assignment,
    DeviceMessage,
    Piece,
    PieceList,
    Receipt,
    ReceiptStatus,
    RejectionReason,
    RoundKind,
    Withdrawal,
    WithdrawalReason,
)
from wire_protocol.private_reports import PRIVATE_METRICS

__all__ = ["DeviceContext", "RoundWork"]


@dataclasses.dataclass(kw_only=True, slots=True)
class DeviceContext:
    """What the parts of one device agent share. It belongs to one device; nothing in it is global."""

    channel: DeviceChannel
    session: DeviceSession
    settings: AgentSettings
    blobs: BlobReader
    uniform: Callable[[float, float], float]
    plans: PlanReader = dataclasses.field(default_factory=PlanReader)
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    answered: tuple[int, bytes] | None = None
    """Round and nonce of the last assignment that this device has reported for: it is never worked on again."""
    is_up: bool = False
    """Whether the link is up: otherwise nothing is worth saying."""
    is_network_barred: bool = False
    """Whether the owner forbids the present network: then nothing large is sent or asked for."""
    piece_bytes: int = DEFAULT_PIECE_BYTES
    """Size of the pieces of an update, within the broker's limit."""

    @property
    def can_transfer(self) -> bool:
        """Whether blobs may travel now."""
        return self.is_up and not self.is_network_barred


class RoundWork:
    """An assignment under way. Every method returns what to do; afterwards look at ``outcome``.

    Made by ``assigned`` or by ``resumed``.
    """

    __slots__ = (
        "_assignment", "_blobs", "_context", "_is_private", "_nonce", "_upload", "deadline_at", "outcome", "round_id",
        "task_id",
    )  # fmt: skip

    def __init__(
        self, context: DeviceContext, *, task_id: str, round_id: int, nonce: bytes, deadline_at: float
    ) -> None:
        self._context = context
        self._nonce = nonce
        self._assignment: Assignment | None = None
        self._blobs: RoundBlobs | None = None
        self._upload: ReportUpload | None = None
        self._is_private = False
        self.task_id = task_id
        self.round_id = round_id
        self.deadline_at = deadline_at
        self.outcome: RoundOutcome | None = None
        """How the round ended for this device; None while it is under way."""

    @classmethod
    def assigned(cls, context: DeviceContext, assignment: Assignment, now: float) -> "RoundWork":
        """From an assignment; the session is ASSIGNED, and the deadline counts from ``now``, monotonic seconds."""
        work = cls(
            context,
            task_id=assignment.task_id,
            round_id=assignment.round_id,
            nonce=assignment.nonce,
            deadline_at=now + assignment.deadline_s,
        )
        work._assignment = assignment
        work._blobs = RoundBlobs(
            assignment,
            reader=context.blobs,
            plans=context.plans,
            settings=context.settings.fetch,
            uniform=context.uniform,
        )
        return work

    @classmethod
    def resumed(cls, context: DeviceContext, pending: PendingReport) -> "RoundWork":
        """From the outbox; the session is REPORTING. No deadline is known any more: attempts are counted instead."""
        report = pending.report
        work = cls(context, task_id=pending.task_id, round_id=report.round_id, nonce=report.nonce, deadline_at=math.inf)
        work._begin_upload(pending)
        return work

    def next_wakeup(self) -> float:
        """When ``tick`` is due, on the clock of ``now``."""
        transfer = self._blobs or self._upload
        if transfer is None or not self._context.can_transfer:
            return self.deadline_at
        return min(self.deadline_at, transfer.next_wakeup())

    def begin(self, now: float) -> list[Action]:
        """Starts the job if everything is at hand, otherwise the fetch."""
        return self._start_job() if self._blobs is not None and self._blobs.is_ready else self._send(now)

    def tick(self, now: float) -> list[Action]:
        """Lets time pass."""
        if now < self.deadline_at:
            return self._send(now)
        if self._context.session.state is SessionState.REPORTING:
            # The report may have been counted: nothing is taken back.
            return self._end(SessionEvent.DEADLINE_PASSED, RoundEnding.DEADLINE_PASSED)
        return self.withdraw(WithdrawalReason.DEADLINE)

    def reconnect(self, now: float) -> list[Action]:
        """After a new connection: transfers go on where they stopped."""
        for transfer in (self._blobs, self._upload):
            if transfer is not None:
                transfer.reconnect()
        return self._send(now)

    def take_piece(self, message: Piece | PieceList, now: float) -> list[Action]:
        """A piece, or a list of piece digests, has come."""
        taken = self._blobs.take(message, now) if self._blobs is not None else Taken.USELESS
        if self._blobs is None or taken is not Taken.USEFUL:
            self._context.counts[DeviceCount.BAD_PIECE if taken is Taken.BAD else DeviceCount.STRAY_PIECE] += 1
            return []
        try:
            fetched = self._blobs.pop_blob()
        except BlobError:
            # Every piece was right and the whole is wrong: this assignment can never be fulfilled.
            self._context.counts[DeviceCount.BAD_PIECE] += 1
            return self.withdraw(WithdrawalReason.TRAINING_FAILED)
        save: list[Action] = [SaveBlob(ref=fetched[0], data=fetched[1])] if fetched is not None else []
        return [*save, *self.begin(now)]

    def take_receipt(self, receipt: Receipt, now: float) -> list[Action]:
        """A receipt has come."""
        if self._upload is None or (receipt.round_id, receipt.nonce) != (self.round_id, self._nonce):
            self._context.counts[DeviceCount.STALE_RECEIPT] += 1
            return []
        if not self._upload.take_receipt(receipt, now):
            return self._send(now)
        if receipt.status is ReceiptStatus.ACCEPTED:
            ending, reason = RoundEnding.ACCEPTED, None
        else:
            ending, reason = RoundEnding.REJECTED, receipt.reason
        return self._end(SessionEvent.FINAL_RECEIPT, ending, reason=reason, retry_after_s=receipt.retry_after_s)

    def job_over(self, event: TrainingFinished | TrainingFailed, now: float) -> list[Action]:
        """The job has ended.

        Raises:
            IllegalTransition: A training job without an update, an evaluation with one, or a private job whose result
                was not let out by the release desk: a bug of ours.
        """
        context, assignment = self._context, self._assignment
        if assignment is None or context.session.state is not SessionState.TRAINING or event.round_id != self.round_id:
            context.counts[DeviceCount.STALE_RESULT] += 1
            return []
        if isinstance(event, TrainingFailed):
            return self._give_back(event.reason)
        has_update = event.result.model_delta is not None or event.result.private_update is not None
        if has_update != (assignment.kind is RoundKind.TRAIN):
            raise IllegalTransition(f"the result of a {assignment.kind.value} job is of the other kind")
        if self._is_private and (event.result.model_delta is not None or event.result.metrics != PRIVATE_METRICS):
            raise IllegalTransition("the result of a private job has not been made private: it is not sent")
        try:
            report, update = make_report(assignment, event.result, piece_bytes=context.piece_bytes)
        except BlobError:
            return self._give_back(WithdrawalReason.TRAINING_FAILED)
        context.session.move(SessionEvent.JOB_FINISHED)
        pending = PendingReport(
            population=context.channel.population,
            device_id=context.channel.device_id,
            task_id=self.task_id,
            report=report,
            update=update,
        )
        self._begin_upload(pending)
        return [StoreReport(pending=pending), *self._send(now)]

    def not_stored(self, round_id: int) -> list[Action]:
        """The report could not be made durable: it is not sent, now or later."""
        if self._upload is None or round_id != self.round_id:
            self._context.counts[DeviceCount.STALE_RESULT] += 1
            return []
        self._context.counts[DeviceCount.REPORT_NOT_STORED] += 1
        return self._give_back(WithdrawalReason.NOT_ELIGIBLE)

    def close(self) -> list[Action]:
        """The coordinator takes no more reports."""
        return [*self._stop_job(), *self._end(SessionEvent.ROUND_CLOSED, RoundEnding.ROUND_CLOSED)]

    def supersede(self) -> list[Action]:
        """Another task was announced."""
        return [*self._stop_job(), *self._end(SessionEvent.TASK_CHANGED, RoundEnding.TASK_CHANGED)]

    def withdraw(self, reason: WithdrawalReason) -> list[Action]:
        """Gives the assignment back; only before there is a report."""
        return [*self._stop_job(), *self._give_back(reason)]

    def _begin_upload(self, pending: PendingReport) -> None:
        settings, uniform = self._context.settings.upload, self._context.uniform
        self._upload = ReportUpload(report=pending.report, update=pending.update, settings=settings, uniform=uniform)

    def _is_exhausted(self) -> bool:
        """Whether a report that has no deadline was sent often enough."""
        upload = self._upload
        if self.deadline_at < math.inf or upload is None or not upload.is_report_next:
            return False
        return upload.num_attempts >= self._context.settings.upload.max_resumed_attempts

    def _send(self, now: float) -> list[Action]:
        """Whatever the transfer under way has to say now."""
        if self._is_exhausted() and now >= self.next_wakeup():
            return self._end(SessionEvent.GAVE_UP, RoundEnding.UNANSWERED)
        messages: Sequence[DeviceMessage] = ()
        if self._context.can_transfer and self._blobs is not None:
            messages = self._blobs.requests(now)
        elif self._context.can_transfer and self._upload is not None:
            messages = self._upload.messages(now)
        return [self._context.channel.publish(message) for message in messages]

    def _start_job(self) -> list[Action]:
        if self._blobs is None:
            raise IllegalTransition("the job of this round was started before")
        try:
            job = self._blobs.make_job(device_id=self._context.channel.device_id)
        except WireError:
            return self._give_back(WithdrawalReason.TRAINING_FAILED)
        self._blobs = None
        self._is_private = job.plan.privacy is not None
        self._context.session.move(SessionEvent.BLOBS_READY)
        return [StartJob(job=job)]

    def _stop_job(self) -> list[Action]:
        is_training = self._context.session.state is SessionState.TRAINING
        return [StopJob(round_id=self.round_id)] if is_training else []

    def _give_back(self, reason: WithdrawalReason) -> list[Action]:
        message = Withdrawal(round_id=self.round_id, nonce=self._nonce, reason=reason)
        farewell = self._context.channel.publish(message)
        return [farewell, *self._end(SessionEvent.WITHDRAWAL, RoundEnding.WITHDRAWN, reason=reason)]

    def _end(
        self,
        event: SessionEvent,
        ending: RoundEnding,
        *,
        reason: RejectionReason | WithdrawalReason | None = None,
        retry_after_s: float = 0.0,
    ) -> list[Action]:
        """Moves to idle and notes how the round ended."""
        was_reporting = self._context.session.state is SessionState.REPORTING
        self._context.session.move(event)
        if was_reporting:
            self._context.answered = (self.round_id, self._nonce)
        self._context.counts[ending] += 1
        self.outcome = RoundOutcome(round_id=self.round_id, ending=ending, reason=reason, retry_after_s=retry_after_s)
        return [DropReport(round_id=self.round_id)] if was_reporting else []
