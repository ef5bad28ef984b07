"""A random walk through the protocol: the real parts, a hostile world, and an exact account of what must hold.

One set of rules, each a method that takes one number from which it draws its choices. hypothesis drives them in
`tests/properties` (and shrinks what it finds); `walk` drives them by a plain seeded generator at full speed. After
every step the reference has compared whatever the step did; `calm` asks for liveness: without faults, a round commits.
"""

import bisect
import collections
import dataclasses
import itertools
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from broker_link.memory_broker import MemoryBroker
from simulators.trials.errors import ProtocolMismatch
from simulators.trials.protocol_coordinator import CoordinatorHost
from simulators.trials.protocol_device import DeviceHost
from simulators.trials.protocol_reference import ProtocolReference
from simulators.trials.protocol_trial import POPULATION, trial_task
from wire_protocol.limits import MAX_PIECE_BYTES
from wire_protocol.messages import Report, Withdrawal, WithdrawalReason, decode_message, encode_message
from wire_protocol.topics import device_up

__all__ = ["RULES", "ProtocolModel", "WalkReport", "walk"]

_NUM_DEVICES: Final = 4
_HISTORY: Final = 400
_LIVENESS_S: Final = 3600.0
"""Virtual seconds within which a calm world commits a round: longest wait of a device + selection + two reports."""
_CALM_EVERY: Final = 1000


