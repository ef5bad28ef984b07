"""Makes all readings. What costs a process (`nmcli`, `vcgencmd`) is asked rarely and from a thread of its own."""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from edge_client.eligibility.heat import probe_temperature_c, probe_throttling
from edge_client.eligibility.hours import LocalTime, local_time
from edge_client.eligibility.machine import Machine, Unknown
from edge_client.eligibility.network import NetworkCost, probe_network
from edge_client.eligibility.policy import EligibilitySection, Stance
from edge_client.eligibility.power import PowerSource, probe_battery_percent, probe_power
from edge_client.eligibility.readings import Readings
from edge_client.eligibility.workload import (
    OwnLoad,
    probe_free_disk_mb,
    probe_free_memory_mb,
    probe_load_per_core,
    probe_memory_pressure_percent,
    probe_process_memory_mb,
)
from edge_client.time_floor import ClockReading, ClockUntrusted

__all__ = ["OwnWork", "Survey"]

_T = TypeVar("_T")
_SLOW_PERIOD_S: Final = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OwnWork:
    """What the device itself does to the machine now. It is not held against it."""

    trainer_pid: int | None = None
    """The child's, if there is one: its memory would be free again."""
    num_busy_threads: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Slow:
    """Readings that cost a process."""

    network: NetworkCost | Unknown
    throttling: tuple[str, ...] | Unknown


class Survey:
    """Reads one machine.

    Args:
        machine: What to read.
        policy: What the owner says about power and network wins over the probes; what nobody asks is not probed.
        state_dir: Where free space is needed.
        wall_clock: The time, if it can be believed.
        on_news: Called, from another thread, when the slow readings have changed.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        policy: EligibilitySection,
        state_dir: Path,
        wall_clock: Callable[[], ClockReading],
        on_news: Callable[[], None] = lambda: None,
    ) -> None:
        self._machine = machine
        self._policy = policy
        self._state_dir = state_dir
        self._wall_clock = wall_clock
        self._on_news = on_news
        self._own_load = OwnLoad()
        self._slow: _Slow | None = None
        self._slow_due_at: float | None = None
        self._asker: threading.Thread | None = None

    def temperature_c(self) -> float | Unknown:
        """The temperature alone: a few small files."""
        return _safely(lambda: probe_temperature_c(self._machine))

    def read(self, now: float, own: OwnWork) -> Readings:
        """All readings. The first call waits for the slow ones; later calls take what the thread brought last.

        Args:
            now: Monotonic time in seconds.
            own: What the device does itself.
        """
        machine, slow = self._machine, self._slow_readings(now)
        own_load = self._own_load.update(now, own.num_busy_threads) / machine.num_cores
        load = _safely(lambda: probe_load_per_core(machine))
        return Readings(
            power=self._power(),
            battery_percent=_safely(lambda: probe_battery_percent(machine)),
            temperature_c=self.temperature_c(),
            throttling=slow.throttling,
            load_per_core=load if isinstance(load, Unknown) else max(load - own_load, 0.0),
            free_memory_mb=_safely(lambda: self._free_memory_mb(own.trainer_pid)),
            memory_pressure_percent=_safely(lambda: probe_memory_pressure_percent(machine)),
            network=slow.network,
            local_time=_safely(self._local_time),
            free_disk_mb=_safely(lambda: probe_free_disk_mb(self._state_dir)),
        )

    def network_changed(self) -> None:
        """There is a new connection: ask again soon."""
        self._slow_due_at = None

    def _power(self) -> PowerSource | Unknown:
        if self._policy.power != "auto":
            return PowerSource(self._policy.power)
        return _safely(lambda: probe_power(self._machine))

    def _network(self) -> NetworkCost | Unknown:
        if self._policy.network != "auto":
            return NetworkCost(self._policy.network)
        if self._policy.stance(self._policy.metered_network) is Stance.OFF:
            return Unknown("not asked, as metered networks are allowed")
        return _safely(lambda: probe_network(self._machine))

    def _free_memory_mb(self, trainer_pid: int | None) -> float | Unknown:
        free_mb = probe_free_memory_mb(self._machine)
        own_mb = Unknown("no trainer") if trainer_pid is None else probe_process_memory_mb(self._machine, trainer_pid)
        return free_mb if isinstance(free_mb, Unknown) or isinstance(own_mb, Unknown) else free_mb + own_mb

    def _local_time(self) -> LocalTime | Unknown:
        reading = self._wall_clock()
        if isinstance(reading, ClockUntrusted):
            return Unknown(reading.why)
        return local_time(reading.unix_s, self._policy.time_zone)

    def _ask_slow(self) -> _Slow:
        return _Slow(network=self._network(), throttling=_safely(lambda: probe_throttling(self._machine)))

    def _slow_readings(self, now: float) -> _Slow:
        if self._slow is None:
            self._slow, self._slow_due_at = self._ask_slow(), now + _SLOW_PERIOD_S
        is_asking = self._asker is not None and self._asker.is_alive()
        if (self._slow_due_at is None or now >= self._slow_due_at) and not is_asking:
            self._slow_due_at = now + _SLOW_PERIOD_S
            self._asker = threading.Thread(target=self._refresh, name="slow-probes", daemon=True)
            self._asker.start()
        return self._slow

    def _refresh(self) -> None:
        before, self._slow = self._slow, self._ask_slow()
        if self._slow != before:
            self._on_news()


def _safely(probe: Callable[[], _T | Unknown]) -> _T | Unknown:
    """A probe that raises after all has read nothing."""
    try:
        return probe()
    except Exception as error:  # noqa: BLE001 - drivers and mounts fail in ways nobody foresaw; the daemon must not
        return Unknown(f"{type(error).__name__}: {error}")
