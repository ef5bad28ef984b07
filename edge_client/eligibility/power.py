"""Where the power comes from, and how full the battery is: /sys/class/power_supply, or psutil off Linux.

A board that is fed by a plain 5 V plug lists no supply at all. That is not proof of mains: a power bank looks the
same. Such a device is on mains only if its owner says so (``eligibility.power = "mains"``).
"""

import dataclasses
import enum
from typing import Any, Final

from edge_client.eligibility.machine import Machine, Unknown

__all__ = ["PowerSource", "probe_battery_percent", "probe_power"]

_DIRECTORY: Final = "sys/class/power_supply"
_FULL_PERCENT: Final = 100.0
_NO_SUPPLY: Final = Unknown("the system lists no power supply")


class PowerSource(enum.StrEnum):
    """What the machine runs on."""

    MAINS = "mains"
    BATTERY = "battery"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Supply:
    is_battery: bool
    is_online: bool | None
    """Of a mains or USB supply; None if it does not say."""
    status: str
    """Of a battery: Charging, Discharging, Full, Not charging or Unknown."""
    percent: float | None


def probe_power(machine: Machine) -> PowerSource | Unknown:
    """Mains if a supply says that it is online or a battery that it is charging."""
    if not machine.find(_DIRECTORY):
        return _power_by_psutil()
    supplies = _supplies(machine)
    if not supplies:
        return _NO_SUPPLY
    plugs = [supply for supply in supplies if not supply.is_battery]
    statuses = {supply.status for supply in supplies if supply.is_battery}
    if any(plug.is_online for plug in plugs) or "Charging" in statuses:
        return PowerSource.MAINS
    if "Discharging" in statuses:
        return PowerSource.BATTERY
    if "Full" in statuses and not plugs:
        # A full battery that is not being drained, and nothing else says where the power comes from.
        return PowerSource.MAINS
    if statuses and plugs and all(plug.is_online is False for plug in plugs):
        return PowerSource.BATTERY
    return Unknown("no power supply says whether it is in use")


def probe_battery_percent(machine: Machine) -> float | Unknown:
    """Charge of the emptiest battery, 0 to 100."""
    if not machine.find(_DIRECTORY):
        return _percent_by_psutil()
    percents = [supply.percent for supply in _supplies(machine) if supply.is_battery and supply.percent is not None]
    return min(percents) if percents else Unknown("no battery says how full it is")


def _supplies(machine: Machine) -> list[_Supply]:
    """Those that feed this machine: not the battery of a mouse."""
    found = []
    for directory in machine.find(f"{_DIRECTORY}/*"):
        kind = machine.read(f"{directory}/type")
        is_foreign = machine.read(f"{directory}/scope") == "Device" or machine.read(f"{directory}/present") == "0"
        if isinstance(kind, Unknown) or is_foreign:
            continue
        status = machine.read(f"{directory}/status")
        found.append(
            _Supply(
                is_battery=kind in {"Battery", "UPS"},
                is_online=_is_online(machine.read(f"{directory}/online")),
                status="" if isinstance(status, Unknown) else status,
                percent=_percent(machine.read(f"{directory}/capacity")),
            )
        )
    return found


def _is_online(text: str | Unknown) -> bool | None:
    # 2 is "online, with a voltage of its own choice" (USB).
    return None if isinstance(text, Unknown) or text not in {"0", "1", "2"} else text != "0"


def _percent(text: str | Unknown) -> float | None:
    if isinstance(text, Unknown) or not text.isdecimal():
        return None
    percent = float(text)
    return percent if percent <= _FULL_PERCENT else None


def _power_by_psutil() -> PowerSource | Unknown:
    battery = _psutil_battery()
    if battery is None or battery.power_plugged is None:
        return _NO_SUPPLY
    return PowerSource.MAINS if battery.power_plugged else PowerSource.BATTERY


def _percent_by_psutil() -> float | Unknown:
    battery = _psutil_battery()
    return Unknown("no battery says how full it is") if battery is None else float(battery.percent)


def _psutil_battery() -> Any:
    """What psutil knows of the battery; None if there is none. Imported here alone: on Linux nothing needs it."""
    import psutil

    return psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
