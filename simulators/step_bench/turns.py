"""The worker's side of a benchmark: answers every line "n" with the times of n steps. Imports nothing heavy.

Run as a file too, by an interpreter that has PyTorch and not this project: so it must import nothing of it.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["serve"]

_KIB = 1024


def serve(step: Callable[[], object], *, warm_up: int = 5) -> None:
    """Runs steps as asked on standard input, until it ends.

    Args:
        step: One training step; returns when its result is there.
        warm_up: Steps before the first answer, "ready".
    """
    for _ in range(warm_up):
        step()
    _answer({"ready": True, "rss_mb": _peak_rss_mb()})
    for line in sys.stdin:
        walls, cpu = [], time.process_time()
        for _ in range(int(line)):
            began = time.perf_counter()
            step()
            walls.append(1e3 * (time.perf_counter() - began))
        cpu_ms = 1e3 * (time.process_time() - cpu) / len(walls)
        _answer({"walls_ms": walls, "cpu_ms": cpu_ms, "rss_mb": _peak_rss_mb()})


def _peak_rss_mb() -> float:
    # Not ru_maxrss: a child inherits its parent's across exec.
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.split("VmHWM:")[1].split()[0]) * _KIB / 1e6


def _answer(values: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()
