"""What a device says about itself, and when: its mode and the reason, and a few counts. No I/O.

Two things can keep a device out of rounds, each with a reason of its own: its owner's rules (ineligible) and its own
failures (safe mode). The graver one names the mode.
"""

import math
from collections.abc import Callable
from typing import Final

from wire_protocol.limits import MAX_HEALTH_REASON_CHARS
from wire_protocol.messages import DeviceHealth, DeviceMode

__all__ = ["HealthReporter"]

_MIN_GAP_S: Final = 60.0
_INTERVAL_S: Final = 3600.0
_JITTER: Final = 0.1
_LONGEST_UPTIME_S: Final = 1e8
"""What the message can say; three years."""


class HealthReporter:
    """Keeps a device's mode, and says when a health message is due.

    The first is due at once, one about each hour after that, and one when mode or reason has changed, but never two
    within a minute.

    Args:
        uniform: ``uniform(low, high)``: spreads the hourly messages of a fleet that was switched on together.
    """

    __slots__ = ("_due_at", "_reasons", "_said", "_said_at", "_started_at", "_uniform")

    def __init__(self, *, uniform: Callable[[float, float], float]) -> None:
        self._uniform = uniform
        self._reasons: dict[DeviceMode, str] = {}
        self._started_at: float | None = None
        self._said = (DeviceMode.OK, "")
        self._said_at = -math.inf
        self._due_at = -math.inf

    @property
    def mode(self) -> DeviceMode:
        """What the device is in now: safe mode before ineligible before ok."""
        for mode in (DeviceMode.SAFE_MODE, DeviceMode.INELIGIBLE):
            if mode in self._reasons:
                return mode
        return DeviceMode.OK

    @property
    def reason(self) -> str:
        """Why; empty if the mode is ok."""
        return self._reasons.get(self.mode, "")

    def change(self, mode: DeviceMode, reason: str) -> None:
        """Enters ``mode``, or leaves it if ``reason`` is empty; what is too long is cut. OK enters nothing."""
        if mode is DeviceMode.OK or not reason:
            self._reasons.pop(mode, None)
        else:
            self._reasons[mode] = reason[:MAX_HEALTH_REASON_CHARS]

    def start(self, now: float) -> None:
        """Notes when the device started, unless that is known."""
        if self._started_at is None:
            self._started_at = now

    def next_wakeup(self) -> float:
        """When a message is due, on the clock of ``now``: a time past is at once."""
        if (self.mode, self.reason) != self._said:
            return self._said_at + _MIN_GAP_S
        return self._due_at

    def message(self, now: float, *, bytes_written: int, num_rounds_accepted: int) -> DeviceHealth:
        """The message, now; the next one counts from here."""
        self._said = (self.mode, self.reason)
        self._said_at = now
        self._due_at = now + _INTERVAL_S * self._uniform(1 - _JITTER, 1 + _JITTER)
        up_s = now - (self._started_at if self._started_at is not None else now)
        return DeviceHealth(
            mode=self.mode,
            reason=self.reason,
            bytes_written_last_hour=bytes_written,
            uptime_s=min(max(up_s, 0.0), _LONGEST_UPTIME_S),
            num_rounds_accepted=num_rounds_accepted,
        )
