"""Starts the process that tries a release, and says what came of it, whatever that process does. Nothing here blocks."""

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edge_client.releases.check_child import CheckVerdict
from wire_protocol.release_report import MAX_DETAIL_CHARS, ReleaseFailure

__all__ = ["HealthCheck"]

_POLL_S: Final = 0.2
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
        self._answer = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object; a pipe could fill up
        self._ends_at = math.inf

    def start(self, slot: Path) -> None:
        """Begins to check a slot; ``poll`` brings the verdict. A check under way is dropped."""
        self.stop()
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
        return math.inf if self._child is None else min(self._ends_at, self._clock() + _POLL_S)

    def stop(self) -> None:
        """Ends a check under way."""
        child, self._child = self._child, None
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
