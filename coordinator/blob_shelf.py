"""The blobs that devices may download: plan, model and the checkpoints of the current and previous round."""

from wire_protocol.blobs import BlobRef, SplitBlob, split_blob
from wire_protocol.limits import DEFAULT_PIECE_BYTES
from wire_protocol.messages import Piece, PieceList

__all__ = ["BlobShelf"]


class BlobShelf:
    """Serves pieces of the blobs put on it. A request for anything else is counted and ignored."""

    def __init__(self, *, piece_bytes: int = DEFAULT_PIECE_BYTES) -> None:
        self._piece_bytes = piece_bytes
        self._blobs: dict[bytes, SplitBlob] = {}
        self.num_unknown_requests = 0
        self.num_bytes_served = 0

    def put(self, data: bytes) -> BlobRef:
        """Offers a blob and returns its reference."""
        blob = split_blob(data, piece_bytes=self._piece_bytes)
        self._blobs[blob.ref.sha256] = blob
        return blob.ref

    def remove(self, ref: BlobRef) -> None:
        """Stops offering a blob."""
        self._blobs.pop(ref.sha256, None)

    def piece_list(self, sha256: bytes) -> PieceList | None:
        """The piece digests of a blob, or None if it is not offered."""
        blob = self._blobs.get(sha256)
        if blob is None:
            self.num_unknown_requests += 1
            return None
        return PieceList(sha256=sha256, digests=blob.piece_digests)

    def pieces(self, sha256: bytes, indices: tuple[int, ...]) -> list[Piece]:
        """The pieces asked for that exist; each at most once."""
        blob = self._blobs.get(sha256)
        if blob is None:
            self.num_unknown_requests += 1
            return []
        wanted = [index for index in dict.fromkeys(indices) if index < blob.ref.num_pieces]
        pieces = [Piece(sha256=sha256, index=index, data=blob.piece(index)) for index in wanted]
        self.num_bytes_served += sum(len(piece.data) for piece in pieces)
        return pieces
