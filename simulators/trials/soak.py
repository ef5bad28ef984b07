"""Soak: the real commands for a long time on Mosquitto, round after round; what grows, and how much is written.

`flockwise coordinator serve` with TFF, and `flockwise edge run` once per device with LiteRT in its child process, each
a process of its own, as in the field. Rounds follow one another without a pause, so that minutes stand for weeks.
"""

import contextlib
import dataclasses
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from edge_client.example_store import write_examples
from simulators.errors import FleetFailed
from simulators.process_fleet import write_device_config
from simulators.scenario import load_scenario
from simulators.trials.growth import Growth, growth_of
from simulators.trials.process_watch import ProcessWatch

__all__ = ["SoakReport", "run_soak"]

_LOG = logging.getLogger(__name__)
_POPULATION = "soak"
_EXAMPLES_PER_DEVICE = 40
_FOR_EVER = 1_000_000
_FIRST_ROUND_S = 120.0
_STOP_S = 30.0
_COORDINATOR = "coordinator"
_STOPPED_CODE = 4
_MODEL = ("zoo:digits_mlp", "--batch-size", "16", "--learning-rate", "0.05")
_COMMAND = (sys.executable, "-c", "import sys; from flockwise.cli import main; sys.exit(main())")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoakReport:
    """What a soak found."""

    minutes: float
    """After the warm-up."""
    warm_up_s: float
    num_devices: int
    num_commits: int
    num_abandoned: int
    growth: dict[str, Growth]
    """By process: ``coordinator``, ``device-N``, and ``trainer-N`` for the device's children."""
    exit_codes: dict[str, int]

    @property
    def is_clean(self) -> bool:
        """Whether everything went on until it was told to stop, and no process opened more and more files or threads."""
        ended_well = all(
            code == (_STOPPED_CODE if name == _COORDINATOR else 0) for name, code in self.exit_codes.items()
        )
        no_leak = all(growth.fds_drift <= 1 and growth.threads_drift <= 1 for growth in self.growth.values())
        return ended_well and no_leak and self.num_commits > 0


def run_soak(
    directory: Path,
    broker_url: str,
    *,
    minutes: float,
    num_devices: int = 2,
    num_samples: int = 60,
    on_sample: Callable[[dict[str, ProcessWatch]], None] = lambda _: None,
) -> SoakReport:
    """Runs rounds for a time and reports growth. A fifth of the time is warm-up and left out.

    Args:
        directory: For both sides' files and logs; must be empty.
        broker_url: A running broker.
        minutes: Time from the first committed round on.
        num_devices: Daemons.
        num_samples: How often the processes are looked at, evenly spread.
        on_sample: Told after every sample.

    Raises:
        FleetFailed: A process ended by itself, or no round was committed.
    """
    bench = _Bench(directory, broker_url, num_devices)
    with bench.running():
        bench.wait_for_a_commit()
        started = time.monotonic()
        interval_s = minutes * 60.0 / num_samples
        for number in range(num_samples + 1):
            time.sleep(max(0.0, started + number * interval_s - time.monotonic()))
            bench.check_alive()
            for watch in bench.watches.values():
                watch.sample(time.monotonic() - started)
            on_sample(bench.watches)
    warm_up_s = minutes * 60.0 / 5
    rounds = bench.rounds()
    return SoakReport(
        minutes=minutes * 0.8,
        warm_up_s=warm_up_s,
        num_devices=num_devices,
        num_commits=sum(row["state"] == "committed" for row in rounds),
        num_abandoned=sum(row["state"] == "abandoned" for row in rounds),
        growth={name: growth_of(watch.samples, warm_up_s=warm_up_s) for name, watch in bench.watches.items()},
        exit_codes=bench.exit_codes,
    )


class _Bench:
    """The processes and their files."""

    def __init__(self, directory: Path, broker_url: str, num_devices: int) -> None:
        self._directory = directory
        self._broker_url = broker_url
        self._configs = _write_devices(directory, broker_url, num_devices)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.watches: dict[str, ProcessWatch] = {}
        self.exit_codes: dict[str, int] = {}

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Everything runs, and is asked to stop at the end."""
        bundle = self._directory / "bundle"
        self._start("export", "export", *_MODEL, "--out", str(bundle), "--json")
        if self._processes.pop("export").wait() != 0:
            raise FleetFailed("the export failed; see export.log")
        try:
            self._start(
                _COORDINATOR,
                *("coordinator", "serve", "--task", str(bundle), "--broker", self._broker_url, "--json"),
                *("--population", _POPULATION, "--state-dir", str(self._directory / "coordinator")),
                *("--rounds", str(_FOR_EVER), "--report-goal", str(len(self._configs)), "--over-selection", "1"),
            )
            for index, config in enumerate(self._configs):
                self._start(f"device-{index}", "edge", "run", "--config", str(config))
            self._watch()
            yield
        finally:
            self._stop_all()

    def wait_for_a_commit(self) -> None:
        """Waits until the first round is over."""
        give_up_at = time.monotonic() + _FIRST_ROUND_S
        while not self.rounds():
            self.check_alive()
            if time.monotonic() > give_up_at:
                raise FleetFailed("no round was committed; see coordinator.log")
            time.sleep(0.2)

    def check_alive(self) -> None:
        """Raises if a process has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise FleetFailed(f"{name} ended by itself with code {process.returncode}; see {name}.log")

    def rounds(self) -> list[dict[str, object]]:
        """The rounds that are over, as the coordinator printed them."""
        text = (self._directory / f"{_COORDINATOR}.out").read_text()
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def _watch(self) -> None:
        for name, popen in self._processes.items():
            process = psutil.Process(popen.pid)
            self.watches[name] = ProcessWatch(lambda process=process: [process])  # type: ignore[misc]
            if name.startswith("device"):
                self.watches[name.replace("device", "trainer")] = ProcessWatch(
                    lambda process=process: process.children(recursive=True)  # type: ignore[misc]
                )

    def _start(self, name: str, *arguments: str) -> None:
        with (self._directory / f"{name}.out").open("wb") as out, (self._directory / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [*_COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=log
            )

    def _stop_all(self) -> None:
        # The coordinator first: a device that leaves gives its assignment back, which may be the end of a round.
        for name, process in self._processes.items():
            process.send_signal(signal.SIGTERM)
            try:
                self.exit_codes[name] = process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                _LOG.error("process_did_not_stop name=%s", name)
                process.kill()
                self.exit_codes[name] = process.wait()


def _write_devices(directory: Path, broker_url: str, num_devices: int) -> list[Path]:
    scenario = load_scenario("digits", num_devices=1400 // _EXAMPLES_PER_DEVICE, partition="iid", alpha=1.0, seed=0)
    configs = []
    for index in range(num_devices):
        config = write_device_config(
            directory,
            device_id=scenario.device_id(index),
            population=_POPULATION,
            broker_url=broker_url,
            num_threads=1,
        )
        x, y = scenario.examples(index)
        write_examples(config.parent / "data", x=x, y=y)
        configs.append(config)
    return configs
