"""The broker dies in the middle of rounds, again and again, under a whole fleet; every promise is kept.

Real Mosquitto, ended by SIGKILL and SIGTERM in turn; the real server loop with its journal on disk, over paho; device
agents by the thousand (`live_fleet`). Every aggregated state is compared with the exact mean of what was folded.
"""

import asyncio
import collections
import dataclasses
import logging
import random
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from coordinator.admission import AdmissionPolicy
from coordinator.checkpoints import CheckpointStore
from coordinator.round_ids import RoundIds
from coordinator.round_loop import RoundSchedule, RoundSummary
from coordinator.round_policy import RoundPolicy
from coordinator.round_table import RoundState
from coordinator.server import ServerConfig, TaskState, run_rounds
from edge_client.settings import AgentSettings
from simulators.chaos_coordinator import AuditJournal
from simulators.errors import FleetFailed
from simulators.trials.exact_mean import ExactMean
from simulators.trials.live_fleet import LiveFleet
from simulators.trials.mosquitto import RestartableMosquitto
from simulators.virtual_run import linear_task

__all__ = ["RestartReport", "Spread", "run_broker_restarts"]

_LOG = logging.getLogger(__name__)
_POPULATION = "restarts"
_BUNDLE = linear_task(100, 100, batch_size=2, num_epochs=1, learning_rate=0.1)
"""10 100 weights: updates of 40 kB."""
_PATIENCE_S = 180.0
_BIN_S = 0.1
_SPARE_FILES = 200


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """How the devices came back after one restart; times count from the moment the broker listened again."""

    ended_by: str
    down_s: float
    num_reports_before: int
    """Reports of the round under way that were counted when the broker died."""
    p50_s: float
    p99_s: float
    last_s: float
    busiest_bin: int
    """Most devices that came back within the same 100 ms."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestartReport:
    """What the trial found."""

    num_devices: int
    seed: int
    restarts: tuple[Spread, ...]
    num_commits: int
    num_abandoned: int
    num_counted: int
    num_acknowledged: int
    num_lost: int
    """Acknowledged to a device, and in no committed round."""
    num_counted_twice: int
    num_states_checked: int
    """Aggregated states that were compared with the exact mean."""
    max_state_error: float
    seconds: float

    @property
    def is_clean(self) -> bool:
        """Whether every promise held."""
        return not (self.num_lost or self.num_counted_twice or self.num_abandoned) and self.num_states_checked > 0


def run_broker_restarts(
    directory: Path,
    *,
    num_restarts: int,
    num_devices: int,
    seed: int,
    training_s: tuple[float, float] = (1.0, 6.0),
    settings: AgentSettings | None = None,
    on_restart: Callable[[Spread], None] = lambda _: None,
) -> RestartReport:
    """Restarts the broker in the middle of rounds, then lets the round under way and one more commit, and audits.

    Args:
        directory: For the coordinator's and the broker's files; must be empty.
        num_restarts: How often the broker is ended, by SIGKILL and SIGTERM in turn.
        num_devices: Every one of them is in every cohort, and every round waits for all.
        seed: Decides when in a round the broker dies, and for how long.
        training_s: Shortest and longest training.
        settings: The devices' patience; the daemon's own if None.
        on_restart: Told when all devices are back.

    Raises:
        FleetFailed: Too few open files allowed, or devices or rounds that did not come (back) in time.
        ReferenceMismatch: A state is not the exact mean.
    """
    _allow_open_files(num_devices + _SPARE_FILES)
    trial = _Trial(directory, num_devices=num_devices, seed=seed, training_s=training_s, settings=settings)
    return asyncio.run(trial.run(num_restarts, on_restart))


def _allow_open_files(wanted: int) -> None:
    """Raises the soft limit on open files as far as needed; the broker inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    if hard < wanted:
        raise FleetFailed(
            f"{wanted} open files are needed and {hard} allowed; raise 'ulimit -Hn', or take fewer devices"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Trial:
    """Broker, coordinator (in a thread of its own) and fleet (in this event loop)."""

    def __init__(
        self,
        directory: Path,
        *,
        num_devices: int,
        seed: int,
        training_s: tuple[float, float],
        settings: AgentSettings | None,
    ) -> None:
        self._directory = directory
        self._num_devices = num_devices
        self._seed = seed
        self._training_s = training_s
        self._settings = settings
        self._dice = random.Random(seed)  # noqa: S311 - a trial that cannot be replayed is worth little
        self._mosquitto = RestartableMosquitto(directory)
        self._aggregator = ExactMean(_BUNDLE.plan.weights)
        self._summaries: list[RoundSummary] = []
        self._stop = threading.Event()
        self._problem: BaseException | None = None

    async def run(self, num_restarts: int, on_restart: Callable[[Spread], None]) -> RestartReport:
        """The whole trial."""
        started = time.monotonic()
        spreads: list[Spread] = []
        with self._mosquitto.running() as url:
            thread = threading.Thread(target=self._coordinate, args=(url,), name="coordinator")
            thread.start()
            fleet = LiveFleet(
                population=_POPULATION,
                host="127.0.0.1",
                port=self._mosquitto.port,
                num_devices=self._num_devices,
                training_s=self._training_s,
                seed=self._seed,
                settings=self._settings,
            )
            try:
                fleet.start()
                for number in range(num_restarts):
                    how = signal.SIGTERM if number % 2 else signal.SIGKILL
                    spreads.append(await self._restart(fleet, how))
                    on_restart(spreads[-1])
                wanted = len(self._summaries) + 2
                await self._until(lambda: len(self._summaries) >= wanted, "a round to commit")
                # Whoever has a receipt under way gets it before the audit.
                await asyncio.sleep(1.0)
            finally:
                fleet.stop()
                self._stop.set()
                await asyncio.to_thread(thread.join)
        if self._problem is not None:
            raise self._problem
        return self._audit(fleet, tuple(spreads), seconds=time.monotonic() - started)

    async def _restart(self, fleet: LiveFleet, how: signal.Signals) -> Spread:
        """Ends the broker when a share of the cohort has been counted, and starts it again a little later."""
        share = self._dice.uniform(0.05, 0.8)
        down_s = self._dice.uniform(0.2, 2.0)
        begin, base = len(self._summaries), self._aggregator.num_folded

        def is_mid_round() -> bool:
            # Counts from the next round on: the one under way may be nearly over.
            if len(self._summaries) == begin:
                nonlocal base
                base = self._aggregator.num_folded
                return False
            return self._aggregator.num_folded - base >= share * self._num_devices

        await self._until(is_mid_round, "the middle of a round")
        num_before = self._aggregator.num_folded - base
        await asyncio.to_thread(self._mosquitto.end, how)
        await asyncio.sleep(down_s)
        fleet.up_times.clear()
        await asyncio.to_thread(self._mosquitto.start)
        again_at = time.monotonic()
        await self._until(lambda: len(fleet.up) == self._num_devices, "all devices to be back")
        times = sorted(max(0.0, at - again_at) for at in fleet.up_times)
        bins = collections.Counter(int(at / _BIN_S) for at in times)
        return Spread(
            ended_by=how.name,
            down_s=round(down_s, 2),
            num_reports_before=num_before,
            p50_s=round(times[len(times) // 2], 2),
            p99_s=round(times[int(len(times) * 0.99)], 2),
            last_s=round(times[-1], 2),
            busiest_bin=max(bins.values()),
        )

    async def _until(self, holds: Callable[[], bool], what: str) -> None:
        give_up_at = time.monotonic() + _PATIENCE_S
        while not holds():
            if self._problem is not None:
                raise self._problem
            if time.monotonic() > give_up_at:
                raise FleetFailed(f"waited {_PATIENCE_S:.0f} s in vain for {what}")
            await asyncio.sleep(0.02)

    def _coordinate(self, url: str) -> None:
        """The coordinator's thread."""
        goal = self._num_devices
        config = ServerConfig(
            broker_url=url,
            population=_POPULATION,
            policy=RoundPolicy(
                report_goal=goal,
                min_reports=goal,
                over_selection=1.0,
                selection_timeout_s=_PATIENCE_S,
                report_timeout_s=_PATIENCE_S,
            ),
            schedule=RoundSchedule(num_commits=1_000_000),
            admission=AdmissionPolicy(),
        )
        try:
            task = TaskState(
                store=CheckpointStore(self._directory / "states"),
                journal=AuditJournal(self._directory / "journal.sqlite"),
                round_ids=RoundIds(self._directory / "last_round_id"),
                state=self._aggregator.initialize(_BUNDLE.initial_weights),
                is_resumed=False,
            )
            run_rounds(
                config,
                bundle=_BUNDLE,
                aggregator=self._aggregator,
                task=task,
                on_round=lambda summary, _: self._summaries.append(summary),
                stop=self._stop,
            )
        except BaseException as error:  # noqa: BLE001 - told to the trial, which raises it
            self._problem = error

    def _audit(self, fleet: LiveFleet, spreads: tuple[Spread, ...], *, seconds: float) -> RestartReport:
        with AuditJournal(self._directory / "journal.sqlite") as journal:
            rows = journal.audit()
            unfinished = {
                (known.round_id, contribution.device_id)
                for known in journal.rounds()
                for contribution in journal.contributions(known.round_id)
            }
        counted = collections.Counter((row[0], row[1]) for row in rows if row[5] == RoundState.COMMITTED.value)
        return RestartReport(
            num_devices=self._num_devices,
            seed=self._seed,
            restarts=spreads,
            num_commits=sum(summary.state is RoundState.COMMITTED for summary in self._summaries),
            num_abandoned=sum(summary.state is RoundState.ABANDONED for summary in self._summaries),
            num_counted=sum(counted.values()),
            num_acknowledged=len(fleet.acknowledged),
            # What was counted in the round that was under way at the end is in the journal, and not lost.
            num_lost=len(fleet.acknowledged - counted.keys() - unfinished),
            num_counted_twice=sum(count > 1 for count in counted.values()),
            num_states_checked=self._aggregator.num_checked,
            max_state_error=self._aggregator.max_error,
            seconds=round(seconds, 1),
        )
