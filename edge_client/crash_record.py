"""Whether this device fails again and again, as a table over a small record. Pure: no clock, no I/O.

A start is bad until it has been good: the daemon has been up for a while, or a round was accepted. Too many bad starts
in a row, or too many deaths of the trainer in a row on one task, and the device is in safe mode: it stays reachable and
takes no part. Safe mode ends by itself after a time, with another task, or when the owner says so.

    event            record                                             safe mode
    start            one more bad start                                 begins at ``max_bad_starts``
    good             bad starts = 0                                     -
    stopped cleanly  the start counts no more                           -
    trainer died     one more death on this task                        begins at ``max_trainer_deaths``
    trainer worked   deaths = 0                                         -
    task announced   another task than before: deaths = 0               ends, if it is another task
    time passed      -                                                  ends, when none is left

The time left is counted in seconds of running, not by the calendar: a device may have no clock. A device that cannot
even stay up for ``SAVE_EVERY_S`` therefore stays in safe mode.
"""

import dataclasses
from typing import Final

import msgspec

from edge_client.checked_file import SEAL_BYTES, seal, unseal
from edge_client.errors import CorruptState

__all__ = ["MAX_RECORD_BYTES", "SAVE_EVERY_S", "CrashLimits", "CrashRecord", "decode_record", "encode_record"]

_KIND: Final = b"CR"
SAVE_EVERY_S: Final = 900.0
"""How often the time left is to be written down in safe mode."""
MAX_RECORD_BYTES: Final = SEAL_BYTES + 512
_MOST: Final = 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CrashLimits:
    """When enough is enough."""

    max_bad_starts: int = 5
    max_trainer_deaths: int = 3
    good_after_s: float = 300.0
    """A daemon that has been up for so long has started well."""
    safe_mode_s: float = 6 * 3600.0
    """How long safe mode lasts; 0 for a device that never enters it."""

    def __post_init__(self) -> None:
        if min(self.max_bad_starts, self.max_trainer_deaths) < 1 or self.good_after_s <= 0 or self.safe_mode_s < 0:
            raise ValueError("limits must be positive; safe_mode_s may be 0")


class CrashRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device remembers about its failures."""

    num_bad_starts: int = 0
    num_trainer_deaths: int = 0
    task_id: str = ""
    """The task announced last; the deaths are this task's."""
    safe_left_s: float = 0.0
    """Seconds of safe mode left; 0 if it is not in safe mode."""
    reason: str = ""
    """Why it is in safe mode."""

    def __post_init__(self) -> None:
        if not (0 <= self.num_bad_starts <= _MOST and 0 <= self.num_trainer_deaths <= _MOST):
            raise ValueError("counts must not be negative")
        if not 0 <= self.safe_left_s <= 1e9 or len(self.task_id) > 64 or len(self.reason) > 200:  # noqa: PLR2004
            raise ValueError("no crash record of this version")

    @property
    def is_safe_mode(self) -> bool:
        """Whether the device takes no part."""
        return self.safe_left_s > 0

    def started(self, limits: CrashLimits) -> "CrashRecord":
        """The daemon starts: a bad start, until ``good``."""
        bad = min(self.num_bad_starts + 1, _MOST)
        started = msgspec.structs.replace(self, num_bad_starts=bad)
        # This start is not known to be bad: those before it are.
        if self.num_bad_starts < limits.max_bad_starts or self.is_safe_mode:
            return started
        return _in_safe_mode(started, f"{self.num_bad_starts} starts in a row ended badly", limits)

    def good(self) -> "CrashRecord":
        """This start was good."""
        return msgspec.structs.replace(self, num_bad_starts=0)

    def stopped_cleanly(self) -> "CrashRecord":
        """The daemon was told to stop before its start was good: it was neither."""
        return msgspec.structs.replace(self, num_bad_starts=max(0, self.num_bad_starts - 1))

    def trainer_died(self, limits: CrashLimits) -> "CrashRecord":
        """The trainer crashed, was killed, or took too long, on the task announced last."""
        died = msgspec.structs.replace(self, num_trainer_deaths=min(self.num_trainer_deaths + 1, _MOST))
        if died.num_trainer_deaths < limits.max_trainer_deaths or self.is_safe_mode:
            return died
        return _in_safe_mode(died, f"the trainer died {died.num_trainer_deaths} times in a row on this task", limits)

    def trainer_worked(self) -> "CrashRecord":
        """The trainer ended a job in an orderly way, with a result or without one."""
        return msgspec.structs.replace(self, num_trainer_deaths=0)

    def task_announced(self, task_id: str) -> "CrashRecord":
        """The population works on this task. The first one ever heard of is no *other* task."""
        if task_id == self.task_id:
            return self
        if not self.task_id:
            return msgspec.structs.replace(self, task_id=task_id)
        return CrashRecord(task_id=task_id)

    def passed(self, seconds: float) -> "CrashRecord":
        """Time of running has passed in safe mode."""
        if not self.is_safe_mode:
            return self
        left = max(0.0, self.safe_left_s - max(0.0, seconds))
        return msgspec.structs.replace(self, safe_left_s=left) if left else CrashRecord(task_id=self.task_id)


def _in_safe_mode(record: CrashRecord, reason: str, limits: CrashLimits) -> CrashRecord:
    if limits.safe_mode_s == 0:
        return record
    return CrashRecord(task_id=record.task_id, safe_left_s=limits.safe_mode_s, reason=reason)


def encode_record(record: CrashRecord) -> bytes:
    """The bytes of the file."""
    return seal(_KIND, msgspec.msgpack.encode(record))


def decode_record(data: bytes) -> CrashRecord:
    """Reads the bytes of the file.

    Raises:
        CorruptState: They are not what ``encode_record`` wrote.
    """
    body = unseal(_KIND, data, max_bytes=MAX_RECORD_BYTES)
    try:
        return msgspec.msgpack.decode(body, type=CrashRecord)
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise CorruptState(f"a crash record that cannot be read: {error}") from error
