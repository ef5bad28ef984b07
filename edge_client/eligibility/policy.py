"""What the owner allows: the section ``[eligibility]`` of the configuration. ``edge_client.config`` documents its keys.

Three stances, and the difference matters only when a reading is unknown:

=============  ===========================  ======================================
stance         known and bad                unknown
=============  ===========================  ======================================
demand         not eligible                 not eligible: unknown is never true
precaution     not eligible                 not held against the device
off            ignored                      ignored
=============  ===========================  ======================================

What the owner writes is a demand. ``"auto"``, the default of several keys, is a precaution: a laptop without a sensor
can take part as it comes, and a Pi, which has one, is protected.
"""

import enum
from typing import Annotated, Final, Literal

import msgspec

from edge_client.eligibility.hours import HoursWindow, local_time, parse_hours

__all__ = [
    "AUTO_FREE_DISK_MB",
    "AUTO_FREE_MEMORY_MB",
    "AUTO_MEMORY_PRESSURE_PERCENT",
    "AUTO_TEMPERATURE_C",
    "EligibilitySection",
    "Limit",
    "Stance",
]

AUTO_TEMPERATURE_C: Final = 80.0
"""A Raspberry Pi begins to slow down at 80 (its soft limit is 60 on some models, its hard limit is 85)."""
AUTO_FREE_MEMORY_MB: Final = 200.0
"""A small CNN trains in about 120 MB."""
AUTO_MEMORY_PRESSURE_PERCENT: Final = 25.0
AUTO_FREE_DISK_MB: Final = 50.0

_Celsius = Annotated[float, msgspec.Meta(ge=20, le=120)]
_Percent = Annotated[float, msgspec.Meta(gt=0, le=100)]
_Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]


class Stance(enum.StrEnum):
    """How much a condition counts."""

    DEMAND = "demand"
    PRECAUTION = "precaution"
    OFF = "off"


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """A number to keep to, and how strictly."""

    stance: Stance
    value: float = 0.0


class EligibilitySection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the device may train. The defaults suit a Raspberry Pi on mains."""

    enforce: bool = True
    power: Literal["auto", "mains", "battery"] = "auto"
    network: Literal["auto", "metered", "unmetered"] = "auto"
    require_mains: bool = False
    min_battery_percent: _Percent | Literal["none"] = "none"
    max_temperature_c: _Celsius | Literal["auto", "none"] = "auto"
    temperature_margin_c: Annotated[float, msgspec.Meta(ge=0, le=50)] = 5.0
    hard_temperature_c: _Celsius = 90.0
    throttling: Literal["auto", "refuse", "ignore"] = "auto"
    max_load_per_core: _Positive | Literal["none"] = "none"
    min_free_memory_mb: _Positive | Literal["auto", "none"] = "auto"
    max_memory_pressure_percent: _Percent | Literal["auto", "none"] = "auto"
    metered_network: Literal["auto", "refuse", "allow"] = "auto"
    hours: str | tuple[str, ...] = ()
    time_zone: str = ""
    min_free_disk_mb: _Positive | Literal["auto", "none"] = "auto"

    def __post_init__(self) -> None:
        self.windows()
        if self.time_zone:
            local_time(0.0, self.time_zone)
        if isinstance(self.max_temperature_c, float) and self.max_temperature_c > self.hard_temperature_c:
            raise ValueError("max_temperature_c must not be above hard_temperature_c, which stops training anyway")

    def windows(self) -> tuple[HoursWindow, ...]:
        """The owner's hours; none is any time. In one text, ``;`` stands between windows."""
        texts = self.hours.split(";") if isinstance(self.hours, str) else self.hours
        return parse_hours([text for text in texts if text.strip()])

    def limit(self, value: float | str, auto: float = 0.0) -> Limit:
        """A number is a demand, "auto" a precaution, "none" is off; all are off if nothing is enforced."""
        if not self.enforce or value == "none":
            return Limit(stance=Stance.OFF)
        if isinstance(value, str):
            return Limit(stance=Stance.PRECAUTION, value=auto)
        return Limit(stance=Stance.DEMAND, value=value)

    def stance(self, word: bool | str) -> Stance:  # noqa: FBT001 - a value of the section, not a switch
        """What a yes-or-no key amounts to."""
        if not self.enforce or word in {False, "ignore", "allow"}:
            return Stance.OFF
        return Stance.PRECAUTION if word == "auto" else Stance.DEMAND
