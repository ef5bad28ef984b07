"""Pushes one release to a large fleet on Mosquitto and says how long it took and what it cost whom."""

import asyncio
import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

from coordinator.releases.drafting import GoldenRules, draft_release
from coordinator.releases.gates import GateRules
from coordinator.releases.repository import ReleaseRepository
from coordinator.releases.serving import KEYS_DIRECTORY, open_channel
from coordinator.releases.signing_keys import KeyFiles
from edge_client.releases.golden import GoldenExamples, encode_golden
from simulators.errors import FleetFailed
from simulators.trials.mosquitto import RestartableMosquitto
from simulators.trials.pushed_fleet import PushedFleet, times_to_shares
from wire_protocol.release import ModelTensor, ReleaseLineage, ReleaseNeeds

__all__ = ["PushResult", "random_model", "run_push"]

_POPULATION = "fleet"
_MODEL = "model"
_MEGABYTE = 1e6


@dataclasses.dataclass(frozen=True, kw_only=True)
class PushResult:
    """One push."""

    num_simulated: int
    num_real: int
    model_bytes: int
    transfer_bytes: int
    """Of one device: the packed model and the golden batch."""
    connect_s: float
    seconds_to: dict[str, float]
    """Share of the simulated fleet -> seconds after the order was signed."""
    real_seconds_to: dict[str, float]
    """The same of real daemons, whose model is checked and in use then; empty if there are none."""
    station_bytes: int
    """What the station published, in bytes."""
    station_messages: int
    fleet_bytes: int
    """Pieces that the simulated devices received."""
    repeated_pieces: int
    cpu_s: dict[str, float]
    """CPU seconds of station, broker and simulated fleet."""
    rss_mb: dict[str, float]
    """Resident memory of each at the end."""


def run_push(
    *,
    num_simulated: int,
    num_real: int,
    model: bytes,
    real_golden: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None,
    limit_s: float = 1800.0,
    say: Callable[[str], None] = lambda _: None,
) -> PushResult:
    """Runs one push.

    Args:
        num_simulated: Devices in one event loop of this process.
        num_real: `flockwise edge run` processes.
        model: A ``.tflite`` file; with ``num_real`` 0 any bytes.
        real_golden: Inputs and outputs of it, for real daemons to check it by.
        limit_s: Give up after this.
        say: Told how far it is.

    Raises:
        FleetFailed: Mosquitto is missing, or 99 % of the devices did not get it in time.
    """
    with tempfile.TemporaryDirectory() as text:
        scratch = Path(text)
        mosquitto = RestartableMosquitto(scratch)
        with mosquitto.running() as url:
            trial = _Trial(
                scratch, url, mosquitto=mosquitto, model=model, real_golden=real_golden, limit_s=limit_s, say=say
            )
            return asyncio.run(trial.run(num_simulated, num_real))