class ProtocolModel:
    """One world.

    Args:
        disk: An empty directory for the coordinator's disk.
        seed: Seeds everything random in the world (the rules' choices come from their arguments).
    """

    def __init__(self, disk: Path, seed: int) -> None:
        self._rng = random.Random(seed)  # noqa: S311 - replayed, not secret
        self.reference = ProtocolReference(trial_task().initial_weights)
        self.now = 0.0
        self._flying: list[Callable[[], None]] = []
        self._history: collections.deque[tuple[str, bytes]] = collections.deque(maxlen=_HISTORY)
        broker = self._broker = MemoryBroker(schedule=lambda _delay_s, arrive: self._flying.append(arrive))
        self._coordinator = CoordinatorHost(disk=disk, broker=broker, reference=self.reference, rng=self._rng)
        self._devices = [
            DeviceHost(device_id=f"d{index}", broker=broker, reference=self.reference, rng=self._rng)
            for index in range(_NUM_DEVICES)
        ]
        self._coordinator.sent = self._remember
        self._coordinator.boot(0.0)
        for device in self._devices:
            device.sent = self._remember
            device.boot(0.0)

    @property
    def num_coordinator_restarts(self) -> int:
        """How often the coordinator has come back."""
        return self._coordinator.num_boots - 1

    def close(self) -> None:
        """Lets go of the disk."""
        self._coordinator.die(is_power_cut=True)

    # -- the network

    def deliver(self, pick: int) -> None:
        """The oldest messages arrive, in order."""
        for _ in range(min(1 + pick % 4, len(self._flying))):
            self._flying.pop(0)()

    def deliver_out_of_order(self, pick: int) -> None:
        """A message overtakes others."""
        if self._flying:
            self._flying.pop(pick % len(self._flying))()

    def duplicate(self, pick: int) -> None:
        """A message arrives, and will arrive again."""
        if self._flying:
            self._flying[pick % len(self._flying)]()

    def delay(self, pick: int) -> None:
        """A message falls behind all others."""
        if self._flying:
            self._flying.append(self._flying.pop(pick % len(self._flying)))

    def drop(self, pick: int) -> None:
        """A message is lost."""
        if self._flying:
            self._flying.pop(pick % len(self._flying))

    def lose_device_link(self, pick: int) -> None:
        """A device's connection breaks, with what was under way."""
        self._device(pick).link.lose("cut")

    def mend_device_link(self, pick: int) -> None:
        """A device that runs connects again."""
        device = self._device(pick)
        if device.agent is not None:
            device.link.start()

    def lose_coordinator_link(self, _pick: int) -> None:
        """The coordinator's connection breaks."""
        if self._coordinator.link is not None:
            self._coordinator.link.lose("cut")

    def mend_coordinator_link(self, _pick: int) -> None:
        """The coordinator connects again."""
        if self._coordinator.is_up and self._coordinator.link is not None:
            self._coordinator.link.start()

    # -- hostile messages

    def replay(self, pick: int) -> None:
        """A message of long ago arrives again."""
        topic, payload = self._recent(pick)
        self._broker.publish(topic, payload)

    def mutate(self, pick: int) -> None:
        """A copy of a message arrives with some bytes changed, cut or added."""
        topic, payload = self._recent(pick)
        at = (pick >> 12) % (len(payload) + 1)
        kept = at + (pick >> 30) % 3
        self._broker.publish(topic, payload[:at] + self._rng.randbytes(pick >> 8 & 3) + payload[kept:])

    def oversize(self, pick: int) -> None:
        """A message that is longer than any may be."""
        topic, payload = self._recent(pick)
        self._broker.publish(topic, payload + bytes(MAX_PIECE_BYTES + 1024))

    def forge(self, pick: int) -> None:
        """A device's report comes under another round, a nonce that nobody has, another's nonce, or another's topic."""
        reports = [known for known in self._history if known[0].endswith("/up/report")]
        if not reports:
            return
        topic, payload = reports[pick % len(reports)]
        device = self._device(pick >> 8)
        report = decode_message(payload, Report)
        round_id, nonce = report.round_id, report.nonce
        match (pick >> 16) % 4:
            case 0:
                round_id = max(1, round_id + (pick >> 20) % 3 - 1)
            case 1:
                nonce = self._rng.randbytes(16)
            case 2:
                nonce = self._rng.choice(list(self.reference.nonces))
                topic = device_up(POPULATION, device.device_id, "report")
            case _:
                topic = device_up(POPULATION, device.device_id, "report")
        self._broker.publish(topic, encode_message(msgspec.structs.replace(report, round_id=round_id, nonce=nonce)))

    def forge_withdrawal(self, pick: int) -> None:
        """Somebody gives back an assignment with a nonce that is not the device's."""
        nonces = list(self.reference.nonces.items())
        if nonces:
            nonce, (_, round_id) = nonces[pick % len(nonces)]
            device_id = self._device(pick >> 8).device_id
            if self.reference.nonces[nonce][0] != device_id:
                message = Withdrawal(round_id=round_id, nonce=nonce, reason=WithdrawalReason.DEADLINE)
                self._broker.publish(device_up(POPULATION, device_id, "withdrawal"), encode_message(message))

    # -- time and work

    def tick(self, pick: int) -> None:
        """Time passes."""
        self._advance((0.0, 0.3, 2.0, 10.0, 25.0, 60.0)[pick % 6])

    def tick_to_next(self, _pick: int) -> None:
        """Time passes until something is due."""
        self._advance(self._until_due())

    def job_finishes(self, pick: int) -> None:
        """A device that trains is done."""
        self._device(pick).end_job(is_failure=False)

    def job_fails(self, pick: int) -> None:
        """A device that trains cannot."""
        self._device(pick).end_job(is_failure=True)

    def coordinator_flushes(self, _pick: int) -> None:
        """The coordinator's group commit."""
        self._coordinator.tick(self.now)

    def aggregator_arrives(self, _pick: int) -> None:
        """The coordinator's aggregator, which may come later than the coordinator itself, is there."""
        self._coordinator.bring_aggregator()

    # -- machines that die

    def kill_device(self, pick: int) -> None:
        """A device's process ends."""
        self._device(pick).die()

    def doom_device(self, pick: int) -> None:
        """A device's process will end in the middle of what it does next."""
        self._device(pick).fuse.left = 1 + (pick >> 8) % 6

    def boot_device(self, pick: int) -> None:
        """A device comes back."""
        device = self._device(pick)
        if device.agent is None:
            device.boot(self.now)

    def fill_device_disk(self, pick: int) -> None:
        """A device's disk is full, or has room again."""
        device = self._device(pick)
        device.is_disk_full = not device.is_disk_full

    def kill_coordinator(self, _pick: int) -> None:
        """The coordinator's process ends."""
        self._coordinator.die(is_power_cut=False)

    def cut_power(self, _pick: int) -> None:
        """The coordinator's machine stops: what was not synced is gone."""
        self._coordinator.die(is_power_cut=True)

    def doom_coordinator(self, pick: int) -> None:
        """The coordinator's machine will stop in the middle of what it does next."""
        self._coordinator.fuse.left = 1 + pick % 12

    def fill_coordinator_disk(self, _pick: int) -> None:
        """The coordinator's next sync fails."""
        self._coordinator.fill_disk()

    def boot_coordinator(self, _pick: int) -> None:
        """The coordinator comes back."""
        if not self._coordinator.is_up:
            self._coordinator.boot(self.now)

    # -- liveness

    def calm(self, _pick: int) -> None:
        """Without faults, a training round commits within a bounded time.

        Raises:
            ProtocolMismatch: None does.
        """
        self._coordinator.fuse.left = None
        self.boot_coordinator(0)
        self.mend_coordinator_link(0)
        for index, device in enumerate(self._devices):
            device.fuse.left, device.is_disk_full = None, False
            self.boot_device(index)
            device.link.start()
        wanted, ends_at = self.reference.num_commits + 1, self.now + _LIVENESS_S
        while self.reference.num_commits < wanted:
            if self.now > ends_at:
                raise ProtocolMismatch(f"no round was committed in {_LIVENESS_S:.0f} calm seconds")
            while self._flying:
                self._flying.pop(0)()
                self.boot_coordinator(0)
            self._coordinator.bring_aggregator()
            for device in self._devices:
                device.end_job(is_failure=False)
            if not self._flying:
                self._coordinator.tick(self.now)
                self.boot_coordinator(0)
            if not self._flying:
                self._advance(max(0.05, self._until_due()))

    def _advance(self, seconds: float) -> None:
        self.now += seconds
        for device in self._devices:
            device.tick(self.now)
        self._coordinator.tick(self.now)

    def _until_due(self) -> float:
        due = [device.agent.next_wakeup() for device in self._devices if device.agent is not None]
        if self._coordinator.loop is not None:
            due.append(self._coordinator.loop.next_wakeup() or self.now)
        return min([60.0, *(max(0.0, at - self.now) for at in due)])

    def _device(self, pick: int) -> DeviceHost:
        return self._devices[pick % _NUM_DEVICES]

    def _remember(self, topic: str, payload: bytes) -> None:
        self._history.append((topic, payload))

    def _recent(self, pick: int) -> tuple[str, bytes]:
        return self._history[pick % len(self._history)]


