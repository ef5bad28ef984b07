"""One value of every message, and where its golden bytes stand. Run as a script to write files that do not exist yet.

A golden file is never rewritten: bytes that changed are a new wire version.
"""

import hashlib
import sys
from pathlib import Path

from wire_protocol.blobs import BlobRef, split_blob
from wire_protocol.enrolment import EnrolmentOutcome
from wire_protocol.messages import (
    Assignment,
    CheckIn,
    DeviceHealth,
    DeviceMode,
    DeviceStatus,
    Enrol,
    Enrolled,
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
    encode_message,
    message_kind,
)
from wire_protocol.release_report import ReleaseCheck, ReleaseFailure, ReleaseReport, ReleaseState

DIRECTORY = Path(__file__).parent / "wire_v1"
NONCE = bytes(range(16))
OTHER = bytes(range(16, 32))


def _blob(name: str, num_bytes: int) -> BlobRef:
    return split_blob(hashlib.sha256(name.encode()).digest() * (num_bytes // 32), piece_bytes=1024).ref


PLAN, MODEL, CHECKPOINT, UPDATE = (_blob(name, 4096) for name in ("plan", "model", "checkpoint", "update"))

MESSAGES: tuple[Message, ...] = (
    CheckIn(nonce=NONCE, task_id="task-1", client_version="0.1.0", contract_version=1),
    PieceListRequest(sha256=MODEL.sha256),
    PieceRequest(sha256=MODEL.sha256, indices=(0, 3)),
    Piece(sha256=MODEL.sha256, index=3, data=b"\x00\x01\x02\xff"),
    Report(
        round_id=7,
        nonce=OTHER,
        update=UPDATE,
        piece_digests=bytes(128),
        num_examples=90,
        aggregation_weight=180.0,
        metrics=Metrics(loss_sum=12.5, num_correct=80.0, weight_sum=180.0),
    ),
    Withdrawal(round_id=7, nonce=OTHER, reason=WithdrawalReason.TOO_FEW_EXAMPLES),
    DeviceStatus(presence="offline", client_version="0.1.0"),
    TaskAnnouncement(task_id="task-1", plan=PLAN, model=MODEL, check_in_after_s=(0.0, 30.0)),
    Assignment(
        round_id=7,
        nonce=OTHER,
        check_in=NONCE,
        kind=RoundKind.TRAIN,
        task_id="task-1",
        plan=PLAN,
        model=MODEL,
        checkpoint=CHECKPOINT,
        deadline_s=600.0,
    ),
    Refusal(check_in=NONCE, reason=RefusalReason.ROUND_FULL, retry_min_s=30.0, retry_max_s=60.0),
    PieceList(sha256=MODEL.sha256, digests=bytes(128)),
    Receipt(round_id=7, nonce=OTHER, status=ReceiptStatus.REJECTED, reason=RejectionReason.NON_FINITE),
    Receipt(round_id=7, nonce=OTHER, status=ReceiptStatus.INCOMPLETE, missing=(1, 2)),
    RoundClosed(round_id=7),
    DeviceHealth(
        mode=DeviceMode.SAFE_MODE,
        reason="the trainer died 3 times in a row",
        bytes_written_last_hour=123_456,
        uptime_s=3600.5,
        num_rounds_accepted=12,
    ),
    Enrol(nonce=NONCE, token_id="0123456789abcdef", public_key=bytes(range(32)), proof=bytes(range(64))),  # noqa: S106
    Enrolled(nonce=NONCE, outcome=EnrolmentOutcome.TOKEN_EXPIRED),
    OpeningRequest(round_id=7, nonce=OTHER, request=UPDATE),
    OpeningAnswer(round_id=7, nonce=OTHER, answer=UPDATE, piece_digests=bytes(128)),
    OpeningAnswer(round_id=7, nonce=OTHER, answer=None, refusal=OpeningRefusal.BAD_BOX, device_id="device-1"),
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


def golden_path(index: int) -> Path:
    """File of the ``index``-th message."""
    return DIRECTORY / f"{index:02d}-{message_kind(MESSAGES[index])}.bin"


if __name__ == "__main__":
    DIRECTORY.mkdir(exist_ok=True)
    for index, message in enumerate(MESSAGES):
        if not golden_path(index).exists():
            golden_path(index).write_bytes(encode_message(message))
            sys.stdout.write(f"wrote {golden_path(index).name}\n")
