"""Thousands of devices in one process, on virtual time: the real device agent, the real coordinator, a bad network.

Nothing of the protocol is imitated: every device is a `DeviceAgent` behind a `MemoryLink`, and the coordinator is the
same `RoundLoop` that a server runs. What is simulated is the world: delays, loss, duplicates, devices that vanish
while they train, slow ones, and the time training takes.
"""

import dataclasses
import math
import random
from collections.abc import Callable, Mapping, Sequence

from broker_link.link import LinkEvent, Will
from broker_link.memory_broker import MemoryBroker, MemoryLink
from edge_client.agent import DeviceAgent
from edge_client.errors import EdgeClientError
from edge_client.events import DeviceEvent, Publish, SaveBlob, StartJob, StopJob, Tick, TrainingFinished
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.let_out import JobEnd, let_out, refused
from edge_client.privacy.release_desk import ReleaseDesk
from edge_client.privacy.rules import PrivacyBudget, PrivacyRules
from edge_client.privacy.sealing import UpdateSealer
from edge_client.run_job import run_job
from edge_client.training import Examples, Trainer, TrainingJob
from simulators.virtual_time import VirtualTime
from wire_protocol.messages import DeviceStatus, RoundKind, encode_message
from wire_protocol.topics import device_down_filter, device_status, population_round, population_task

__all__ = ["BadNetwork", "BadWorld", "VirtualDevice", "VirtualFleet"]

_BLOBS_PER_DEVICE = 6
_VIRTUAL_EPSILON = 1e6
"""Owners of virtual devices have no budget unless a simulation gives them one."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BadNetwork:
    """How messages fare."""

    latency_s: tuple[float, float] = (0.02, 0.3)
    """Each message takes a time drawn uniformly from this."""
    bytes_per_s: float = 1e6
    """Plus its size over this."""
    loss: float = 0.0
    """Probability that a message never arrives."""
    duplication: float = 0.0
    """Probability that it arrives twice."""

    def __post_init__(self) -> None:
        if not (0 <= self.loss < 1 and 0 <= self.duplication <= 1 and self.bytes_per_s > 0):
            raise ValueError("need 0 <= loss < 1, 0 <= duplication <= 1 and bytes_per_s > 0")

    def delays(self, rng: random.Random, num_bytes: int) -> Sequence[float]:
        """When the copies of one message arrive."""
        if rng.random() < self.loss:
            return ()
        copies = 2 if rng.random() < self.duplication else 1
        return [rng.uniform(*self.latency_s) + num_bytes / self.bytes_per_s for _ in range(copies)]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BadWorld:
    """How devices fare."""

    dropout: float = 0.0
    """Probability, per assignment, that the device vanishes while it trains; it comes back later."""
    away_s: tuple[float, float] = (60.0, 1800.0)
    """How long a vanished device stays away."""
    straggler: float = 0.0
    """Probability, per assignment, that training takes ``straggler_factor`` times as long."""
    straggler_factor: float = 20.0
    seconds_per_example: float = 0.02
    """Median training time per example visit; devices differ log-normally (sigma 0.5)."""
    network: BadNetwork = BadNetwork()

    def __post_init__(self) -> None:
        if not (0 <= self.dropout < 1 and 0 <= self.straggler <= 1):
            raise ValueError("need 0 <= dropout < 1 and 0 <= straggler <= 1")


class VirtualDevice:
    """One device: the real agent, its link, its timer, its examples."""

    def __init__(
        self, *, device_id: str, population: str, fleet: "VirtualFleet", examples: Examples, speed: float
    ) -> None:
        self.device_id = device_id
        self._fleet = fleet
        self._examples = examples
        self._speed = speed
        self._timer_at = math.inf
        self._job: TrainingJob | None = None
        self._blobs = _DeviceBlobs(fleet.canonical)
        rng = fleet.rng
        self.agent = DeviceAgent(
            population=population,
            device_id=device_id,
            blobs=self._blobs,
            uniform=rng.uniform,
            token=lambda: rng.randbytes(16),
        )
        will = DeviceStatus(presence="offline")
        self.link: MemoryLink = fleet.broker.link(
            subscriptions=[
                population_task(population),
                population_round(population),
                device_down_filter(population, device_id),
            ],
            sink=self._on_link_event,
            will=Will(topic=device_status(population, device_id), payload=encode_message(will)),
        )

    def _on_link_event(self, event: LinkEvent) -> None:
        self.handle(event)

    def handle(self, event: DeviceEvent) -> None:
        """Gives the agent an event and does what it asks."""
        for action in self.agent.handle(event, self._fleet.time.now):
            match action:
                case Publish():
                    self.link.publish(action.topic, action.payload, retain=action.retain)
                case SaveBlob():
                    self._blobs.put(action.sha256, action.data)
                case StartJob():
                    self._begin(action.job)
                case StopJob():
                    self._job = None
        self._set_timer()

    def _set_timer(self) -> None:
        wakeup = self.agent.next_wakeup()
        if wakeup < self._timer_at:
            self._timer_at = wakeup
            self._fleet.time.at(wakeup, self._on_timer)

    def _on_timer(self) -> None:
        if self._fleet.time.now < self._timer_at:
            return
        self._timer_at = math.inf
        self.handle(Tick())

    def _begin(self, job: TrainingJob) -> None:
        """Starts a job whose end, or whose device's end, lies in the virtual future."""
        self._job = job
        duration_s = self._fleet.training_time_s(self._speed, job, self._examples.num_examples)
        if self._fleet.rng.random() < self._fleet.world.dropout:
            self._fleet.time.after(duration_s * self._fleet.rng.random(), self._vanish)
        else:
            self._fleet.time.after(duration_s, lambda: self._end(job))

    def _vanish(self) -> None:
        self._fleet.num_vanished += 1
        self._job = None
        self.link.lose("vanished")
        self._fleet.time.after(self._fleet.rng.uniform(*self._fleet.world.away_s), self.link.start)

    def _end(self, job: TrainingJob) -> None:
        if self._job is not job:
            return
        self._job = None
        try:
            result = run_job(self._fleet.trainer, job, self._examples)
            ended: JobEnd = TrainingFinished(round_id=job.round_id, result=result)
        except EdgeClientError as error:
            ended = refused(job, error)
        self.handle(self._fleet.let_out(self.device_id, job, ended))


