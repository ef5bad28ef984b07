"""Updates on their way in: pieces are put together here, within a memory budget."""

import dataclasses

from coordinator.errors import UpdateRejected
from wire_protocol.blobs import BlobAssembler, BlobRef
from wire_protocol.errors import BlobError
from wire_protocol.messages import Piece, RejectionReason, Report

__all__ = ["Upload", "Uploads"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """One report whose update is arriving."""

    report: Report
    assembler: BlobAssembler


class Uploads:
    """The uploads of the current round, one per device, together at most ``budget_bytes``.

    The budget bounds the coordinator's memory whatever the cohort: a report that does not fit is told to come back
    (a BUSY receipt), which costs the device nothing but time.
    """

    def __init__(self, *, budget_bytes: int) -> None:
        if budget_bytes < 1:
            raise ValueError("budget_bytes must be positive")
        self._budget_bytes = budget_bytes
        self._uploads: dict[str, Upload] = {}
        self.num_bad_pieces = 0
        self.num_stray_pieces = 0

    @property
    def num_bytes(self) -> int:
        """Bytes promised to the uploads under way."""
        return sum(upload.assembler.ref.num_bytes for upload in self._uploads.values())

    def get(self, device_id: str) -> Upload | None:
        """The device's upload under way."""
        return self._uploads.get(device_id)

    def open(self, device_id: str, report: Report, update: BlobRef) -> Upload | None:
        """Begins (or finds again) a device's upload.

        Returns:
            The upload, or None if the budget has no room for it now.

        Raises:
            UpdateRejected: BAD_HASH: the piece digests are not those the reference names.
        """
        known = self._uploads.get(device_id)
        if known is not None and known.assembler.ref == update:
            return known
        others = self.num_bytes - (known.assembler.ref.num_bytes if known is not None else 0)
        # One upload always fits, so that a budget below the model's size cannot stall a round for ever.
        if others and others + update.num_bytes > self._budget_bytes:
            return None
        assembler = BlobAssembler(update)
        if update.num_pieces > 1:
            try:
                assembler.set_piece_list(report.piece_digests)
            except BlobError as error:
                raise UpdateRejected(RejectionReason.BAD_HASH, str(error)) from error
        upload = Upload(report=report, assembler=assembler)
        self._uploads[device_id] = upload
        return upload

    def add_piece(self, device_id: str, piece: Piece) -> Upload | None:
        """Adds a piece to a device's upload.

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
            upload.assembler.add(piece.index, piece.data)
        except BlobError as error:
            self.num_bad_pieces += 1
            raise UpdateRejected(RejectionReason.BAD_HASH, str(error)) from error
        return upload

    def discard(self, device_id: str) -> None:
        """Forgets a device's upload and frees its memory."""
        self._uploads.pop(device_id, None)

    def clear(self) -> None:
        """Forgets everything (the round is over)."""
        self._uploads.clear()
