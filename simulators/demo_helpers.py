"""The demo's second party: three helpers, each a process of its own.

All on one machine and under one operator, so that it shows how it works and protects from nobody; the demo says so.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from coordinator.confidential_task import NamedOpener, helper_sums
from wire_protocol.confidentiality import HelperSums

__all__ = ["HELPER_IDS", "HelperProcesses", "demo_helper_sums"]

HELPER_IDS: Final = ("helper-1", "helper-2", "helper-3")
_OPERATOR: Final = "this demo"
_STOP_TIMEOUT_S: Final = 10.0


def demo_helper_sums(directory: bytes) -> HelperSums:
    """The demo's helpers in a plan: any two of them open, and one operator runs them all."""
    named = [NamedOpener(opener_id=helper_id, operator=_OPERATOR) for helper_id in HELPER_IDS]
    return helper_sums(directory, named, num_needed=2)


class HelperProcesses:
    """Helpers, or a key authority, each a process; use as a context manager.

    Args:
        homes: Helper id -> state directory, with its keys.
        broker_url: Their broker.
        population: Theirs.
        min_contributors: The fewest whose sum they help to open.
        authority: Fingerprint of the authority that they believe.
        log_dir: Gets a log for each.
        kind: What they are.
    """

    def __init__(
        self,
        homes: Mapping[str, Path],
        *,
        broker_url: str,
        population: str,
        min_contributors: int,
        authority: str,
        log_dir: Path,
        kind: Literal["helper", "key-authority"] = "helper",
    ) -> None:
        self._commands = {
            helper_id: [
                *(sys.executable, "-m", "simulators.helper_host", kind, str(home), broker_url, population),
                *(helper_id, str(min_contributors), authority),
            ]
            for helper_id, home in homes.items()
        }
        self._log_dir = log_dir
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        for helper_id, command in self._commands.items():
            with (self._log_dir / f"{helper_id}.log").open("wb") as log:
                self._processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
