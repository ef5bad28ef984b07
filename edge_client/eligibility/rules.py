"""One rule per condition: what its reading means under the owner's policy. Pure.

Hysteresis: a limit that is held (it was broken at the last assessment) stays broken until the reading is clearly
better, by ``temperature_margin_c`` or by a fifth of the limit, so that a device at a limit does not flap.
"""

import enum
import types
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final, TypeAlias

from edge_client.eligibility.conditions import Assessment, Condition, Outcome
from edge_client.eligibility.machine import Unknown
from edge_client.eligibility.network import NetworkCost
from edge_client.eligibility.policy import (
    AUTO_FREE_DISK_MB,
    AUTO_FREE_MEMORY_MB,
    AUTO_MEMORY_PRESSURE_PERCENT,
    AUTO_TEMPERATURE_C,
    EligibilitySection,
    Limit,
    Stance,
)
from edge_client.eligibility.power import PowerSource
from edge_client.eligibility.readings import Readings

__all__ = ["RULES", "Held", "Rule"]

_MARGIN: Final = 0.2

Held: TypeAlias = AbstractSet[Condition]
"""The conditions that were broken at the last assessment."""
Rule: TypeAlias = Callable[[EligibilitySection, Readings, Held], Assessment]


def _ceiling(condition: Condition, unit: str, reading: float | Unknown, limit: Limit, release: float) -> Assessment:
    """At most ``release``, which is the limit itself unless the condition is held."""
    is_met = not isinstance(reading, Unknown) and reading <= release
    return _numeric(condition, unit, reading, limit, is_met=is_met, rule=f"at most {release:g}{unit}")


def _floor(condition: Condition, unit: str, reading: float | Unknown, limit: Limit, release: float) -> Assessment:
    is_met = not isinstance(reading, Unknown) and reading >= release
    return _numeric(condition, unit, reading, limit, is_met=is_met, rule=f"at least {release:g}{unit}")


def _numeric(
    condition: Condition, unit: str, reading: float | Unknown, limit: Limit, *, is_met: bool, rule: str
) -> Assessment:
    # A number that is none (NaN) compares as false, hence as broken.
    known = Outcome.MET if is_met else Outcome.BROKEN
    text = f"{reading:.{2 if unit == '' else 0}f}{unit}" if not isinstance(reading, Unknown) else reading.why
    return _assessment(condition, limit.stance, Outcome.UNKNOWN if isinstance(reading, Unknown) else known, text, rule)


def _assessment(condition: Condition, stance: Stance, outcome: Outcome, reading: str, rule: str) -> Assessment:
    is_off = stance is Stance.OFF
    return Assessment(
        condition=condition,
        stance=stance,
        # What is not asked for cannot be broken, and must not be held by the hysteresis.
        outcome=Outcome.MET if is_off and outcome is Outcome.BROKEN else outcome,
        reading=reading,
        rule="" if is_off else rule,
    )


def _hard_temperature(policy: EligibilitySection, readings: Readings, held: Held) -> Assessment:
    stance = Stance.PRECAUTION if policy.enforce else Stance.OFF
    limit = Limit(stance=stance, value=policy.hard_temperature_c)
    release = limit.value - (policy.temperature_margin_c if Condition.HARD_TEMPERATURE in held else 0.0)
    return _ceiling(Condition.HARD_TEMPERATURE, " C", readings.temperature_c, limit, release)


def _temperature(policy: EligibilitySection, readings: Readings, held: Held) -> Assessment:
    limit = policy.limit(policy.max_temperature_c, min(AUTO_TEMPERATURE_C, policy.hard_temperature_c))
    release = limit.value - (policy.temperature_margin_c if Condition.TEMPERATURE in held else 0.0)
    return _ceiling(Condition.TEMPERATURE, " C", readings.temperature_c, limit, release)


def _throttling(policy: EligibilitySection, readings: Readings, held: Held) -> Assessment:
    del held
    reading = readings.throttling
    if isinstance(reading, Unknown):
        outcome, text = Outcome.UNKNOWN, reading.why
    else:
        outcome, text = (Outcome.BROKEN, ", ".join(reading)) if reading else (Outcome.MET, "none")
    return _assessment(Condition.THROTTLING, policy.stance(policy.throttling), outcome, text, "none")


