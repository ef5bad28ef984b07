"""What time it is, if that can be believed: a floor below which no clock of this device may be.

A Raspberry Pi has no clock that runs without power. After a power cut its wall clock says 1970, or when it was last
shut down; a broken battery or a hostile time server may put it years ahead. Deadlines do not care, they are
monotonic. The owner's hours do, and so does whatever will check an expiry date.

The floor is the latest of: the day this code was released, the floor that was stored, and times from a source that
proves them (a signed message of the coordinator, a verified certificate). The wall clock itself never raises it: a
clock that once ran ahead would then make the right time look wrong for ever.
"""

import dataclasses
import logging
import math
import time
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias

from edge_client.errors import CorruptState
from edge_client.state_writer import StateWriter

__all__ = ["RELEASED_AT", "ClockReading", "ClockUntrusted", "TimeFloor", "WallTime"]

RELEASED_AT: Final = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
"""Unix seconds of this code's release; move it forward with each release."""

_LOG = logging.getLogger(__name__)
_YEAR_S: Final = 365.25 * 86400
_PERSIST_EVERY_S: Final = 3600.0
_MAX_FILE_BYTES: Final = 64
_LATEST: Final = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WallTime:
    """A time of day that can be believed."""

    unix_s: float
    """Seconds since 1970 UTC."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClockUntrusted:
    """The wall clock is wrong."""

    why: str
    """For people."""


ClockReading: TypeAlias = WallTime | ClockUntrusted


class TimeFloor:
    """Keeps the floor, in memory and, at most once an hour, on disk.

    Args:
        path: The file; one that is missing or damaged is as good as none.
        writer: Writes and counts.
        clock: The wall clock, in seconds since 1970 UTC.
        monotonic: Monotonic time in seconds.
        max_ahead_years: A clock further than this past the floor is wrong, rather than the device forgotten in a drawer.
    """

    __slots__ = ("_clock", "_floor", "_max_ahead_s", "_monotonic", "_path", "_persisted", "_persisted_at", "_writer")

    def __init__(
        self,
        path: Path,
        *,
        writer: StateWriter,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        max_ahead_years: float = 5.0,
    ) -> None:
        if max_ahead_years <= 0:
            raise ValueError(f"max_ahead_years must be positive, not {max_ahead_years}")
        self._path = path
        self._writer = writer
        self._clock = clock
        self._monotonic = monotonic
        self._max_ahead_s = max_ahead_years * _YEAR_S
        self._persisted = self._load()
        self._persisted_at = -math.inf
        self._floor = max(RELEASED_AT, self._persisted)

    @property
    def floor(self) -> float:
        """Unix seconds before which it certainly is not."""
        return self._floor

    def now(self) -> ClockReading:
        """The wall clock, if it is not before the floor and not years past it."""
        unix_s = self._clock()
        if not unix_s >= self._floor:
            return ClockUntrusted(why=f"the clock says {_show(unix_s)}, and it is after {_show(self._floor)}")
        if unix_s > self._floor + self._max_ahead_s:
            return ClockUntrusted(
                why=f"the clock says {_show(unix_s)}, years after the last known {_show(self._floor)}"
            )
        return WallTime(unix_s=unix_s)

    def note_trusted(self, unix_s: float) -> None:
        """Somebody who can prove it says that it is at least this time. Never lowers the floor, never raises an error.

        Args:
            unix_s: Seconds since 1970 UTC, from a source whose signature was checked: the coordinator's signed time,
                or the beginning of a verified certificate's validity. Not NTP.
        """
        if not self._floor < unix_s < _LATEST:
            return
        self._floor = unix_s
        if self._monotonic() - self._persisted_at >= _PERSIST_EVERY_S:
            self._persist()

    def flush(self) -> None:
        """Stores what was learned since the last write; call it once, at the end."""
        if self._floor > max(self._persisted, RELEASED_AT):
            self._persist()

    def _persist(self) -> None:
        # Also after a failure it waits an hour: a full disk is not hammered.
        self._persisted_at = self._monotonic()
        number = str(math.floor(self._floor))
        try:
            self._writer.write(self._path, f"{number} {zlib.crc32(number.encode()):08x}\n".encode())
        except OSError as error:
            _LOG.warning("time_floor_not_stored error=%r", str(error))
            return
        self._persisted = self._floor

    def _load(self) -> float:
        try:
            with self._path.open("rb") as stream:
                text = stream.read(_MAX_FILE_BYTES)
        except FileNotFoundError:
            return 0.0
        except OSError as error:
            _LOG.warning("time_floor_unreadable path=%s error=%r", self._path, str(error))
            return 0.0
        number, _, check = text.strip().partition(b" ")
        if number.isdigit() and check == f"{zlib.crc32(number):08x}".encode() and float(number) < _LATEST:
            return float(number)
        # A flipped bit could put the floor centuries ahead, and then no clock would ever be right again.
        self._writer.quarantine(self._path, CorruptState(f"{self._path} is not a time and its check sum"))
        return 0.0


def _show(unix_s: float) -> str:
    try:
        return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return f"{unix_s!r} s"
