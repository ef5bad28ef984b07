"""Keeps the crash record of a device on disk, and tells when safe mode begins and ends (`crash_record` has the rules).

A record that is damaged is put aside and begun anew; one that cannot be written is kept in memory: a broken disk must
not keep the daemon from running.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from edge_client.crash_record import (
    MAX_RECORD_BYTES,
    SAVE_EVERY_S,
    CrashLimits,
    CrashRecord,
    decode_record,
    encode_record,
)
from edge_client.errors import CorruptState, StorageError
from edge_client.events import HealthChanged, TrainingFailed, TrainingFinished
from edge_client.state_dir import StateDir
from edge_client.state_writer import StateWriter
from wire_protocol.messages import DeviceMode

__all__ = ["CrashGuard", "forget_crashes", "read_record"]

_LOG = logging.getLogger(__name__)


def read_record(path: Path, writer: StateWriter) -> CrashRecord:
    """The record in a file; an empty one if there is none that can be read. Never raises."""
    data = writer.read(path, max_bytes=MAX_RECORD_BYTES)
    if data is None:
        return CrashRecord()
    try:
        return decode_record(data)
    except CorruptState as error:
        writer.quarantine(path, error)
        return CrashRecord()


def forget_crashes(state_dir: Path, *, only_look: bool) -> CrashRecord:
    """Deletes the record of a device whose daemon is not running.

    Returns:
        What was forgotten, or, if ``only_look``, would be.

    Raises:
        StorageError: A daemon is running, or the directory or the record cannot be changed.
    """
    directory = StateDir(state_dir)
    directory.lock()
    try:
        record = read_record(directory.crash_record, StateWriter())
        if not only_look:
            directory.crash_record.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{directory.crash_record} cannot be deleted: {error}") from error
    finally:
        directory.unlock()
    return record


class CrashGuard:
    """One device's failures. Making it notes a start.

    Args:
        path: Where the record is kept.
        writer: Writes and counts.
        limits: When safe mode begins and ends.
        clock: Monotonic time in seconds.
    """

    __slots__ = (
        "_clock",
        "_is_good",
        "_limits",
        "_passed_at",
        "_path",
        "_record",
        "_saved_at",
        "_started_at",
        "_writer",
    )

    def __init__(
        self, path: Path, *, writer: StateWriter, limits: CrashLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._writer = writer
        self._limits = limits
        self._clock = clock
        self._started_at = self._passed_at = self._saved_at = clock()
        self._is_good = False
        self._record = read_record(path, writer)
        self._change(self._record.started(limits))

    @property
    def is_safe_mode(self) -> bool:
        """Whether the device takes no part."""
        return self._record.is_safe_mode

    def health(self) -> HealthChanged:
        """Safe mode as an event for the agent."""
        return HealthChanged(mode=DeviceMode.SAFE_MODE, reason=self._record.reason if self.is_safe_mode else "")

    def job_over(self, ended: TrainingFinished | TrainingFailed) -> None:
        """Notes how a job ended."""
        died = isinstance(ended, TrainingFailed) and ended.trainer_died
        self._change(self._record.trainer_died(self._limits) if died else self._record.trainer_worked())

    def round_accepted(self) -> None:
        """A round was accepted: whatever was wrong, this start is good."""
        self._is_good = True
        self._change(self._record.good())

    def task_announced(self, task_id: str) -> None:
        """Notes what the population works on."""
        self._change(self._record.task_announced(task_id))

    def tick(self) -> None:
        """Lets time pass."""
        now = self._clock()
        if not self._is_good and now - self._started_at >= self._limits.good_after_s:
            self._is_good = True
            self._change(self._record.good())
        if not self.is_safe_mode:
            self._passed_at = now
            return
        passed = self._record.passed(now - self._passed_at)
        if not passed.is_safe_mode or now - self._saved_at >= SAVE_EVERY_S:
            self._passed_at = now
            self._change(passed)

    def next_wakeup(self) -> float:
        """When ``tick`` is due, on ``clock``."""
        due_at = self._saved_at + SAVE_EVERY_S
        if self.is_safe_mode:
            due_at = min(due_at, self._passed_at + self._record.safe_left_s)
        if not self._is_good:
            return min(due_at, self._started_at + self._limits.good_after_s)
        return due_at if self.is_safe_mode else float("inf")

    def stopped_cleanly(self) -> None:
        """The daemon was told to stop."""
        if not self._is_good:
            self._change(self._record.stopped_cleanly())

    def _change(self, record: CrashRecord) -> None:
        """Takes over a record, and writes it if it says something new."""
        before, self._record = self._record, record
        if record == before:
            return
        self._saved_at = self._clock()
        if record.is_safe_mode and not before.is_safe_mode:
            self._passed_at = self._saved_at
            _LOG.error("safe_mode_entered reason=%r left_s=%.0f", record.reason, record.safe_left_s)
        elif before.is_safe_mode and not record.is_safe_mode:
            _LOG.warning("safe_mode_left")
        with contextlib.suppress(OSError):  # the writer has said so
            self._writer.write(self._path, encode_record(record))