class _Trial:
    def __init__(
        self,
        scratch: Path,
        url: str,
        *,
        mosquitto: RestartableMosquitto,
        model: bytes,
        real_golden: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None,
        limit_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._scratch = scratch
        self._url = url
        self._mosquitto = mosquitto
        self._model = model
        self._limit_s = limit_s
        self._say = say
        self._channel = scratch / "channel"
        ReleaseRepository.create(self._channel, KeyFiles(self._channel / KEYS_DIRECTORY), now=time.time)
        inputs, outputs = real_golden or (np.zeros((4, 8), np.float32), np.zeros((4, 2), np.float32))
        self._draft = draft_release(
            name=_MODEL, number=1, model=model, tensors=(_tensor(inputs), _tensor(outputs)),
            golden=GoldenRules(
                data=encode_golden(GoldenExamples(inputs=inputs, outputs=outputs)), num_examples=len(inputs),
                max_abs_error=1e-3, min_agreement=0.9, max_latency_ms=1e4,
            ),
            needs=ReleaseNeeds(min_runtime="1.0.0", min_memory_mb=1), lineage=ReleaseLineage(),
        )  # fmt: skip

    async def run(self, num_simulated: int, num_real: int) -> PushResult:
        repository, book, rollouts = open_channel(self._channel)
        fleet = PushedFleet(
            population=_POPULATION, model=_MODEL, host="127.0.0.1", port=self._mosquitto.port, num_devices=num_simulated,
            root=repository.root_bytes, scratch=self._scratch, seed=1,
        )  # fmt: skip
        with self._station() as station, self._real_devices(num_real, repository.root_bytes) as real:
            began = time.monotonic()
            self._say(f"connecting {num_simulated} devices")
            await fleet.connect()
            connect_s = time.monotonic() - began
            broker = psutil.Process(self._mosquitto.pid)
            before = {name: _cpu_s(process) for name, process in _watched(station, broker).items()}
            repository.add_release(self._draft.manifest, self._draft.blobs)
            rollouts.start(_MODEL, 1, stages=(1000,), rules=GateRules(max_stage_s=1e6))
            began = time.monotonic()
            real_done: dict[Path, float] = {}
            while len(fleet.done_at) < num_simulated or len(real_done) < num_real:
                await asyncio.sleep(0.25)
                for path in real:
                    if path not in real_done and path.is_symlink():
                        real_done[path] = time.monotonic()
                self._say(
                    f"{len(fleet.done_at)} of {num_simulated} simulated ({fleet.num_up} connected), {len(real_done)} of {num_real} real devices"
                )
                if time.monotonic() - began > self._limit_s:
                    raise FleetFailed(
                        f"{len(fleet.done_at)} simulated and {len(real_done)} real devices have it after {self._limit_s:g} s"
                    )
            watched = _watched(station, broker)
            published = self._published(repository)
            result = PushResult(
                num_simulated=num_simulated,
                num_real=num_real,
                model_bytes=len(self._model),
                transfer_bytes=fleet.num_bytes_received // max(1, num_simulated),
                connect_s=connect_s,
                seconds_to=times_to_shares(list(fleet.done_at.values()), num_devices=num_simulated, began=began),
                real_seconds_to=times_to_shares(list(real_done.values()), num_devices=num_real, began=began)
                if num_real
                else {},
                station_bytes=sum(published),
                station_messages=len(published),
                fleet_bytes=fleet.num_bytes_received,
                repeated_pieces=fleet.num_repeated,
                cpu_s={name: _cpu_s(process) - before[name] for name, process in watched.items()},
                rss_mb={name: process.memory_info().rss / _MEGABYTE for name, process in watched.items()},
            )
        fleet.stop()
        book.close()
        return result

    def _published(self, repository: ReleaseRepository) -> list[int]:
        """Sizes of what the station has retained: it publishes each once."""
        from coordinator.releases.publisher import channel_messages

        return [len(payload) for _, payload in channel_messages(repository, _POPULATION)]

    @contextlib.contextmanager
    def _station(self) -> Iterator[psutil.Process]:
        words = [
            "rollout",
            "serve",
            "--channel",
            str(self._channel),
            "--population",
            _POPULATION,
            "--broker",
            self._url,
        ]
        with _process(words, self._scratch / "station.log") as process:
            yield psutil.Process(process.pid)

    @contextlib.contextmanager
    def _real_devices(self, num_real: int, root: bytes) -> Iterator[list[Path]]:
        with contextlib.ExitStack() as stack:
            links = []
            for index in range(num_real):
                home = self._scratch / f"real-{index}"
                home.mkdir()
                (home / "root.json").write_bytes(root)
                (home / "edge.toml").write_text(
                    f'[device]\nid = "real-{index}"\npopulation = "{_POPULATION}"\nstate_dir = "state"\n[broker]\n'
                    f'url = "{self._url}"\n[data]\npath = "data"\n[eligibility]\nenforce = false\n[releases]\n'
                    f'models = ["{_MODEL}"]\nroot_file = "root.json"\ntrial_min = 0.05\ncheck_time_limit_s = 900\n'
                )
                stack.enter_context(_process(["edge", "run", "--config", str(home / "edge.toml")], home / "log"))
                links.append(home / "state" / "models" / _MODEL / "current")
            yield links


@contextlib.contextmanager
def _process(words: list[str], log_path: Path) -> "Iterator[subprocess.Popen[bytes]]":
    command = [sys.executable, "-c", "from flockwise.cli import main; main()", *words]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"})
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _watched(station: psutil.Process, broker: psutil.Process) -> dict[str, psutil.Process]:
    return {"station": station, "broker": broker, "simulated fleet": psutil.Process()}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _tensor(values: npt.NDArray[np.float32]) -> ModelTensor:
    return ModelTensor(shape=values.shape[1:], dtype="float32")


def random_model(num_bytes: int, seed: int) -> bytes:
    """Bytes that do not compress, as trained weights hardly do."""
    return random.Random(seed).randbytes(num_bytes)  # noqa: S311 - filler
