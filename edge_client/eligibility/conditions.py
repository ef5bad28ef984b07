"""What can be demanded of a machine, and how one condition comes out. Pure."""

import dataclasses
import enum
import types
from collections.abc import Mapping
from typing import Final

from edge_client.eligibility.policy import Stance

__all__ = ["Assessment", "Condition", "IneligibleReason", "Outcome"]


class Condition(enum.StrEnum):
    """What can be demanded, gravest first: the order in which reasons are given."""

    HARD_TEMPERATURE = "hard_temperature"
    TEMPERATURE = "temperature"
    THROTTLING = "throttling"
    POWER = "power"
    BATTERY = "battery"
    NETWORK = "network"
    HOURS = "hours"
    MEMORY = "memory"
    MEMORY_PRESSURE = "memory_pressure"
    LOAD = "load"
    DISK = "disk"


class Outcome(enum.StrEnum):
    """What a reading says about a condition."""

    MET = "met"
    BROKEN = "broken"
    UNKNOWN = "unknown"


class IneligibleReason(enum.StrEnum):
    """Why a device may not train now. For each condition: it is broken, or its reading is unknown."""

    MUCH_TOO_HOT = "much_too_hot"
    TOO_HOT = "too_hot"
    THROTTLED = "throttled"
    NOT_ON_MAINS = "not_on_mains"
    BATTERY_LOW = "battery_low"
    METERED_NETWORK = "metered_network"
    OUTSIDE_HOURS = "outside_hours"
    LITTLE_MEMORY = "little_memory"
    MEMORY_PRESSURE = "memory_pressure"
    BUSY = "busy"
    LITTLE_DISK = "little_disk"
    TEMPERATURE_UNKNOWN = "temperature_unknown"
    THROTTLING_UNKNOWN = "throttling_unknown"
    POWER_UNKNOWN = "power_unknown"
    BATTERY_UNKNOWN = "battery_unknown"
    NETWORK_UNKNOWN = "network_unknown"
    HOURS_UNKNOWN = "hours_unknown"
    MEMORY_UNKNOWN = "memory_unknown"
    MEMORY_PRESSURE_UNKNOWN = "memory_pressure_unknown"
    LOAD_UNKNOWN = "load_unknown"
    DISK_UNKNOWN = "disk_unknown"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """One condition, judged."""

    condition: Condition
    stance: Stance
    outcome: Outcome
    reading: str
    """The reading for people, or why it is unknown."""
    rule: str
    """What is asked, for people; empty if nothing is."""

    @property
    def reason(self) -> IneligibleReason:
        """Why, if it is a barrier."""
        return _REASONS[self.condition][self.outcome is Outcome.UNKNOWN]

    @property
    def remedy(self) -> str:
        """How the owner gets rid of an unknown reading."""
        return _REMEDIES[self.condition]

    @property
    def is_barrier(self) -> bool:
        """Whether it keeps the device from training. Here alone is decided what an unknown reading means."""
        match self.outcome:
            case Outcome.MET:
                return False
            case Outcome.BROKEN:
                return self.stance is not Stance.OFF
            case Outcome.UNKNOWN:
                return self.stance is Stance.DEMAND


_C = Condition
_R = IneligibleReason
_REASONS: Final[Mapping[Condition, tuple[IneligibleReason, IneligibleReason]]] = types.MappingProxyType(
    {
        _C.HARD_TEMPERATURE: (_R.MUCH_TOO_HOT, _R.TEMPERATURE_UNKNOWN),
        _C.TEMPERATURE: (_R.TOO_HOT, _R.TEMPERATURE_UNKNOWN),
        _C.THROTTLING: (_R.THROTTLED, _R.THROTTLING_UNKNOWN),
        _C.POWER: (_R.NOT_ON_MAINS, _R.POWER_UNKNOWN),
        _C.BATTERY: (_R.BATTERY_LOW, _R.BATTERY_UNKNOWN),
        _C.NETWORK: (_R.METERED_NETWORK, _R.NETWORK_UNKNOWN),
        _C.HOURS: (_R.OUTSIDE_HOURS, _R.HOURS_UNKNOWN),
        _C.MEMORY: (_R.LITTLE_MEMORY, _R.MEMORY_UNKNOWN),
        _C.MEMORY_PRESSURE: (_R.MEMORY_PRESSURE, _R.MEMORY_PRESSURE_UNKNOWN),
        _C.LOAD: (_R.BUSY, _R.LOAD_UNKNOWN),
        _C.DISK: (_R.LITTLE_DISK, _R.DISK_UNKNOWN),
    }
)
"""For each condition: it is broken, its reading is unknown."""

_REMEDIES: Final[Mapping[Condition, str]] = types.MappingProxyType(
    {
        _C.HARD_TEMPERATURE: "it is kept wherever the temperature can be read",
        _C.TEMPERATURE: 'set eligibility.max_temperature_c = "auto" to keep a limit only where there is a sensor',
        _C.THROTTLING: 'set eligibility.throttling = "auto" to heed it only where the system says',
        _C.POWER: 'set eligibility.power = "mains" if that is so, or eligibility.require_mains = false',
        _C.BATTERY: 'set eligibility.power = "mains" if that is so, or eligibility.min_battery_percent = "none"',
        _C.NETWORK: 'set eligibility.network = "unmetered" if that is so, or eligibility.metered_network = "auto"',
        _C.HOURS: "set the clock (timedatectl set-ntp true), or leave eligibility.hours out",
        _C.MEMORY: 'set eligibility.min_free_memory_mb = "auto" to heed it only where the system says',
        _C.MEMORY_PRESSURE: 'set eligibility.max_memory_pressure_percent = "auto" to heed it only where the kernel says',
        _C.LOAD: 'set eligibility.max_load_per_core = "none"',
        _C.DISK: 'set eligibility.min_free_disk_mb = "auto" to heed it only where the system says',
    }
)
"""For each condition: what to do about an unknown reading."""
