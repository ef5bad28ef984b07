"""Ten thousand devices that follow the release channel on a real broker, in one event loop.

Each has a connection of its own, and the mirror, the fetch and the rule of the daemon; each checks every piece by its hash.
What is not here: the disk (pieces are dropped once checked), the trial of a release, and python-tuf once per device:
devices that have heard the same files share one verification of them.
"""

import asyncio
import hashlib
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from broker_link.link import Incoming, LinkDown, LinkEvent, LinkUp
from edge_client.errors import ReleaseRefused
from edge_client.releases.fetch import ReleaseFetch
from edge_client.releases.mirror import ReleaseMirror
from edge_client.releases.trusted import TrustedReleases, VerifiedModel
from edge_client.releases.unpacking import cheapest
from edge_client.state_writer import StateWriter
from edge_client.time_floor import TimeFloor
from simulators.mqtt_client import LightLink
from wire_protocol.blobs import BlobRef, PieceCheck
from wire_protocol.messages import encode_message
from wire_protocol.release import wanted_release
from wire_protocol.release_report import ReleaseReport, ReleaseState
from wire_protocol.topics import device_up, release_file_filter

__all__ = ["PushedFleet", "times_to_shares"]

_QUIET_S: Final = 1.0
_CONNECTS_PER_S: Final = 400.0


class _CheckedPieces:
    """Which pieces of a blob have come, each checked; the bytes are not kept. A `PieceFile` without a file."""

    def __init__(self, ref: BlobRef) -> None:
        self.ref = ref
        self._pieces = PieceCheck(ref)
        self._missing = set(range(ref.num_pieces))

    @property
    def needs_list(self) -> bool:
        return not self._pieces.has_list

    @property
    def missing(self) -> list[int]:
        return sorted(self._missing)

    @property
    def is_complete(self) -> bool:
        return not self._missing

    def set_list(self, digests: bytes) -> None:
        self._pieces.set_list(digests)

    def add(self, index: int, data: bytes) -> bool:
        self._pieces.check(index, data)
        is_new = index in self._missing
        self._missing.discard(index)
        return is_new


class _SharedVerification:
    """python-tuf's verdict about a set of files, once for all devices that have heard them."""

    def __init__(self, directory: Path, root: bytes, model: str) -> None:
        self._directory = directory
        self._root = root
        self._model = model
        self._known: dict[bytes, VerifiedModel | None] = {}
        self._files: dict[bytes, bytes] = {}
        self.num_verified = 0

    def same(self, data: bytes) -> bytes:
        """One object for equal bytes: ten thousand mirrors of ten files are ten files."""
        return self._files.setdefault(data, data)

    def verify(self, mirror: ReleaseMirror) -> VerifiedModel | None:
        """The order and its manifests; None if the files are not (yet) whole."""
        names = sorted(mirror)
        digest = hashlib.sha256()
        for name in names:
            digest.update(name.encode() + b"\0" + hashlib.sha256(mirror.get(name) or b"").digest())
        key = digest.digest()
        if key not in self._known:
            self.num_verified += 1
            floor = TimeFloor(self._directory / "floor", writer=StateWriter())
            directory = self._directory / f"tuf-{self.num_verified}"
            trusted = TrustedReleases(directory, root=self._root, mirror=mirror, floor=floor)
            try:
                self._known[key] = trusted.refresh([self._model]).get(self._model)
            except ReleaseRefused:
                self._known[key] = None
        return self._known[key]


