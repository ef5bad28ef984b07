"""Chaos: a real coordinator and real device daemons, killed again and again at named instants; then an audit.

The audit does not believe anybody. It recomputes the model from the initial weights and every contribution that the
journal says was counted, and compares it with the stored state; it takes from the devices' logs every report that was
acknowledged, and looks for each in a committed round.
"""

import collections
import contextlib
import dataclasses
import logging
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from broker_link.failpoints import FAILPOINTS
from coordinator.aggregation_spec import AggregationSpec
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.round_table import RoundState
from edge_client.example_store import write_examples
from simulators.chaos_coordinator import POPULATION, chaos_task, open_chaos_state
from simulators.errors import FleetFailed
from simulators.process_fleet import write_device_config
from simulators.scenario import load_scenario
from wire_protocol.tensors import decode_tensors

__all__ = ["ChaosReport", "run_chaos"]

_LOG = logging.getLogger(__name__)
_NUM_DEVICES = 3
_EXAMPLES_PER_DEVICE = 40
_PATIENCE_S = 25.0
_FOR_EVER = 1_000_000
_ACCEPTED = re.compile(r"(device-\d+) INFO round_over round_id=(\d+) ending=accepted")
_WAITING = "coordinator.round.waiting"
"""Passed once in a life, and only if the aggregator comes later than a round's last report."""
_LATE_S = 24.0
_RESUMED = re.compile(r"(device-\d+) INFO report_resumed round_id=(\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChaosReport:
    """What a chaos run found."""

    seed: int
    num_kills: int
    hits: dict[str, int]
    """Kills by failpoint."""
    num_not_reached: int
    """Armed failpoints that were not passed within the time allowed."""
    num_commits: int
    num_abandoned_with_updates: int
    num_counted: int
    """Updates in committed rounds."""
    num_acknowledged: int
    """Reports that a device was told were accepted."""
    num_resumed: int
    """Reports that a restarted device found in its outbox and sent again."""
    num_resumed_counted: int
    """Of those rounds of those devices, how many are counted in a committed round."""
    num_lost: int
    """Acknowledged, and in no committed round."""
    num_counted_twice: int
    max_state_error: float
    """Largest difference between the stored model and the one recomputed from the counted updates."""
    seconds: float

    @property
    def is_clean(self) -> bool:
        """Whether every promise held."""
        broken = self.num_lost or self.num_counted_twice or self.num_abandoned_with_updates
        return not broken and self.max_state_error <= 1e-5  # noqa: PLR2004 - rounding of a few hundred float32 sums


def run_chaos(
    directory: Path, broker_url: str, *, num_kills: int, seed: int, on_kill: Callable[[int, str], None]
) -> ChaosReport:
    """Kills processes at failpoints until ``num_kills`` kills have happened, lets one more round commit, and audits.

    Args:
        directory: Where both sides keep their files; must be empty.
        broker_url: A running broker.
        num_kills: How many kills.
        seed: Decides order and counts; the same seed arms the same failpoints in the same order.
        on_kill: Told of every kill: its number and the failpoint.

    Raises:
        FleetFailed: A process died by itself.
    """
    started = time.monotonic()
    plan = _kill_plan(seed)
    kills = _Kills()
    bench = _Bench(directory, broker_url)
    with bench.running():
        while kills.num_kills < num_kills:
            name, count = next(plan)
            if bench.kill_at(bench.side_of(name, kills.num_kills), name, count):
                kills.hits[name] += 1
                on_kill(kills.num_kills, name)
            else:
                kills.num_not_reached += 1
                _LOG.warning("failpoint_not_reached name=%s count=%d", name, count)
        bench.let_a_round_commit()
    return _audit(bench, kills, seed=seed, seconds=time.monotonic() - started)


@dataclasses.dataclass(kw_only=True, slots=True)
class _Kills:
    """What was killed so far."""

    hits: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    num_not_reached: int = 0

    @property
    def num_kills(self) -> int:
        return sum(self.hits.values())


def _kill_plan(seed: int) -> Iterator[tuple[str, int]]:
    """Every failpoint in turn, in a new order each time, each passed a few times before it kills."""
    rng = random.Random(seed)  # noqa: S311 - a run that cannot be replayed is worth little
    while True:
        names = list(FAILPOINTS)
        rng.shuffle(names)
        for name in names:
            # What happens once in a process's life cannot be waited for twice.
            once = name.startswith(("coordinator.start", "device.start", "device.link_up")) or name == _WAITING
            yield name, 1 if once else rng.choice((1, 1, 2, 3))


class _Bench:
    """The coordinator's process, one for each device, and their files."""

    def __init__(self, directory: Path, broker_url: str) -> None:
        self._directory = directory
        self._broker_url = broker_url
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._hit_log = directory / "hits.log"
        self._num_lives = 0
        self.device_logs = [directory / f"device-{index}.log" for index in range(_NUM_DEVICES)]
        self.coordinator_directory = directory / "coordinator"
        scenario = load_scenario("digits", num_devices=1400 // _EXAMPLES_PER_DEVICE, partition="iid", alpha=1.0, seed=0)
        self._configs = []
        for index in range(_NUM_DEVICES):
            config = write_device_config(
                directory,
                device_id=scenario.device_id(index),
                population=POPULATION,
                broker_url=broker_url,
                num_threads=1,
            )
            # A device that is killed every few seconds would do right to go into safe mode; here it must go on.
            text = config.read_text().replace("[device]\n", "[device]\nsafe_mode_h = 0\n")
            config.write_text(text.replace("[training]\n", '[training]\ntrainer = "linear"\n'))
            x, y = scenario.examples(index)
            write_examples(config.parent / "data", x=x, y=y)
            self._configs.append(config)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """All processes run; they are killed at the end."""
        try:
            for side in ("coordinator", *(path.stem for path in self.device_logs)):
                self._start(side, {})
            yield
        finally:
            for process in self._processes.values():
                process.kill()
                process.wait()

    def side_of(self, name: str, number: int) -> str:
        """The process that passes a failpoint; the devices take turns."""
        return "coordinator" if name.startswith("coordinator.") else self.device_logs[number % _NUM_DEVICES].stem

    def kill_at(self, side: str, name: str, count: int) -> bool:
        """Restarts one process with a failpoint armed, waits for the kill, and starts it again unarmed.

        Returns:
            Whether the failpoint was reached in time.
        """
        self._stop(side)
        before = self._num_hits()
        self._start(side, {"FLOCKWISE_FAILPOINTS": f"{name}={count}", "FLOCKWISE_FAILPOINT_LOG": str(self._hit_log)})
        give_up_at = time.monotonic() + _PATIENCE_S
        while time.monotonic() < give_up_at and self._num_hits() == before:
            self._check_alive(except_side=side)
            time.sleep(0.05)
        reached = self._num_hits() > before
        self._stop(side)
        self._start(side, {})
        return reached

    def let_a_round_commit(self) -> None:
        """Waits until the coordinator, left alone, has committed one more round and everyone has his receipt."""
        marker = self._directory / "coordinator.log"
        already = marker.read_text().count("round_committed")
        give_up_at = time.monotonic() + 4 * _PATIENCE_S
        while marker.read_text().count("round_committed") < already + 2:
            if time.monotonic() > give_up_at:
                raise FleetFailed("no round was committed after the last kill; see coordinator.log")
            self._check_alive(except_side="")
            time.sleep(0.1)

    def _num_hits(self) -> int:
        return len(self._hit_log.read_text().splitlines()) if self._hit_log.exists() else 0

    def _check_alive(self, *, except_side: str) -> None:
        for side, process in self._processes.items():
            if side != except_side and process.poll() is not None:
                raise FleetFailed(f"the {side} ended by itself with code {process.returncode}; see {side}.log")

    def _start(self, side: str, armed: dict[str, str]) -> None:
        if side == "coordinator":
            self.coordinator_directory.mkdir(exist_ok=True)
            arguments = [
                "simulators.chaos_coordinator",
                str(self.coordinator_directory),
                self._broker_url,
                str(_FOR_EVER),
                str(self._late_s(armed)),
            ]
        else:
            config = self._configs[int(side.rpartition("-")[2])]
            arguments = ["simulators.device_host", str(config)]
        log = (self._directory / f"{side}.log").open("ab")
        with log:
            self._processes[side] = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | armed,
            )

    def _late_s(self, armed: dict[str, str]) -> float:
        """How late the aggregator comes in the next life: in every second one it is there almost at once."""
        if _WAITING in armed.get("FLOCKWISE_FAILPOINTS", ""):
            return _LATE_S
        self._num_lives += 1
        return 2.0 * (self._num_lives % 2)

    def _stop(self, side: str) -> None:
        process = self._processes[side]
        process.kill()
        process.wait()


def _audit(bench: _Bench, kills: _Kills, *, seed: int, seconds: float) -> ChaosReport:
    bundle = chaos_task()
    aggregator = NumpyMeanAggregator(bundle.plan.weights, AggregationSpec())
    task = open_chaos_state(bench.coordinator_directory, aggregator, bundle)
    rows = task.journal.audit()  # type: ignore[attr-defined]
    task.journal.close()
    committed = [row for row in rows if row[5] == RoundState.COMMITTED.value and row[4] < task.state.num_commits]
    counted = collections.Counter((row[0], row[1]) for row in committed)
    log = "".join(path.read_text() for path in bench.device_logs)
    acknowledged = {(int(round_id), device) for device, round_id in _ACCEPTED.findall(log)}
    resumed = [(int(round_id), device) for device, round_id in _RESUMED.findall(log)]
    # A round that was open when the run ended has not been committed yet; nothing in it is lost.
    last_closed = max((row[0] for row in rows), default=0)
    lost = {entry for entry in acknowledged if entry not in counted and entry[0] <= last_closed}
    weights = [np.array(weight, dtype=np.float64) for weight in bundle.initial_weights]
    for base in range(task.state.num_commits):
        updates = [row for row in committed if row[4] == base]
        total = sum(row[3] for row in updates)
        for row in updates:
            for weight, delta in zip(weights, decode_tensors(row[2], bundle.plan.weights), strict=True):
                np.add(weight, delta.astype(np.float64) * (row[3] / total), out=weight)
    error = max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(weights, task.state.weights, strict=True))
    return ChaosReport(
        seed=seed,
        num_kills=kills.num_kills,
        hits=dict(sorted(kills.hits.items())),
        num_not_reached=kills.num_not_reached,
        num_commits=task.state.num_commits,
        num_abandoned_with_updates=len({row[0] for row in rows if row[5] == RoundState.ABANDONED.value}),
        num_counted=sum(counted.values()),
        num_acknowledged=len(acknowledged),
        num_resumed=len(resumed),
        num_resumed_counted=len(counted.keys() & set(resumed)),
        num_lost=len(lost),
        num_counted_twice=sum(count > 1 for count in counted.values()),
        max_state_error=error,
        seconds=round(seconds, 1),
    )
