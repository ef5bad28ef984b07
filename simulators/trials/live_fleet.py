"""A thousand real device agents in one event loop, on a real broker and in real time.

Each is the `DeviceAgent` of the daemon behind a `LightLink`, with blobs in memory. What is not here: the daemon's outbox
on disk and its trainer child; training is the exact linear trainer in this process, after a wait that stands for a
device's slowness.
"""

import asyncio
import collections
import math
import os
import random
import time
from collections.abc import Callable

import numpy as np

from broker_link.link import LinkDown, LinkEvent, LinkUp
from edge_client.agent import DeviceAgent
from edge_client.counts import RoundEnding
from edge_client.events import DeviceEvent, Publish, SaveBlob, StartJob, StopJob, Tick, TrainingFinished
from edge_client.linear_trainer import LinearTrainer
from edge_client.settings import AgentSettings
from edge_client.training import ArrayExamples, TrainingJob
from simulators.mqtt_client import LightLink

__all__ = ["LiveDevice", "LiveFleet"]

_EXAMPLES = 2


class LiveDevice:
    """One device: agent, link, timer, examples."""

    def __init__(self, fleet: "LiveFleet", device_id: str, dice: random.Random) -> None:
        self._fleet = fleet
        self._dice = dice
        self._blobs: dict[bytes, bytes] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._job: TrainingJob | None = None
        self._rng = np.random.default_rng(dice.getrandbits(32))
        self.device_id = device_id
        self.agent = DeviceAgent(
            population=fleet.population,
            device_id=device_id,
            blobs=self,
            uniform=dice.uniform,
            token=lambda: os.urandom(16),
            settings=fleet.settings,
        )
        channel = self.agent.channel
        self.link = LightLink(
            host=fleet.host,
            port=fleet.port,
            client_id=device_id,
            subscriptions=channel.subscriptions,
            sink=self._on_link_event,
            uniform=dice.uniform,
            will=channel.will,
        )

    def get(self, sha256: bytes) -> bytes | None:
        """A blob, if it is here."""
        return self._blobs.get(sha256)

    def handle(self, event: DeviceEvent) -> None:
        """Gives the agent an event and does what it asks."""
        before = self.agent.last_outcome
        for action in self.agent.handle(event, time.monotonic()):
            match action:
                case Publish():
                    self.link.publish(action.topic, action.payload, retain=action.retain)
                case SaveBlob():
                    self._blobs[action.sha256] = self._fleet.shared(action.sha256, action.data)
                case StartJob():
                    self._job = action.job
                    self._fleet.after(self._fleet.training_s(self._dice), lambda job=action.job: self._train(job))  # type: ignore[misc]
                case StopJob():
                    self._job = None
        outcome = self.agent.last_outcome
        if outcome is not before and outcome is not None and outcome.ending is RoundEnding.ACCEPTED:
            self._fleet.acknowledged.add((outcome.round_id, self.device_id))
        self._set_timer()

    def _on_link_event(self, event: LinkEvent) -> None:
        if isinstance(event, LinkUp):
            self._fleet.note_up(self.device_id)
        elif isinstance(event, LinkDown):
            self._fleet.note_down(self.device_id)
        self.handle(event)

    def _train(self, job: TrainingJob) -> None:
        if self._job is not job:
            return
        self._job = None
        x = self._rng.random((_EXAMPLES, *job.plan.input_shape), np.float32)
        y = self._rng.integers(job.plan.num_classes, size=_EXAMPLES).astype(np.int32)
        self.handle(TrainingFinished(round_id=job.round_id, result=LinearTrainer().train(job, ArrayExamples(x=x, y=y))))

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wakeup = self.agent.next_wakeup()
        if wakeup < math.inf:
            self._timer = self._fleet.after(max(0.0, wakeup - time.monotonic()), lambda: self.handle(Tick()))


class LiveFleet:
    """The devices. Make it in a running event loop.

    Args:
        population: Its name.
        host: The broker's address.
        port: Its port.
        num_devices: How many.
        training_s: Shortest and longest time that training takes.
        seed: Seeds waits, back-off and examples; the network and the clock are real, so that a run does not replay.
        settings: The devices' patience; the daemon's own if None.
    """

    def __init__(
        self,
        *,
        population: str,
        host: str,
        port: int,
        num_devices: int,
        training_s: tuple[float, float],
        seed: int,
        settings: AgentSettings | None = None,
    ) -> None:
        self.settings = settings
        self.population = population
        self.host = host
        self.port = port
        self._training_s = training_s
        self._canonical: collections.OrderedDict[bytes, bytes] = collections.OrderedDict()
        self.acknowledged: set[tuple[int, str]] = set()
        """(round, device) of every report that a device was told was accepted."""
        self.up: set[str] = set()
        """Devices whose link is up."""
        self.up_times: list[float] = []
        """When links came up, on the monotonic clock."""
        dice = random.Random(seed)  # noqa: S311 - a bench, nothing secret
        self.devices = [
            LiveDevice(self, f"device-{index:04d}", random.Random(dice.getrandbits(64)))  # noqa: S311
            for index in range(num_devices)
        ]

    def start(self) -> None:
        """Switches every device on."""
        for device in self.devices:
            device.link.start()

    def stop(self) -> None:
        """Switches every device off."""
        for device in self.devices:
            device.link.stop()

    def after(self, delay_s: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        """Calls something later."""
        return asyncio.get_running_loop().call_later(delay_s, call)

    def training_s(self, dice: random.Random) -> float:
        """How long a job takes."""
        return dice.uniform(*self._training_s)

    def shared(self, sha256: bytes, data: bytes) -> bytes:
        """One copy of a blob for all devices."""
        shared = self._canonical.setdefault(sha256, data)
        while len(self._canonical) > 16:  # noqa: PLR2004 - a few rounds' blobs
            self._canonical.popitem(last=False)
        return shared

    def note_up(self, device_id: str) -> None:
        """A link came up."""
        self.up.add(device_id)
        self.up_times.append(time.monotonic())

    def note_down(self, device_id: str) -> None:
        """A link went down."""
        self.up.discard(device_id)
