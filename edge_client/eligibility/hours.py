"""The owner's hours: when, by the clock on the wall, the device may train. Pure: the time is an argument.

A window is ``"22:00-06:00"``, with days before it if it is not for every day: ``"mon-fri 22:00-06:00"``,
``"sat,sun 00:00-24:00"``. The days are those on which a window *begins*. Everything is local time as the wall shows
it, so a change to or from summer time makes a window an hour shorter or longer and moves none of its ends.
"""

import dataclasses
import re
import time
import zoneinfo
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

__all__ = ["HoursWindow", "LocalTime", "local_time", "parse_hours"]

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MINUTES_PER_DAY: Final = 24 * 60
_WINDOW: Final = re.compile(r"(?:(?P<days>[a-z,-]+)\s+)?(?P<h1>\d\d?):(?P<m1>\d\d)\s*-\s*(?P<h2>\d\d?):(?P<m2>\d\d)")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LocalTime:
    """What the wall shows."""

    weekday: int
    """0 is Monday."""
    minute: int
    """Since midnight, 0 to 1439."""

    def __str__(self) -> str:
        return f"{_DAYS[self.weekday]} {self.minute // 60:02}:{self.minute % 60:02}"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HoursWindow:
    """A daily span; it begins on certain days and may end on the next."""

    days: frozenset[int]
    begin: int
    """Minute of the day, inclusive."""
    end: int
    """Minute of the day, exclusive; not after ``begin`` means on the next day."""

    def contains(self, now: LocalTime) -> bool:
        """Whether ``now`` is inside."""
        if self.begin < self.end:
            return now.weekday in self.days and self.begin <= now.minute < self.end
        yesterday = (now.weekday - 1) % 7
        return (now.weekday in self.days and now.minute >= self.begin) or (
            yesterday in self.days and now.minute < self.end
        )


def parse_hours(texts: Sequence[str]) -> tuple[HoursWindow, ...]:
    """Reads windows.

    Raises:
        ValueError: One of them cannot be understood; the text says which, and how to write it.
    """
    return tuple(_parse_window(text) for text in texts)


def local_time(unix_s: float, time_zone: str = "") -> LocalTime:
    """What the wall shows at a moment.

    Args:
        unix_s: The moment, in seconds since 1970 UTC.
        time_zone: An IANA name; empty is the system's zone.

    Raises:
        ValueError: There is no such zone on this system, or the moment is outside the calendar.
    """
    try:
        if not time_zone:
            parts = time.localtime(unix_s)
            return LocalTime(weekday=parts.tm_wday, minute=parts.tm_hour * 60 + parts.tm_min)
        moment = datetime.fromtimestamp(unix_s, UTC).astimezone(zoneinfo.ZoneInfo(time_zone))
    except (zoneinfo.ZoneInfoNotFoundError, OSError, OverflowError) as error:
        raise ValueError(f"time zone {time_zone!r}: {error}") from error
    return LocalTime(weekday=moment.weekday(), minute=moment.hour * 60 + moment.minute)


def _parse_window(text: str) -> HoursWindow:
    match = _WINDOW.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"hours: {text!r} is no window; write it like '22:00-06:00' or 'mon-fri 22:00-06:00'")
    begin, end = (_minute(match[f"h{side}"], match[f"m{side}"], text) for side in (1, 2))
    if begin in {_MINUTES_PER_DAY, end}:
        raise ValueError(f"hours: {text!r} begins when it ends, or at 24:00; the whole day is '00:00-24:00'")
    return HoursWindow(days=_parse_days(match["days"], text), begin=begin, end=end)


def _minute(hour: str, minute: str, text: str) -> int:
    total = int(hour) * 60 + int(minute)
    if int(minute) >= 60 or total > _MINUTES_PER_DAY:  # noqa: PLR2004 - minutes
        raise ValueError(f"hours: {text!r} names a time that no clock shows; write 00:00 to 24:00")
    return total


def _parse_days(text: str | None, window: str) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first not in _DAYS or (last or first) not in _DAYS or part.endswith("-"):
            raise ValueError(f"hours: {window!r} names a day that is none of {', '.join(_DAYS)}")
        span = (_DAYS.index(last or first) - _DAYS.index(first)) % 7
        days.update((_DAYS.index(first) + step) % 7 for step in range(span + 1))
    return frozenset(days)
