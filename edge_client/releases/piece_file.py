"""A released blob on its way in, on disk: pieces are written where they belong and found again after a power cut.

No record says which pieces are there: each is hashed when the file is opened, so that neither a record that was
written too early nor a bit that flipped can pass for a piece. A piece is synced before it counts; at most the one that
was being written is fetched twice.
"""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Final

from broker_link.failpoints import hit
from edge_client.errors import CorruptState, StorageError
from wire_protocol.blobs import DIGEST_BYTES, BlobRef, PieceCheck
from wire_protocol.errors import BlobError

__all__ = ["PieceFile"]

_LIST_SUFFIX: Final = ".list"


class PieceFile:
    """One blob that is being fetched.

    Args:
        path: Where its bytes grow; the piece digests are kept beside it.
        ref: Which blob.

    Raises:
        StorageError: The disk cannot be read or written.
    """

    def __init__(self, path: Path, ref: BlobRef) -> None:
        self._path = path
        self._list_path = path.with_name(path.name + _LIST_SUFFIX)
        self.ref = ref
        self._pieces = PieceCheck(ref)
        self._missing = set(range(ref.num_pieces))
        self.num_bytes_written = 0
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._find_again()
        except OSError as error:
            raise StorageError(f"the release cannot be kept in {path.parent}: {error}") from error

    @property
    def needs_list(self) -> bool:
        """Whether the piece digests are not known yet."""
        return not self._pieces.has_list

    @property
    def missing(self) -> list[int]:
        """Indices of the pieces that are not here, in order."""
        return sorted(self._missing)

    @property
    def is_complete(self) -> bool:
        """Whether every piece is here."""
        return not self._missing

    def set_list(self, digests: bytes) -> None:
        """Takes the piece digests.

        Raises:
            BlobError: They are not those that the reference names.
            StorageError: They cannot be written.
        """
        is_known = self._pieces.has_list
        self._pieces.set_list(digests)
        if not is_known:
            try:
                self._list_path.write_bytes(digests)
            except OSError as error:
                raise StorageError(f"{self._list_path} cannot be written: {error}") from error

    def add(self, index: int, data: bytes) -> bool:
        """Writes one piece; when this returns it is durable.

        Returns:
            Whether it was missing.

        Raises:
            BlobError: There is no such piece, or these are not its bytes.
            StorageError: It cannot be written.
        """
        self._pieces.check(index, data)
        if index not in self._missing:
            return False
        hit("device.release.before_piece")
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(descriptor, data, index * self.ref.piece_bytes)
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error}") from error
        hit("device.release.after_piece")
        self.num_bytes_written += len(data)
        self._missing.discard(index)
        return True

    def read(self) -> bytes:
        """The whole blob.

        Raises:
            StorageError: It cannot be read, or is not complete.
            CorruptState: What is on disk is not the blob any more; it is deleted.
        """
        if self._missing:
            raise StorageError(f"{len(self._missing)} pieces of {self.ref.sha256.hex()} are missing")
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise StorageError(f"{self._path} cannot be read: {error}") from error
        if hashlib.sha256(data).digest() != self.ref.sha256:
            self.discard()
            raise CorruptState(f"{self._path} is damaged; it is fetched again")
        return data

    def discard(self) -> None:
        """Deletes what is here."""
        self._path.unlink(missing_ok=True)
        self._list_path.unlink(missing_ok=True)
        self._missing = set(range(self.ref.num_pieces))
        self._pieces = PieceCheck(self.ref)

    def _find_again(self) -> None:
        """What an earlier process has left: a list that fits, and every piece whose hash is right."""
        list_bytes = self.ref.num_pieces * DIGEST_BYTES
        if not self._pieces.has_list and self._list_path.is_file() and self._list_path.stat().st_size == list_bytes:
            with contextlib.suppress(BlobError):
                self._pieces.set_list(self._list_path.read_bytes())
        if not self._pieces.has_list or not self._path.is_file():
            return
        with self._path.open("rb") as stream:
            for index in range(self.ref.num_pieces):
                stream.seek(index * self.ref.piece_bytes)
                with contextlib.suppress(BlobError):
                    self._pieces.check(index, stream.read(self.ref.piece_length(index)))
                    self._missing.discard(index)
