"""The daemon's watch over its own machine: the parts of eligibility, put together for one running device."""

from collections.abc import Callable
from pathlib import Path

from broker_link.link import LinkUp
from edge_client.config import EdgeConfig
from edge_client.eligibility.machine import Machine
from edge_client.eligibility.monitor import EligibilityMonitor
from edge_client.eligibility.survey import OwnWork, Survey
from edge_client.events import EligibilityChanged
from edge_client.session import SessionState
from edge_client.time_floor import TimeFloor
from edge_client.trainer_process import TrainerProcess

__all__ = ["EligibilityWatch"]

_WORKING: frozenset[SessionState] = frozenset({SessionState.ASSIGNED, SessionState.TRAINING})


class EligibilityWatch:
    """Looks at the machine when it is time, and tells what has changed.

    Args:
        config: The device's configuration.
        machine: What to look at.
        time_floor: Says whether the wall clock can be believed; learns what a broker proves.
        trainer: Whose load and memory are not held against the device.
        wake: Called, from another thread, when ``look_if_due`` should be called.
    """

    __slots__ = ("_monitor", "_num_threads", "_time_floor", "_trainer", "_wake")

    def __init__(
        self,
        config: EdgeConfig,
        *,
        machine: Machine,
        time_floor: TimeFloor,
        trainer: TrainerProcess,
        wake: Callable[[], None],
    ) -> None:
        self._trainer = trainer
        self._time_floor = time_floor
        self._num_threads = config.training.num_threads
        self._wake = wake
        survey = Survey(
            machine,
            policy=config.eligibility,
            state_dir=Path(config.device.state_dir),
            wall_clock=time_floor.now,
            on_news=self._on_news,
        )
        self._monitor = EligibilityMonitor(policy=config.eligibility, survey=survey)

    def next_wakeup(self, state: SessionState) -> float:
        """When ``look_if_due`` is due, on the clock of ``now``; a time past is at once."""
        return self._monitor.next_wakeup(is_working=state in _WORKING)

    def connected(self, event: LinkUp) -> None:
        """There is a new connection, hence perhaps another network; and the broker may have proved a time."""
        self._monitor.network_changed()
        if event.proved_unix_s is not None:
            self._time_floor.note_trusted(event.proved_unix_s)

    def look_if_due(self, now: float, state: SessionState) -> EligibilityChanged | None:
        """Looks if it is time to; what has changed, if anything has."""
        return self._look(now) if now >= self.next_wakeup(state) else None

    def look_before_check_in(self, now: float, state: SessionState) -> EligibilityChanged | None:
        """Looks if an idle device is about to begin something on a verdict that is not quite fresh."""
        return self._look(now) if state is SessionState.IDLE and not self._monitor.is_fresh(now) else None

    def _look(self, now: float) -> EligibilityChanged | None:
        num_threads = self._num_threads if self._trainer.is_busy else 0
        return self._monitor.look(now, OwnWork(trainer_pid=self._trainer.pid, num_busy_threads=num_threads))

    def _on_news(self) -> None:
        self._monitor.look_soon()
        self._wake()
