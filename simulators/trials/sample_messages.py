"""One value, or more, of every kind of message: what fuzzers begin with."""

from typing import Final

from wire_protocol.blobs import split_blob
from wire_protocol.messages import (
    Assignment,
    CheckIn,
    DeviceHealth,
    DeviceMode,
    DeviceStatus,
    Message,
    Metrics,
    OpeningAnswer,
    OpeningRefusal,
    OpeningRequest,
    Piece,
    PieceList,
    PieceListRequest,
    PieceRequest,
    Receipt,
    ReceiptStatus,
    Refusal,
    RefusalReason,
    RejectionReason,
    Report,
    RoundClosed,
    RoundKind,
    TaskAnnouncement,
    Withdrawal,
    WithdrawalReason,
)
from wire_protocol.release_report import ReleaseCheck, ReleaseFailure, ReleaseReport, ReleaseState

__all__ = ["sample_messages", "sample_metrics"]

_NONCE: Final = bytes(range(16))
_BLOB: Final = split_blob(bytes(range(256)) * 12, piece_bytes=1024)


def sample_metrics() -> Metrics:
    """The metrics of a report."""
    return Metrics(loss_sum=12.5, num_correct=80.0, weight_sum=180.0)


def sample_messages() -> tuple[Message, ...]:
    """The messages; every kind is there."""
    ref = _BLOB.ref
    metrics = sample_metrics()
    return (
        CheckIn(nonce=_NONCE, task_id="task-1", client_version="0.1.0", contract_version=1),
        PieceListRequest(sha256=ref.sha256),
        PieceRequest(sha256=ref.sha256, indices=(0, 2)),
        Piece(sha256=ref.sha256, index=2, data=_BLOB.piece(2)),
        Report(
            round_id=7,
            nonce=_NONCE,
            update=ref,
            piece_digests=_BLOB.piece_digests,
            num_examples=90,
            aggregation_weight=180.0,
            metrics=metrics,
        ),
        Report(
            round_id=7,
            nonce=_NONCE,
            update=None,
            piece_digests=b"",
            num_examples=90,
            aggregation_weight=90.0,
            metrics=metrics,
        ),
        Withdrawal(round_id=7, nonce=_NONCE, reason=WithdrawalReason.DEADLINE),
        DeviceStatus(presence="online", client_version="0.1.0"),
        DeviceHealth(
            mode=DeviceMode.SAFE_MODE,
            reason="the trainer died 3 times",
            bytes_written_last_hour=5,
            uptime_s=3600.5,
            num_rounds_accepted=12,
        ),
        TaskAnnouncement(task_id="task-1", plan=ref, model=ref, check_in_after_s=(0.0, 30.0)),
        Assignment(
            round_id=7,
            nonce=_NONCE,
            check_in=_NONCE,
            kind=RoundKind.TRAIN,
            task_id="task-1",
            plan=ref,
            model=ref,
            checkpoint=ref,
            deadline_s=600.0,
        ),
        Assignment(
            round_id=8,
            nonce=_NONCE,
            check_in=_NONCE,
            kind=RoundKind.TRAIN,
            task_id="task-1",
            plan=ref,
            model=ref,
            checkpoint=ref,
            deadline_s=600.0,
            clipping_norm=0.25,
        ),
        Refusal(check_in=_NONCE, reason=RefusalReason.ROUND_FULL, retry_min_s=30.0, retry_max_s=60.0),
        PieceList(sha256=ref.sha256, digests=_BLOB.piece_digests),
        Receipt(round_id=7, nonce=_NONCE, status=ReceiptStatus.REJECTED, reason=RejectionReason.LATE),
        Receipt(round_id=7, nonce=_NONCE, status=ReceiptStatus.INCOMPLETE, missing=(1, 2)),
        RoundClosed(round_id=7),
        OpeningRequest(round_id=7, nonce=_NONCE, request=ref),
        OpeningAnswer(round_id=7, nonce=_NONCE, answer=ref, piece_digests=_BLOB.piece_digests),
        OpeningAnswer(round_id=7, nonce=_NONCE, answer=None, refusal=OpeningRefusal.BAD_BOX, device_id="device-1"),
        ReleaseReport(
            name="digits",
            serial=4,
            number=8,
            state=ReleaseState.FAILED,
            current=7,
            failure=ReleaseFailure.SLOW,
            detail="31.5 ms",
            check=ReleaseCheck(latency_ms=31.5, max_abs_error=0.25, agreement=1.0, peak_memory_mb=12.5),
        ),
    )
