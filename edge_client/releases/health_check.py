"""Starts the process that tries a release, and says what came of it, whatever that process does. Nothing here blocks."""

import logging
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

import msgspec

from edge_client.releases.check_child import CheckVerdict
from wire_protocol.release_report import MAX_DETAIL_CHARS, ReleaseFailure

__all__ = ["HealthCheck"]

_LOG = logging.getLogger(__name__)
_POLL_S: Final = 0.2
_START_AGAIN_S: Final = 10.0
_MAX_ANSWER_BYTES: Final = 16 * 1024


class HealthCheck:
    """Checks one slot at a time.

    Args:
        num_threads: Of the interpreter.
        time_limit_s: After this a check has failed.
        memory_limit_mb: Limit of the process's address space; 0 is none.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        *,
        num_threads: int = 1,
        time_limit_s: float = 120.0,
        memory_limit_mb: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_threads = num_threads
        self._time_limit_s = time_limit_s
        self._memory_limit_mb = memory_limit_mb
        self._clock = clock
        self._child: subprocess.Popen[bytes] | None = None
        self._to_start: Path | None = None
        self._answer = _answer_file()
        self._ends_at = math.inf

    def start(self, slot: Path) -> None:
        """Begins to check a slot; ``poll`` brings the verdict. A check under way is dropped.

        A machine that has no process to give now says nothing about the release: it is asked again by ``poll``.
        """
        self.stop()
        try:
            self._spawn(slot)
        except OSError as error:
            _LOG.warning("release_check_not_started error=%r", str(error))
            self._to_start, self._ends_at = slot, self._clock() + _START_AGAIN_S

    def _spawn(self, slot: Path) -> None:
        self._answer.seek(0)
        self._answer.truncate()
        command = [
            sys.executable, "-m", "edge_client.releases.check_child", str(slot),
            f"--num-threads={self._num_threads}", f"--memory-limit-mb={self._memory_limit_mb}",
        ]  # fmt: skip
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._answer, env=environment)
        self._ends_at = self._clock() + self._time_limit_s

    def poll(self) -> CheckVerdict | None:
        """The verdict, if there is one now."""
        child = self._child
        if child is None:
            if self._to_start is not None and self._clock() >= self._ends_at:
                self.start(self._to_start)
            return None
        code = child.poll()
        if code is None and self._clock() < self._ends_at:
            return None
        if code is None:
            self.stop()
            return CheckVerdict(failure=ReleaseFailure.TIMED_OUT, detail=f"no verdict within {self._time_limit_s:g} s")
        self._child = None
        return self._read(code)

    def next_wakeup(self) -> float:
        """When ``poll`` is due, on ``clock``."""
        if self._to_start is not None:
            return self._ends_at
        return math.inf if self._child is None else min(self._ends_at, self._clock() + _POLL_S)

    def stop(self) -> None:
        """Ends a check under way."""
        child, self._child = self._child, None
        self._to_start = None
        if child is not None:
            child.kill()
            child.wait()

    def _read(self, code: int) -> CheckVerdict:
        self._answer.seek(0)
        data = self._answer.read(_MAX_ANSWER_BYTES)
        try:
            verdict = msgspec.json.decode(data, type=CheckVerdict)
        except (msgspec.MsgspecError, ValueError):
            return CheckVerdict(
                failure=ReleaseFailure.CRASHED,
                detail=f"the interpreter's process ended with code {code}"[:MAX_DETAIL_CHARS],
            )
        return verdict


def _answer_file() -> IO[bytes]:
    """Where the process writes, as long as its owner lives; a pipe could fill up, and a disk too: then all would fail."""
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("release-check"), "w+b")
    return tempfile.TemporaryFile()
