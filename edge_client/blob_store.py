"""Blobs on disk, named by their hash: plan, model file and checkpoints survive a restart and a power cut.

Every read is checked against the name: a file that a failing SD card has changed is deleted and fetched again.
"""

import contextlib
import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Final

from edge_client.atomic_files import remove_parts
from edge_client.errors import StorageError
from edge_client.state_writer import StateWriter

__all__ = ["FileBlobStore"]

_LOG = logging.getLogger(__name__)
_MOST_IN_MEMORY: Final = 4
_MAX_MEMORY_BYTES: Final = 64 * 1024 * 1024
_NAME: Final = re.compile(r"[0-9a-f]{64}")


class FileBlobStore:
    """A directory of blobs, together at most ``max_bytes``; those not used for longest go first.

    Args:
        directory: Made when the first blob is stored; half-written files in it are removed.
        max_bytes: The limit. The blob stored last is kept even if it alone is larger.
        writer: Writes, counts, and says when the hour's budget is used up.
    """

    def __init__(self, directory: Path, *, max_bytes: int, writer: StateWriter | None = None) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._writer = writer or StateWriter()
        self._in_memory: dict[bytes, bytes] = {}
        with contextlib.suppress(OSError):
            remove_parts(directory)

    def get(self, sha256: bytes, /) -> bytes | None:
        """The blob of this hash, or None if it is not here or its file is damaged (which is then deleted)."""
        if sha256 in self._in_memory:
            return self._in_memory[sha256]
        path = self._path(sha256)
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._writer.quarantine(path, error)
            return None
        if hashlib.sha256(data).digest() != sha256:
            _LOG.warning("blob_damaged sha256=%s num_bytes=%d", sha256.hex(), len(data))
            self._writer.remove(path)
            return None
        try:
            os.utime(path)  # for the order of pruning
        except OSError as error:
            _LOG.debug("blob_not_touched sha256=%s error=%r", sha256.hex(), str(error))
        return data

    def put(self, sha256: bytes, data: bytes) -> None:
        """Keeps a blob: on disk, or in memory alone if the disk refuses it or the hour's budget is used up.

        Raises:
            StorageError: It is not the blob of this hash.
        """
        if hashlib.sha256(data).digest() != sha256:
            raise StorageError(f"these {len(data)} bytes are not the blob {sha256.hex()}")
        path = self._path(sha256)
        if self._writer.has_room(len(data)):
            try:
                self._make_room(len(data), keep=path)
                self._writer.write(path, data)
            except OSError as error:
                # The writer has said so, once per cause.
                _LOG.debug("blob_not_stored sha256=%s error=%r", sha256.hex(), str(error))
            else:
                return
        self._keep_in_memory(sha256, data)

    def _keep_in_memory(self, sha256: bytes, data: bytes) -> None:
        """Keeps it for the next rounds of this process; the oldest go first, and what is too large is not kept."""
        self._in_memory[sha256] = data
        while len(self._in_memory) > _MOST_IN_MEMORY or sum(map(len, self._in_memory.values())) > _MAX_MEMORY_BYTES:
            del self._in_memory[next(iter(self._in_memory))]

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
        found: list[tuple[float, int, Path]] = []
        if not self._directory.is_dir():
            return found
        for path in self._directory.iterdir():
            if _NAME.fullmatch(path.name) and path.is_file():
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        return found
