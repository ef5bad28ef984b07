"""Content-addressed blobs in hashed pieces: how models, checkpoints and client updates travel.

A blob is named by the SHA-256 of its bytes. It travels in pieces of at most ``piece_bytes``; each piece is checked
against its own SHA-256 the moment it arrives, and the list of piece digests is itself checked against
``pieces_sha256``, which the reference carries. So a forged piece or list is refused at once, the download resumes
from whatever pieces are already there, and the order of arrival does not matter.
"""

import dataclasses
import hashlib
from typing import Annotated

import msgspec

from wire_protocol.errors import BlobError
from wire_protocol.limits import (
    DEFAULT_PIECE_BYTES,
    MAX_BLOB_BYTES,
    MAX_PIECE_BYTES,
    MAX_PIECES,
    MIN_PIECE_BYTES,
)

__all__ = ["DIGEST_BYTES", "BlobAssembler", "BlobRef", "PieceCheck", "SplitBlob", "split_blob"]

DIGEST_BYTES = 32
"""Length of a SHA-256 digest."""

_Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]


class BlobRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names a blob and everything needed to check its pieces."""

    sha256: _Digest
    num_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_BLOB_BYTES)]
    piece_bytes: Annotated[int, msgspec.Meta(ge=MIN_PIECE_BYTES, le=MAX_PIECE_BYTES)]
    pieces_sha256: _Digest
    """SHA-256 of the concatenated piece digests."""

    def __post_init__(self) -> None:
        if self.num_pieces > MAX_PIECES:
            raise ValueError(f"{self.num_pieces} pieces; at most {MAX_PIECES}: use larger pieces")

    @property
    def num_pieces(self) -> int:
        """How many pieces the blob has."""
        return -(-self.num_bytes // self.piece_bytes)

    def piece_length(self, index: int) -> int:
        """Length in bytes of piece ``index``, 0 <= index < num_pieces."""
        if not 0 <= index < self.num_pieces:
            raise BlobError(f"piece {index} of a blob with {self.num_pieces} pieces")
        return min(self.piece_bytes, self.num_bytes - index * self.piece_bytes)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SplitBlob:
    """A blob ready to be served: its bytes, reference and piece digests."""

    data: bytes
    ref: BlobRef
    piece_digests: bytes
    """[num_pieces * 32] SHA-256 of each piece, concatenated."""

    def piece(self, index: int) -> bytes:
        """The bytes of piece ``index``.

        Raises:
            BlobError: There is no such piece.
        """
        start = index * self.ref.piece_bytes
        return self.data[start : start + self.ref.piece_length(index)]


def split_blob(data: bytes, *, piece_bytes: int = DEFAULT_PIECE_BYTES) -> SplitBlob:
    """Hashes a blob and its pieces.

    Raises:
        BlobError: Empty, too large, or too many pieces for a piece size.
    """
    digests = b"".join(
        hashlib.sha256(data[start : start + piece_bytes]).digest() for start in range(0, len(data), piece_bytes)
    )
    if not 0 < len(data) <= MAX_BLOB_BYTES:
        raise BlobError(f"a blob of {len(data)} bytes; allowed are 1 to {MAX_BLOB_BYTES}")
    try:
        ref = BlobRef(
            sha256=hashlib.sha256(data).digest(),
            num_bytes=len(data),
            piece_bytes=piece_bytes,
            pieces_sha256=hashlib.sha256(digests).digest(),
        )
    except ValueError as error:
        raise BlobError(str(error)) from error
    return SplitBlob(data=data, ref=ref, piece_digests=digests)


class PieceCheck:
    """Says which bytes belong to a blob, piece by piece; holds digests and no payload.

    A blob of one piece needs no list of digests: its own hash is the piece's.
    """

    __slots__ = ("_digests", "ref")

    def __init__(self, ref: BlobRef) -> None:
        self.ref = ref
        self._digests = ref.sha256 if ref.num_pieces == 1 else b""

    @property
    def has_list(self) -> bool:
        """Whether the piece digests are known, so that pieces can be checked."""
        return bool(self._digests)

    def set_list(self, digests: bytes) -> None:
        """Accepts the list of piece digests.

        Raises:
            BlobError: The list is not the one that the reference names.
        """
        if len(digests) != self.ref.num_pieces * DIGEST_BYTES:
            raise BlobError(f"{len(digests)} bytes of digests for {self.ref.num_pieces} pieces")
        if hashlib.sha256(digests).digest() != self.ref.pieces_sha256:
            raise BlobError("the list of piece digests is not the one the blob's reference names")
        self._digests = digests

    def check(self, index: int, data: bytes) -> None:
        """Refuses what is not a piece of the blob.

        Raises:
            BlobError: No piece list yet, no such piece, wrong length, or the wrong bytes.
        """
        if not self._digests:
            raise BlobError("a piece arrived before the list of piece digests")
        if len(data) != self.ref.piece_length(index):
            raise BlobError(f"piece {index} has {len(data)} bytes instead of {self.ref.piece_length(index)}")
        if hashlib.sha256(data).digest() != self._digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]:
            raise BlobError(f"piece {index} does not match its hash")


class BlobAssembler:
    """Puts one blob together from pieces in any order, refusing every byte that does not belong.

    Holds at most ``ref.num_bytes`` of payload. A blob of one piece needs no list of digests: its own hash is the
    piece's.
    """

    def __init__(self, ref: BlobRef) -> None:
        self.ref = ref
        self._buffer: bytearray | None = None
        self._have: set[int] = set()
        self._pieces = PieceCheck(ref)

    @property
    def has_piece_list(self) -> bool:
        """Whether the piece digests are known, so that pieces can be checked."""
        return self._pieces.has_list

    @property
    def num_pieces_held(self) -> int:
        """How many pieces have arrived."""
        return len(self._have)

    @property
    def is_complete(self) -> bool:
        """Whether every piece has arrived."""
        return len(self._have) == self.ref.num_pieces

    def set_piece_list(self, digests: bytes) -> None:
        """Accepts the list of piece digests.

        Raises:
            BlobError: The list is not the one that the reference names.
        """
        self._pieces.set_list(digests)

    def missing(self, limit: int | None = None) -> list[int]:
        """Indices of the pieces that have not arrived, lowest first, at most ``limit``."""
        found: list[int] = []
        for index in range(self.ref.num_pieces):
            if limit is not None and len(found) >= limit:
                break
            if index not in self._have:
                found.append(index)
        return found

    def add(self, index: int, data: bytes) -> bool:
        """Adds a piece.

        Returns:
            Whether the piece was new. A second copy of a good piece is not an error.

        Raises:
            BlobError: No piece list yet, no such piece, wrong length, or the wrong bytes.
        """
        self._pieces.check(index, data)
        if index in self._have:
            return False
        if self._buffer is None:
            self._buffer = bytearray(self.ref.num_bytes)
        start = index * self.ref.piece_bytes
        self._buffer[start : start + len(data)] = data
        self._have.add(index)
        return True

    def result(self) -> bytes:
        """The whole blob, checked once more against its own hash.

        Raises:
            BlobError: Pieces are missing, or (two honest-looking lists, one bad) the whole does not match.
        """
        if not self.is_complete or self._buffer is None:
            raise BlobError(f"{self.num_pieces_held} of {self.ref.num_pieces} pieces")
        data = bytes(self._buffer)
        if hashlib.sha256(data).digest() != self.ref.sha256:
            raise BlobError("the assembled blob does not match its hash")
        return data
