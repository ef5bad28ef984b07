"""Updates on their way in: pieces are put together here, within a memory budget."""

import dataclasses

from coordinator.errors import UpdateRejected
from wire_protocol.blobs import BlobAssembler, BlobRef
from wire_protocol.errors import BlobError
from wire_protocol.messages import Piece, RejectionReason, Report

__all__ = ["Upload", "Uploads"]

_STALLED_S = 30.0
"""An upload that has made no progress for this long gives its room up if another needs it."""


@dataclasses.dataclass(kw_only=True, slots=True)
class Upload:
    """One report whose update is arriving."""

    report: Report
    assembler: BlobAssembler
    heard_at: float
    """When it began, or a new piece of it came last, in monotonic seconds."""


class Uploads:
    """The uploads of the current round, one per device, together at most ``budget_bytes``.

    The budget bounds what is kept of unfinished updates, whatever the cohort: a report that does not fit is told to come back
    (a BUSY receipt), which costs the device nothing but time. A device that vanished in the middle keeps nobody out:
    its pieces are forgotten when another needs the room, and asked for again if it comes back.
    """

    def __init__(self, *, budget_bytes: int) -> None:
        if budget_bytes < 1:
            raise ValueError("budget_bytes must be positive")
        self._budget_bytes = budget_bytes
        self._uploads: dict[str, Upload] = {}
        self.num_bad_pieces = 0
        self.num_stalled = 0
        """Uploads that lost their room to another's."""
        self.num_stray_pieces = 0

    @property
    def num_bytes(self) -> int:
        """Bytes promised to the uploads under way."""
        return sum(upload.assembler.ref.num_bytes for upload in self._uploads.values())

    def get(self, device_id: str) -> Upload | None:
        """The device's upload under way."""
        return self._uploads.get(device_id)

    def open(self, device_id: str, report: Report, update: BlobRef, *, now: float) -> Upload | None:
        """Begins (or finds again) a device's upload.

        Args:
            device_id: Whose.
            report: What announces it.
            update: Its blob.
            now: Monotonic time in seconds.

        Returns:
            The upload, or None if the budget has no room for it now.

        Raises:
            UpdateRejected: BAD_HASH: the piece digests are not those the reference names.
        """
        known = self._uploads.get(device_id)
        if known is not None and known.assembler.ref == update:
            return known
        if not self._has_room(device_id, update.num_bytes, now):
            return None
        assembler = BlobAssembler(update)
        if update.num_pieces > 1:
            try:
                assembler.set_piece_list(report.piece_digests)
            except BlobError as error:
                raise UpdateRejected(RejectionReason.BAD_HASH, str(error)) from error
        upload = Upload(report=report, assembler=assembler, heard_at=now)
        self._uploads[device_id] = upload
        return upload

    def _has_room(self, device_id: str, num_bytes: int, now: float) -> bool:
        """Whether the budget has room for a device's upload, if need be after forgetting those that have stalled."""
        if self._fits(device_id, num_bytes):
            return True
        stalled = [other for other, upload in self._uploads.items() if now - upload.heard_at >= _STALLED_S]
        for other in stalled:
            self.discard(other)
            self.num_stalled += 1
        return self._fits(device_id, num_bytes)

    def _fits(self, device_id: str, num_bytes: int) -> bool:
        others = sum(upload.assembler.ref.num_bytes for other, upload in self._uploads.items() if other != device_id)
        # One upload always fits, so that a budget below the model's size cannot stall a round for ever.
        return others == 0 or others + num_bytes <= self._budget_bytes

    def add_piece(self, device_id: str, piece: Piece, *, now: float) -> Upload | None:
        """Adds a piece to a device's upload, at monotonic time ``now`` in seconds.

        Returns:
            The upload, or None if the piece belongs to none (a leftover; counted and dropped).

        Raises:
            UpdateRejected: BAD_HASH: the piece is not the one announced.
        """
        upload = self._uploads.get(device_id)
        if upload is None or upload.assembler.ref.sha256 != piece.sha256:
            self.num_stray_pieces += 1
            return None
        try:
            is_new = upload.assembler.add(piece.index, piece.data)
        except BlobError as error:
            self.num_bad_pieces += 1
            raise UpdateRejected(RejectionReason.BAD_HASH, str(error)) from error
        if is_new:
            upload.heard_at = now
        return upload

    def discard(self, device_id: str) -> None:
        """Forgets a device's upload and frees its memory."""
        self._uploads.pop(device_id, None)

    def clear(self) -> None:
        """Forgets everything (the round is over)."""
        self._uploads.clear()
