"""A release channel with real keys, a device that trusts its root, and a broker that says whatever it is told to."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.releases.repository import ReleaseRepository
from coordinator.releases.signing_keys import KeyFiles
from edge_client.releases.mirror import ReleaseMirror
from edge_client.releases.trusted import TrustedReleases, VerifiedModel
from edge_client.state_writer import StateWriter
from edge_client.time_floor import RELEASED_AT, TimeFloor
from wire_protocol.blobs import SplitBlob, split_blob
from wire_protocol.release import GoldenBatch, ModelTensor, ReleaseManifest, ReleaseNeeds, RolloutOrder
from wire_protocol.topics import release_file

DAY_S = 86400.0
GOLDEN = split_blob(b"golden" * 20)


def model_blob(number: int) -> SplitBlob:
    return split_blob(f"model {number} ".encode() * 30_000)


def make_manifest(number: int, *, name: str = "digits") -> ReleaseManifest:
    return ReleaseManifest(
        name=name,
        number=number,
        model=model_blob(number).ref,
        input=ModelTensor(shape=(8, 8, 1), dtype="float32"),
        output=ModelTensor(shape=(10,), dtype="float32"),
        golden=GoldenBatch(blob=GOLDEN.ref, num_examples=8, max_abs_error=1e-3, min_agreement=0.9, max_latency_ms=50.0),
        needs=ReleaseNeeds(min_runtime="2.1.0", min_memory_mb=64),
    )


def make_order(serial: int, *, baseline: int, candidate: int = 0, permille: int = 0) -> RolloutOrder:
    return RolloutOrder(
        name="digits", serial=serial, baseline=baseline, candidate=candidate, permille=permille, salt="a-salt-of-it"
    )


@dataclasses.dataclass
class Clock:
    """Seconds since 1970 for everybody who asks."""

    now: float = RELEASED_AT + 30 * DAY_S

    def __call__(self) -> float:
        return self.now


@dataclasses.dataclass
class Channel:
    """The owner's side, and what the broker retains of it."""

    clock: Clock
    directory: Path

    def __post_init__(self) -> None:
        self.keys = KeyFiles(self.directory / "keys")
        self.repository = ReleaseRepository.create(self.directory / "channel", self.keys, now=self.clock)
        self.first_root = self.repository.root_bytes

    def release(self, number: int) -> None:
        self.repository.add_release(make_manifest(number), [model_blob(number).data, GOLDEN.data])

    def files(self) -> dict[str, bytes]:
        return self.repository.files()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def channel(tmp_path: Path, clock: Clock) -> Channel:
    made = Channel(clock=clock, directory=tmp_path / "owner")
    made.release(1)
    made.repository.set_order(make_order(1, baseline=1))
    return made


@dataclasses.dataclass
class Device:
    """A device that hears what it is told."""

    directory: Path
    root: bytes
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self.mirror = ReleaseMirror()
        self.floor = TimeFloor(self.directory / "floor", writer=StateWriter(), clock=self.clock)
        self.trusted = TrustedReleases(self.directory / "tuf", root=self.root, mirror=self.mirror, floor=self.floor)

    def hear(self, files: dict[str, bytes]) -> None:
        """The broker's retained messages are these and no others."""
        for name in [*self.mirror]:
            if name not in files:
                self.mirror.take(release_file("digits", name), b"")
        for name, data in files.items():
            self.mirror.take(release_file("digits", name), data)

    def refresh(self, files: dict[str, bytes]) -> VerifiedModel:
        """Hears these files and verifies them."""
        self.hear(files)
        return self.trusted.refresh(["digits"])["digits"]

    def restart(self) -> None:
        """As after a power cut: memory is gone, the disk is there."""
        self.__post_init__()


@pytest.fixture
def device(tmp_path: Path, channel: Channel, clock: Clock) -> Device:
    return Device(directory=tmp_path / "device", root=channel.first_root, clock=clock)