Rule: TypeAlias = Callable[[ProtocolModel, int], None]

RULES: Final[Mapping[str, tuple[Rule, int]]] = {
    rule.__name__: (rule, weight)
    for rule, weight in (
        (ProtocolModel.deliver, 900),
        (ProtocolModel.deliver_out_of_order, 100),
        (ProtocolModel.duplicate, 30),
        (ProtocolModel.delay, 30),
        (ProtocolModel.drop, 20),
        (ProtocolModel.lose_device_link, 6),
        (ProtocolModel.mend_device_link, 30),
        (ProtocolModel.lose_coordinator_link, 3),
        (ProtocolModel.mend_coordinator_link, 30),
        (ProtocolModel.replay, 20),
        (ProtocolModel.mutate, 15),
        (ProtocolModel.oversize, 2),
        (ProtocolModel.forge, 12),
        (ProtocolModel.forge_withdrawal, 4),
        (ProtocolModel.tick, 40),
        (ProtocolModel.tick_to_next, 120),
        (ProtocolModel.job_finishes, 150),
        (ProtocolModel.job_fails, 6),
        (ProtocolModel.coordinator_flushes, 60),
        (ProtocolModel.aggregator_arrives, 4),
        (ProtocolModel.kill_device, 6),
        (ProtocolModel.doom_device, 8),
        (ProtocolModel.boot_device, 60),
        (ProtocolModel.fill_device_disk, 3),
        (ProtocolModel.kill_coordinator, 3),
        (ProtocolModel.cut_power, 3),
        (ProtocolModel.doom_coordinator, 8),
        (ProtocolModel.fill_coordinator_disk, 2),
        (ProtocolModel.boot_coordinator, 60),
    )
}
"""Name -> rule and how often a walk takes it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WalkReport:
    """What became of a walk."""

    seed: int
    steps: int
    rounds_committed: int
    """Training rounds."""
    rounds_opened: int
    rounds_abandoned: int
    updates_acknowledged: int
    coordinator_restarts: int
    max_error: float
    """Largest distance of a committed weight from the exact mean."""
    rules: Mapping[str, int]
    """How often each rule was taken."""
    mismatches: int
    first_mismatch: str


def walk(steps: int, *, seed: int, on_progress: Callable[[int], None] = lambda _: None) -> WalkReport:
    """Takes so many steps, with a calm after every thousand and at the end; stops at the first mismatch.

    Args:
        steps: How many.
        seed: The same seed takes the same walk.
        on_progress: Told of every thousandth step.
    """
    chooser = random.Random(seed)  # noqa: S311 - replayed, not secret
    names, weights = list(RULES), [weight for _, weight in RULES.values()]
    counts: collections.Counter[str] = collections.Counter()
    failure, step = "", 0
    shared_memory = Path("/dev/shm")  # noqa: S108 - a disk in memory: power cuts are modelled, not made
    place = shared_memory if shared_memory.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="flockwise-model-", dir=place) as disk:
        model = ProtocolModel(Path(disk), seed)
        try:
            for step, name in enumerate(_choices(chooser, names, weights, steps), 1):
                counts[name] += 1
                RULES[name][0](model, chooser.getrandbits(40))
                if step % _CALM_EVERY == 0 or step == steps:
                    counts["calm"] += 1
                    model.calm(0)
                    on_progress(step)
        except Exception as error:  # noqa: BLE001 - whatever a part raises here is a finding
            failure = f"step {step}: {type(error).__name__}: {error}"
        model.close()
    return WalkReport(
        seed=seed,
        steps=step,
        rounds_committed=model.reference.num_commits,
        rounds_opened=model.reference.last_round_id,
        rounds_abandoned=len(model.reference.abandoned),
        updates_acknowledged=len(model.reference.accepted),
        coordinator_restarts=model.num_coordinator_restarts,
        max_error=model.reference.max_error,
        rules=dict(sorted(counts.items())),
        mismatches=int(bool(failure)),
        first_mismatch=failure,
    )


def _choices(chooser: random.Random, names: list[str], weights: list[int], steps: int) -> Iterator[str]:
    totals = list(itertools.accumulate(weights))
    return (names[bisect.bisect(totals, chooser.random() * totals[-1])] for _ in range(steps))
