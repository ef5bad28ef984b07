"""What `doctor` checks about the machine's state now: memory, swap, heat, power, and the clock."""

import ctypes
import time
from pathlib import Path
from typing import Final

from edge_client.doctor import Check, Finding, Subject, fail, ok, skip, warn
from edge_client.eligibility.heat import probe_temperature_c, probe_throttling
from edge_client.eligibility.machine import Machine, Unknown

__all__ = ["RESOURCE_CHECKS"]

_MIN_FREE_MB: Final = 100
_GOOD_FREE_MB: Final = 250
_SMALL_MACHINE_MB: Final = 1100
"""A Pi of "1 GB" shows some 900 MB of it."""
_WARM_C: Final = 75.0
_HOT_C: Final = 85.0
_THROTTLED_BEFORE: Final = 0xF0000
_FIRMWARE: Final = "sys/devices/platform/soc/soc:firmware/get_throttled"
_TIMESYNCD: Final = "run/systemd/timesync/synchronized"
_TIMEX_BYTES: Final = 512
_TIME_ERROR: Final = 5
_DAY_S: Final = 86400.0
_LAST_SANE_YEAR: Final = 2100


def check_memory(subject: Subject) -> Finding:
    """Memory that is free for training."""
    free_mb = _meminfo_mb(subject.machine).get("MemAvailable")
    if free_mb is None:
        return warn("this system does not say how much memory is free", "make sure that 250 MB are free")
    detail = f"{free_mb} MB available"
    if free_mb >= _GOOD_FREE_MB:
        return ok(detail)
    remedy = "stop other programs, or add swap: a small CNN trains in about 120 MB"
    return fail(detail, remedy) if free_mb < _MIN_FREE_MB else warn(detail, remedy)


def check_swap(subject: Subject) -> Finding:
    """Swap: a small machine wants some, and in memory (zram) rather than on an SD card."""
    memory = _meminfo_mb(subject.machine)
    swaps = subject.machine.read("proc/swaps")
    if "MemTotal" not in memory or isinstance(swaps, Unknown):
        return skip("this system does not say")
    files = [line.split()[0] for line in swaps.splitlines()[1:] if line.split()[1:2] == ["file"]]
    if files:
        remedy = "swapping wears an SD card: disable it (dphys-swapfile swapoff) and apt install zram-tools"
        return warn(f"swap is the file {files[0]}", remedy)
    if memory["MemTotal"] < _SMALL_MACHINE_MB and memory.get("SwapTotal", 0) == 0:
        remedy = "apt install zram-tools: compressed swap in memory, which wears nothing"
        return warn(f"{memory['MemTotal']} MB of memory and no swap", remedy)
    return ok(f"{memory['MemTotal']} MB of memory, {memory.get('SwapTotal', 0)} MB of swap")


def check_temperature(subject: Subject) -> Finding:
    """How hot the processor is, idle: training adds ten degrees and more."""
    found = probe_temperature_c(subject.machine)
    if isinstance(found, Unknown):
        return skip(found.why)
    detail = f"{found:.0f} C"
    remedy = "give it air or a heat sink: training waits above eligibility.max_temperature_c"
    if found >= _HOT_C:
        return fail(detail, remedy)
    return warn(detail, remedy) if found >= _WARM_C else ok(detail)


def check_throttling(subject: Subject) -> Finding:
    """Whether a Raspberry Pi is, or was since its start, slowed down by heat or by a weak power supply."""
    now = probe_throttling(subject.machine)
    remedy = "use the official power supply and a short cable; give it air"
    if isinstance(now, Unknown):
        return skip(now.why)
    if now:
        return warn(f"now: {', '.join(now)}", remedy)
    text = subject.machine.read(_FIRMWARE)
    try:
        before = 0 if isinstance(text, Unknown) else int(text, 16) & _THROTTLED_BEFORE
    except ValueError:
        before = 0
    return warn("it has been slowed down since its start", remedy) if before else ok("not slowed down")


def check_clock(subject: Subject) -> Finding:
    """Whether the clock can be right: it is not earlier than the installation of this very file, nor absurdly late."""
    now = subject.wall_clock()
    detail = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    remedy = "set up NTP (timedatectl set-ntp true); TLS certificates will be refused until the clock is right"
    if now < Path(__file__).stat().st_mtime - _DAY_S:
        return fail(f"{detail}: the clock is behind", remedy)
    if time.gmtime(now).tm_year >= _LAST_SANE_YEAR:
        return fail(f"{detail}: the clock is ahead", remedy)
    return ok(detail)


def check_clock_synchronised(subject: Subject) -> Finding:
    """Whether something keeps the clock right: a Raspberry Pi has none that runs without power."""
    if not isinstance(subject.machine.read(_TIMESYNCD), Unknown):
        return ok("systemd-timesyncd has synchronised the clock")
    if is_kernel_clock_synchronised():
        return ok("the kernel's clock is synchronised")
    return warn(
        "nothing has synchronised the clock since the start",
        "timedatectl set-ntp true, and let UDP port 123 out; until then owner's hours are not trusted",
    )


def is_kernel_clock_synchronised() -> bool:
    """What adjtimex(2) says; False where that cannot be asked."""
    try:
        # struct timex with modes = 0 only asks. Its size differs; the buffer is larger than any.
        buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
        state = int(ctypes.CDLL(None).adjtimex(buffer))
    except (OSError, AttributeError):
        return False
    return 0 <= state < _TIME_ERROR


def _meminfo_mb(machine: Machine) -> dict[str, int]:
    """/proc/meminfo in MB; empty if it cannot be read."""
    text = machine.read("proc/meminfo")
    found: dict[str, int] = {}
    if isinstance(text, Unknown):
        return found
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if rest.split()[:1] and rest.split()[0].isdigit():
            found[name] = int(rest.split()[0]) // 1024
    return found


RESOURCE_CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("memory", check_memory),
    ("swap", check_swap),
    ("temperature", check_temperature),
    ("throttling", check_throttling),
    ("clock", check_clock),
    ("clock_synchronised", check_clock_synchronised),
)
"""Name and function of each check, in the order in which they are made."""
