"""All writing into the state directory: whole files, durable, and counted, because every byte wears an SD card."""

import collections
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_client.atomic_files import sync_directory, write_atomically

__all__ = ["CORRUPT_SUFFIX", "StateWriter"]

CORRUPT_SUFFIX: Final = ".corrupt"
"""Ends the name of a file that was found damaged; kept for whoever wants to know why, until the next one."""

_LOG = logging.getLogger(__name__)
_HOUR_S: Final = 3600.0


class StateWriter:
    """Writes the files of one device and counts their bytes.

    What is counted is content; a file system adds blocks and journal of its own.

    Args:
        clock: Monotonic time in seconds.
    """

    __slots__ = ("_clock", "_recent", "num_bytes", "num_failures", "num_files")

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._recent: collections.deque[tuple[float, int]] = collections.deque()
        self.num_bytes = 0
        """Bytes written since this object was made."""
        self.num_files = 0
        self.num_failures = 0
        """Writes that the disk refused."""

    @property
    def num_bytes_in_the_last_hour(self) -> int:
        """Bytes written within the last 3,600 s."""
        begins_at = self._clock() - _HOUR_S
        while self._recent and self._recent[0][0] <= begins_at:
            self._recent.popleft()
        return sum(num_bytes for _, num_bytes in self._recent)

    def write(self, path: Path, data: bytes) -> None:
        """Writes a whole file durably: it is the old one or the new one, whatever happens in between.

        Raises:
            OSError: The disk is full, failing or read-only; ``path`` is as it was.
        """
        try:
            write_atomically(path, data)
        except OSError:
            self.num_failures += 1
            raise
        self.num_files += 1
        self.num_bytes += len(data)
        self._recent.append((self._clock(), len(data)))

    def quarantine(self, path: Path) -> None:
        """Puts a damaged file aside, so that the next start does not meet it again. Never raises."""
        target = path.with_name(path.name + CORRUPT_SUFFIX)
        try:
            path.replace(target)
            sync_directory(path.parent)
        except OSError as error:
            _LOG.warning("file_not_quarantined path=%s error=%r", path, str(error))
        else:
            _LOG.warning("file_quarantined path=%s", target)

    def remove(self, path: Path) -> None:
        """Deletes a file durably, if it is there. A failure is logged: whoever asks must stand the file's return."""
        try:
            path.unlink(missing_ok=True)
            sync_directory(path.parent)
        except OSError as error:
            _LOG.warning("file_not_removed path=%s error=%r", path, str(error))