class _Device:
    """One device."""

    def __init__(self, fleet: "PushedFleet", device_id: str, dice: random.Random) -> None:
        self._fleet = fleet
        self._dice = dice
        self._mirror = ReleaseMirror()
        self._fetch: ReleaseFetch | None = None
        self._wanted = 0
        self._serial = 0
        self._quiet: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.device_id = device_id
        self.current = 0
        self.link = LightLink(
            host=fleet.host, port=fleet.port, client_id=device_id, subscriptions=[release_file_filter(fleet.population)],
            sink=self._on_event, uniform=dice.uniform,
        )  # fmt: skip

    def _on_event(self, event: LinkEvent) -> None:
        match event:
            case LinkUp():
                self._fleet.num_up += 1
            case LinkDown():
                self._fleet.num_up -= 1
            case Incoming(topic=topic, payload=payload) if "/release/" in topic:
                self._mirror.take(topic, self._fleet.verification.same(payload))
                if self._quiet is not None:
                    self._quiet.cancel()
                self._quiet = self._fleet.after(_QUIET_S, self._verify)
            case Incoming(topic=topic, payload=payload):
                self._fleet.num_bytes_received += len(payload)
                if self._fetch is not None:
                    self._fetch.take(topic, payload, time.monotonic())
                    self._go_on()

    def _verify(self) -> None:
        self._quiet = None
        model = self._fleet.verification.verify(self._mirror)
        if model is None or model.order.serial <= self._serial:
            return
        self._serial = model.order.serial
        wanted = wanted_release(model.order, self.device_id, frozenset())
        if wanted in {0, self.current} or model.order.is_paused:
            return
        manifest = model.manifests[wanted]
        packed = cheapest(manifest, has_base=lambda _: False)
        refs = (manifest.model if packed is None else packed.blob, manifest.golden.blob)
        self._wanted = wanted
        self._fetch = ReleaseFetch(
            population=self._fleet.population,
            files=[_CheckedPieces(ref) for ref in refs],
            uniform=self._dice.uniform,
        )
        self._go_on()

    def _go_on(self) -> None:
        fetch = self._fetch
        if fetch is None:
            return
        now = time.monotonic()
        fetch.tick(now)
        self.link.follow(fetch.topics)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not fetch.is_complete:
            wakeup = fetch.next_wakeup()
            if math.isfinite(wakeup):
                self._timer = self._fleet.after(max(0.01, wakeup - now), self._go_on)
            return
        self._fetch = None
        self.current = self._wanted
        self._fleet.num_repeated += fetch.num_repeated
        self._fleet.done_at[self.device_id] = now
        report = ReleaseReport(
            name=self._fleet.model,
            serial=self._serial,
            number=self.current,
            state=ReleaseState.SETTLED,
            current=self.current,
        )
        topic = device_up(self._fleet.population, self.device_id, "release-report")
        self.link.publish(topic, encode_message(report))


class PushedFleet:
    """The devices. Make it in a running event loop.

    Args:
        population: Its name.
        model: The model's.
        host: The broker's address.
        port: Its port.
        num_devices: How many.
        root: What they trust.
        scratch: For the shared verification.
        seed: Of waits and back-off.
    """

    def __init__(
        self,
        *,
        population: str,
        model: str,
        host: str,
        port: int,
        num_devices: int,
        root: bytes,
        scratch: Path,
        seed: int,
    ) -> None:
        self.population = population
        self.model = model
        self.host = host
        self.port = port
        self.verification = _SharedVerification(scratch, root, model)
        self.num_up = 0
        self.num_bytes_received = 0
        self.num_repeated = 0
        self.done_at: dict[str, float] = {}
        """Device -> monotonic time at which it had the release."""
        dice = random.Random(seed)  # noqa: S311 - waits, not secrets
        self.devices = [_Device(self, f"sim-{index}", random.Random(dice.random())) for index in range(num_devices)]  # noqa: S311

    def after(self, delay_s: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        """Calls later."""
        return asyncio.get_running_loop().call_later(delay_s, call)

    async def connect(self) -> None:
        """Connects everybody, not all in one instant."""
        for index, device in enumerate(self.devices):
            device.link.start()
            if index % 100 == 99:  # noqa: PLR2004 - a hundred at a time
                await asyncio.sleep(100 / _CONNECTS_PER_S)
        while self.num_up < len(self.devices):  # noqa: ASYNC110 - links come up and go down
            await asyncio.sleep(0.2)

    def stop(self) -> None:
        """Says goodbye."""
        for device in self.devices:
            device.link.stop()


def times_to_shares(done_at: Sequence[float], *, num_devices: int, began: float) -> dict[str, float]:
    """Seconds until half, 95 % and 99 % of a fleet were done; infinity if so many never were."""
    times = sorted(moment - began for moment in done_at)
    found: dict[str, float] = {}
    for share in (0.5, 0.95, 0.99):
        needed = math.ceil(share * num_devices)
        found[f"{share:.0%}"] = times[needed - 1] if len(times) >= needed else math.inf
    return found
