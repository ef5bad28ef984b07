"""Who is out there: devices waiting for work, who is online, and when to come back (pace steering)."""

import collections
import dataclasses
import random
from collections.abc import Mapping

from coordinator.round_policy import RoundPolicy
from wire_protocol.messages import DeviceHealth, DeviceMode

__all__ = ["Population", "Waiting"]

_LONGEST_RETRY_S = 86_400.0
"""No device is sent away for longer, and the message has a limit too."""
_MAX_KNOWN = 1_000_000
"""Device ids remembered for pacing: bounds what made-up ids on an open broker can cost (about 100 MB)."""
_MAX_HEALTHS = 100_000
"""Devices whose last health message is kept (at most some 60 MB); those not heard for longest are forgotten."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """A device that has checked in and has not been answered."""

    device_id: str
    check_in: bytes
    """The check-in's nonce."""
    since: float


class Population:
    """Devices that wait for the next cohort, at most ``policy.max_waiting`` of them, and those known to be online.

    Those who rest wait beside the others and take nobody's place; they are at most the cohorts of the last rounds. A device may check in again (a new nonce, or the same one repeated): it waits once, under its newest nonce.
    """

    def __init__(self, policy: RoundPolicy) -> None:
        self._policy = policy
        self._waiting: dict[str, Waiting] = {}
        self._online: set[str] = set()
        self._known: set[str] = set()
        self._resting: frozenset[str] = frozenset()
        self._waiting_at_rest: dict[str, Waiting] = {}
        self._healths: dict[str, DeviceHealth] = {}
        self._num_by_mode: collections.Counter[DeviceMode] = collections.Counter()

    @property
    def num_waiting(self) -> int:
        """Devices waiting for an assignment, those who rest included."""
        return len(self._waiting) + len(self._waiting_at_rest)

    @property
    def num_online(self) -> int:
        """Devices whose last presence message said online."""
        return len(self._online)

    @property
    def num_known(self) -> int:
        """Devices ever heard of since the start."""
        return len(self._known)

    def note_presence(self, device_id: str, *, is_online: bool) -> None:
        """Takes a presence message; a device that went offline no longer waits."""
        self._remember(device_id)
        if is_online and device_id in self._known:
            self._online.add(device_id)
        else:
            self._online.discard(device_id)
            self._waiting.pop(device_id, None)
            self._waiting_at_rest.pop(device_id, None)

    def note_health(self, device_id: str, health: DeviceHealth) -> None:
        """Keeps what a device said about itself, in the place of what it said before. It changes no cohort."""
        self._remember(device_id)
        self._forget_health(device_id)
        if len(self._healths) >= _MAX_HEALTHS:
            self._forget_health(next(iter(self._healths)))
        self._healths[device_id] = health
        self._num_by_mode[health.mode] += 1

    def health(self, device_id: str) -> DeviceHealth | None:
        """What a device said about itself last; None if it has said nothing, or too long ago."""
        return self._healths.get(device_id)

    @property
    def num_by_mode(self) -> Mapping[DeviceMode, int]:
        """How many devices said last that they are in each mode; only those whose message is kept."""
        return {mode: self._num_by_mode[mode] for mode in DeviceMode}

    def _forget_health(self, device_id: str) -> None:
        health = self._healths.pop(device_id, None)
        if health is not None:
            self._num_by_mode[health.mode] -= 1

    def enqueue(self, device_id: str, check_in: bytes, *, now: float) -> bool:
        """Lets a device wait for the next cohort.

        Returns:
            Whether there was room; if not, the device is to be refused.
        """
        self._remember(device_id)
        waiting = Waiting(device_id=device_id, check_in=check_in, since=now)
        if device_id in self._resting:
            self._waiting_at_rest[device_id] = waiting
            return True
        if device_id not in self._waiting and len(self._waiting) >= self._policy.max_waiting:
            return False
        self._waiting[device_id] = waiting
        return True

    def rest(self, device_ids: frozenset[str]) -> None:
        """Lets these devices wait, and nobody else: they are not drawn until the next call."""
        if not device_ids and not self._resting:
            return
        everybody = self._waiting | self._waiting_at_rest
        self._resting = device_ids
        self._waiting = {known: waiting for known, waiting in everybody.items() if known not in device_ids}
        self._waiting_at_rest = {known: waiting for known, waiting in everybody.items() if known in device_ids}

    def draw_cohort(self, size: int, *, rng: random.Random, only: frozenset[str] | None = None) -> list[Waiting]:
        """Removes a uniformly random sample of waiting devices.

        Args:
            size: At most this many.
            rng: The operating system's randomness in production, a seeded one in simulations.
            only: If given, draw from these devices only.
        """
        eligible = [waiting for device, waiting in sorted(self._waiting.items()) if only is None or device in only]
        drawn = rng.sample(eligible, min(size, len(eligible)))
        for waiting in drawn:
            del self._waiting[waiting.device_id]
        return drawn

    def num_eligible(self, only: frozenset[str] | None) -> int:
        """Waiting devices that do not rest, of those in ``only`` if given."""
        return len(self._waiting) if only is None else len(self._waiting.keys() & only)

    def _remember(self, device_id: str) -> None:
        if len(self._known) < _MAX_KNOWN:
            self._known.add(device_id)

    def drain(self) -> list[Waiting]:
        """Removes and returns everyone that waits (to refuse them)."""
        waiting = [*self._waiting.values(), *self._waiting_at_rest.values()]
        self._waiting.clear()
        self._waiting_at_rest.clear()
        return waiting

    def retry_window_s(self, *, wanted_in_s: float) -> tuple[float, float]:
        """The window in which a refused device is to come back.

        Args:
            wanted_in_s: Seconds until devices will be wanted again.

        Returns:
            (min, max) in seconds. The window widens with the number of devices known, so that a large population
            does not come back all at once: about ``max_waiting`` devices per ``wanted_in_s``, up to a day.
        """
        base_s = min(max(1.0, wanted_in_s), _LONGEST_RETRY_S)
        crowd = max(1.0, self.num_known / self._policy.max_waiting)
        return base_s, min(base_s * self._policy.retry_spread * crowd, _LONGEST_RETRY_S)
