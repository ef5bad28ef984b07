"""The outbox: a report is here, durably, before its first byte is published, and until the coordinator has answered.

One file, because a device has one report under way. Of it only the last version matters, so there is nothing to
repair: it is whole, or it is put aside and the round is lost to this device (the coordinator lives with that).
"""

import logging
from pathlib import Path
from typing import Final

from broker_link.failpoints import hit
from edge_client.atomic_files import sync_directory
from edge_client.errors import CorruptState, StorageError
from edge_client.pending_report import MAX_PENDING_BYTES, PendingReport, decode_pending, encode_pending
from edge_client.state_writer import StateWriter

__all__ = ["Outbox"]

_LOG = logging.getLogger(__name__)
_FILE: Final = "report"
_ANSWERED_FILE: Final = "report.over"


class Outbox:
    """The reports of one device that wait for an answer: none, or one; and which assignment was reported for last.

    Args:
        directory: Made when the first report is stored.
        writer: Writes and counts.
    """

    __slots__ = ("_answered_path", "_path", "_writer")

    def __init__(self, directory: Path, *, writer: StateWriter) -> None:
        self._path = directory / _FILE
        self._answered_path = directory / _ANSWERED_FILE
        self._writer = writer

    def load(self, *, population: str, device_id: str) -> PendingReport | None:
        """The stored report, if there is one that can be read; a damaged one is quarantined. Never raises.

        A report that was made under another name is deleted: what was computed for one population is told to no other.
        """
        data = self._writer.read(self._path, max_bytes=MAX_PENDING_BYTES)
        if data is None:
            return None
        try:
            pending = decode_pending(data)
        except CorruptState as error:
            self._writer.quarantine(self._path, error)
            return None
        if (pending.population, pending.device_id) != (population, device_id):
            _LOG.warning("outbox_of_another population=%r device_id=%r", pending.population, pending.device_id)
            self._writer.remove(self._path)
            return None
        return pending

    def store(self, pending: PendingReport) -> None:
        """Keeps a report, in the place of any other. When this returns, a power cut does not lose it.

        Raises:
            StorageError: It is not kept; what was kept before still is.
        """
        hit("device.outbox.before_store")
        try:
            self._writer.write(self._path, encode_pending(pending))
        except OSError as error:
            raise StorageError(f"the report of round {pending.report.round_id} cannot be stored: {error}") from error
        hit("device.outbox.after_store")

    def drop(self, round_id: int) -> None:
        """Sends the report no more. One that cannot be put aside is sent again after a restart, which does no harm."""
        hit("device.outbox.before_drop")
        try:
            self._path.replace(self._answered_path)
            sync_directory(self._path.parent)
            _LOG.debug("outbox_emptied round_id=%d", round_id)
        except FileNotFoundError:
            pass
        except OSError as error:
            _LOG.warning("outbox_not_emptied round_id=%d error=%r", round_id, str(error))
        hit("device.outbox.after_drop")

    def answered(self) -> tuple[int, bytes] | None:
        """Round and nonce of the assignment whose report was dropped last, if any. Never raises."""
        try:
            with self._answered_path.open("rb") as stream:
                report = decode_pending(stream.read(MAX_PENDING_BYTES + 1)).report
        except (OSError, CorruptState):
            return None
        return report.round_id, report.nonce
