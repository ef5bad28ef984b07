"""A report whose bytes are final, and the file format in which it survives a power cut. No I/O.

The file: ``FWOB``, one version byte, the SHA-256 of the rest, then one MessagePack map of the task's id, the encoded
report and the encoded update. Whatever is sent again after a restart is these bytes.
"""

import dataclasses
import hashlib
from typing import Final

import msgspec

from edge_client.errors import CorruptState
from wire_protocol.blobs import DIGEST_BYTES, SplitBlob, split_blob
from wire_protocol.errors import WireError
from wire_protocol.limits import MAX_BLOB_BYTES, MAX_CONTROL_BYTES
from wire_protocol.messages import Report, decode_message, encode_message

__all__ = ["MAX_PENDING_BYTES", "PendingReport", "decode_pending", "encode_pending"]

_HEAD: Final = b"FWOB\x01"
_BODY_AT: Final = len(_HEAD) + DIGEST_BYTES
MAX_PENDING_BYTES: Final = MAX_BLOB_BYTES + MAX_CONTROL_BYTES + 1024
"""No encoded pending report is longer."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PendingReport:
    """A finished job's report, not yet acknowledged."""

    task_id: str
    report: Report
    update: SplitBlob | None
    """The update that the report announces; None in an evaluation round."""

    def __post_init__(self) -> None:
        if (self.update.ref if self.update is not None else None) != self.report.update:
            raise ValueError("the report announces another update")


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    task_id: str
    report: bytes
    update: bytes | None


def encode_pending(pending: PendingReport) -> bytes:
    """The bytes of the file."""
    update = pending.update.data if pending.update is not None else None
    body = _Body(task_id=pending.task_id, report=encode_message(pending.report), update=update)
    encoded = msgspec.msgpack.encode(body)
    return _HEAD + hashlib.sha256(encoded).digest() + encoded


def decode_pending(data: bytes) -> PendingReport:
    """Reads the bytes of the file.

    Raises:
        CorruptState: They are not what ``encode_pending`` wrote.
    """
    if not data.startswith(_HEAD) or len(data) > MAX_PENDING_BYTES:
        raise CorruptState(f"{len(data)} bytes that are no stored report of this version")
    encoded = memoryview(data)[_BODY_AT:]
    if hashlib.sha256(encoded).digest() != data[len(_HEAD) : _BODY_AT]:
        raise CorruptState("a stored report whose checksum is wrong")
    try:
        body = msgspec.msgpack.decode(encoded, type=_Body)
        report = decode_message(body.report, Report)
        piece_bytes = report.update.piece_bytes if report.update is not None else 1
        update = split_blob(body.update, piece_bytes=piece_bytes) if body.update is not None else None
        return PendingReport(task_id=body.task_id, report=report, update=update)
    except (msgspec.DecodeError, WireError, ValueError) as error:
        raise CorruptState(f"a stored report that cannot be read: {error}") from error
