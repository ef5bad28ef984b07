"""Blobs on disk, named by their hash: plan, model file and checkpoints survive a restart and a power cut.

Every read is checked against the name: a file that a failing SD card has changed is deleted and fetched again.
"""

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Final

from edge_client.atomic_files import remove_parts, write_atomically
from edge_client.errors import StorageError

__all__ = ["FileBlobStore"]

_LOG = logging.getLogger(__name__)
_NAME: Final = re.compile(r"[0-9a-f]{64}")


class FileBlobStore:
    """A directory of blobs, together at most ``max_bytes``; those not used for longest go first.

    Args:
        directory: Made if it is not there; half-written files in it are removed.
        max_bytes: The limit. The blob stored last is kept even if it alone is larger.

    Raises:
        StorageError: The directory cannot be made or written.
    """

    def __init__(self, directory: Path, *, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        try:
            directory.mkdir(parents=True, exist_ok=True)
            remove_parts(directory)
        except OSError as error:
            raise StorageError(f"the blob directory {directory} cannot be used: {error}") from error

    def get(self, sha256: bytes, /) -> bytes | None:
        """The blob of this hash, or None if it is not here or its file is damaged (which is then deleted)."""
        path = self._path(sha256)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _LOG.warning("blob_unreadable sha256=%s error=%r", sha256.hex(), str(error))
            return None
        if hashlib.sha256(data).digest() != sha256:
            _LOG.warning("blob_damaged sha256=%s num_bytes=%d", sha256.hex(), len(data))
            path.unlink(missing_ok=True)
            return None
        try:
            os.utime(path)  # for the order of pruning
        except OSError as error:
            _LOG.debug("blob_not_touched sha256=%s error=%r", sha256.hex(), str(error))
        return data

    def put(self, sha256: bytes, data: bytes) -> None:
        """Keeps a blob.

        Raises:
            StorageError: It is not the blob of this hash, or it cannot be written.
        """
        if hashlib.sha256(data).digest() != sha256:
            raise StorageError(f"these {len(data)} bytes are not the blob {sha256.hex()}")
        path = self._path(sha256)
        try:
            self._make_room(len(data), keep=path)
            write_atomically(path, data)
        except OSError as error:
            raise StorageError(f"blob {sha256.hex()} of {len(data)} bytes cannot be stored: {error}") from error

    @property
    def num_bytes(self) -> int:
        """Bytes of all blobs together."""
        return sum(size for _, size, _ in self._files())

    def _path(self, sha256: bytes) -> Path:
        if len(sha256) != hashlib.sha256().digest_size:
            raise ValueError("a blob is named by the 32 bytes of its SHA-256")
        return self._directory / sha256.hex()

    def _make_room(self, num_bytes: int, *, keep: Path) -> None:
        files = sorted(self._files())
        total = sum(size for _, size, _ in files) + num_bytes
        for _, size, path in files:
            if total <= self._max_bytes:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size

    def _files(self) -> list[tuple[float, int, Path]]:
        """Last use, size and path of every blob."""
        found = []
        for path in self._directory.iterdir():
            if _NAME.fullmatch(path.name):
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        return found
