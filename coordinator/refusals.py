"""Why the guard refuses bytes, and the count of it: what is to be kept, what is to be logged, and how often at most.

Pure: time is a number passed in. Whoever floods a broker can make these numbers rise, and nothing else: memory and log
lines are bounded by the enrolled devices and the reasons, not by what is sent.
"""

import collections
import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import Final

__all__ = ["CLONE_SIGNS", "NOBODY", "GuardRefusal", "RefusalNotice", "RefusalTally"]

_QUIET_S: Final = 60.0
NOBODY: Final = ""
"""Stands for every device id that is not enrolled: made-up ids must cost nothing."""


class GuardRefusal(enum.Enum):
    """Why bytes were refused before they were decoded."""

    UNSIGNED = "unsigned"
    MALFORMED = "malformed"
    """A topic that is no device's of this population, or a damaged envelope."""
    UNKNOWN_DEVICE = "unknown_device"
    REVOKED = "revoked"
    BAD_SIGNATURE = "bad_signature"
    """Another key, another topic, or altered bytes."""
    STALE = "stale"
    """Not after what was accepted last: a repetition, or a replay."""
    CONFLICTING = "conflicting"
    """Well signed, at a position at which another message was heard: two machines have this key, or one was put back."""
    FALLING_EPOCH = "falling_epoch"
    """Signed in an epoch that is over: a second machine with the same key, or a replay of what was heard long ago."""


CLONE_SIGNS: Final = (GuardRefusal.CONFLICTING, GuardRefusal.FALLING_EPOCH)
"""Refusals that say that a key may be in two places; the first cannot be brought about without the key."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RefusalNotice:
    """What one line of the log says."""

    reason: GuardRefusal
    num: int
    """Refusals since the last notice of this reason."""
    num_total: int
    device_id: str
    """On whose topic the last of them came; `NOBODY` if that device is not enrolled."""


class RefusalTally:
    """Counts refusals by reason and by enrolled device."""

    def __init__(self) -> None:
        self._totals: collections.Counter[GuardRefusal] = collections.Counter()
        self._unsaved: collections.Counter[tuple[str, GuardRefusal]] = collections.Counter()
        self._unsaid: collections.Counter[GuardRefusal] = collections.Counter()
        self._last_device: dict[GuardRefusal, str] = {}
        self._said_at: dict[GuardRefusal, float] = {}

    @property
    def totals(self) -> Mapping[GuardRefusal, int]:
        """Refusals since the start, by reason; those that never happened are left out."""
        return dict(self._totals)

    def note(self, reason: GuardRefusal, device_id: str) -> None:
        """Counts one, on the topic of an enrolled device or of `NOBODY`."""
        self._totals[reason] += 1
        self._unsaved[device_id, reason] += 1
        self._unsaid[reason] += 1
        self._last_device[reason] = device_id

    def take_unsaved(self) -> Mapping[tuple[str, GuardRefusal], int]:
        """What has been counted since this was last asked, by device and reason."""
        unsaved, self._unsaved = self._unsaved, collections.Counter()
        return unsaved

    def notices(self, *, now: float) -> list[RefusalNotice]:
        """What is to be logged at monotonic ``now``: of each reason the first at once, then at most one a minute."""
        due = [
            reason for reason in GuardRefusal
            if self._unsaid[reason] and now - self._said_at.get(reason, -math.inf) >= _QUIET_S
        ]  # fmt: skip
        for reason in due:
            self._said_at[reason] = now
        return [
            RefusalNotice(
                reason=reason,
                num=self._unsaid.pop(reason),
                num_total=self._totals[reason],
                device_id=self._last_device[reason],
            )
            for reason in due
        ]
