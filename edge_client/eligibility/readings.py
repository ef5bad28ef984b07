"""Everything the probes say at one moment, as one value."""

import dataclasses
from typing import Final

from edge_client.eligibility.hours import LocalTime
from edge_client.eligibility.machine import Unknown
from edge_client.eligibility.network import NetworkCost
from edge_client.eligibility.power import PowerSource

__all__ = ["Readings"]

_NOT_READ: Final = Unknown("not read")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Readings:
    """One field per probe. What was not read is unknown."""

    power: PowerSource | Unknown = _NOT_READ
    battery_percent: float | Unknown = _NOT_READ
    temperature_c: float | Unknown = _NOT_READ
    throttling: tuple[str, ...] | Unknown = _NOT_READ
    """What slows the machine down now."""
    load_per_core: float | Unknown = _NOT_READ
    """Without the device's own training."""
    free_memory_mb: float | Unknown = _NOT_READ
    """What would be free without the device's own training."""
    memory_pressure_percent: float | Unknown = _NOT_READ
    network: NetworkCost | Unknown = _NOT_READ
    local_time: LocalTime | Unknown = _NOT_READ
    free_disk_mb: float | Unknown = _NOT_READ
