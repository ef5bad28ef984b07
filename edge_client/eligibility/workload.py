"""How busy the machine is: load, memory, memory pressure, disk. What the device itself uses is not held against it."""

import math
import os
import shutil
from pathlib import Path
from typing import Final

from edge_client.eligibility.machine import Machine, Unknown

__all__ = [
    "OwnLoad",
    "probe_free_disk_mb",
    "probe_free_memory_mb",
    "probe_load_per_core",
    "probe_memory_pressure_percent",
    "probe_process_memory_mb",
]

_MEGABYTE: Final = 1024 * 1024
_LOAD_WINDOW_S: Final = 60.0


def probe_load_per_core(machine: Machine) -> float | Unknown:
    """Load average of the last minute, over the number of processors."""
    text = machine.read("proc/loadavg")
    try:
        load = float(text.split()[0]) if not isinstance(text, Unknown) else os.getloadavg()[0]
    except (ValueError, IndexError, OSError, AttributeError):
        return Unknown("the load average cannot be read")
    return load / machine.num_cores if math.isfinite(load) and load >= 0 else Unknown(f"the load average is {load}")


def probe_free_memory_mb(machine: Machine) -> float | Unknown:
    """``MemAvailable``: what programs can get without swapping, in MB (2^20 bytes)."""
    text = machine.read("proc/meminfo")
    if isinstance(text, Unknown):
        return _psutil_available_mb()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            number = value.split()[:1]
            if number and number[0].isdecimal():
                return int(number[0]) / 1024
    return Unknown("/proc/meminfo has no MemAvailable")


def _psutil_available_mb() -> float | Unknown:
    """Off Linux; on Linux nothing needs psutil, which is therefore imported here alone."""
    import psutil

    try:
        return float(psutil.virtual_memory().available) / _MEGABYTE
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        return Unknown(f"the free memory cannot be read: {error}")


def probe_process_memory_mb(machine: Machine, pid: int) -> float | Unknown:
    """Resident memory of a process, in MB."""
    text = machine.read(f"proc/{pid}/statm")
    fields = [] if isinstance(text, Unknown) else text.split()
    if len(fields) < 2 or not fields[1].isdecimal():  # noqa: PLR2004 - the second field is the resident size
        return Unknown(f"the memory of process {pid} cannot be read")
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / _MEGABYTE


def probe_memory_pressure_percent(machine: Machine) -> float | Unknown:
    """Share of the last 10 s in which some task waited for memory (PSI, Linux 4.20 and later), 0 to 100."""
    text = machine.read("proc/pressure/memory")
    if isinstance(text, Unknown):
        return Unknown("the kernel does not measure memory pressure")
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["some"]:
            values = dict(word.split("=", 1) for word in words[1:] if "=" in word)
            try:
                percent = float(values["avg10"])
            except (KeyError, ValueError):
                break
            if 0 <= percent <= 100:  # noqa: PLR2004 - per cent
                return percent
    return Unknown("/proc/pressure/memory cannot be understood")


def probe_free_disk_mb(path: Path) -> float | Unknown:
    """Room for this user where ``path`` is or will be, in MB."""
    try:
        while not path.exists() and path != path.parent:
            path = path.parent
        return shutil.disk_usage(path).free / _MEGABYTE
    except OSError as error:
        return Unknown(f"{path}: {error.strerror or error}")


class OwnLoad:
    """How much of the load average is the device's own training.

    The kernel's load average is an exponential mean over a minute, so our own threads are in it until some time after
    they have ended. This follows them with the same mean. Without it a limit on the load would stop every training
    that it let begin.
    """

    __slots__ = ("_at", "_num_threads", "_value")

    def __init__(self) -> None:
        self._at: float | None = None
        self._num_threads = 0
        self._value = 0.0

    def update(self, now: float, num_threads: int) -> float:
        """Lets time pass; ``num_threads`` run from now on.

        Args:
            now: Monotonic time in seconds.
            num_threads: Threads that train from now until the next call.

        Returns:
            The part of the load average that is ours.
        """
        elapsed_s = 0.0 if self._at is None else max(now - self._at, 0.0)
        keep = math.exp(-elapsed_s / _LOAD_WINDOW_S)
        self._value = keep * self._value + (1 - keep) * self._num_threads
        self._at, self._num_threads = now, num_threads
        return self._value
