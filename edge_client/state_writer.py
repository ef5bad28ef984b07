"""All writing into the state directory: whole files, durable, and counted, because every byte wears an SD card."""

import collections
import contextlib
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_client.atomic_files import remove_parts, sync_directory, write_atomically

__all__ = ["CORRUPT_SUFFIX", "StateWriter"]

CORRUPT_SUFFIX: Final = ".corrupt"
"""Ends the name of a file that was found damaged; kept for whoever wants to know why, until the next one."""

_LOG = logging.getLogger(__name__)
_HOUR_S: Final = 3600.0
_MINUTE_S: Final = 60.0
_MINUTES_KEPT: Final = 61


class StateWriter:
    """Writes the files of one device and counts their bytes.

    What is counted is content; a file system adds blocks and journal of its own. Each kind of failure is logged once,
    and again only after a write has succeeded: a full disk must not fill the journal too.

    Args:
        max_bytes_per_hour: The budget; what need not be on disk asks ``has_room`` first.
        clock: Monotonic time in seconds.
    """

    __slots__ = ("_clock", "_max_bytes_per_hour", "_recent", "_said", "num_bytes", "num_failures", "num_files")

    def __init__(self, *, max_bytes_per_hour: int = 2**62, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._max_bytes_per_hour = max_bytes_per_hour
        # Minute -> bytes written in it. A sum per write would grow with the writes: megabytes in an hour of short rounds.
        self._recent: collections.deque[tuple[int, int]] = collections.deque(maxlen=_MINUTES_KEPT)
        self._said: set[tuple[str, int | None]] = set()
        self.num_bytes = 0
        """Bytes written since this object was made."""
        self.num_files = 0
        self.num_failures = 0
        """Writes that the disk refused."""

    @property
    def num_bytes_in_the_last_hour(self) -> int:
        """Bytes written within the last 3,600 s, and at most a minute before."""
        begins_in = (self._clock() - _HOUR_S) // _MINUTE_S
        return sum(num_bytes for minute, num_bytes in self._recent if minute >= begins_in)

    def has_room(self, num_bytes: int) -> bool:
        """Whether so many more bytes are within the hour's budget."""
        return self.num_bytes_in_the_last_hour + num_bytes <= self._max_bytes_per_hour

    def write(self, path: Path, data: bytes, *, mode: int = 0o666) -> None:
        """Writes a whole file durably: it is the old one or the new one, whatever happens in between.

        Its directory is made if need be; whatever is in the place of either and is not what belongs there is put aside.

        Raises:
            OSError: The disk is full, failing or read-only; ``path`` is as it was.
        """
        try:
            self._make_place(path)
            write_atomically(path, data, mode=mode)
        except OSError as error:
            self.num_failures += 1
            self._say("file_not_written", path, error)
            raise
        self._said.clear()
        self.num_files += 1
        self.num_bytes += len(data)
        self._count(len(data))

    def _count(self, num_bytes: int) -> None:
        minute = int(self._clock() // _MINUTE_S)
        if self._recent and self._recent[-1][0] == minute:
            num_bytes += self._recent.pop()[1]
        self._recent.append((minute, num_bytes))

    def read(self, path: Path, *, max_bytes: int) -> bytes | None:
        """The file's bytes, at most one more than ``max_bytes``; None if it is not there or cannot be read.

        Never raises. What cannot be read is quarantined; what earlier processes left half written is deleted.
        """
        try:
            remove_parts(path.parent)
            with path.open("rb") as stream:
                return stream.read(max_bytes + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.quarantine(path, error)
            return None

    def quarantine(self, path: Path, cause: Exception) -> None:
        """Puts a damaged file aside, so that the next start does not meet it again. Never raises."""
        target = path.with_name(path.name + CORRUPT_SUFFIX)
        try:
            if target.is_dir() or path.is_dir():
                # A directory replaces nothing but an empty one, and nothing replaces a directory.
                shutil.rmtree(target, ignore_errors=True)
                target.unlink(missing_ok=True)
            path.replace(target)
            sync_directory(path.parent)
        except OSError as error:
            self._say("file_not_quarantined", path, error)
        else:
            _LOG.warning("file_quarantined path=%s cause=%r", target, str(cause))

    def remove(self, path: Path) -> None:
        """Deletes a file durably, if it is there. A failure is logged: whoever asks must stand the file's return."""
        try:
            path.unlink()
            sync_directory(path.parent)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            self._say("file_not_removed", path, error)

    def _make_place(self, path: Path) -> None:
        """Makes the directory of a file; puts aside a file in the directory's place, or a directory in the file's."""
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.parent.is_dir():
            self.quarantine(path.parent, NotADirectoryError("a file where a directory belongs"))
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_dir():
            self.quarantine(path, IsADirectoryError("a directory where a file belongs"))

    def _say(self, event: str, path: Path, error: OSError) -> None:
        if (event, error.errno) not in self._said:
            self._said.add((event, error.errno))
            _LOG.error("%s path=%s error=%r (said once per cause)", event, path, str(error))
