"""How hot the processor is, and whether the machine is slowing itself down.

Bits of ``get_throttled``: Raspberry Pi documentation, "vcgencmd", section get_throttled. Bits 16 to 19 say "since the
start" and are of no use for a decision about now.
"""

import re
from typing import Final

from edge_client.eligibility.machine import Machine, Unknown

__all__ = ["probe_temperature_c", "probe_throttling"]

_PLAUSIBLE_C: Final = (-40.0, 150.0)
_PROCESSOR: Final = re.compile(r"cpu|soc|x86_pkg|core|package|k10temp|zenpower|bcm|cluster|big|little", re.IGNORECASE)
_FIRMWARE: Final = "sys/devices/platform/soc/soc:firmware/get_throttled"
# Bit 3, the soft temperature limit, is left to the owner's limit on the temperature: some models raise it at 60 C.
_NOW_BITS: Final = {0: "under-voltage", 1: "frequency capped", 2: "throttled"}


def probe_temperature_c(machine: Machine) -> float | Unknown:
    """The hottest processor sensor, in degrees Celsius; if none is named like one, the hottest of all.

    Thermal zones come first, then hwmon (which x86 machines without zones have). A zone that cannot be read is
    skipped: disabled ones answer with an error.
    """
    zones = _hottest(
        machine, [(f"{zone}/temp", f"{zone}/type") for zone in machine.find("sys/class/thermal/thermal_zone*")]
    )
    if zones is not None:
        return zones
    inputs = machine.find("sys/class/hwmon/hwmon*/temp*_input")
    hottest = _hottest(machine, [(path, f"{path.rpartition('/')[0]}/name") for path in inputs])
    return Unknown("the system offers no temperature sensor") if hottest is None else hottest


def probe_throttling(machine: Machine) -> tuple[str, ...] | Unknown:
    """What slows the machine down now (a Raspberry Pi says); an empty tuple is nothing.

    The firmware's file, or the voltage alarm of hwmon, or, where both are missing, the program ``vcgencmd``.
    """
    text = machine.read(_FIRMWARE)
    if not isinstance(text, Unknown):
        return _decode_throttled(text)
    for name in machine.find("sys/class/hwmon/hwmon*/name"):
        if machine.read(name) == "rpi_volt":
            alarm = machine.read(f"{name.rpartition('/')[0]}/in0_lcrit_alarm")
            if alarm in {"0", "1"}:
                return ("under-voltage",) if alarm == "1" else ()
    printed = machine.run(("vcgencmd", "get_throttled"))
    if isinstance(printed, Unknown):
        return Unknown("the system does not say whether it is throttled")
    return _decode_throttled(printed.strip().removeprefix("throttled="))


def _decode_throttled(text: str) -> tuple[str, ...] | Unknown:
    try:
        # The file has no 0x before the digits, the program has; int(..., 16) takes both.
        bits = int(text, 16)
    except ValueError:
        return Unknown(f"get_throttled says {text[:20]!r}")
    return tuple(name for bit, name in _NOW_BITS.items() if bits >> bit & 1)


def _hottest(machine: Machine, sensors: list[tuple[str, str]]) -> float | None:
    """Args are pairs of the file with millidegrees and the file with the sensor's name."""
    processor: list[float] = []
    other: list[float] = []
    for value_path, name_path in sensors:
        value_c = _celsius(machine.read(value_path))
        name = machine.read(name_path)
        if value_c is not None:
            is_processor = not isinstance(name, Unknown) and _PROCESSOR.search(name) is not None
            (processor if is_processor else other).append(value_c)
    return max(processor or other, default=None)


def _celsius(text: str | Unknown) -> float | None:
    try:
        value_c = int(text) / 1000 if not isinstance(text, Unknown) else None
    except ValueError:
        return None
    return value_c if value_c is not None and _PLAUSIBLE_C[0] <= value_c <= _PLAUSIBLE_C[1] else None
