"""The daemon's part that follows releases: made from the configuration, or nothing at all."""

import importlib.metadata
import math
import platform
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

import psutil

from broker_link.link import BrokerLink, Incoming, LinkDown, LinkEvent, LinkUp
from edge_client.channel import DeviceChannel
from edge_client.config import EdgeConfig
from edge_client.errors import ConfigError
from edge_client.events import Publish
from edge_client.releases.agent import ReleaseAgent
from edge_client.releases.compatibility import DeviceFacts
from edge_client.releases.follower import ReleaseFollower
from edge_client.releases.health_check import HealthCheck
from edge_client.releases.mirror import ReleaseMirror
from edge_client.releases.settings import ReleaseSettings
from edge_client.releases.slots import ModelSlots
from edge_client.releases.trusted import TrustedReleases
from edge_client.state_dir import StateDir
from edge_client.state_writer import StateWriter
from edge_client.time_floor import TimeFloor

__all__ = ["ReleasePart", "device_facts", "make_release_part"]

_MEGABYTE: Final = 1 << 20
_KIBIBYTE: Final = 1024.0
_MINUTE_S: Final = 60.0
_MAX_ROOT_BYTES: Final = 64 * 1024


class ReleasePart(Protocol):
    """What the daemon calls in every turn of its loop."""

    def next_wakeup(self) -> float:
        """When ``turn`` is due at the latest, in monotonic seconds."""

    def handle(self, event: LinkEvent, now: float) -> bool:
        """Takes an event; says whether it was for releases alone."""

    def turn(self, link: BrokerLink, channel: DeviceChannel, now: float) -> Iterable[Publish]:
        """Does what is due; returns what to publish."""

    def stop(self) -> None:
        """Ends what runs."""


class _NoReleases:
    """A device without pushed models."""

    def next_wakeup(self) -> float:
        return math.inf

    def handle(self, event: LinkEvent, now: float) -> bool:
        del event, now
        return False

    def turn(self, link: BrokerLink, channel: DeviceChannel, now: float) -> Iterable[Publish]:
        del link, channel, now
        return ()

    def stop(self) -> None:
        pass


class _Following:
    """A device that follows the release channel."""

    def __init__(self, follower: ReleaseFollower) -> None:
        self._follower = follower
        self._filters: frozenset[str] = frozenset()

    def next_wakeup(self) -> float:
        return self._follower.next_wakeup()

    def handle(self, event: LinkEvent, now: float) -> bool:
        return isinstance(event, Incoming | LinkUp | LinkDown) and self._follower.handle(event, now)

    def turn(self, link: BrokerLink, channel: DeviceChannel, now: float) -> Iterable[Publish]:
        self._follower.tick(now)
        filters = self._follower.filters
        if filters != self._filters:
            self._filters = filters
            link.follow(filters)
        return [channel.publish(report) for report in self._follower.pop_reports()]

    def stop(self) -> None:
        self._follower.stop()


def make_release_part(
    config: EdgeConfig, *, state_dir: StateDir, device_id: str, writer: StateWriter, time_floor: TimeFloor
) -> ReleasePart:
    """Makes what follows the configured models.

    Raises:
        ConfigError: The root file cannot be read.
        ReleaseRefused: It holds no usable root.
        StorageError: The state directory cannot be used.
    """
    section = config.releases
    if not section.models:
        return _NoReleases()
    mirror = ReleaseMirror()
    trusted = TrustedReleases(
        state_dir.release_metadata, root=_read_root(Path(section.root_file)), mirror=mirror, floor=time_floor
    )
    settings = ReleaseSettings(
        trial_s=section.trial_min * _MINUTE_S, max_bytes_per_s=section.max_kib_per_s * _KIBIBYTE or math.inf
    )
    agents = [
        ReleaseAgent(
            population=config.device.population,
            device_id=device_id,
            name=name,
            facts=device_facts(section.tags),
            slots=ModelSlots(state_dir.models / name, writer=writer),
            checks=HealthCheck(
                num_threads=section.num_threads,
                time_limit_s=section.check_time_limit_s,
                memory_limit_mb=section.check_memory_limit_mb,
            ),
            uniform=random.SystemRandom().uniform,
            settings=settings,
        )
        for name in section.models
    ]
    return _Following(
        ReleaseFollower(population=config.device.population, mirror=mirror, trusted=trusted, agents=agents)
    )


def device_facts(tags: Iterable[str]) -> DeviceFacts:
    """What this machine is."""
    try:
        runtime = importlib.metadata.version("ai-edge-litert")
    except importlib.metadata.PackageNotFoundError:
        runtime = "0"
    return DeviceFacts(
        runtime_version=runtime,
        memory_mb=psutil.virtual_memory().total / _MEGABYTE,
        tags=frozenset({platform.machine(), *tags}),
    )


def _read_root(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_ROOT_BYTES)
    except OSError as error:
        raise ConfigError(f"releases.root_file = {str(path)!r} cannot be read: {error}") from error
