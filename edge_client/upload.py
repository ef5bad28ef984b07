"""Sending a report, without I/O: receipts and the time go in, messages come out.

The report and the bytes it announces are fixed on construction: whatever is sent again is the same.
"""

import collections
import math
from collections.abc import Callable
from typing import TypeAlias

from broker_link.backoff import FullJitterBackoff
from edge_client.settings import UploadSettings
from edge_client.training import TrainingResult
from wire_protocol.blobs import SplitBlob, split_blob
from wire_protocol.messages import Assignment, OpeningAnswer, Piece, Receipt, ReceiptStatus, Report

__all__ = ["ReportUpload", "UploadMessage", "make_report"]

UploadMessage: TypeAlias = Report | OpeningAnswer | Piece


def make_report(assignment: Assignment, result: TrainingResult, *, piece_bytes: int) -> tuple[Report, SplitBlob | None]:
    """Fixes the bytes of a report.

    Returns:
        The report, and the update that it announces; None if the result has none.

    Raises:
        BlobError: The update has too many pieces of this size.
    """
    update = None
    encoded = result.encoded_update
    if encoded is not None:
        update = split_blob(encoded, piece_bytes=piece_bytes)
    report = Report(
        round_id=assignment.round_id,
        nonce=assignment.nonce,
        update=update.ref if update is not None else None,
        piece_digests=update.piece_digests if update is not None and update.ref.num_pieces > 1 else b"",
        num_examples=result.num_examples,
        aggregation_weight=result.aggregation_weight,
        metrics=result.metrics,
    )
    return report, update


class ReportUpload:
    """Sends one report, or an opener's answer, until a final receipt comes: give it every receipt, and send what ``messages`` returns.

    The pieces follow the report by themselves. A repeated report brings none: the coordinator answers it with the
    indices it lacks.

    Args:
        report: The report.
        update: The update that it announces; None in an evaluation round, or for a refusal.
        settings: Pacing and waiting times.
        uniform: ``uniform(low, high)`` for the jitter of repetitions.
    """

    __slots__ = (
        "_backoff",
        "_is_report_due",
        "_next_at",
        "_queue",
        "_settings",
        "_uniform",
        "_update",
        "num_attempts",
        "report",
    )

    def __init__(
        self,
        *,
        report: Report | OpeningAnswer,
        update: SplitBlob | None,
        settings: UploadSettings,
        uniform: Callable[[float, float], float],
    ) -> None:
        self.report = report
        self._update = update
        self._settings = settings
        self._uniform = uniform
        self._backoff = FullJitterBackoff(base_s=settings.retry_s, cap_s=settings.backoff_cap_s, uniform=uniform)
        self._queue: collections.deque[int] = collections.deque(self._all_pieces())
        self._is_report_due = True
        self._next_at = 0.0
        self.num_attempts = 0
        """How often the report itself was sent."""

    def next_wakeup(self) -> float:
        """When ``messages`` must be called at the latest: 0 is at once, infinity never."""
        return self._next_at

    @property
    def is_report_next(self) -> bool:
        """Whether ``messages`` will send the report (again), and not just pieces."""
        return self._is_report_due or not self._queue

    def messages(self, now: float) -> list[UploadMessage]:
        """What to send now: at most one report and ``pieces_per_burst`` pieces."""
        if now < self._next_at:
            return []
        due: list[UploadMessage] = []
        if self.is_report_next:
            due.append(self.report)
            self.num_attempts += 1
            self._is_report_due = False
        burst = min(len(self._queue), self._settings.pieces_per_burst)
        due.extend(self._piece(self._queue.popleft()) for _ in range(burst))
        if self._queue:
            self._next_at = now + self._settings.burst_interval_s
        else:
            self._next_at = now + self._settings.retry_s + self._backoff.next_wait_s()
        return due

    def reconnect(self) -> None:
        """After a new connection: the report is said again at once, and sending goes on where it stopped."""
        self._is_report_due = True
        self._next_at = 0.0
        self._backoff.reset()

    def take_receipt(self, receipt: Receipt, now: float) -> bool:
        """Takes a receipt for this report.

        Returns:
            Whether it is final; then nothing more is to be sent.
        """
        self._backoff.reset()
        match receipt.status:
            case ReceiptStatus.ACCEPTED | ReceiptStatus.REJECTED:
                self._queue.clear()
                self._next_at = math.inf
                return True
            case ReceiptStatus.INCOMPLETE:
                wanted = set(receipt.missing) & set(self._all_pieces())
                self._queue = collections.deque(sorted(wanted))
                self._is_report_due = False
                # Nothing that could be sent: wait for the next answer instead of asking in a circle.
                self._next_at = now if wanted else now + self._settings.retry_s + self._backoff.next_wait_s()
            case ReceiptStatus.BUSY:
                self._queue = collections.deque(self._all_pieces())
                self._is_report_due = True
                spread_s = max(receipt.retry_after_s, 1.0)
                self._next_at = now + receipt.retry_after_s + self._uniform(0.0, spread_s)
        return False

    def _all_pieces(self) -> range:
        return range(self._update.ref.num_pieces if self._update is not None else 0)

    def _piece(self, index: int) -> Piece:
        if self._update is None:
            raise ValueError("a report without an update has no pieces")
        return Piece(sha256=self._update.ref.sha256, index=index, data=self._update.piece(index))