class _Canonical:
    """One copy of each blob for all devices, so that a thousand checkpoints take the memory of one."""

    def __init__(self, keep: int) -> None:
        self._blobs: dict[bytes, bytes] = {}
        self._keep = keep

    def of(self, sha256: bytes, data: bytes) -> bytes:
        """The shared copy of ``data``; the oldest beyond the limit are forgotten."""
        shared = self._blobs.setdefault(sha256, data)
        while len(self._blobs) > self._keep:
            del self._blobs[next(iter(self._blobs))]
        return shared


class _DeviceBlobs:
    """What one device has fetched: it downloads every blob itself, as a real one does."""

    __slots__ = ("_blobs", "_canonical")

    def __init__(self, canonical: _Canonical) -> None:
        self._canonical = canonical
        self._blobs: dict[bytes, bytes] = {}

    def get(self, sha256: bytes) -> bytes | None:
        return self._blobs.get(sha256)

    def put(self, sha256: bytes, data: bytes) -> None:
        self._blobs[sha256] = self._canonical.of(sha256, data)
        while len(self._blobs) > _BLOBS_PER_DEVICE:
            del self._blobs[next(iter(self._blobs))]


def _ledger_in_memory(rules: PrivacyRules) -> Callable[[], PrivacyLedger]:
    return lambda: PrivacyLedger(None, budget=rules.budget)


class VirtualFleet:
    """The devices and their world.

    Args:
        time: The clock.
        population: Its name.
        examples: Each device's examples, by device id.
        trainer: Runs every device's jobs (it has no state of its own between jobs).
        world: What goes wrong.
        seed: Seeds everything random in the world; the same seed gives the same run (but for a private task's noise).
        privacy: The rules of the devices' owners.
        sealers: Seals a device's updates for a confidential sum, by device id.
    """

    def __init__(
        self,
        *,
        time: VirtualTime,
        population: str,
        examples: Mapping[str, Examples],
        trainer: Trainer,
        world: BadWorld,
        seed: int,
        privacy: PrivacyRules | None = None,
        sealers: Callable[[str], UpdateSealer] | None = None,
    ) -> None:
        self.time = time
        self.trainer = trainer
        self.world = world
        # Not secret: a simulation that cannot be replayed is worth little.
        self.rng = random.Random(seed)  # noqa: S311
        rules = privacy or PrivacyRules(budget=PrivacyBudget(epsilon=_VIRTUAL_EPSILON), min_contributors=1)
        self._desks = {
            device_id: ReleaseDesk(
                _ledger_in_memory(rules), rules, sealer=None if sealers is None else sealers(device_id)
            )
            for device_id in examples
        }
        self.canonical = _Canonical(keep=16)
        self.num_vanished = 0
        self.broker = MemoryBroker(schedule=time.after, delays=self._delays)
        self.devices = [
            VirtualDevice(
                device_id=device_id,
                population=population,
                fleet=self,
                examples=device_examples,
                speed=self.rng.lognormvariate(0.0, 0.5),
            )
            for device_id, device_examples in examples.items()
        ]

    def _delays(self, topic: str, num_bytes: int) -> Sequence[float]:
        del topic
        return self.world.network.delays(self.rng, num_bytes)

    def training_time_s(self, speed: float, job: TrainingJob, num_examples: int) -> float:
        """How long a job takes on a device."""
        visits = num_examples * (job.plan.num_epochs if job.kind is RoundKind.TRAIN else 1)
        slow = self.world.straggler_factor if self.rng.random() < self.world.straggler else 1.0
        return self.world.seconds_per_example * visits * speed * slow

    def let_out(self, device_id: str, job: TrainingJob, ended: JobEnd) -> JobEnd:
        """What of a job's end the device publishes: of a private task, what its own release desk lets out."""
        return let_out(self._desks[device_id], job, ended)

    def start(self, *, within_s: float = 10.0) -> None:
        """Switches every device on, at random moments within a time."""
        for device in self.devices:
            self.time.after(self.rng.uniform(0.0, within_s), device.link.start)

    def connect(self, *, subscriptions: Sequence[str], sink: Callable[[LinkEvent], None]) -> MemoryLink:
        """A link for the coordinator on the same broker and network."""
        return self.broker.link(subscriptions=subscriptions, sink=sink)