def _power(policy: EligibilitySection, readings: Readings, held: Held) -> Assessment:
    del held
    stance = policy.stance(policy.require_mains)
    return _choice(Condition.POWER, stance, readings.power, PowerSource.MAINS)


def _battery(policy: EligibilitySection, readings: Readings, held: Held) -> Assessment:
    limit = policy.limit(policy.min_battery_percent)
    if readings.power is PowerSource.MAINS:
        return _assessment(Condition.BATTERY, limit.stance, Outcome.MET, "on mains", f"at least {limit.value:g} %")
    release = min(limit.value * (1 + _MARGIN), 100.0) if Condition.BATTERY in held else limit.value
    return _floor(Condition.BATTERY, " %", readings.battery_percent, limit, release)


def _network(policy: EligibilitySection, readings: Readings, held: Held) -> Assessment:
    del held
    stance = policy.stance(policy.metered_network)
    return _choice(Condition.NETWORK, stance, readings.network, NetworkCost.UNMETERED)


def _choice(condition: Condition, stance: Stance, reading: enum.StrEnum | Unknown, wanted: enum.StrEnum) -> Assessment:
    if isinstance(reading, Unknown):
        return _assessment(condition, stance, Outcome.UNKNOWN, reading.why, wanted.value)
    outcome = Outcome.MET if reading is wanted else Outcome.BROKEN
    return _assessment(condition, stance, outcome, reading.value, wanted.value)


def _hours(policy: EligibilitySection, readings: Readings, held: Held) -> Assessment:
    del held
    windows = policy.windows()
    stance = Stance.DEMAND if windows and policy.enforce else Stance.OFF
    rule = policy.hours if isinstance(policy.hours, str) else "; ".join(policy.hours)
    reading = readings.local_time
    if isinstance(reading, Unknown):
        return _assessment(Condition.HOURS, stance, Outcome.UNKNOWN, reading.why, rule)
    outcome = Outcome.MET if any(window.contains(reading) for window in windows) else Outcome.BROKEN
    return _assessment(Condition.HOURS, stance, outcome, str(reading), rule)


def _memory(policy: EligibilitySection, readings: Readings, held: Held) -> Assessment:
    limit = policy.limit(policy.min_free_memory_mb, AUTO_FREE_MEMORY_MB)
    release = limit.value * (1 + _MARGIN if Condition.MEMORY in held else 1)
    return _floor(Condition.MEMORY, " MB", readings.free_memory_mb, limit, release)


def _memory_pressure(policy: EligibilitySection, readings: Readings, held: Held) -> Assessment:
    limit = policy.limit(policy.max_memory_pressure_percent, AUTO_MEMORY_PRESSURE_PERCENT)
    release = limit.value * (1 - _MARGIN if Condition.MEMORY_PRESSURE in held else 1)
    return _ceiling(Condition.MEMORY_PRESSURE, " %", readings.memory_pressure_percent, limit, release)


def _load(policy: EligibilitySection, readings: Readings, held: Held) -> Assessment:
    limit = policy.limit(policy.max_load_per_core)
    release = limit.value * (1 - _MARGIN if Condition.LOAD in held else 1)
    return _ceiling(Condition.LOAD, "", readings.load_per_core, limit, release)


def _disk(policy: EligibilitySection, readings: Readings, held: Held) -> Assessment:
    limit = policy.limit(policy.min_free_disk_mb, AUTO_FREE_DISK_MB)
    release = limit.value * (1 + _MARGIN if Condition.DISK in held else 1)
    return _floor(Condition.DISK, " MB", readings.free_disk_mb, limit, release)


_C = Condition
RULES: Final[Mapping[Condition, Rule]] = types.MappingProxyType(
    {
        _C.HARD_TEMPERATURE: _hard_temperature,
        _C.TEMPERATURE: _temperature,
        _C.THROTTLING: _throttling,
        _C.POWER: _power,
        _C.BATTERY: _battery,
        _C.NETWORK: _network,
        _C.HOURS: _hours,
        _C.MEMORY: _memory,
        _C.MEMORY_PRESSURE: _memory_pressure,
        _C.LOAD: _load,
        _C.DISK: _disk,
    }
)
"""Every condition has one."""
