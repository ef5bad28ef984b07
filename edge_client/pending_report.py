"""A report whose bytes are final, and the file format in which it survives a power cut. No I/O.

The file: an envelope (`checked_file`) around one MessagePack map of population, device and task, the encoded report and
the encoded update. Whatever is sent again after a restart is these bytes, and only under the name they were made for.
"""

import dataclasses
from typing import Final

import msgspec

from edge_client.checked_file import seal, unseal
from edge_client.errors import CorruptState
from wire_protocol.blobs import SplitBlob, split_blob
from wire_protocol.errors import WireError
from wire_protocol.limits import MAX_BLOB_BYTES, MAX_CONTROL_BYTES
from wire_protocol.messages import Report, decode_message, encode_message

__all__ = ["MAX_PENDING_BYTES", "PendingReport", "decode_pending", "encode_pending"]

_KIND: Final = b"OB"
MAX_PENDING_BYTES: Final = MAX_BLOB_BYTES + MAX_CONTROL_BYTES + 1024
"""No encoded pending report is longer."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PendingReport:
    """A finished job's report, not yet acknowledged."""

    population: str
    device_id: str
    task_id: str
    report: Report
    update: SplitBlob | None
    """The update that the report announces; None in an evaluation round."""

    def __post_init__(self) -> None:
        if (self.update.ref if self.update is not None else None) != self.report.update:
            raise ValueError("the report announces another update")


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    population: str
    device_id: str
    task_id: str
    report: bytes
    update: bytes | None


def encode_pending(pending: PendingReport) -> bytes:
    """The bytes of the file."""
    body = _Body(
        population=pending.population,
        device_id=pending.device_id,
        task_id=pending.task_id,
        report=encode_message(pending.report),
        update=pending.update.data if pending.update is not None else None,
    )
    return seal(_KIND, msgspec.msgpack.encode(body))


def decode_pending(data: bytes) -> PendingReport:
    """Reads the bytes of the file.

    Raises:
        CorruptState: They are not what ``encode_pending`` wrote.
    """
    encoded = unseal(_KIND, data, max_bytes=MAX_PENDING_BYTES)
    try:
        body = msgspec.msgpack.decode(encoded, type=_Body)
        report = decode_message(body.report, Report)
        piece_bytes = report.update.piece_bytes if report.update is not None else 1
        return PendingReport(
            population=body.population,
            device_id=body.device_id,
            task_id=body.task_id,
            report=report,
            update=split_blob(body.update, piece_bytes=piece_bytes) if body.update is not None else None,
        )
    except (msgspec.DecodeError, WireError, ValueError, RecursionError) as error:
        raise CorruptState(f"a stored report that cannot be read: {error}") from error
